"""Sizes, spreads and centroids of clusters: of the labels, of permutations, and of bootstrap replicates."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.metrics.clusters.grouped import Grouped, exact_squares, members


class Moments(NamedTuple):
    """Ingredients of the Davies-Bouldin, Calinski-Harabasz and Xie-Beni indices; float64.

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


def moments_of_labels(grouped: Grouped) -> Moments:
    """Moments of the clusters of the labels themselves: one draw."""
    counts = torch.tensor(grouped.counts, dtype=torch.float64, device=grouped.points.device)
    parts = [grouped.norms[start:stop] for start, stop in grouped.ranges]
    squares = torch.stack([part.sum() for part in parts])
    spreads = torch.stack([part.sqrt().sum() for part in parts]) / counts
    return Moments(counts[None], spreads[None], squares[None], centroid_gaps(grouped.centroids[:, None]))


def moments_of_relabelings(grouped: Grouped, codes: Int[Tensor, "n draw"]) -> Moments:
    """Moments of the clusters that permuted labels make.

    The points are relative to the mean of all, which no labelling changes, so the last centroid follows from the
    others. The contribution of the mean of their own cluster is added in float64.

    Args:
        grouped: the points.
        codes: cluster of every position in each draw.
    """
    clusters, draws = grouped.clusters, codes.shape[1]
    counts = torch.stack([(codes == cluster).sum(dim=0) for cluster in range(clusters)]).double()
    sums = grouped.centroids.new_zeros((clusters, draws, grouped.centroids.shape[1]))
    norms = torch.zeros_like(counts)
    for x, positions, offset, squared in _blocks(grouped):
        far = float(offset.square().sum())
        for cluster in range(clusters):
            mine = members(codes[positions], cluster, x.dtype)
            count = mine.sum(dim=0).double()
            norms[cluster] += mine.T @ (squared - far).float() + count * far
            if cluster < clusters - 1:
                sums[cluster] += mine.T @ x
                sums[cluster].addr_(count, offset)
    sums[-1] = -sums[:-1].sum(dim=0)
    means = sums / counts.clamp_min(1)[:, :, None]
    squares = (norms - counts * means.square().sum(dim=2)).clamp_min_(0)
    spreads = _spreads(grouped, codes, counts, means) / counts.clamp_min(1)
    return Moments(counts.T, spreads.T, squares.T, centroid_gaps(means))


def _blocks(grouped: Grouped) -> Iterator[tuple[Tensor, slice, Tensor, Tensor]]:
    """Points of one cluster relative to its centroid, in float32; their positions; that centroid relative to the mean
    of all, float64; and their squared distances from the mean of all, float64."""
    for cluster, offset in enumerate(grouped.centroids - grouped.middle):
        for start, stop in grouped.blocks(cluster):
            x = grouped.centered[start:stop].float()
            along = (x @ offset.float()).double()
            yield x, slice(start, stop), offset, grouped.norms[start:stop] + 2 * along + offset.square().sum()


def _spreads(
    grouped: Grouped,
    codes: Int[Tensor, "n draw"],
    counts: Float[Tensor, "cluster draw"],
    means: Float[Tensor, "cluster draw width"],
) -> Float[Tensor, "cluster draw"]:
    """Sums of distances of the points of each drawn cluster from its mean; the means add up to 0 by their counts.

    For each point and mean, ``lengths - 2 <point, mean>`` is computed; that of the last cluster follows from the
    others.
    """
    sums, last = torch.zeros_like(counts), len(means) - 1
    lengths, ways = means.square().sum(dim=2), means[:-1].float()
    shares = counts[:-1] / counts[-1].clamp_min(1)
    for x, positions, offset, squared in _blocks(grouped):
        constants = lengths - 2 * means @ offset
        rest = (lengths[-1] + (shares * lengths[:-1]).sum(dim=0)).float()
        each = [torch.addmm(constants[at].float(), x, ways[at].T, alpha=-2) for at in range(last)]
        each.append(rest.repeat(len(x), 1))
        for some, share in zip(each, shares.float(), strict=False):
            each[-1].addcmul_(some, share, value=-1)
        own = [members(codes[positions], cluster, x.dtype) for cluster in range(last + 1)]
        apart = squared.float()[:, None] + each[0] * own[0]
        for some, mine in zip(each[1:], own[1:], strict=True):
            apart.addcmul_(some, mine)
        apart.clamp_min_(0).sqrt_()
        for cluster, mine in enumerate(own):
            sums[cluster] += mine.mul_(apart).sum(dim=0)
    return sums


def moments_of_resamples(grouped: Grouped, weights: Float[Tensor, "n draw"]) -> Moments:
    """Moments of the same clusters where every position counts as often as a bootstrap replicate says."""
    counts, spreads, squares, means = [], [], [], []
    for cluster, centroid in enumerate(grouped.centroids):
        first, last = grouped.ranges[cluster]
        blocks = [slice(*block) for block in grouped.blocks(cluster)]
        count = weights[first:last].sum(dim=0).double()
        norms = weights[first:last].T @ grouped.norms[first:last].float()
        total = sum((weights[block].T @ grouped.centered[block].float()).double() for block in blocks)
        shift = total / count.clamp_min(1)[:, None]
        length, spread = shift.square().sum(dim=1), torch.zeros_like(count)
        for block in blocks:
            x = grouped.centered[block].float()
            squared = torch.addmm(length.float(), x, shift.float().T, alpha=-2)
            squared.add_(grouped.norms[block, None].float()).clamp_min_(0)
            spread += squared.sqrt_().mul_(weights[block]).sum(dim=0)
        counts.append(count)
        spreads.append(spread / count.clamp_min(1))
        squares.append((norms - count * length).clamp_min_(0))
        means.append(centroid + shift)
    numbers, distances, squared = (torch.stack(some, dim=-1) for some in (counts, spreads, squares))
    return Moments(numbers, distances, squared, centroid_gaps(torch.stack(means)))


def centroid_gaps(means: Float[Tensor, "cluster draw width"]) -> Float[Tensor, "draw cluster cluster"]:
    """Squared distances between the centroids of each draw, from differences."""
    own = means.transpose(0, 1)
    return exact_squares(own, own)
