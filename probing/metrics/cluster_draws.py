"""Cluster indices with intervals and nulls: thousands of relabelings and resamples from one pass over distances."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from probing.metrics.cluster_extremes import Ends, PairLists
from probing.metrics.cluster_moments import Moments, moments, relabelled_moments, resampled_moments
from probing.metrics.cluster_pairs import Grouped, Sums, Tile, members, silhouettes, tiles
from probing.metrics.cluster_tiles import kernel_runs, read_tiles

OF_EXTREMES = ("dunn", "dunn_centroid")
OF_MOMENTS = ("davies_bouldin", "calinski_harabasz", "xie_beni")
BUDGET = {"cpu": 64 * 2**20, "cuda": 2**30}
"""Bytes for the sums of distances of draws; where more are needed, distances are computed again for a part of them."""
DRAWS_AT_ONCE = 256
CACHED = {"cpu": 2**18, "cuda": 2**26}
"""Bytes of the sums that silhouettes are made of at once, in many steps: on a CPU they are best kept near it."""


@dataclass(frozen=True, eq=False)
class Readings:
    """Indices of one space; NaN for a draw that leaves a cluster empty, or of every cluster copies of one point.

    Attributes:
        values: by name, [1].
        null: by name, under each relabelling, [draw].
        draws: by name, in each resample, [draw].
        sizes: number of points in each resample, [draw].
        silhouettes: of every position, [n]; empty unless asked for.
    """

    values: dict[str, Float[Tensor, " 1"]]
    null: dict[str, Float[Tensor, " draw"]]
    draws: dict[str, Float[Tensor, " other"]]
    sizes: Float[Tensor, " other"]
    silhouettes: Float[Tensor, " n"]


def read_clusters(
    grouped: Grouped,
    indices: Sequence[str],
    relabelings: Int[Tensor, "n draw"] | None = None,
    weights: Int[Tensor, "n other"] | None = None,
    report: Callable[[float], None] = lambda share: None,
    impl: str = "auto",
) -> Readings:
    """Indices, and the same for other labels and other weights of the points.

    Draws are products of tiles of distances with labels and weights. The kernel keeps no distance that could be
    multiplied, so it is used without draws only, on a card; with draws it would repeat what the tiles say anyway.

    Args:
        grouped: the points with their labels.
        indices: names.
        relabelings: cluster of every position of ``grouped`` in each draw.
        weights: how often each position counts in each draw; copies of a point are no neighbours of each other.
        report: told what share of the work on distances is done.
        impl: "auto", "torch" or "triton", of distances without draws.
    """
    nothing = torch.zeros((len(grouped.order), 0), dtype=torch.int16, device=grouped.points.device)
    codes = nothing if relabelings is None else relabelings
    counted = nothing if weights is None else weights
    parts = (
        moments(grouped),
        _joined([relabelled_moments(grouped, some) for some in codes.split(DRAWS_AT_ONCE, dim=1)]),
        _joined([resampled_moments(grouped, some.float()) for some in counted.split(DRAWS_AT_ONCE, dim=1)]),
    )
    found = tuple({name: getattr(part, name)() for name in indices if name in OF_MOMENTS} for part in parts)
    own = torch.zeros(0, dtype=torch.float64)
    if any(name not in OF_MOMENTS for name in indices):
        wanted, extreme = "silhouette" in indices, any(name in OF_EXTREMES for name in indices)
        lists = PairLists.of(grouped, codes.shape[1] > 0, counted.shape[1] > 0) if extreme else None
        if not codes.shape[1] + counted.shape[1] and kernel_runs(grouped, impl):
            own, least, greatest = read_tiles(grouped, impl)
            of_null = of_draws = own[:0]
            known: Ends | None = Ends(own.new_tensor([least]), own.new_tensor([greatest]))
        else:
            drawn = (codes, counted) if wanted else (nothing, nothing)
            own, of_null, of_draws = _pass(grouped, *drawn, lists, report)
            known = None if lists is None else lists.settled(grouped)
        if wanted:
            for some, mean in zip(found, (own.mean()[None], of_null, of_draws), strict=True):
                some["silhouette"] = mean
        if lists is not None and known is not None:
            ends = (known, lists.of_labels(grouped, codes), lists.of_resamples(grouped, counted))
            for some, part, end in zip(found, parts, ends, strict=True):
                some |= _dunn(grouped, part, end)
    everywhere = torch.ones((), dtype=torch.bool, device=grouped.points.device)
    some_within = (everywhere, everywhere, _more_than_a_point(grouped, counted))
    values, null, draws = (
        {name: torch.where(part.whole & within, some[name], torch.nan).cpu() for name in indices}
        for some, part, within in zip(found, parts, some_within, strict=True)
    )
    same = _same_clusters(grouped, codes).cpu()
    null = {name: torch.where(same & null[name].isfinite(), values[name], null[name]) for name in indices}
    return Readings(values, null, draws, parts[2].n.cpu(), own.cpu())


def _more_than_a_point(grouped: Grouped, weights: Shaped[Tensor, "n draw"]) -> Shaped[Tensor, " draw"]:
    """Draws in which some cluster has two points."""
    several = [(weights[slice(*bounds)] > 0).sum(dim=0) > 1 for bounds in grouped.ranges]
    return torch.stack(several).any(dim=0)


def _same_clusters(grouped: Grouped, codes: Shaped[Tensor, "n draw"]) -> Shaped[Tensor, " draw"]:
    """Relabelings that rename clusters at most: as good as the labels themselves, whatever float32 makes of them."""
    whole = [(codes[start:stop] == codes[start]).all(dim=0) for start, stop in grouped.ranges]
    return torch.stack(whole).all(dim=0)


def _joined(parts: Sequence[Moments]) -> Moments:
    return Moments(*(torch.cat(some) for some in zip(*parts, strict=True)))


def _dunn(grouped: Grouped, part: Moments, ends: Ends) -> dict[str, Tensor]:
    """Both forms; NaN where every cluster is a single place."""
    ratios = {
        "dunn": grouped.distances(ends.least) / grouped.distances(ends.greatest),
        "dunn_centroid": (part.least_gap / ends.greatest).sqrt(),
    }
    return {name: torch.where(ratio.isfinite(), ratio, torch.nan) for name, ratio in ratios.items()}


def _pass(
    grouped: Grouped,
    codes: Shaped[Tensor, "n draw"],
    weights: Shaped[Tensor, "n other"],
    lists: PairLists | None,
    report: Callable[[float], None],
) -> tuple[Float[Tensor, " n"], Float[Tensor, " draw"], Float[Tensor, " other"]]:
    """Silhouette of every position, and the mean of every draw; the lists are filled on the way."""
    clusters, own = grouped.clusters, grouped.codes
    needed = 4 * len(own) * (codes.shape[1] * (clusters - 1) + weights.shape[1] * clusters)
    passes = max(1, -(-needed // BUDGET[own.device.type]))
    null, drawn = [], []
    for number, (some, counted) in enumerate(
        zip(codes.tensor_split(passes, dim=1), weights.tensor_split(passes, dim=1), strict=True)
    ):
        sums, others, resampled = Sums(grouped), Relabelled(some, clusters), Resampled(counted, grouped)
        for tile in tiles(grouped, partial(_report_part, report, number, passes)):
            distances = grouped.distances(tile.squared)
            sums.add(tile, distances)
            if some.shape[1] or counted.shape[1]:
                narrow = distances.float()
                others.add(tile, narrow)
                resampled.add(tile, narrow)
            if number == 0 and lists is not None:
                lists.add(tile, own)
        null.append(others.silhouettes(sums.values.sum(dim=1)))
        drawn.append(resampled.silhouettes())
    sizes = torch.tensor(grouped.counts, device=own.device)
    found = silhouettes(sums.values.unbind(dim=1), list(sizes), own, torch.ones((), device=own.device))
    return found, torch.cat(null), torch.cat(drawn)


def _report_part(report: Callable[[float], None], number: int, parts: int, share: float) -> None:
    report((number + share) / parts)


def _rows_at_once(draws: Shaped[Tensor, "n draw"]) -> Iterator[slice]:
    """Ranges of positions; none without draws."""
    if draws.shape[1]:
        size = max(1, CACHED[draws.device.type] // (4 * draws.shape[1]))
        yield from (slice(start, start + size) for start in range(0, len(draws), size))


@dataclass(eq=False)
class Relabelled:
    """Sums of distances to the clusters of every relabelling.

    Attributes:
        codes: cluster of every position.
        clusters: how many.
        values: of all clusters but the last, which follows.
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
        """Mean of every draw; ``totals`` are the sums of distances to all points."""
        sizes = [(self.codes == cluster).sum(dim=0).float() for cluster in range(self.clusters)]
        found = torch.zeros(self.codes.shape[1], dtype=torch.float64, device=self.codes.device)
        one = torch.ones((), device=self.codes.device)
        for rows in _rows_at_once(self.codes):
            sums = self.values[:, rows]
            last = totals[rows, None].float() - sums.sum(dim=0)
            found += silhouettes([*sums, last], sizes, self.codes[rows], one).sum(dim=0)
        return found / len(self.codes)


@dataclass(eq=False)
class Resampled:
    """Weighted sums of distances to the clusters in every resample.

    Attributes:
        weights: of every position.
        grouped: their clusters.
        values: of all clusters.
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
        """Mean of every draw, points counted by their weights."""
        sizes = [self.weights[slice(*bounds)].sum(dim=0).float() for bounds in self.grouped.ranges]
        found = torch.zeros(self.weights.shape[1], dtype=torch.float64, device=self.weights.device)
        codes = self.grouped.codes
        for rows in _rows_at_once(self.weights):
            copies = self.weights[rows].float()
            own = silhouettes(list(self.values[:, rows]), sizes, codes[rows, None], copies)
            found += (own * copies).sum(dim=0)
        return found / torch.stack(sizes).sum(dim=0)
