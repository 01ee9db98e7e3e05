"""Silhouettes and Dunn's index by the kernel: half-precision products, and float64 wherever an extreme may lie."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from probing.errors import KernelUnavailable
from probing.kernels.dispatch import choose
from probing.kernels.jit import ELEMENT_TYPES
from probing.kernels.pair_distances import PairDistances, pair_distances
from probing.metrics.clusters.grouped import Grouped, exact_squares
from probing.metrics.clusters.indices import silhouette_coefficients

OP = "pair_distances"
ERROR_A_PRODUCT = 2.0**-22
"""What each of the products of two points may add to the error of their squared distance, relative to the sum of their
squared norms.

Rounded to nearest in any order, a sum of w products of float32 is off by at most w 2^-24 of their sizes. A tensor core
adds some products at a time to a sum and cuts off what lies below its last digits: of k products and the sum, each
loses less than 2^-(23 + e) of the largest of them, e the further digits that are kept while they are added, and the sum
less than 2^-23 once more. For k = 16 and e = 2 (as Hopper's cores are described) that is (17 / 4 + 1) / 16 = 0.33 times
2^-23 a product; for k = 16 and e = 0, 1.1 times; for k = 4 and e = 0, 1.5 times. This allows for 2 times. The error has
one sign where products have one, and does not average out: it grows with the width, not with its root.
"""
FAR = 16.0
"""Ratio of the mean squared norm to the spread above which half-precision points are centred first, in float32."""


def can_use_kernel(grouped: Grouped, impl: str) -> bool:
    """Whether the kernel can and should be used.

    Raises:
        KernelUnavailable: the kernel was requested and cannot run.
    """
    if grouped.metric != "euclidean" and impl != "triton":
        return False
    if grouped.metric != "euclidean":
        raise KernelUnavailable("the Triton form of pair_distances measures Euclidean distances only")
    return impl != "torch" and choose(OP, impl, grouped.points, ELEMENT_TYPES).impl == "triton"


def measure_by_kernel(grouped: Grouped, impl: str) -> tuple[Float[Tensor, " n"], float, float]:
    """Silhouette of every position, least squared distance between clusters, and greatest within one.

    The extreme of a tile is off by the rounding of its products, ``error_of_squares`` of its norms at most. So every
    tile whose extreme may be the one that counts is computed once more, as sums of squared differences in float64.

    Silhouettes are made of sums of distances as the kernel has them. A distance d of points with squared norms m is
    off by at most ``error_of_squares`` times m / d^2 of itself, m up to FAR times the spread. Where products are cut
    off, the errors have one sign: half-precision points of width 4,096 whose norms are ten times their spread come out
    2.8e-4 too far apart in an emulation. Means of distances within and between clusters are too large alike, so that
    most of it cancels in their ratio.
    """
    points, norms = _prepare_products(grouped)
    distances = pair_distances(points[None], grouped.bounds, impl)
    sizes = torch.tensor(grouped.counts, device=points.device)
    sums = distances.sums[0].double().unbind(dim=1)
    own = silhouette_coefficients(sums, list(sizes), grouped.codes, torch.ones((), device=points.device))
    error = error_of_squares(points.shape[1])
    largest = torch.stack([norms[start:stop].amax() for start, stop in distances.blocks.tolist()])
    errors = error * largest[distances.tiles].sum(dim=1)
    return own, _extreme(grouped, distances, False, errors), _extreme(grouped, distances, True, errors)


def error_of_squares(width: int) -> float:
    """Bound on the error of a squared distance of the kernel, relative to the sum of the two squared norms.

    Three more roundings are those of the norms and of the sums with them.
    """
    return ERROR_A_PRODUCT * (width + 3)


class ProductsError(NamedTuple):
    """Errors of squared distances, relative to the sum of the two squared norms.

    Attributes:
        worst: the largest one.
        mean: mean of the errors with their signs: above 0 where products are cut off.
        bound: the error that is allowed for.
    """

    worst: float
    mean: float
    bound: float


def products_error(points: Float[Tensor, "n width"], impl: str = "auto") -> ProductsError:
    """Errors of the squared distances of ``pair_distances`` on the device at hand, against float64.

    Args:
        points: points in the dtype in which they are multiplied, float32 or half precision, a few hundred at most: each
            is a cluster of its own.
        impl: see ``pair_distances``.
    """
    distances = pair_distances(points[None], range(len(points) + 1), impl)
    left, right = distances.tiles[distances.tiles[:, 0] < distances.tiles[:, 1]].T
    wide = points.double()
    norms = wide.square().sum(dim=1)
    squared = distances.extremes[0, distances.tiles[:, 0] < distances.tiles[:, 1]].double()
    errors = (squared - exact_squares(wide, wide)[left, right]) / (norms[left] + norms[right])
    return ProductsError(float(errors.abs().max()), float(errors.mean()), error_of_squares(points.shape[1]))


def _prepare_products(grouped: Grouped) -> tuple[Float[Tensor, "n width"], Float[Tensor, " n"]]:
    """Points in order, as they are best multiplied, and their squared norms."""
    points, blocks = grouped.points[grouped.order], list(grouped.blocks())
    if points.dtype != torch.float32:
        norms = torch.cat([points[start:stop].double().square().sum(dim=1) for start, stop in blocks])
        spread = sum(float((grouped.rows(*block) - grouped.middle).square().sum()) for block in blocks)
        if float(norms.sum()) <= FAR * spread:
            return points, norms
    centered = torch.cat([(grouped.rows(*block) - grouped.middle).float() for block in blocks])
    return centered, torch.cat([centered[start:stop].double().square().sum(dim=1) for start, stop in blocks])


def _extreme(grouped: Grouped, distances: PairDistances, within: bool, errors: Float[Tensor, " tile"]) -> float:
    """The least distance between clusters, or the greatest within one, of all tiles that may hold it.

    Args:
        grouped: the points.
        distances: the least and the greatest distance of every tile, with their sums.
        within: True for the greatest distance within one cluster, False for the least between clusters.
        errors: bound on the error of each of these distances.
    """
    starts = torch.tensor(grouped.bounds[1:], device=distances.tiles.device)
    clusters = torch.bucketize(distances.blocks[:, 0].contiguous(), starts, right=True)[distances.tiles]
    chosen = ((clusters[:, 0] == clusters[:, 1]) == within).nonzero()[:, 0]
    sign = -1.0 if within else 1.0
    values, errors = sign * distances.extremes[0, chosen].double(), errors[chosen]
    near = values - errors <= (values + errors).min()
    exact = []
    for left, right in distances.blocks[distances.tiles[chosen[near]]].tolist():
        squared = exact_squares(grouped.rows(*left), grouped.rows(*right))
        exact.append(squared.max() if within else squared.min())
    stacked = torch.stack(exact)
    return float(stacked.max() if within else stacked.min())
