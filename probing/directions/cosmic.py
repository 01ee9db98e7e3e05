"""COSMIC: how far a direction turns states of one kind of prompt into those of the other, without refusal tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from probing.directions.choose import Limits
from probing.directions.measurements import (
    MEASURED,
    ROUNDING,
    Candidate,
    Score,
    Table,
    find_late,
    keeps_answers,
    list_where,
)

LOWEST = 0.1
"""Share of the layers that are looked at: those at which the two kinds of prompts look least alike."""


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


def choose_cosmic_layers(
    harmful: Float[np.ndarray, "layer width"], harmless: Float[np.ndarray, "layer width"], share: float = LOWEST
) -> list[int]:
    """The layers at which the mean states of both kinds have the lowest cosine, in order; at least one.

    A share of the layers that is not a whole number is rounded down, as published.

    Args:
        harmful: mean states of harmful prompts at the last token before the answer, behind every block.
        harmless: the same of harmless prompts.
        share: share of the layers that are taken.

    Source: Siu et al. 2025, arXiv 2506.00085. Their code reads the states of the training prompts here, and the last
    block's behind the final norm.
    """
    alike = np.array([cosine_of(own, other) for own, other in zip(harmful, harmless, strict=True)])
    # The product is rounded first: .29 x 100 is 28.999999999999996.
    count = max(1, int(round(share * len(alike), 9)))
    # A layer whose states are not finite tells nothing.
    order = np.argsort(np.where(np.isfinite(alike), alike, np.inf), kind="stable")
    return sorted(order[:count].tolist())


def cosine_of(states: Float[np.ndarray, " width"], target: Float[np.ndarray, " width"]) -> float:
    """Cosine of the angle between two states, in float64; NaN where one of them is zero."""
    own, other = (np.asarray(each, dtype=np.float64) for each in (states, target))
    lengths = float(np.linalg.norm(own) * np.linalg.norm(other))
    return float(own @ other) / lengths if lengths > 0 else float("nan")


def compare_over_layers(states: Float[np.ndarray, "place width"], target: Float[np.ndarray, "place width"]) -> float:
    """Cosine between mean states and those of a target, each averaged over the layers first.

    Source: Siu et al. 2025, arXiv 2506.00085, as in their code.
    """
    return cosine_of(states.mean(axis=0), target.mean(axis=0))


def choose_cosmic(score: NDArray[np.float64], passing: NDArray[np.bool_]) -> tuple[int, ...] | None:
    """The candidate with the highest score among those that pass; of equal ones the first.

    Args:
        score: cosine of steered harmless with harmful states plus cosine of ablated harmful with harmless ones.
        passing: which candidates may be chosen.
    """
    usable = passing & np.isfinite(score)
    if not usable.any():
        return None
    at = np.unravel_index(int(np.where(usable, score, -np.inf).argmax()), score.shape)
    return tuple(int(number) for number in at)


def _score_cosmic(table: Table, candidate: Candidate, score: Score) -> float:
    """One half of COSMIC's score: how much states of one kind, edited, look like those of the other."""
    targets = table.measurements.targets
    if targets is None:
        raise ValueError("COSMIC was asked, and the states that it looks at are not read")
    return compare_over_layers(table.ends[score, candidate], targets[0] if score == "induce" else targets[1])


def ask_cosmic_of_all(table: Table, limits: Limits) -> Cosmic:
    """COSMIC's choice where every score of every candidate was measured: the definition."""
    shape = table.measurements.candidates.shape
    score = np.full(shape, np.nan)
    for each in list_where(table.measurements.candidates):
        score[each] = _score_cosmic(table, each, "induce") + _score_cosmic(table, each, "bypass")
    passing = ~find_late(table.measurements, limits) & (table.values["kl"] <= limits.kl_most)
    return Cosmic(choose_cosmic(score, passing), score, 0)


def ask_cosmic(table: Table, kept: Sequence[Candidate], limits: Limits) -> Cosmic:
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
        if better and keeps_answers(table, each, limits):
            best, chosen = float(score[each]), each
    return Cosmic(chosen, score, sum(table.forwards.values()) - before)
