"""The choice of a direction among candidates: measured exhaustively, or by a cascade with the same answer.

Both see a model only through ``Measurements``. A candidate is a row (a position) and a layer of a grid. The unit of
cost is a layer-forward: one block of the model, run on one prompt with one candidate.

The cascade leaves out what cannot change the answer. Candidates of the last layers are not measured at all. ``induce``
comes first, because it needs only the blocks above the layer at which the direction is added. ``bypass`` is measured
for those that induce refusal, and ``kl`` in ascending order of ``bypass`` until one candidate passes. Prompts come in
blocks: since no score is beyond 18.42 and no divergence below 0, a partial sum may show that a limit will be missed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probing.directions.choose import Choice, Limits, choose_direction, measure_shortfall
from probing.directions.cosmic import Cosmic, ask_cosmic, ask_cosmic_of_all
from probing.directions.measurements import (
    MEASURED,
    NOT_MEASURED,
    ROUNDING,
    SCORES,
    STOPPED,
    Candidate,
    Measurements,
    Score,
    Table,
    Watch,
    count_exhaustive,
    find_late,
    keeps_answers,
    list_where,
    watch_nothing,
)
from probing.directions.refusal_score import SMOOTHING

LARGEST_SCORE = math.log(1 + SMOOTHING) - math.log(SMOOTHING)
"""No refusal score is beyond this, 18.42."""
FAR = 1e9
"""Stands for a divergence that was not measured to the end because it is too large."""


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
    cosmic: Cosmic | None = None


def select_exhaustively(
    measurements: Measurements, limits: Limits, *, cosmic: bool = False, watch: Watch = watch_nothing
) -> Selected:
    """Measure every score of every candidate, and choose: the definition.

    Args:
        measurements: what can be measured.
        limits: what a candidate has to keep to.
        cosmic: whether to ask COSMIC as well.
        watch: shows how far it is.
    """
    table = Table(measurements, watch)
    everything = list_where(measurements.candidates)
    for score in SCORES:
        table.measure(score, everything)
    forwards = dict(table.forwards)
    second = ask_cosmic_of_all(table, limits) if cosmic else None
    return _conclude(table, limits, forwards, second)


def select_by_cascade(
    measurements: Measurements, limits: Limits, *, cosmic: bool = False, watch: Watch = watch_nothing
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
    kept = list_where(measurements.candidates & ~find_late(measurements, limits))
    sizes = measurements.blocks("induce")

    def induces_too_little(total: float, to_come: int) -> bool:
        return (total + to_come * LARGEST_SCORE) / sum(sizes) < limits.induce_least - ROUNDING

    table.measure("induce", kept, None if cosmic else induces_too_little)
    inducing = [each for each in kept if limits.induce_least <= table.values["induce"][each] < math.inf]
    table.measure("bypass", inducing)
    finite = [each for each in inducing if math.isfinite(table.values["bypass"][each])]
    ordered = sorted(finite, key=lambda each: (table.values["bypass"][each], each))
    passes = any(keeps_answers(table, each, limits) for each in ordered)
    if not passes:
        _look_for_nearest(table, kept, limits)
    forwards = dict(table.forwards)
    second = ask_cosmic(table, kept, limits) if cosmic and passes else None
    return _conclude(table, limits, forwards, second)


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
