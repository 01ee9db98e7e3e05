"""The choice of a direction among candidates: measured exhaustively, or by a cascade with the same answer.

Both see a model only through ``Measurements``. A candidate is a row (a position) and a layer of a grid. The unit of
cost is a layer-forward: one block of the model, run on one prompt with one candidate.

The cascade leaves out what cannot change the answer. Candidates of the last layers are not measured at all. ``induce``
comes first, because it needs only the blocks above the layer at which the direction is added. ``bypass`` is measured
for those that induce refusal, and ``kl`` in ascending order of ``bypass`` until one candidate passes. Prompts come in
blocks: since no score is beyond 18.42 and no divergence below 0, a partial sum may show that a limit will be missed.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from probing.directions.choose import Choice, Limits, choose_direction, count_kept_layers, measure_shortfall
from probing.directions.cosmic import choose_cosmic, cosine_of
from probing.directions.refusal_score import SMOOTHING

Score = Literal["bypass", "induce", "kl"]
SCORES: tuple[Score, ...] = ("bypass", "induce", "kl")
Candidate = tuple[int, int]
"""Row and layer of the grid."""
LARGEST_SCORE = math.log(1 + SMOOTHING) - math.log(SMOOTHING)
"""No refusal score is beyond this, 18.42."""
ROUNDING = 1e-9
"""Partial sums in another order may differ by so much; no candidate is given up within it."""
NOT_MEASURED, STOPPED, MEASURED = "", "stopped", "measured"
FAR = 1e9
"""Stands for a divergence that was not measured to the end because it is too large."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Numbers of some candidates of one layer on one block of prompts.

    Attributes:
        scores: [candidate prompt].
        ends: sums over the prompts of their states at the last token, behind the blocks that COSMIC looks at,
            [candidate place width]; None where they are not read.
    """

    scores: Float[np.ndarray, "candidate prompt"]
    ends: Float[np.ndarray, "candidate place width"] | None = None


Measure = Callable[[Sequence[int], int], Measured]
"""Measures some rows of a layer on the block of prompts with this number."""


class Measurements(Protocol):
    """What can be measured of a model.

    Attributes:
        candidates: [row layer], which candidates there are.
        targets: mean states at the last token, behind the blocks that COSMIC looks at, of harmful and of harmless
            prompts, [place width] each; None where they are not read.
    """

    candidates: NDArray[np.bool_]
    targets: tuple[NDArray[np.float64], NDArray[np.float64]] | None

    def blocks(self, score: Score) -> Sequence[int]:
        """Number of prompts in each block over which a score is the mean."""
        ...

    def depth(self, score: Score, layer: int) -> int:
        """Number of blocks of the model that one prompt runs through for one candidate."""
        ...

    def open(self, score: Score, layer: int, rows: Sequence[int]) -> AbstractContextManager[Measure]:
        """Prepare the measurement of some rows of a layer."""
        ...


Advance = Callable[[float], None]
Watch = Callable[[Score, int], AbstractContextManager[Advance]]
"""Shows how far the measurement of a score of so many candidates is."""


@contextlib.contextmanager
def _watch_nothing(score: Score, count: int) -> Iterator[Advance]:
    yield lambda share: None


@dataclass(frozen=True, eq=False)
class Selected:
    """The outcome of a selection.

    Attributes:
        choice: the candidate that is chosen, and why others were not; indices are (row, layer).
        values: each score of every candidate, [row layer]; NaN where it was not measured to the end.
        states: whether each was measured, stopped early or not measured, [row layer].
        late: whether a candidate is of the last layers, which are left out.
        forwards: layer-forwards of each score, without those that COSMIC needed beyond.
        exhaustive_forwards: those of the exhaustive loop, which runs every candidate through the whole model.
        cosmic: what COSMIC says; None where it was not asked.
    """

    choice: Choice
    values: dict[Score, NDArray[np.float64]]
    states: dict[Score, NDArray[np.str_]]
    late: NDArray[np.bool_]
    forwards: dict[Score, int]
    exhaustive_forwards: int
    cosmic: "Cosmic | None" = None


@dataclass(frozen=True, eq=False)
class Cosmic:
    """The second opinion.

    Attributes:
        index: the candidate with the highest score that keeps to the limit of ``kl``; None where none does.
        score: of each candidate whose score was needed, [row layer]; NaN elsewhere.
        forwards: layer-forwards that it needed beyond the others.
    """

    index: tuple[int, ...] | None
    score: NDArray[np.float64]
    forwards: int


@dataclass(eq=False)
class Table:
    """What has been measured so far.

    Args:
        measurements: what can be measured.
        watch: shows how far it is.
    """

    measurements: Measurements
    watch: Watch = _watch_nothing
    values: dict[Score, NDArray[np.float64]] = field(init=False)
    states: dict[Score, NDArray[np.object_]] = field(init=False)
    ends: dict[tuple[Score, Candidate], NDArray[np.float64]] = field(init=False, default_factory=dict)
    forwards: dict[Score, int] = field(init=False)

    def __post_init__(self) -> None:
        shape = self.measurements.candidates.shape
        self.values = {score: np.full(shape, np.nan) for score in SCORES}
        self.states = {score: np.full(shape, NOT_MEASURED, dtype=object) for score in SCORES}
        self.forwards = dict.fromkeys(SCORES, 0)

    def measure(
        self, score: Score, candidates: Iterable[Candidate], hopeless: Callable[[float, int], bool] | None = None
    ) -> None:
        """Measure a score of candidates, but not again what was measured to the end.

        Args:
            score: which.
            candidates: which candidates.
            hopeless: whether a sum over the prompts so far, with so many to come, settles that a limit is missed; the
                measurement of such a candidate stops.
        """
        wanted = [each for each in candidates if self.states[score][each] != MEASURED]
        layers = sorted({layer for _, layer in wanted})
        with self.watch(score, len(wanted)) as advance:
            for layer in layers:
                rows = [row for row, own in wanted if own == layer]
                with self.measurements.open(score, layer, rows) as measure:
                    self._measure_layer(score, layer, rows, measure, hopeless)
                advance(len(rows))

    def _measure_layer(
        self,
        score: Score,
        layer: int,
        rows: Sequence[int],
        measure: Measure,
        hopeless: Callable[[float, int], bool] | None,
    ) -> None:
        sizes = self.measurements.blocks(score)
        left, totals = list(rows), dict.fromkeys(rows, 0.0)
        ends: dict[int, NDArray[np.float64]] = {}
        for block, size in enumerate(sizes):
            found = measure(left, block)
            self.forwards[score] += len(left) * size * self.measurements.depth(score, layer)
            for at, row in enumerate(left):
                totals[row] += float(found.scores[at].sum())
                if found.ends is not None:
                    ends[row] = found.ends[at] + ends.get(row, 0.0)
            to_come = sum(sizes[block + 1 :])
            out = [row for row in left if to_come and hopeless is not None and hopeless(totals[row], to_come)]
            for row in out:
                self.states[score][row, layer] = STOPPED
            left = [row for row in left if row not in out]
            if not left:
                return
        for row in left:
            self.states[score][row, layer] = MEASURED
            self.values[score][row, layer] = totals[row] / sum(sizes)
            if row in ends:
                self.ends[score, (row, layer)] = ends[row] / sum(sizes)


def select_exhaustively(
    measurements: Measurements, limits: Limits, *, cosmic: bool = False, watch: Watch = _watch_nothing
) -> Selected:
    """Measure every score of every candidate, and choose: the definition.

    Args:
        measurements: what can be measured.
        limits: what a candidate has to keep to.
        cosmic: whether to ask COSMIC as well.
        watch: shows how far it is.
    """
    table = Table(measurements, watch)
    everything = _list(measurements.candidates)
    for score in SCORES:
        table.measure(score, everything)
    forwards = dict(table.forwards)
    second = _ask_cosmic_of_all(table, limits) if cosmic else None
    return _conclude(table, limits, forwards, second)


def select_by_cascade(
    measurements: Measurements, limits: Limits, *, cosmic: bool = False, watch: Watch = _watch_nothing
) -> Selected:
    """Measure only what the choice depends on, and choose the same candidate as ``select_exhaustively``.

    Where no candidate passes, so much more is measured that the nearest is the same, too; COSMIC is not asked then.

    Args:
        measurements: what can be measured.
        limits: what a candidate has to keep to.
        cosmic: whether to ask COSMIC as well; it needs the states of all prompts with each direction added, so that no
            measurement of ``induce`` stops early.
        watch: shows how far it is.
    """
    table = Table(measurements, watch)
    kept = _list(measurements.candidates & ~find_late(measurements, limits))
    sizes = measurements.blocks("induce")

    def induces_too_little(total: float, to_come: int) -> bool:
        return (total + to_come * LARGEST_SCORE) / sum(sizes) < limits.induce_least - ROUNDING

    table.measure("induce", kept, None if cosmic else induces_too_little)
    inducing = [each for each in kept if limits.induce_least <= table.values["induce"][each] < math.inf]
    table.measure("bypass", inducing)
    finite = [each for each in inducing if math.isfinite(table.values["bypass"][each])]
    ordered = sorted(finite, key=lambda each: (table.values["bypass"][each], each))
    passes = any(_keeps_answers(table, each, limits) for each in ordered)
    if not passes:
        _look_for_nearest(table, kept, limits)
    forwards = dict(table.forwards)
    second = _ask_cosmic(table, kept, limits) if cosmic and passes else None
    return _conclude(table, limits, forwards, second)


def find_late(measurements: Measurements, limits: Limits) -> NDArray[np.bool_]:
    """Which places of the grid are in the last layers, which are left out."""
    shape = measurements.candidates.shape
    return np.broadcast_to(np.arange(shape[1]) >= count_kept_layers(shape[1], limits.pruned), shape)


def _list(which: NDArray[np.bool_]) -> list[Candidate]:
    return [(int(row), int(layer)) for row, layer in zip(*np.nonzero(which), strict=True)]


def _keeps_answers(table: Table, candidate: Candidate, limits: Limits) -> bool:
    """Whether a candidate keeps to the limit of ``kl``, measured as far as it takes to know."""
    count = sum(table.measurements.blocks("kl"))

    def changes_too_much(total: float, to_come: int) -> bool:
        return total / count > limits.kl_most + ROUNDING

    if table.states["kl"][candidate] == NOT_MEASURED:
        table.measure("kl", [candidate], changes_too_much)
    return bool(table.values["kl"][candidate] <= limits.kl_most)


def _look_for_nearest(table: Table, kept: Sequence[Candidate], limits: Limits) -> None:
    """Measure what it takes to know which candidate misses the limits by least; ``kl`` can only add to it."""
    table.measure("induce", kept)
    induce, kl, bypass = (table.values[score] for score in ("induce", "kl", "bypass"))
    finite = [each for each in kept if math.isfinite(induce[each])]
    missed = {each: float(measure_shortfall(induce[each], 0.0, limits)) for each in finite}
    count, least = sum(table.measurements.blocks("kl")), math.inf
    for each in sorted(finite, key=lambda each: (missed[each], each)):
        if missed[each] > least:
            break

        def is_farther(total: float, to_come: int, own: float = induce[each], least: float = least) -> bool:
            return bool(measure_shortfall(own, total / count, limits) > least + ROUNDING)

        table.measure("kl", [each], is_farther)
        if table.states["kl"][each] != MEASURED or not math.isfinite(kl[each]):
            continue
        whole = float(measure_shortfall(induce[each], kl[each], limits))
        if whole <= least:
            table.measure("bypass", [each])
            least = whole if math.isfinite(bypass[each]) else least


def _conclude(table: Table, limits: Limits, forwards: dict[Score, int], cosmic: Cosmic | None) -> Selected:
    """The choice by ``choose_direction``; what was not measured stands in its table as what is known of it."""
    # A stopped measurement missed its limit. Where one was not begun, another score decides: ``induce`` is too low, or
    # a candidate with a lower ``bypass`` passes.
    missed = {"bypass": 0.0, "induce": limits.induce_least - 1, "kl": limits.kl_most + FAR}
    passed = {"bypass": 0.0, "induce": limits.induce_least, "kl": 0.0}
    known = {}
    for score in SCORES:
        state = table.states[score]
        filled = np.where(state == STOPPED, missed[score], np.where(state == NOT_MEASURED, passed[score], np.nan))
        known[score] = np.where(state == MEASURED, table.values[score], filled)
        known[score] = np.where(table.measurements.candidates, known[score], np.nan)
    choice = choose_direction(
        known["bypass"],
        known["induce"],
        known["kl"],
        induce_least=limits.induce_least,
        kl_most=limits.kl_most,
        pruned=limits.pruned,
    )
    return Selected(
        choice=choice,
        values=table.values,
        states={score: state.astype(str) for score, state in table.states.items()},
        late=find_late(table.measurements, limits),
        forwards=forwards,
        exhaustive_forwards=count_exhaustive(table.measurements),
        cosmic=cosmic,
    )


def count_exhaustive(measurements: Measurements) -> int:
    """Layer-forwards of a loop that runs every prompt through the whole model for every score of every candidate."""
    layers = measurements.candidates.shape[1]
    prompts = sum(sum(measurements.blocks(score)) for score in SCORES)
    return int(measurements.candidates.sum()) * prompts * layers


def _score_cosmic(table: Table, candidate: Candidate, score: Score) -> float:
    """One half of COSMIC's score: how much states of one kind, edited, look like those of the other."""
    targets = table.measurements.targets
    if targets is None:
        raise ValueError("COSMIC was asked, and the states that it looks at are not read")
    return cosine_of(table.ends[score, candidate], targets[0] if score == "induce" else targets[1])


def _ask_cosmic_of_all(table: Table, limits: Limits) -> Cosmic:
    shape = table.measurements.candidates.shape
    score = np.full(shape, np.nan)
    for each in _list(table.measurements.candidates):
        score[each] = _score_cosmic(table, each, "induce") + _score_cosmic(table, each, "bypass")
    passing = ~find_late(table.measurements, limits) & (table.values["kl"] <= limits.kl_most)
    return Cosmic(choose_cosmic(score, passing), score, 0)


def _ask_cosmic(table: Table, kept: Sequence[Candidate], limits: Limits) -> Cosmic:
    """COSMIC's choice among all candidates that are kept; half of the score is known, and the other at most 1."""
    before = sum(table.forwards.values())
    score = np.full(table.measurements.candidates.shape, np.nan)
    halves = {each: _score_cosmic(table, each, "induce") for each in kept}
    # First those whose other half is known already, so that there is something to be better than.
    order = sorted(
        (each for each in kept if math.isfinite(halves[each])),
        key=lambda each: (table.states["bypass"][each] != MEASURED, -halves[each], each),
    )
    best, chosen = -math.inf, None
    for each in order:
        if table.states["bypass"][each] != MEASURED:
            if halves[each] + 1 + ROUNDING < best:
                continue
            table.measure("bypass", [each])
        score[each] = halves[each] + _score_cosmic(table, each, "bypass")
        better = score[each] > best or (score[each] == best and chosen is not None and each < chosen)
        if better and _keeps_answers(table, each, limits):
            best, chosen = float(score[each]), each
    return Cosmic(chosen, score, sum(table.forwards.values()) - before)
