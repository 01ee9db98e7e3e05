"""Sums of the distances of every point to the points of every cluster, from which silhouettes are computed: for the
labels, for permutations of them, and for bootstrap replicates."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from probing.metrics.clusters.grouped import Grouped, members
from probing.metrics.clusters.indices import silhouette_coefficients
from probing.metrics.clusters.tiles import Tile

CACHED = {"cpu": 2**18, "cuda": 2**26}
"""Bytes of the sums that silhouettes are computed from at once, in many steps: on a CPU they should fit into its
cache."""


@dataclass(eq=False)
class DistanceSums:
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


@dataclass(eq=False)
class RelabelledSums:
    """Sums of distances to the clusters of every permutation of the labels.

    Attributes:
        codes: cluster of every position.
        clusters: number of clusters.
        values: sums of distances to all clusters but the last, whose sums follow from the totals.
    """

    codes: Shaped[Tensor, "n draw"]
    clusters: int
    values: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.values = torch.zeros((self.clusters - 1, *self.codes.shape), device=self.codes.device)

    def add(self, tile: Tile, distances: Float[Tensor, "row column"]) -> None:
        """Take in a tile."""
        rows, columns = slice(*tile.rows), slice(*tile.columns)
        for cluster in range(self.clusters - 1):
            self.values[cluster, rows].addmm_(distances, members(self.codes[columns], cluster, distances.dtype))
            if not tile.diagonal:
                self.values[cluster, columns].addmm_(distances.T, members(self.codes[rows], cluster, distances.dtype))

    def silhouettes(self, totals: Float[Tensor, " n"]) -> Float[Tensor, " draw"]:
        """Mean silhouette of every permutation; ``totals`` are the sums of distances to all points."""
        sizes = [(self.codes == cluster).sum(dim=0).float() for cluster in range(self.clusters)]
        coefficient_sums = torch.zeros(self.codes.shape[1], dtype=torch.float64, device=self.codes.device)
        one = torch.ones((), device=self.codes.device)
        for rows in _split_rows(self.codes):
            sums = self.values[:, rows]
            last = totals[rows, None].float() - sums.sum(dim=0)
            coefficient_sums += silhouette_coefficients([*sums, last], sizes, self.codes[rows], one).sum(dim=0)
        return coefficient_sums / len(self.codes)


@dataclass(eq=False)
class ResampledSums:
    """Weighted sums of distances to the clusters in every bootstrap replicate.

    Attributes:
        weights: weight of every position in each replicate.
        grouped: the points and their clusters.
        values: weighted sums of distances to all clusters.
    """

    weights: Shaped[Tensor, "n draw"]
    grouped: Grouped
    values: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.values = torch.zeros((self.grouped.clusters, *self.weights.shape), device=self.weights.device)

    def add(self, tile: Tile, distances: Float[Tensor, "row column"]) -> None:
        """Take in a tile."""
        self._add(tile.rows, tile.columns, distances)
        if not tile.diagonal:
            self._add(tile.columns, tile.rows, distances.T)

    def _add(self, rows: tuple[int, int], columns: tuple[int, int], distances: Tensor) -> None:
        """Distances of rows to columns, one cluster of these after the other."""
        for cluster, (start, stop) in enumerate(self.grouped.ranges):
            first, last = max(start, columns[0]), min(stop, columns[1])
            if first < last:
                some = distances[:, first - columns[0] : last - columns[0]]
                self.values[cluster, slice(*rows)].addmm_(some, self.weights[first:last].float())

    def silhouettes(self) -> Float[Tensor, " draw"]:
        """Mean silhouette of every bootstrap replicate, points counted by their weights."""
        sizes = [self.weights[slice(*bounds)].sum(dim=0).float() for bounds in self.grouped.ranges]
        coefficient_sums = torch.zeros(self.weights.shape[1], dtype=torch.float64, device=self.weights.device)
        codes = self.grouped.codes
        for rows in _split_rows(self.weights):
            copies = self.weights[rows].float()
            own = silhouette_coefficients(list(self.values[:, rows]), sizes, codes[rows, None], copies)
            coefficient_sums += (own * copies).sum(dim=0)
        return coefficient_sums / torch.stack(sizes).sum(dim=0)


def _split_rows(draws: Shaped[Tensor, "n draw"]) -> Iterator[slice]:
    """Ranges of positions; none without draws."""
    if draws.shape[1]:
        size = max(1, CACHED[draws.device.type] // (4 * draws.shape[1]))
        yield from (slice(start, start + size) for start in range(0, len(draws), size))
