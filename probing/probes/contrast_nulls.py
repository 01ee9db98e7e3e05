"""Null distributions of probes on pairs: draws that choose their own layer, and permutations of the labels."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probing.probes.contrast_readings import NullDraws
from probing.probes.evaluate import BY_LABEL, METRICS, Array, measure
from probing.statistics.folds import Splits

Metrics = Mapping[str, Array]
"""Value of each metric in every draw, [draw]."""


def orient_forms(forms: Array, signs: Array, folds: NDArray[np.int64]) -> Array:
    """Held-out probabilities [4 pair], turned round where the sign of the split of their fold is negative."""
    turned: Array = np.where(signs[folds] < 0, 1 - forms, forms)
    return turned


def measure_draws(forms: Array, truth: Array, folds: NDArray[np.int64], mask: NDArray[np.bool_]) -> Metrics:
    """Every metric of every draw, on some of the pairs.

    Args:
        forms: oriented held-out probabilities, [draw 4 pair].
        truth: 1 where the statement is true, -1 where its opposite is; [pair], or for each draw [draw pair].
        folds: fold of each pair.
        mask: the pairs to measure, [pair].
    """
    truths = np.broadcast_to(truth, (len(forms), len(folds)))
    draws = [measure(draw[:, mask], labels[mask], folds[mask]) for draw, labels in zip(forms, truths, strict=True)]
    return {name: np.array([each[name][0] for each in draws]) for name in METRICS}


class NestedChoice:
    """Draws of a null distribution that choose their own layer for each fold, as the layers pass by.

    Attributes:
        draws: draws at the best layers so far.
    """

    def __init__(self, first: NullDraws) -> None:
        self.draws = NullDraws(first.forms, np.full(first.inner.shape, -np.inf))

    def offer(self, layer: NullDraws, folds: NDArray[np.int64]) -> None:
        """Take over every fold whose inner score is better at this layer."""
        better = layer.inner > self.draws.inner
        forms = np.where(better[:, folds][:, None], layer.forms, self.draws.forms)
        self.draws = NullDraws(forms, np.maximum(layer.inner, self.draws.inner))


@dataclass(frozen=True, eq=False)
class PermutedLabels:
    """A probe that saw no labels, judged by permutations of them.

    Attributes:
        held: how right the probe is on each fold, summed over the pairs and less a half of them, [permutation fold].
        inner: how good the layer is for each fold, [permutation fold].
        metrics: the metrics that labels enter into.
    """

    held: Array
    inner: Array
    metrics: Metrics


def judge_permuted_labels(forms: Array, credits: Array, truth: Array, flips: Array, splits: Splits) -> PermutedLabels:
    """Judge a probe by permuted labels, with its orientation found anew for each permutation.

    Args:
        forms: held-out probabilities, not oriented, [4 pair].
        credits: how right every split is on every pair, [pair split].
        truth: 1 where the statement is true, -1 where its opposite is, [pair].
        flips: 1 or -1 of every pair in each permutation, [permutation pair].
        splits: splits of the pairs.
    """
    folds = splits.folds
    signs = np.where(flips @ (credits * splits.train) < 0, -1.0, 1.0)  # [permutation split]
    oriented = np.take_along_axis(signs, np.broadcast_to(folds, (len(signs), len(folds))), axis=1)
    held, inner = [], []
    for fold in range(splits.count):
        inside = folds == fold
        held.append((flips[:, inside] @ credits[inside, fold]) * signs[:, fold])
        parts = []
        for at, other in splits.inner(fold):
            judged = folds == other
            parts.append((flips[:, judged] @ credits[judged, at]) * signs[:, at] / judged.sum())
        inner.append(np.mean(parts, axis=0))
    metrics = measure(forms, truth * flips * oriented, folds, metrics=BY_LABEL)
    return PermutedLabels(np.stack(held, axis=1), np.stack(inner, axis=1), metrics)
