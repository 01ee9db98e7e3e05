"""Points of one space in the order of their clusters, with centroids and coordinates in float64."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

TILE_ROWS = 1024
TILE_COLUMNS = 2048
"""Products of this size run at full speed, and a tile of distances takes 16 MB in float64."""
ROUNDINGS = 2.0
"""Number of roundings, times the square root of the width, that are allowed for in a sum of products: rounded to
nearest, such a sum has an error of about that root of a rounding (Higham and Mary 2019)."""
Metric = Literal["euclidean", "cosine"]


@dataclass(frozen=True, eq=False)
class Grouped:
    """Points of one space in the order of their clusters.

    Positions count in that order. Coordinates are given in float64 and relative to the first point: an offset that all
    points share costs no digits. One copy of the points is kept, ``centered``, once it is asked for.

    Attributes:
        points: points in the order in which they were given, [n width].
        order: row of ``points`` at each position.
        bounds: first position of each cluster, and the number of points.
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
        differences = torch.empty(
            self.points.shape, dtype=torch.float64 if wide else torch.float32, device=self.points.device
        )
        for cluster, centroid in enumerate(self.centroids):
            for start, stop in self.blocks(cluster):
                differences[start:stop] = self.rows(start, stop).sub_(centroid)
        return differences

    @cached_property
    def norms(self) -> Float[Tensor, " n"]:
        """Squared lengths of ``centered``, float64."""
        parts = [self.centered[start:stop].double().square().sum(dim=1) for start, stop in self.blocks()]
        return torch.cat(parts)

    def bound_error(self, pairs: Int[Tensor, "pair 2"]) -> Float[Tensor, " pair"]:
        """Bound on the error of the tiles' squared distances, for pairs of positions: 0 where tiles are in float64."""
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


def members(codes: Shaped[Tensor, "*axes"], cluster: int, dtype: torch.dtype) -> Float[Tensor, "*axes"]:
    """1 for the members of a cluster and 0 for others: many times as fast as by way of booleans."""
    return torch.eq(codes, cluster, out=torch.empty(codes.shape, dtype=dtype, device=codes.device))
