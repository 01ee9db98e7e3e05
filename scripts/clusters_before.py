"""Cluster indices in the plain form that ``bench_clusters.py`` times the present one against.

Tiles are gathered anew and multiplied in float64, labels are selected by booleans, every pair of a tile is looked at
for the lists of extremes, and moments are made of float32 points that are gathered and centred for every part of the
draws. The results are the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from probing.metrics.clusters import distance_sums, draws, extremes, tiles
from probing.metrics.clusters.extremes import Extremes
from probing.metrics.clusters.grouped import TILE_ROWS, Grouped
from probing.metrics.clusters.moments import Moments, centroid_gaps
from probing.metrics.clusters.tiles import Tile, squares_in_float64


@contextmanager
def before() -> Iterator[None]:
    """``measure_clusters`` in the plain form."""
    parts: list[tuple[Any, str, Any]] = [
        (tiles, "squares", squares_in_float64),
        (draws, "silhouette_coefficients", silhouette_coefficients),
        (distance_sums, "silhouette_coefficients", silhouette_coefficients),
        (distance_sums, "members", members),
        (distance_sums, "CACHED", {"cpu": 4 * TILE_ROWS * 1000}),
        (draws, "moments_of_relabelings", moments_of_relabelings),
        (draws, "moments_of_resamples", moments_of_resamples),
        (extremes, "FIRST_PAIRS", extremes.PAIRS_AT_ONCE),
        (Extremes, "add", add),
    ]
    patches = [mock.patch.object(*part) for part in parts]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def members(codes: Tensor, cluster: int, dtype: torch.dtype) -> Tensor:
    """As ``grouped.members``."""
    return (codes == cluster).to(dtype)


def silhouette_coefficients(sums: list[Tensor], sizes: list[Tensor], own: Tensor, copies: Tensor) -> Tensor:
    """As ``indices.silhouette_coefficients``."""
    within = torch.zeros_like(sums[0])
    nearest = torch.full_like(sums[0], torch.inf)
    for cluster, (total, size) in enumerate(zip(sums, sizes, strict=True)):
        mine = own == cluster
        others = size - copies
        within = torch.where(mine, torch.where(others > 0, total / others.clamp_min(1), torch.nan), within)
        mean = torch.where(size > 0, total / size.clamp_min(1), torch.inf)
        nearest = torch.where(mine, nearest, torch.minimum(nearest, mean))
    found = (nearest - within) / torch.maximum(nearest, within)
    return found.nan_to_num(0.0)


def moments_of_relabelings(grouped: Grouped, codes: Tensor) -> Moments:
    """As ``moments.moments_of_relabelings``."""
    draws, clusters = codes.shape[1], grouped.clusters
    blocks, center = list(grouped.blocks()), grouped.middle
    counts = torch.stack([(codes == cluster).sum(dim=0) for cluster in range(clusters)]).double()
    sums = torch.zeros((clusters, draws, len(center)), dtype=torch.float64)
    for start, stop in blocks:
        x = (grouped.rows(start, stop) - center).float()
        for cluster in range(clusters - 1):
            sums[cluster] += (codes[start:stop] == cluster).float().T @ x
    sums[-1] = -sums[:-1].sum(dim=0)
    means = sums / counts.clamp_min(1)[:, :, None]
    lengths, ways = means.square().sum(dim=2), means.float()
    spreads, squares = torch.zeros_like(counts), torch.zeros_like(counts)
    for start, stop in blocks:
        x = (grouped.rows(start, stop) - center).float()
        length = x.square().sum(dim=1, keepdim=True)
        along = torch.zeros((stop - start, draws))
        for cluster in range(clusters):
            last = cluster == clusters - 1
            own = -along / counts[cluster].clamp_min(1).float() if last else x @ ways[cluster].T
            along += own * counts[cluster].float()
            squared = (length - 2 * own + lengths[cluster].float()).clamp_min_(0)
            squared *= codes[start:stop] == cluster
            squares[cluster] += squared.sum(dim=0)
            spreads[cluster] += squared.sqrt_().sum(dim=0)
    return Moments(counts.T, (spreads / counts.clamp_min(1)).T, squares.T, centroid_gaps(means))


def moments_of_resamples(grouped: Grouped, weights: Tensor) -> Moments:
    """As ``moments.moments_of_resamples``."""
    found: list[list[Tensor]] = [[], [], []]
    means = []
    for cluster, centroid in enumerate(grouped.centroids):
        start, stop = grouped.ranges[cluster]
        count = weights[start:stop].sum(dim=0).double()
        total = torch.zeros((weights.shape[1], len(centroid)), dtype=torch.float64)
        for a, b in grouped.blocks(cluster):
            total += weights[a:b].T @ (grouped.rows(a, b) - centroid).float()
        shift = total / count.clamp_min(1)[:, None]
        spread, square = torch.zeros_like(count), torch.zeros_like(count)
        for a, b in grouped.blocks(cluster):
            x = (grouped.rows(a, b) - centroid).float()
            length = shift.square().sum(dim=1).float()
            squared = x.square().sum(dim=1, keepdim=True) - 2 * (x @ shift.float().T) + length
            squared.clamp_min_(0)
            square += (weights[a:b] * squared).sum(dim=0)
            spread += (weights[a:b] * squared.sqrt_()).sum(dim=0)
        for some, value in zip(found, (count, spread / count.clamp_min(1), square), strict=True):
            some.append(value)
        means.append(centroid + shift)
    counts, spreads, squares = (torch.stack(some, dim=-1) for some in found)
    return Moments(counts, spreads, squares, centroid_gaps(torch.stack(means)))


def add(self: Extremes, tile: Tile, codes: Tensor) -> None:
    """As ``Extremes.add``."""
    apart = tile.clusters is not None and self.which != "all"
    if apart and (self.which == "within") != (len(set(tile.clusters or ())) == 1):
        return
    nothing = -torch.inf if self.farthest else torch.inf
    squared = tile.squared
    if tile.diagonal:
        squared = torch.where(torch.ones_like(squared, dtype=torch.bool).triu_(1), squared, nothing)
    if tile.clusters is None and self.which != "all":
        same = codes[slice(*tile.rows), None] == codes[slice(*tile.columns)]
        squared = torch.where(same == (self.which == "within"), squared, nothing)
    flat = squared.flatten()
    self.seen += int(flat.isfinite().sum()) if squared is not tile.squared else len(flat)
    if len(self.values) == self.size:
        last = self.values.min() if self.farthest else self.values.max()
        found = (flat > last if self.farthest else flat < last).nonzero()[:, 0]
    else:
        found = flat.isfinite().nonzero()[:, 0]
    if len(found) > self.size:
        found = found[flat[found].topk(self.size, largest=self.farthest).indices]
    width = squared.shape[1]
    pairs = torch.stack((found // width + tile.rows[0], found % width + tile.columns[0]), dim=1)
    self.values = torch.cat((self.values.to(flat), flat[found]))
    self.pairs = torch.cat((self.pairs.to(pairs.device), pairs))
    if len(self.values) > self.size:
        best = self.values.topk(self.size, largest=self.farthest).indices
        self.values, self.pairs = self.values[best], self.pairs[best]
