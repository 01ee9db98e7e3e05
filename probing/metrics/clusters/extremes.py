"""The closest and the farthest pairs of points, which decide Dunn's index of any labels and any bootstrap replicate."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from probing.metrics.clusters.grouped import TILE_ROWS, Grouped, exact_squares
from probing.metrics.clusters.tiles import Tile

LEAST_PAIRS = 64
MOST_PAIRS = 2**18
"""Least and greatest number of pairs that are kept; draws that they do not decide are computed separately."""
PAIRS_OF_A_POINT = 16
"""Pairs that are kept beyond that, in numbers of points: one outlier is in as many pairs as there are points, and a
replicate without it asks for those of the next; rows of one text, whose labels are permuted together, likewise."""
FIRST_PAIRS = 32
"""The first so many pairs decide most draws; then four times as many are looked at, and so on up to the next number."""
PAIRS_AT_ONCE = 2048
SAMPLED = 61
"""One distance in so many of a tile is sampled to estimate which distances matter; the number divides no size of a
tile."""
PRESENT = 0.4
"""Share of pairs whose two points are both in a bootstrap replicate."""
DRAWS_AT_ONCE = 128


@dataclass(eq=False)
class Extremes:
    """The closest or the farthest pairs of positions, in order.

    Attributes:
        size: number of pairs that are kept.
        farthest: whether the farthest pairs are kept rather than the closest.
        which: pairs of one cluster ("within"), of two ("between"), or all.
        values: squared distances as the tiles had them; in order once they are settled.
        pairs: positions, [pair 2].
        seen: number of pairs that there were to choose from.
    """

    size: int
    farthest: bool
    which: Literal["within", "between", "all"]
    values: Tensor = field(default_factory=lambda: torch.empty(0))
    pairs: Tensor = field(default_factory=lambda: torch.empty((0, 2), dtype=torch.long))
    seen: int = 0

    @property
    def complete(self) -> bool:
        """Whether no pair was left out."""
        return len(self.values) == self.seen

    def add(self, tile: Tile, codes: Shaped[Tensor, " n"]) -> None:
        """Take in a tile; ``codes`` are the clusters of all positions."""
        apart = tile.clusters is not None and self.which != "all"
        if apart and (self.which == "within") != (len(set(tile.clusters or ())) == 1):
            return
        squared, allowed = tile.squared, self._find_allowed(tile, codes)
        some = None if tile.clusters is not None or self.which == "all" else allowed
        self.seen += _pairs_of(tile) if some is None else int(some.sum())
        for limit in self._choose_limits(squared):
            places = self._find_beyond(squared, allowed, limit)
            if len(places) >= self.size:
                break
        if not len(places):
            return
        width = squared.shape[1]
        pairs = torch.stack((places // width + tile.rows[0], places % width + tile.columns[0]), dim=1)
        self.values = torch.cat((self.values.to(squared), squared.flatten()[places]))
        self.pairs = torch.cat((self.pairs.to(pairs.device), pairs))
        if len(self.values) > self.size:
            best = self._best(self.values)
            self.values, self.pairs = self.values[best], self.pairs[best]

    def _find_allowed(self, tile: Tile, codes: Shaped[Tensor, " n"]) -> Tensor | None:
        """The pairs of a tile to be taken: each once, none of a point with itself; None for all."""
        allowed = None
        if tile.diagonal:
            allowed = torch.ones_like(tile.squared, dtype=torch.bool).triu_(1)
        if tile.clusters is None and self.which != "all":
            same = codes[slice(*tile.rows), None] == codes[slice(*tile.columns)]
            own = same == (self.which == "within")
            allowed = own if allowed is None else allowed & own
        return allowed

    def _choose_limits(self, squared: Tensor) -> tuple[float, ...]:
        """Values that useful pairs are beyond: the end of a full list; or what a sample says, and then none."""
        if len(self.values) == self.size:
            return (float(self.values.min() if self.farthest else self.values.max()),)
        everything = -torch.inf if self.farthest else torch.inf
        sample = squared.flatten()[::SAMPLED]
        rank = 3 * self.size // SAMPLED + 16
        if rank >= len(sample):
            return (everything,)
        return float(sample.topk(rank, largest=self.farthest).values[-1]), everything

    def _find_beyond(self, squared: Tensor, allowed: Tensor | None, limit: float) -> Tensor:
        """Places of the pairs beyond a limit, of the best of them where there are more than the list holds."""
        most = float(squared.amax() if self.farthest else squared.amin())
        if not (most > limit if self.farthest else most < limit):
            return torch.empty(0, dtype=torch.long, device=squared.device)
        better = squared > limit if self.farthest else squared < limit
        if allowed is not None:
            better &= allowed
        places = better.flatten().nonzero()[:, 0]
        return places[self._best(squared.flatten()[places])] if len(places) > self.size else places

    def _best(self, values: Tensor) -> Tensor:
        return values.topk(self.size, largest=self.farthest, sorted=False).indices

    def settle(self, grouped: Grouped) -> None:
        """Sort; the head, and all that rounding may have put behind it, by values computed once more."""
        self.values = self.values.double()
        errors = grouped.bound_error(self.pairs)
        sign = -1.0 if self.farthest else 1.0
        near = sign * self.values - errors <= (sign * self.values + errors).amin() if len(errors) else errors > 0
        head = self.values.topk(min(LEAST_PAIRS, len(near)), largest=self.farthest).indices
        near[head] = True
        self.values[near] = self.exact(grouped, near.nonzero()[:, 0])
        order = self.values.argsort(descending=self.farthest, stable=True)
        self.values, self.pairs = self.values[order], self.pairs[order]

    def exact(self, grouped: Grouped, which: Shaped[Tensor, " some"]) -> Float[Tensor, " some"]:
        """Some of the values as sums of squared differences in float64."""
        parts = self.pairs[which].split(TILE_ROWS)
        return torch.cat([(grouped.at(some[:, 0]) - grouped.at(some[:, 1])).square().sum(dim=1) for some in parts])


def _pairs_of(tile: Tile) -> int:
    """The number of pairs of two points in a tile."""
    rows, columns = tile.squared.shape
    return rows * (rows - 1) // 2 if tile.diagonal else rows * columns


@dataclass(frozen=True, eq=False)
class Ends:
    """Least squared distance between clusters, and greatest within one; NaN where there is none."""

    least: Float[Tensor, " draw"]
    greatest: Float[Tensor, " draw"]


@dataclass(eq=False)
class PairLists:
    """Lists long enough to decide nearly every draw.

    Attributes:
        between: the closest pairs of two clusters.
        within: the farthest pairs of one cluster.
        closest: the closest of all pairs, where labels are to be permuted.
        farthest: the farthest of all pairs, where labels are to be permuted.
    """

    between: Extremes
    within: Extremes
    closest: Extremes
    farthest: Extremes

    @classmethod
    def of(cls, grouped: Grouped, relabelled: bool, resampled: bool) -> "PairLists":
        """Empty lists for draws of these kinds."""
        joined = sum((count / len(grouped.order)) ** 2 for count in grouped.counts)
        more = PAIRS_OF_A_POINT * len(grouped.order)
        known = min(MOST_PAIRS, int(LEAST_PAIRS / PRESENT) + more) if resampled else LEAST_PAIRS
        return cls(
            Extremes(known, False, "between"),
            Extremes(known, True, "within"),
            Extremes(min(MOST_PAIRS, int(LEAST_PAIRS / (1 - joined)) + more) if relabelled else 0, False, "all"),
            Extremes(min(MOST_PAIRS, int(LEAST_PAIRS / joined) + more) if relabelled else 0, True, "all"),
        )

    @property
    def _lists(self) -> list[Extremes]:
        return [each for each in (self.between, self.within, self.closest, self.farthest) if each.size]

    def add(self, tile: Tile, codes: Shaped[Tensor, " n"]) -> None:
        """Take in a tile; ``codes`` are the clusters of all positions."""
        for each in self._lists:
            each.add(tile, codes)

    def settle(self, grouped: Grouped) -> Ends:
        """Once every tile is taken in: the lists in order, and the ends of the labels as they are."""
        for each in self._lists:
            each.settle(grouped)
        return Ends(self.between.values[:1], self.within.values[:1])

    def of_labels(self, grouped: Grouped, codes: Shaped[Tensor, "n draw"]) -> Ends:
        """Distances that decide Dunn's index of other labels."""
        return Ends(*(_decide_draws(grouped, each, codes) for each in (self.closest, self.farthest)))

    def of_resamples(self, grouped: Grouped, weights: Shaped[Tensor, "n draw"]) -> Ends:
        """Distances that decide Dunn's index of the labels, without the points of weight 0."""
        present = weights.clamp_max(1).to(torch.int16)
        # This is far faster than ``torch.where``.
        codes = present.mul_(grouped.codes[:, None].to(torch.int16) + 1).sub_(1)
        return Ends(*(_decide_draws(grouped, each, codes) for each in (self.between, self.within)))


def _decide_draws(grouped: Grouped, pairs: Extremes, codes: Shaped[Tensor, "n draw"]) -> Float[Tensor, " draw"]:
    """For each draw, the first listed pair that its labels separate (or, of the farthest, join).

    Args:
        grouped: the points.
        pairs: pairs in order.
        codes: cluster of every position in each draw, -1 for points that are not in it.
    """
    batches = []
    for some in codes.split(DRAWS_AT_ONCE, dim=1):
        values = torch.full((some.shape[1],), torch.nan, dtype=torch.float64, device=some.device)
        decided = torch.full((some.shape[1],), -1, device=some.device)
        left = torch.arange(some.shape[1], device=some.device)
        for start, stop in _parts(len(pairs.values)):
            one, other = some[pairs.pairs[start:stop].T][..., left]
            decides = (one >= 0) & (other >= 0) & ((one == other) == pairs.farthest)
            first = decides.to(torch.uint8).argmax(dim=0)
            known = decides.gather(0, first[None])[0]
            decided[left[known]] = start + first[known]
            left = left[~known]
            if not len(left):
                break
        distinct, at = decided[decided >= 0].unique(return_inverse=True)
        if len(distinct):
            values[decided >= 0] = pairs.exact(grouped, distinct)[at]
        if not pairs.complete:
            for draw in left.tolist():
                values[draw] = _decide_alone(grouped, some[:, draw], pairs.farthest)
        batches.append(values)
    return torch.cat(batches)


def _parts(count: int) -> Iterator[tuple[int, int]]:
    """Ranges of a list, short ones first."""
    start, size = 0, min(FIRST_PAIRS, PAIRS_AT_ONCE)
    while start < count:
        yield start, min(start + size, count)
        start, size = start + size, min(4 * size, PAIRS_AT_ONCE)


def _decide_alone(grouped: Grouped, codes: Shaped[Tensor, " n"], farthest: bool) -> float:
    """The deciding distance of one draw, from distances computed for it; NaN where no pair decides."""
    counts = torch.bincount(codes[codes >= 0].long())
    clusters = counts.nonzero()[:, 0].tolist()
    if not farthest and clusters:
        # The pairs of the largest cluster with others are visited from those others.
        clusters.remove(int(counts.argmax()))
    extremes = []
    for cluster in clusters:
        rows = (codes == cluster).nonzero()[:, 0]
        others = rows if farthest else ((codes >= 0) & (codes != cluster)).nonzero()[:, 0]
        for left in rows.split(TILE_ROWS):
            for right in others.split(TILE_ROWS):
                squared = exact_squares(grouped.at(left), grouped.at(right))
                if len(rows) > 1 or not farthest:
                    extremes.append(squared.max() if farthest else squared.min())
    if not extremes:
        return float("nan")
    return float(torch.stack(extremes).max() if farthest else torch.stack(extremes).min())
