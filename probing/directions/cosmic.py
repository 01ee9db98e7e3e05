"""COSMIC: how far a direction turns states of one kind of prompt into those of the other, without refusal tokens."""

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

LOWEST = 0.1
"""Share of the layers that are looked at: those at which the two kinds of prompts look least alike."""


def choose_cosmic_layers(
    harmful: Float[np.ndarray, "layer width"], harmless: Float[np.ndarray, "layer width"], share: float = LOWEST
) -> list[int]:
    """The layers at which the mean states of both kinds have the lowest cosine, in order; at least one.

    Args:
        harmful: mean states of harmful prompts at the last token before the answer, behind every block.
        harmless: the same of harmless prompts.
        share: share of the layers that are taken.

    Source: Siu et al. 2025, arXiv 2506.00085.
    """
    alike = np.array([cosine_of(own, other) for own, other in zip(harmful, harmless, strict=True)])
    count = max(1, round(share * len(alike)))
    # A layer whose states are not finite tells nothing.
    order = np.argsort(np.where(np.isfinite(alike), alike, np.inf), kind="stable")
    return sorted(order[:count].tolist())


def cosine_of(states: Float[np.ndarray, "*axes"], target: Float[np.ndarray, "*axes"]) -> float:
    """Cosine between mean states of several layers, one after the other as one vector, and those of a target."""
    own, other = (np.asarray(each, dtype=np.float64).ravel() for each in (states, target))
    lengths = float(np.linalg.norm(own) * np.linalg.norm(other))
    return float(own @ other) / lengths if lengths > 0 else float("nan")


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
