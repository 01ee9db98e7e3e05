"""Centroids and spreads of clusters, as labelled, relabelled and resampled, and the indices made of them."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.metrics.cluster_pairs import Grouped, exact_squares


class Moments(NamedTuple):
    """What Davies-Bouldin, Calinski-Harabasz and Xie-Beni are made of; float64.

    Attributes:
        counts: points of each cluster.
        spreads: mean distance to the centroid.
        squares: sum of squared distances to it.
        gaps: squared distances between centroids.
    """

    counts: Float[Tensor, "draw cluster"]
    spreads: Float[Tensor, "draw cluster"]
    squares: Float[Tensor, "draw cluster"]
    gaps: Float[Tensor, "draw cluster cluster"]

    @property
    def whole(self) -> Tensor:
        """Draws in which no cluster is empty, [draw]."""
        return (self.counts > 0).all(dim=-1)

    @property
    def n(self) -> Tensor:
        """Number of points, [draw]."""
        return self.counts.sum(dim=-1)

    @property
    def least_gap(self) -> Tensor:
        """Least squared distance of two centroids, [draw]."""
        return self._between(torch.inf).amin(dim=(-2, -1))

    def _between(self, diagonal: float) -> Tensor:
        own = torch.eye(self.gaps.shape[-1], dtype=torch.bool, device=self.gaps.device)
        return self.gaps.masked_fill(own, diagonal)

    def davies_bouldin(self) -> Tensor:
        """See ``clusters.davies_bouldin``."""
        pairs = (self.spreads[..., :, None] + self.spreads[..., None, :]) / self._between(torch.inf).sqrt()
        pairs = torch.where(self._between(torch.inf) == 0, torch.inf, pairs)
        return pairs.amax(dim=-1).mean(dim=-1)

    def calinski_harabasz(self) -> Tensor:
        """See ``clusters.calinski_harabasz``."""
        clusters = self.counts.shape[-1]
        weights = self.counts[..., :, None] * self.counts[..., None, :]
        between = (weights * self.gaps).sum(dim=(-2, -1)) / (2 * self.n)
        return between / (clusters - 1) / (self.squares.sum(dim=-1) / (self.n - clusters))

    def xie_beni(self) -> Tensor:
        """See ``clusters.xie_beni``."""
        return self.squares.sum(dim=-1) / (self.n * self.least_gap)


def moments(grouped: Grouped, centroids: list[Float[Tensor, " width"]]) -> Moments:
    """Of the clusters as they are: one draw."""
    spreads, squares = [], []
    for cluster, (centroid, count) in enumerate(zip(centroids, grouped.counts, strict=True)):
        parts = [(grouped.rows(*block) - centroid).square().sum(dim=1) for block in grouped.blocks(cluster)]
        squared = torch.cat(parts)
        spreads.append(squared.sqrt().sum() / count)
        squares.append(squared.sum())
    device = grouped.points.device
    counts = torch.tensor(grouped.counts, dtype=torch.float64, device=device)
    gaps = _gaps(torch.stack(centroids)[:, None])
    return Moments(counts[None], torch.stack(spreads)[None], torch.stack(squares)[None], gaps)


def relabelled_moments(
    grouped: Grouped, centroids: list[Float[Tensor, " width"]], codes: Int[Tensor, "n draw"]
) -> Moments:
    """Of the clusters that other labels make.

    The points are centred by their mean, which no labelling changes, so the last centroid follows from the others.

    Args:
        grouped: the points.
        centroids: of the clusters as they are.
        codes: cluster of every position in each draw.
    """
    n, draws = codes.shape
    center = torch.stack([c * count for c, count in zip(centroids, grouped.counts, strict=True)]).sum(dim=0) / n
    clusters, device = grouped.clusters, grouped.points.device
    blocks = list(grouped.blocks())
    counts = torch.stack([(codes == cluster).sum(dim=0) for cluster in range(clusters)]).double()
    sums = torch.zeros((clusters, draws, len(center)), dtype=torch.float64, device=device)
    for start, stop in blocks:
        x = (grouped.rows(start, stop) - center).float()
        for cluster in range(clusters - 1):
            sums[cluster] += (codes[start:stop] == cluster).float().T @ x
    sums[-1] = -sums[:-1].sum(dim=0)
    means = sums / counts.clamp_min(1)[:, :, None]
    lengths = means.square().sum(dim=2)
    ways = means.float()
    spreads, squares = torch.zeros_like(counts), torch.zeros_like(counts)
    for start, stop in blocks:
        x = (grouped.rows(start, stop) - center).float()
        length = x.square().sum(dim=1, keepdim=True)
        along = torch.zeros((stop - start, draws), device=device)
        for cluster in range(clusters):
            last = cluster == clusters - 1
            own = -along / counts[cluster].clamp_min(1).float() if last else x @ ways[cluster].T
            along += own * counts[cluster].float()
            squared = (length - 2 * own + lengths[cluster].float()).clamp_min_(0)
            squared *= codes[start:stop] == cluster
            squares[cluster] += squared.sum(dim=0)
            spreads[cluster] += squared.sqrt_().sum(dim=0)
    return Moments(counts.T, (spreads / counts.clamp_min(1)).T, squares.T, _gaps(means))


def resampled_moments(
    grouped: Grouped, centroids: list[Float[Tensor, " width"]], weights: Float[Tensor, "n draw"]
) -> Moments:
    """Of the same clusters when every position counts as often as a resample says."""
    counts, spreads, squares, means = [], [], [], []
    for cluster, centroid in enumerate(centroids):
        start, stop = grouped.ranges[cluster]
        count = weights[start:stop].sum(dim=0).double()
        blocks = list(grouped.blocks(cluster))
        total = torch.zeros((weights.shape[1], len(centroid)), dtype=torch.float64, device=weights.device)
        for a, b in blocks:
            total += weights[a:b].T @ (grouped.rows(a, b) - centroid).float()
        shift = total / count.clamp_min(1)[:, None]
        spread, square = torch.zeros_like(count), torch.zeros_like(count)
        for a, b in blocks:
            x = (grouped.rows(a, b) - centroid).float()
            squared = (
                x.square().sum(dim=1, keepdim=True) - 2 * (x @ shift.float().T) + shift.square().sum(dim=1).float()
            )
            squared.clamp_min_(0)
            square += (weights[a:b] * squared).sum(dim=0)
            spread += (weights[a:b] * squared.sqrt_()).sum(dim=0)
        counts.append(count)
        spreads.append(spread / count.clamp_min(1))
        squares.append(square)
        means.append(centroid + shift)
    return Moments(
        torch.stack(counts, dim=-1),
        torch.stack(spreads, dim=-1),
        torch.stack(squares, dim=-1),
        _gaps(torch.stack(means)),
    )


def _gaps(means: Float[Tensor, "cluster draw width"]) -> Float[Tensor, "draw cluster cluster"]:
    """Squared distances between the centroids of each draw, from differences."""
    own = means.transpose(0, 1)
    return exact_squares(own, own)
