"""Silhouettes and Dunn's index by the kernel: half-precision products, and float64 wherever an extreme may lie."""

import torch
from jaxtyping import Float
from torch import Tensor

from probing.errors import KernelUnavailable
from probing.kernels.dispatch import choose
from probing.kernels.jit import ELEMENT_TYPES
from probing.kernels.pair_distances import PairDistances, pair_distances
from probing.metrics.cluster_pairs import Grouped, exact_squares, silhouettes

OP = "pair_distances"
ERROR = 1e-5
"""Of a squared distance, relative to the largest squared norm: more than sums of products in float32 are off."""
FAR = 16.0
"""A mean squared norm this many times the spread says that half-precision points are better centred, in float32."""


def kernel_runs(grouped: Grouped, impl: str) -> bool:
    """Whether the kernel is to be used.

    Raises:
        KernelUnavailable: it was asked for and cannot run.
    """
    if grouped.metric != "euclidean" and impl != "triton":
        return False
    if grouped.metric != "euclidean":
        raise KernelUnavailable("the Triton form of pair_distances measures Euclidean distances only")
    return impl != "torch" and choose(OP, impl, grouped.points, ELEMENT_TYPES).impl == "triton"


def read_tiles(grouped: Grouped, impl: str) -> tuple[Float[Tensor, " n"], float, float]:
    """Silhouette of every position, least squared distance between clusters, and greatest within one.

    The extreme of a tile is off by the rounding of its products. So every tile whose extreme may be the one that counts
    is computed once more, as sums of squared differences in float64.
    """
    points, scale = _multiplied(grouped)
    found = pair_distances(points[None], grouped.bounds, impl)
    sizes = torch.tensor(grouped.counts, device=points.device)
    sums = found.sums[0].double().unbind(dim=1)
    own = silhouettes(sums, list(sizes), grouped.codes, torch.ones((), device=points.device))
    return own, _extreme(grouped, found, False, ERROR * scale), _extreme(grouped, found, True, ERROR * scale)


def _multiplied(grouped: Grouped) -> tuple[Float[Tensor, "n width"], float]:
    """Points in order, as they are best multiplied, and their largest squared norm."""
    points, blocks = grouped.points[grouped.order], list(grouped.blocks())
    center = torch.stack([grouped.rows(*block).sum(dim=0) for block in blocks]).sum(dim=0) / len(points)
    if points.dtype != torch.float32:
        norms = torch.cat([points[start:stop].double().square().sum(dim=1) for start, stop in blocks])
        spread = sum(float((grouped.rows(*block) - center).square().sum()) for block in blocks)
        if float(norms.sum()) <= FAR * spread:
            return points, float(norms.max())
    centered = torch.cat([(grouped.rows(*block) - center).float() for block in blocks])
    return centered, max(float(centered[start:stop].double().square().sum(dim=1).max()) for start, stop in blocks)


def _extreme(grouped: Grouped, found: PairDistances, within: bool, error: float) -> float:
    """The least distance between clusters, or the greatest within one, of all tiles that may hold it."""
    starts = torch.tensor(grouped.bounds[1:], device=found.tiles.device)
    clusters = torch.bucketize(found.blocks[:, 0].contiguous(), starts, right=True)[found.tiles]
    chosen = ((clusters[:, 0] == clusters[:, 1]) == within).nonzero()[:, 0]
    values = found.extremes[0, chosen].double()
    near = values >= values.max() - 2 * error if within else values <= values.min() + 2 * error
    exact = []
    for left, right in found.blocks[found.tiles[chosen[near]]].tolist():
        squared = exact_squares(grouped.rows(*left), grouped.rows(*right))
        exact.append(squared.max() if within else squared.min())
    stacked = torch.stack(exact)
    return float(stacked.max() if within else stacked.min())
