"""Points sorted by cluster, and one pass over the distances between them that stores no more than a tile."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

TILE_ROWS = 1024
TILE_COLUMNS = 2048
"""Products of this size run at full speed, and a tile takes 16 MB in float64."""
MANY_CLUSTERS = 16
"""With more, tiles of one cluster by another would be of a few points."""
Metric = Literal["euclidean", "cosine"]


@dataclass(frozen=True, eq=False)
class Grouped:
    """Points of one space in the order of their clusters; nothing is copied but the rows that are asked for.

    Positions count in that order. Coordinates are given in float64 and relative to the first point: an offset that all
    points share costs no digits.

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


def tiles(
    grouped: Grouped, centroids: Sequence[Float[Tensor, " width"]], report: Callable[[float], None] = lambda share: None
) -> Iterator[Tile]:
    """Every pair of positions once, but for tiles on the diagonal, which hold both orders.

    Both sides are centred between their clusters first: the product of two far points would leave no digits of a small
    distance. Of many clusters, which would make tiles of a few points, tiles go across them and are centred by the mean
    of all. Computed in float64 on the CPU and in float32 on a card.
    """
    dtype = torch.float64 if grouped.points.device.type == "cpu" else torch.float32
    total, done = len(grouped.points) ** 2 / 2, 0.0
    apart = grouped.clusters <= MANY_CLUSTERS
    middle = torch.stack(list(centroids)).mean(dim=0)
    for cluster, rows in _row_blocks(grouped, apart):
        at_rows = grouped.rows(*rows)
        for columns, other in _columns(grouped, cluster, rows, apart):
            center = (centroids[cluster] + centroids[other]) / 2 if apart else middle
            left = (at_rows - center).to(dtype)
            right = left if rows == columns else (grouped.rows(*columns) - center).to(dtype)
            clusters = (cluster, other) if apart else None
            yield Tile(rows, columns, clusters, _squared(left, right, rows == columns))
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


def _squared(left: Tensor, right: Tensor, diagonal: bool) -> Tensor:
    found = (left**2).sum(dim=1)[:, None] + (right**2).sum(dim=1)
    found.addmm_(left, right.T, alpha=-2).clamp_min_(0)
    return found.fill_diagonal_(0) if diagonal else found


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
