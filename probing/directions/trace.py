"""Where the refusal is decided: its log-odds by layer, and the projection on a direction token by token."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from probing.statistics.bootstrap import bootstrap_mean
from probing.types import Estimate

Array = NDArray[np.float64]
WINDOW = 32
"""Tokens before the last one over which the plateau is taken, and that curves show on either side of an anchor."""
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class LensRow:
    """Refusal log-odds behind one block.

    Attributes:
        harmful: mean over harmful prompts, with its interval.
        harmless: mean over harmless prompts.
    """

    harmful: Estimate
    harmless: Estimate

    @property
    def gap(self) -> float:
        """By how much harmful prompts are above harmless ones."""
        return self.harmful.value - self.harmless.value


def summarize_lens(
    scores: Float[np.ndarray, "layer row"],
    harmful: Bool[np.ndarray, " row"],
    units: NDArray[np.int64],
    resamples: int,
    seed: int,
) -> list[LensRow]:
    """Means of both kinds behind every block, with 95 % intervals over units.

    Args:
        scores: refusal log-odds that each block's output gives by the final norm and the output head.
        harmful: whether each prompt is harmful.
        units: prompts of one unit have the same text.
        resamples: number of bootstrap replicates.
        seed: seed of the draw.
    """
    sides = [np.flatnonzero(harmful == kind) for kind in (True, False)]
    return [LensRow(*(bootstrap_mean(row[own], resamples, seed, units[own]) for own in sides)) for row in scores]


def find_lasting_separation(rows: Sequence[LensRow]) -> int | None:
    """The first layer from which on the interval of harmful prompts lies above that of harmless ones, to the end.

    None where it does not at the last layer.
    """
    apart = [row.harmful.low > row.harmless.high for row in rows]
    if not apart or not apart[-1]:
        return None
    return max((at + 1 for at, one in enumerate(apart) if not one), default=0)


@dataclass(frozen=True)
class Suppression:
    """A fall of the refusal log-odds of harmful prompts at the end of the model.

    Attributes:
        layer: the layer at which they are highest.
        fall: how far they are lower at the last layer, in nats.
    """

    layer: int
    fall: float


def find_suppression(rows: Sequence[LensRow]) -> Suppression | None:
    """The fall from the highest layer to the last one, where the intervals of the two do not overlap; else None."""
    peak = max(range(len(rows)), key=lambda at: rows[at].harmful.value)
    top, last = rows[peak].harmful, rows[-1].harmful
    return Suppression(peak, top.value - last.value) if last.high < top.low else None


@dataclass(frozen=True, eq=False)
class Cliff:
    """How far a curve falls at its last token, one value a direction.

    Attributes:
        plateau: median over the ``WINDOW`` tokens before the last one.
        peak: maximum over them.
        last: value at the last token.
    """

    plateau: Array
    peak: Array
    last: Array

    @property
    def height(self) -> Array:
        """Plateau minus last value: positive where the curve falls."""
        return self.plateau - self.last


def measure_cliff(projected: Float[np.ndarray, "token direction"]) -> Cliff:
    """The cliff of a text at the last of some tokens.

    Args:
        projected: projections of consecutive tokens of one text; the first token of the sequence is not among them.

    Returns:
        NaN where there are fewer than three tokens.

    Source: after Yin et al. 2025, arXiv 2510.06036, who trace a trained probe over the thought; a median in place of
        their judgement of where the plateau lies, and a direction in place of the probe.
    """
    if len(projected) < 3:
        nothing = np.full(projected.shape[1], np.nan)
        return Cliff(nothing, nothing, nothing)
    before = projected[-WINDOW - 1 : -1]
    return Cliff(np.median(before, axis=0), before.max(axis=0), projected[-1])


def align_curves(
    curves: Sequence[Array], anchors: Sequence[int | None], before: int = WINDOW, after: int = 0
) -> Float[np.ndarray, "row position ..."]:
    """Pieces of curves around an anchor, NaN where a curve does not reach.

    Args:
        curves: [token ...] each.
        anchors: number of the token that has position 0 in each curve; None leaves a curve out.
        before: tokens before the anchor.
        after: tokens from the anchor on.
    """
    aligned = np.full((len(curves), before + after, *curves[0].shape[1:]), np.nan)
    for row, (curve, anchor) in enumerate(zip(curves, anchors, strict=True)):
        if anchor is None:
            continue
        start, stop = max(anchor - before, 0), min(anchor + after, len(curve))
        aligned[row, start - anchor + before : stop - anchor + before] = curve[start:stop]
    return aligned


def summarize_curves(aligned: Float[np.ndarray, "row position"]) -> Float[np.ndarray, "quantile position"]:
    """The ``QUANTILES`` over rows at every position that some row reaches; NaN at the others."""
    found = np.full((len(QUANTILES), aligned.shape[1]), np.nan)
    known = np.isfinite(aligned).any(axis=0)
    found[:, known] = np.nanquantile(aligned[:, known], QUANTILES, axis=0)
    return found


def summarize_random(aligned: Float[np.ndarray, "row position direction"]) -> Float[np.ndarray, "end position"]:
    """The middle 95 % over random directions of the median over rows, at every position: low and high."""
    found = np.full((2, aligned.shape[1]), np.nan)
    known = np.isfinite(aligned).any(axis=(0, 2))
    if aligned.shape[2] and known.any():
        medians = np.nanmedian(aligned[:, known], axis=0)
        found[:, known] = np.quantile(medians, (0.025, 0.975), axis=1)
    return found
