"""The choice among candidate directions by what they do when they are taken out and when they are added."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

INDUCE_LEAST = 0.0
KL_MOST = 0.1
PRUNED = 0.2
"""Share of the last layers that are left out: a direction there changes words, not decisions."""


@dataclass(frozen=True)
class Limits:
    """What a candidate has to keep to; see ``choose_direction``."""

    induce_least: float = INDUCE_LEAST
    kl_most: float = KL_MOST
    pruned: float = PRUNED


@dataclass(frozen=True)
class Choice:
    """The chosen candidate, and why others were not.

    Attributes:
        index: index of the candidate in the arrays; None where none passes.
        reasons: why each candidate is out, as an array of texts of the shape of the candidates; empty where it passes.
        nearest: index of the candidate that misses the limits by least, where none passes.
    """

    index: tuple[int, ...] | None
    reasons: NDArray[np.str_]
    nearest: tuple[int, ...] | None = None


def choose_direction(
    bypass: ArrayLike,
    induce: ArrayLike,
    kl: ArrayLike,
    layers: int | None = None,
    *,
    induce_least: float = INDUCE_LEAST,
    kl_most: float = KL_MOST,
    pruned: float = PRUNED,
) -> Choice:
    """The direction with the lowest bypass score among those that induce refusal and do little else.

    Args:
        bypass: mean refusal score of harmful prompts with the direction ablated, [..., layer].
        induce: mean refusal score of harmless prompts with the direction added at its layer, the same shape.
        kl: mean divergence on harmless prompts between the model and the ablated one, at the first token, the same
            shape.
        layers: number of layers of the model; by default the length of the last axis.
        induce_least: lower limit of ``induce``.
        kl_most: upper limit of ``kl``.
        pruned: share of the last layers that are left out: only ``layer < int(layers (1 - pruned))`` counts.

    Returns:
        The choice; of candidates with the same bypass score the first.

    Raises:
        ValueError: arrays of different shapes or without candidates, or limits out of range.

    Source: Arditi et al. 2024, arXiv 2406.11717, appendix C.
    """
    tables = [np.asarray(values, dtype=np.float64) for values in (bypass, induce, kl)]
    if not tables[0].size or tables[0].ndim < 1 or any(table.shape != tables[0].shape for table in tables):
        raise ValueError(f"scores of shapes {', '.join(str(table.shape) for table in tables)}; they must be alike")
    if not 0 <= pruned < 1:
        raise ValueError(f"the share of the last layers that are left out is from 0 to below 1, not {pruned}")
    depth = tables[0].shape[-1] if layers is None else layers
    if depth < tables[0].shape[-1]:
        raise ValueError(f"scores of {tables[0].shape[-1]} layers of a model that has {depth}")
    kept = count_kept_layers(depth, pruned)
    reasons = np.full(tables[0].shape, "", dtype=object)
    late = np.broadcast_to(np.arange(tables[0].shape[-1]) >= kept, tables[0].shape)
    broken = ~np.isfinite(np.stack(tables)).all(axis=0)
    rules = (
        (late, "the last layer" if depth - kept == 1 else f"one of the last {depth - kept} layers"),
        (broken, "a score is not finite"),
        (tables[1] < induce_least, f"induces less than {induce_least:g}"),
        (tables[2] > kl_most, f"changes harmless answers by more than {kl_most:g} nats"),
    )
    for wrong, reason in rules:
        reasons[wrong & (reasons == "")] = reason
    passing = reasons == ""
    if passing.any():
        return Choice(_argmin(np.where(passing, tables[0], np.inf)), reasons.astype(str))
    return Choice(None, reasons.astype(str), _find_nearest(tables, late | broken, induce_least, kl_most))


def count_kept_layers(layers: int, pruned: float = PRUNED) -> int:
    """Number of first layers whose candidates count."""
    # As published: int(.8 L). The product is rounded first, since .8 x 35 is 28.000000000000004 in one order only.
    return int(round(layers * (1 - pruned), 9))


def measure_shortfall(
    induce: NDArray[np.float64] | float, kl: NDArray[np.float64] | float, limits: Limits
) -> NDArray[np.float64]:
    """By how much candidates miss their limits: of the refusal score in its units, of KL in units of the limit."""
    return np.maximum(limits.induce_least - induce, 0) + np.maximum(kl / max(limits.kl_most, 1e-9) - 1, 0)


def _find_nearest(
    tables: list[NDArray[np.float64]], out: NDArray[np.bool_], induce_least: float, kl_most: float
) -> tuple[int, ...] | None:
    """The candidate that misses its limits by least."""
    if out.all():
        return None
    short = measure_shortfall(tables[1], tables[2], Limits(induce_least, kl_most))
    return _argmin(np.where(out, np.inf, short))


def _argmin(values: NDArray[np.float64]) -> tuple[int, ...]:
    return tuple(int(number) for number in np.unravel_index(int(values.argmin()), values.shape))
