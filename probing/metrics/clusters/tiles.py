"""One pass over the distances between all points, that stores no more than a tile of them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from probing.metrics.clusters.grouped import TILE_COLUMNS, TILE_ROWS, Grouped

MANY_CLUSTERS = 16
"""Number of clusters up to which tiles are of one cluster by another; with more they would hold few points."""
LOST = 2.0**-10
"""Share of its terms below which a squared distance, their difference, has lost too many digits of float32."""
LOST_PAIRS = 2**-9
"""Share of such pairs in a tile up to which they are computed one by one; beyond it the whole tile is computed
again."""


class Tile(NamedTuple):
    """Squared Euclidean distances of some positions to others.

    Attributes:
        rows: first position and the one behind the last.
        columns: first position and the one behind the last; the same as ``rows`` on the diagonal, otherwise all behind
            them.
        clusters: cluster of the rows and cluster of the columns; None where either are of several.
        squared: [row column].
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    clusters: tuple[int, int] | None
    squared: Float[Tensor, "row column"]

    @property
    def diagonal(self) -> bool:
        """Whether it holds every pair of its points twice, and every point with itself."""
        return self.rows == self.columns


def tiles(grouped: Grouped, report: Callable[[float], None] = lambda share: None) -> Iterator[Tile]:
    """Every pair of positions once, but for tiles on the diagonal, which hold both orders.

    Points are relative to their clusters' centroids, so that far clusters cost no digits of small distances. With many
    clusters, which would make tiles of a few points, tiles extend across clusters, and points are relative to the mean
    of all.
    """
    total, done = len(grouped.points) ** 2 / 2, 0.0
    apart = grouped.clusters <= MANY_CLUSTERS
    for cluster, rows in _row_blocks(grouped, apart):
        for columns, other in _columns(grouped, cluster, rows, apart):
            clusters = (cluster, other) if apart else None
            yield Tile(rows, columns, clusters, squares(grouped, rows, columns, clusters))
            size = (rows[1] - rows[0]) * (columns[1] - columns[0])
            done += size / 2 if rows == columns else size
            report(min(done / total, 1.0))


def _row_blocks(grouped: Grouped, apart: bool) -> Iterator[tuple[int, tuple[int, int]]]:
    """Ranges of rows, each with its cluster."""
    if not apart:
        yield from ((0, rows) for rows in grouped.blocks(size=TILE_ROWS))
        return
    for cluster in range(grouped.clusters):
        yield from ((cluster, rows) for rows in grouped.blocks(cluster, TILE_ROWS))


def _columns(
    grouped: Grouped, cluster: int, rows: tuple[int, int], apart: bool
) -> Iterator[tuple[tuple[int, int], int]]:
    """Ranges of columns from the rows on, each with its cluster; the first is the rows themselves."""
    yield rows, cluster
    stop = grouped.ranges[cluster][1] if apart else len(grouped.order)
    yield from (((at, min(at + TILE_COLUMNS, stop)), cluster) for at in range(rows[1], stop, TILE_COLUMNS))
    for other in range(cluster + 1, grouped.clusters if apart else 0):
        yield from ((block, other) for block in grouped.blocks(other))


class Side(NamedTuple):
    """Points of one side of a tile.

    Attributes:
        points: points relative to the point that both sides are measured from.
        terms: the contribution of each point to its squared distances beside the products.
        sizes: sizes of these terms, none of which is negative.
    """

    points: Float[Tensor, "some width"]
    terms: Float[Tensor, " some"]
    sizes: Float[Tensor, " some"]


def squares(
    grouped: Grouped, rows: tuple[int, int], columns: tuple[int, int], clusters: tuple[int, int] | None
) -> Float[Tensor, "row column"]:
    """Squared distances of neighbouring positions, in the dtype of ``grouped.centered``; 0 of a point and itself.

    In float32, a distance that is small beside the lengths of the two points is computed in float64; of those that are
    left, the squares are off by a thousand times the rounding of a product at most.

    Args:
        grouped: the points.
        rows: first position and the one behind the last.
        columns: first position and the one behind the last.
        clusters: cluster of the rows and cluster of the columns; None where either are of several.
    """
    left, right = _side(grouped, rows, clusters), _side(grouped, columns, clusters and clusters[::-1])
    squared = left.terms[:, None] + right.terms
    squared.addmm_(left.points, right.points.T, alpha=-2).clamp_min_(0)
    diagonal = rows == columns
    if squared.dtype == torch.float32:
        if diagonal:
            squared.fill_diagonal_(torch.inf)
        if bool(squared.amin() < LOST * (left.sizes.max() + right.sizes.max())):
            lost = squared < LOST * (left.sizes[:, None] + right.sizes)
            squared = _recompute_lost(grouped, squared, lost, rows, columns, clusters)
    return squared.fill_diagonal_(0) if diagonal else squared


def _side(grouped: Grouped, positions: tuple[int, int], clusters: tuple[int, int] | None) -> Side:
    """One side, whose cluster is the first of the two."""
    part = slice(*positions)
    points, norms = grouped.centered[part], grouped.norms[part]
    if clusters is None:
        points = points + (grouped.centroids - grouped.middle).to(points)[grouped.codes[part]]
        norms = points.double().square().sum(dim=1)
    if clusters is None or clusters[0] == clusters[1]:
        return Side(points, norms.to(points), norms.to(points))
    gap = grouped.centroids[clusters[0]] - grouped.centroids[clusters[1]]
    half = gap.square().sum() / 2
    along = (points @ gap.to(points)).double()
    return Side(points, (norms + 2 * along + half).to(points), (norms + half).to(points))


def _recompute_lost(
    grouped: Grouped,
    squared: Float[Tensor, "row column"],
    lost: Tensor,
    rows: tuple[int, int],
    columns: tuple[int, int],
    clusters: tuple[int, int] | None,
) -> Float[Tensor, "row column"]:
    """A tile whose lost distances are computed once more: each by itself, or where there are many, in one product."""
    pairs = lost.nonzero()
    if len(pairs) > LOST_PAIRS * squared.numel():
        return squares_in_float64(grouped, rows, columns, clusters).to(squared)
    for some in pairs.split(TILE_ROWS):
        change = grouped.at(some[:, 0] + rows[0]).sub_(grouped.at(some[:, 1] + columns[0]))
        squared[some[:, 0], some[:, 1]] = change.square_().sum(dim=1).to(squared)
    return squared


def squares_in_float64(
    grouped: Grouped, rows: tuple[int, int], columns: tuple[int, int], clusters: tuple[int, int] | None
) -> Float[Tensor, "row column"]:
    """The plain form of ``squares``: both sides are gathered and centred between their clusters, in float64."""
    center = grouped.middle if clusters is None else grouped.centroids[list(clusters)].mean(dim=0)
    left, right = grouped.rows(*rows) - center, grouped.rows(*columns) - center
    squared = left.square().sum(dim=1)[:, None] + right.square().sum(dim=1)
    squared.addmm_(left, right.T, alpha=-2).clamp_min_(0)
    return squared.fill_diagonal_(0) if rows == columns else squared
