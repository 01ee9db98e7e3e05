"""Cluster indices of the labels, of thousands of permutations of them, and of bootstrap replicates, from one pass over
the distances."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor

from probing.metrics.clusters.distance_sums import DistanceSums, RelabelledSums, ResampledSums
from probing.metrics.clusters.extremes import Ends, PairLists
from probing.metrics.clusters.grouped import Grouped
from probing.metrics.clusters.indices import (
    calinski_harabasz_index,
    davies_bouldin_index,
    dunn_centroid_index,
    dunn_index,
    silhouette_coefficients,
    welch_index,
    xie_beni_index,
)
from probing.metrics.clusters.kernel import can_use_kernel, measure_by_kernel
from probing.metrics.clusters.moments import (
    Moments,
    moments_of_labels,
    moments_of_relabelings,
    moments_of_resamples,
)
from probing.metrics.clusters.tiles import tiles

OF_EXTREMES = ("dunn", "dunn_centroid")
OF_MOMENTS: dict[str, Callable[[Moments], Tensor]] = {
    "davies_bouldin": lambda part: davies_bouldin_index(part.spreads, part.gaps),
    "calinski_harabasz": lambda part: calinski_harabasz_index(part.counts, part.squares, part.gaps),
    "xie_beni": lambda part: xie_beni_index(part.counts, part.squares, part.gaps),
    "welch": lambda part: welch_index(part.counts, part.squares, part.gaps),
}
BUDGET = {"cpu": 64 * 2**20, "cuda": 2**30}
"""Bytes for the sums of distances of draws; where more are needed, distances are computed again for a part of them."""
DRAWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class IndexDraws:
    """Indices of one space; NaN for a draw that leaves a cluster empty, or of every cluster copies of one point.

    Attributes:
        values: values of the indices by name, [1].
        null: values by name under each permutation of the labels, [draw].
        draws: values by name in each bootstrap replicate, [draw].
        sizes: number of points in each replicate, [draw].
        silhouettes: silhouette of every position, [n]; empty unless asked for.
    """

    values: dict[str, Float[Tensor, " 1"]]
    null: dict[str, Float[Tensor, " draw"]]
    draws: dict[str, Float[Tensor, " other"]]
    sizes: Float[Tensor, " other"]
    silhouettes: Float[Tensor, " n"]


class Draws(NamedTuple):
    """Permutations and bootstrap replicates that indices are computed for besides the labels themselves.

    Attributes:
        codes: cluster of every position in each permutation of the labels.
        weights: number of times that every position counts in each bootstrap replicate.
    """

    codes: Shaped[Tensor, "n draw"]
    weights: Shaped[Tensor, "n other"]

    @property
    def there_are_any(self) -> bool:
        """Whether there is a permutation or a replicate."""
        return self.codes.shape[1] + self.weights.shape[1] > 0


class OfDistances(NamedTuple):
    """Results of one pass over the distances, for the labels, the permutations and the bootstrap replicates.

    Attributes:
        silhouettes: silhouette of every position.
        means: means of the silhouettes.
        ends: least distances between clusters and greatest within; None where no index asks for them.
    """

    silhouettes: Float[Tensor, " n"]
    means: tuple[Tensor, Tensor, Tensor]
    ends: tuple[Ends, Ends, Ends] | None


class Kept(Protocol):
    """Results that are kept while others are computed, so that an interrupt loses little."""

    def find(self, name: str) -> Mapping[str, NDArray[np.float64]] | None:
        """Arrays that were kept under this name; None where there are none."""
        ...

    def put(self, name: str, arrays: Mapping[str, NDArray[np.float64]]) -> None:
        """Keep some arrays under a name."""
        ...


def measure_clusters(
    grouped: Grouped,
    indices: Sequence[str],
    relabelings: Int[Tensor, "n draw"] | None = None,
    weights: Int[Tensor, "n other"] | None = None,
    report: Callable[[float], None] = lambda share: None,
    impl: str = "auto",
    kept: Kept | None = None,
) -> IndexDraws:
    """Indices, and the same for other labels and other weights of the points.

    Permutations and replicates are evaluated by multiplying tiles of distances with labels and weights. The kernel
    keeps no distances, so it is used only on a card and without draws.

    Args:
        grouped: the points with their labels.
        indices: names.
        relabelings: cluster of every position of ``grouped`` in each permutation of the labels.
        weights: number of times that each position counts in each bootstrap replicate; copies of a point are no
            neighbours of each other.
        report: told what share of the work on distances is done.
        impl: "auto", "torch" or "triton", of distances without draws.
        kept: keeps the draws of every pass over the distances, and knows those of an interrupted run.
    """
    nothing = torch.zeros((len(grouped.order), 0), dtype=torch.int16, device=grouped.points.device)
    drawn = Draws(nothing if relabelings is None else relabelings, nothing if weights is None else weights)
    parts = _moments(grouped, drawn)
    measured = tuple({name: OF_MOMENTS[name](part) for name in indices if name in OF_MOMENTS} for part in parts)
    silhouettes = torch.zeros(0, dtype=torch.float64)
    if any(name not in OF_MOMENTS for name in indices):
        silhouettes, means, ends = _measure_distances(grouped, indices, drawn, report, impl, kept)
        for some, mean in zip(measured, means, strict=True):
            some["silhouette"] = mean
        if ends is not None:
            for some, part, end in zip(measured, parts, ends, strict=True):
                some |= _dunn(grouped, part, end)
    everywhere = torch.ones((), dtype=torch.bool, device=grouped.points.device)
    some_within = (everywhere, everywhere, _have_more_than_a_point(grouped, drawn.weights))
    values, null, draws = (
        {name: torch.where(part.whole & within, some[name], torch.nan).cpu() for name in indices}
        for some, part, within in zip(measured, parts, some_within, strict=True)
    )
    same = _have_same_clusters(grouped, drawn.codes).cpu()
    null = {name: torch.where(same & null[name].isfinite(), values[name], null[name]) for name in indices}
    return IndexDraws(values, null, draws, parts[2].n.cpu(), silhouettes.cpu())


def _moments(grouped: Grouped, drawn: Draws) -> tuple[Moments, Moments, Moments]:
    """Moments of the clusters of the labels, of their permutations, and of the bootstrap replicates."""
    codes, weights = (some.split(DRAWS_AT_ONCE, dim=1) for some in drawn)
    return (
        moments_of_labels(grouped),
        _join_moments([moments_of_relabelings(grouped, some) for some in codes]),
        _join_moments([moments_of_resamples(grouped, some.float()) for some in weights]),
    )


def _measure_distances(
    grouped: Grouped,
    indices: Sequence[str],
    drawn: Draws,
    report: Callable[[float], None],
    impl: str,
    kept: Kept | None,
) -> OfDistances:
    """Measure by the kernel where it runs and there are no draws, otherwise tile by tile."""
    extreme = any(name in OF_EXTREMES for name in indices)
    codes, weights = drawn
    lists = PairLists.of(grouped, codes.shape[1] > 0, weights.shape[1] > 0) if extreme else None
    if not drawn.there_are_any and can_use_kernel(grouped, impl):
        silhouettes, least, greatest = measure_by_kernel(grouped, impl)
        of_null = of_draws = silhouettes[:0]
        known: Ends | None = Ends(silhouettes.new_tensor([least]), silhouettes.new_tensor([greatest]))
    else:
        counted = drawn if "silhouette" in indices else Draws(codes[:, :0], weights[:, :0])
        silhouettes, of_null, of_draws = _pass_over_distances(grouped, counted, lists, report, kept)
        known = None if lists is None else lists.settle(grouped)
    means = (silhouettes.mean()[None], of_null, of_draws)
    if lists is None or known is None:
        return OfDistances(silhouettes, means, None)
    return OfDistances(
        silhouettes, means, (known, lists.of_labels(grouped, codes), lists.of_resamples(grouped, weights))
    )


def _have_more_than_a_point(grouped: Grouped, weights: Shaped[Tensor, "n draw"]) -> Shaped[Tensor, " draw"]:
    """Whether some cluster of each draw has two points."""
    several = [(weights[slice(*bounds)] > 0).sum(dim=0) > 1 for bounds in grouped.ranges]
    return torch.stack(several).any(dim=0)


def _have_same_clusters(grouped: Grouped, codes: Shaped[Tensor, "n draw"]) -> Shaped[Tensor, " draw"]:
    """Whether each relabeling only renames clusters, so that its indices are exactly those of the labels."""
    whole = [(codes[start:stop] == codes[start]).all(dim=0) for start, stop in grouped.ranges]
    return torch.stack(whole).all(dim=0)


def _join_moments(parts: Sequence[Moments]) -> Moments:
    return Moments(*(torch.cat(some) for some in zip(*parts, strict=True)))


def _dunn(grouped: Grouped, part: Moments, ends: Ends) -> dict[str, Tensor]:
    """Both forms of Dunn's index."""
    return {
        "dunn": dunn_index(grouped.distances(ends.least), grouped.distances(ends.greatest)),
        "dunn_centroid": dunn_centroid_index(part.gaps, ends.greatest),
    }


def _pass_over_distances(
    grouped: Grouped,
    draws: Draws,
    lists: PairLists | None,
    report: Callable[[float], None],
    kept: Kept | None,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " draw"], Float[Tensor, " other"]]:
    """Silhouette of every position, and the mean of every draw; the lists are filled on the way."""
    clusters, own = grouped.clusters, grouped.codes
    codes, weights = draws
    needed = 4 * len(own) * (codes.shape[1] * (clusters - 1) + weights.shape[1] * clusters)
    passes = max(1, -(-needed // BUDGET[own.device.type]))
    null, drawn = [], []
    for number, (some, counted) in enumerate(
        zip(codes.tensor_split(passes, dim=1), weights.tensor_split(passes, dim=1), strict=True)
    ):
        name = f"draws {number + 1} of {passes}"
        known = None if kept is None else kept.find(name)
        if known is not None:
            null.append(torch.from_numpy(known["null"]).to(own.device))
            drawn.append(torch.from_numpy(known["draws"]).to(own.device))
            if number:
                continue
            # The first pass is also that of the labels themselves.
            some, counted = some[:, :0], counted[:, :0]
        sums, others, resampled = DistanceSums(grouped), RelabelledSums(some, clusters), ResampledSums(counted, grouped)
        for tile in tiles(grouped, partial(_report_part, report, number, passes)):
            distances = grouped.distances(tile.squared)
            sums.add(tile, distances)
            if some.shape[1] or counted.shape[1]:
                narrow = distances.float()
                others.add(tile, narrow)
                resampled.add(tile, narrow)
            if number == 0 and lists is not None:
                lists.add(tile, own)
        if known is None:
            null.append(others.silhouettes(sums.values.sum(dim=1)))
            drawn.append(resampled.silhouettes())
            if kept is not None:
                kept.put(name, {"null": null[-1].cpu().numpy(), "draws": drawn[-1].cpu().numpy()})
    sizes = torch.tensor(grouped.counts, device=own.device)
    coefficients = silhouette_coefficients(
        sums.values.unbind(dim=1), list(sizes), own, torch.ones((), device=own.device)
    )
    return coefficients, torch.cat(null), torch.cat(drawn)


def _report_part(report: Callable[[float], None], number: int, parts: int, share: float) -> None:
    report((number + share) / parts)
