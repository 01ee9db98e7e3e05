"""Points sorted by cluster, and one pass over the distances between them that stores no more than a tile."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

TILE_ROWS = 1024
TILE_COLUMNS = 2048
"""Products of this size run at full speed, and a tile takes 16 MB in float64."""
MANY_CLUSTERS = 16
"""With more, tiles of one cluster by another would be of a few points."""
LOST = 2.0**-10
"""A squared distance below this share of the terms that it is the difference of has lost too many digits of float32."""
LOST_PAIRS = 2**-9
"""Share of a tile up to which such pairs are computed one by one, and beyond which the whole tile is."""
ROUNDINGS = 2.0
"""So many roundings, times the square root of the width, are allowed for in a sum of products: rounded to nearest,
such a sum is off by about that root of a rounding (Higham and Mary 2019)."""
FARTHER = 1e30
"""Than anything: added to a mean distance that is not to count."""
Metric = Literal["euclidean", "cosine"]


@dataclass(frozen=True, eq=False)
class Grouped:
    """Points of one space in the order of their clusters.

    Positions count in that order. Coordinates are given in float64 and relative to the first point: an offset that all
    points share costs no digits. One copy of the points is kept, ``centered``, once it is asked for.

    Attributes:
        points: as they came, [n width].
        order: row of ``points`` at each position.
        bounds: where each cluster begins, and the end.
        metric: "cosine" says that the points have length one, and that their distance is 1 - cos.
    """

    points: Float[Tensor, "n width"]
    order: Int[Tensor, " n"]
    bounds: tuple[int, ...]
    metric: str = "euclidean"

    @classmethod
    def of(
        cls, points: Float[Tensor, "n width"], codes: Int[Tensor, " n"], clusters: int, metric: str = "euclidean"
    ) -> "Grouped":
        """Group by codes 0 .. clusters - 1."""
        counts = torch.bincount(codes, minlength=clusters)
        bounds = (0, *counts.cumsum(0).tolist())
        return cls(points, codes.argsort(stable=True).to(points.device), bounds, metric)

    @property
    def clusters(self) -> int:
        """Number of clusters."""
        return len(self.bounds) - 1

    @property
    def counts(self) -> list[int]:
        """Points of each cluster."""
        return [stop - start for start, stop in self.ranges]

    @cached_property
    def codes(self) -> Int[Tensor, " n"]:
        """Cluster of every position."""
        counts = torch.tensor(self.counts, device=self.points.device)
        return torch.arange(self.clusters, device=self.points.device).repeat_interleave(counts)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First position of each cluster and the one behind its last."""
        return list(zip(self.bounds[:-1], self.bounds[1:], strict=True))

    def at(self, positions: Int[Tensor, " some"]) -> Float[Tensor, "some width"]:
        """Coordinates in float64."""
        return self.points[self.order[positions]].double() - self.points[0].double()

    def rows(self, start: int, stop: int) -> Float[Tensor, "some width"]:
        """Coordinates of neighbouring positions."""
        return self.points[self.order[start:stop]].double() - self.points[0].double()

    def blocks(self, cluster: int | None = None, size: int = TILE_COLUMNS) -> Iterator[tuple[int, int]]:
        """Ranges of at most ``size`` positions that make up a cluster, or all clusters."""
        start, stop = (0, len(self.order)) if cluster is None else self.ranges[cluster]
        yield from ((at, min(at + size, stop)) for at in range(start, stop, size))

    @cached_property
    def centroids(self) -> Float[Tensor, "cluster width"]:
        """Mean of every cluster, float64."""
        return torch.stack([self.centroid(cluster) for cluster in range(self.clusters)])

    @cached_property
    def middle(self) -> Float[Tensor, " width"]:
        """Mean of all points, float64."""
        counts = torch.tensor(self.counts, dtype=torch.float64, device=self.points.device)
        return counts @ self.centroids / len(self.order)

    @cached_property
    def centered(self) -> Float[Tensor, "n width"]:
        """Every position relative to the centroid of its cluster: float32, or float64 of float64 points on the CPU."""
        wide = self.points.dtype == torch.float64 and self.points.device.type == "cpu"
        found = torch.empty(
            self.points.shape, dtype=torch.float64 if wide else torch.float32, device=self.points.device
        )
        for cluster, centroid in enumerate(self.centroids):
            for start, stop in self.blocks(cluster):
                found[start:stop] = self.rows(start, stop).sub_(centroid)
        return found

    @cached_property
    def norms(self) -> Float[Tensor, " n"]:
        """Squared lengths of ``centered``, float64."""
        parts = [self.centered[start:stop].double().square().sum(dim=1) for start, stop in self.blocks()]
        return torch.cat(parts)

    def doubt(self, pairs: Int[Tensor, "pair 2"]) -> Float[Tensor, " pair"]:
        """How far off the squared distances of tiles may be, of pairs of positions: 0 where tiles are in float64."""
        if self.centered.dtype == torch.float64:
            return torch.zeros(len(pairs), dtype=torch.float64, device=pairs.device)
        left, right = pairs.T
        gaps = exact_squares(self.centroids, self.centroids)[self.codes[left], self.codes[right]]
        rounding = ROUNDINGS * math.sqrt(self.points.shape[1]) * torch.finfo(torch.float32).eps
        return rounding * (self.norms[left] + self.norms[right] + gaps)

    def centroid(self, cluster: int) -> Float[Tensor, " width"]:
        """Mean of a cluster; exactly its points where they are all the same."""
        start, stop = self.ranges[cluster]
        first = self.rows(start, start + 1)[0]
        total = sum((self.rows(*block) - first).sum(dim=0) for block in self.blocks(cluster))
        return first + total / (stop - start)

    def distances(self, squared: Tensor) -> Tensor:
        """Distances of the metric from squared Euclidean ones."""
        return squared.sqrt() if self.metric == "euclidean" else squared / 2


def exact_squares(left: Float[Tensor, "*draw n width"], right: Float[Tensor, "*draw m width"]) -> Tensor:
    """Squared distances, [*draw n m], as sums of squared differences: no digits are lost between near points."""
    return torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist").square()


class Tile(NamedTuple):
    """Squared Euclidean distances of some positions to others.

    Attributes:
        rows: first position and the one behind the last.
        columns: likewise; the same as ``rows`` on the diagonal, otherwise all behind them.
        clusters: of rows and columns; None where either are of several.
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

    Points are relative to their clusters' centroids, so that far clusters cost no digits of small distances. Of many
    clusters, which would make tiles of a few points, tiles go across them, and points are relative to the mean of all.
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
        points: relative to what both sides are measured from.
        terms: what each adds to its squared distances beside the products.
        sizes: of these terms, none of which is negative.
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
        columns: likewise.
        clusters: of rows and columns; None where either are of several.
    """
    left, right = _side(grouped, rows, clusters), _side(grouped, columns, clusters and clusters[::-1])
    found = left.terms[:, None] + right.terms
    found.addmm_(left.points, right.points.T, alpha=-2).clamp_min_(0)
    diagonal = rows == columns
    if found.dtype == torch.float32:
        if diagonal:
            found.fill_diagonal_(torch.inf)
        if bool(found.amin() < LOST * (left.sizes.max() + right.sizes.max())):
            lost = found < LOST * (left.sizes[:, None] + right.sizes)
            found = _recovered(grouped, found, lost, rows, columns, clusters)
    return found.fill_diagonal_(0) if diagonal else found


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


def _recovered(
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
    found = left.square().sum(dim=1)[:, None] + right.square().sum(dim=1)
    found.addmm_(left, right.T, alpha=-2).clamp_min_(0)
    return found.fill_diagonal_(0) if rows == columns else found


@dataclass(eq=False)
class Sums:
    """Sum of the distances of every position to the points of every cluster, [n cluster]."""

    grouped: Grouped
    values: Tensor = field(init=False)

    def __post_init__(self) -> None:
        size = (len(self.grouped.order), self.grouped.clusters)
        self.values = torch.zeros(size, dtype=torch.float64, device=self.grouped.points.device)

    def add(self, tile: Tile, distances: Tensor) -> None:
        """Take in a tile."""
        rows, columns = slice(*tile.rows), slice(*tile.columns)
        if tile.clusters is None:
            self.values[rows] += (distances @ self._members(columns, distances)).double()
            if not tile.diagonal:
                self.values[columns] += (distances.T @ self._members(rows, distances)).double()
            return
        left, right = tile.clusters
        self.values[rows, right] += distances.sum(dim=1, dtype=torch.float64)
        if not tile.diagonal:
            self.values[columns, left] += distances.sum(dim=0, dtype=torch.float64)

    def _members(self, positions: slice, like: Tensor) -> Tensor:
        """1 for the cluster of each position, [some cluster]."""
        return torch.nn.functional.one_hot(self.grouped.codes[positions], self.grouped.clusters).to(like)


def silhouettes(sums: Sequence[Tensor], sizes: Sequence[Tensor], own: Tensor, copies: Tensor) -> Tensor:
    """``(b - a) / max(a, b)`` of every point: a its mean distance to the others of its cluster, b to the nearest other.

    0 for the only point of a cluster, and where a and b are both 0.

    Args:
        sums: for each cluster, the sum of distances to its points, [n] or [n draw].
        sizes: of each cluster, one number or [draw].
        own: the cluster of every point; fits to the sums, like the next.
        copies: how often each point itself is in its cluster (1, or its weight in a resample): a point is no neighbour
            of its own copies.
    """
    within, nearest = torch.zeros_like(sums[0]), torch.full_like(sums[0], torch.inf)
    alone = torch.zeros((), dtype=within.dtype, device=within.device)
    for cluster, (total, size) in enumerate(zip(sums, sizes, strict=True)):
        mine, others = members(own, cluster, within.dtype), (size - copies).to(within)
        within.add_((total / others.clamp_min(1)).mul_(mine))
        if bool(others.amin() <= 0):
            alone = alone + mine * (others <= 0)
        mean = (total / size.clamp_min(1)).add_(torch.where(size > 0, 0.0, torch.inf))
        torch.minimum(nearest, mean.add_(mine, alpha=FARTHER), out=nearest)
    found = (nearest - within).div_(torch.maximum(nearest, within))
    return found.nan_to_num_(0.0).mul_(1 - alone)


def members(codes: Shaped[Tensor, "*axes"], cluster: int, dtype: torch.dtype) -> Float[Tensor, "*axes"]:
    """1 for the members of a cluster and 0 for others: many times as fast as by way of booleans."""
    return torch.eq(codes, cluster, out=torch.empty(codes.shape, dtype=dtype, device=codes.device))
