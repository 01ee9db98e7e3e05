"""Supervised probes of one layer on labelled prompts, on every split, with labels permuted as their null."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probing.probes.evaluate import ranked_within_folds
from probing.probes.supervised import LinearProbe, fit_lda, fit_logistic, fit_mass_mean
from probing.statistics.folds import Splits
from probing.statistics.permutation import permute_labels

Array = NDArray[np.float64]
PROBES = ("logistic", "mass_mean", "lda")
METRICS = ("auroc", "accuracy")


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """What is known of the prompts.

    Attributes:
        labels: [row].
        units: rows of one unit belong together, [row].
        splits: of the rows.
    """

    labels: NDArray[np.bool_]
    units: NDArray[np.int64]
    splits: Splits

    def labelings(self, refits: int, seed: int) -> NDArray[np.bool_]:
        """The labels, then permutations of them with both classes in every split, [labeling row]."""
        drawn = permute_labels(self.labels, self.units, refits, seed, self.splits.train)
        return np.concatenate([self.labels[None], drawn])


def read_prompts(
    states: Float[Tensor, "row width"],
    rows: LabelledRows,
    refits: int,
    seed: int = 0,
    inverse_penalty: float = 1.0,
    fresh: Float[Tensor, "other width"] | None = None,
) -> dict[str, Array]:
    """Fit every probe on every split, and say what it makes of the rows.

    Args:
        states: of one layer.
        rows: labels, units, splits.
        refits: permutations of the labels.
        seed: of the permutations.
        inverse_penalty: C of the logistic regression.
        fresh: states of other rows, for the probe that saw all of ``states``.

    Returns:
        For each probe: ``PROBE.logits`` [labeling row], held out; ``PROBE.inner`` [labeling fold], AUROC of the probes
        that saw neither a fold nor the one they are judged on; ``PROBE.weight`` [width] and ``PROBE.bias`` [1] of the
        one that saw everything, and ``PROBE.fresh`` [other], its logits.
    """
    fits = {
        "logistic": lambda rows, targets: fit_logistic(rows, targets, inverse_penalty),
        "mass_mean": fit_mass_mean,
        "lda": fit_lda,
    }
    labelings = rows.labelings(refits, seed)
    targets = torch.from_numpy(labelings.T.astype(np.float32)).to(states.device)
    found: dict[str, Array] = {}
    for name in PROBES:
        logits = np.empty((len(labelings), len(states), len(rows.splits.left_out)))
        for split in range(logits.shape[2]):
            kept = torch.from_numpy(rows.splits.train[:, split]).to(states.device)
            same = bool((states[kept] == states[kept][:1]).all())
            probe = _nothing(states, len(labelings)) if same else fits[name](states[kept], targets[kept])
            logits[:, :, split] = probe.logits(states).double().cpu().numpy().T
        found[f"{name}.logits"] = rows.splits.held_out(logits)
        found[f"{name}.inner"] = _inner(logits, labelings, rows.splits)
        found[f"{name}.weight"] = probe.weight[:, 0].double().cpu().numpy()
        found[f"{name}.bias"] = probe.bias[:1].double().cpu().numpy()
        if fresh is not None:
            found[f"{name}.fresh"] = probe.logits(fresh)[:, 0].double().cpu().numpy()
    return found


def _nothing(states: Float[Tensor, "row width"], columns: int) -> LinearProbe:
    """What can be learnt from rows that are all the same."""
    dtype = torch.promote_types(states.dtype, torch.float32)
    return LinearProbe(states.new_zeros(states.shape[1], columns, dtype=dtype), states.new_zeros(columns, dtype=dtype))


def _inner(logits: Array, labelings: NDArray[np.bool_], splits: Splits) -> Array:
    """[labeling fold]: mean AUROC on each other fold, by the probe that saw neither."""
    columns = []
    for fold in range(splits.count):
        scores = []
        for at, other in splits.inner(fold):
            judged = splits.folds == other
            scores.append(
                [area(row[judged, at], labels[judged]) for row, labels in zip(logits, labelings, strict=True)]
            )
        with np.errstate(invalid="ignore"):
            columns.append(_mean_known(np.array(scores)))
    return np.stack(columns, axis=1)


def _mean_known(scores: Array) -> Array:
    """Mean over the folds that hold both classes; a half where none does."""
    known = np.isfinite(scores)
    mean: Array = np.where(known, scores, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(known.any(axis=0), mean, 0.5)


def area(logits: Array, labels: NDArray[np.bool_]) -> float:
    """AUROC of some rows; NaN where there is one class only."""
    ones = np.ones((1, len(logits)))
    return float(ranked_within_folds(logits, labels[None], ones, np.zeros(len(logits), dtype=np.int64))["auroc"][0])


def measure_rows(
    logits: Array, labels: NDArray[np.bool_], folds: NDArray[np.int64], weights: Array | None = None
) -> Mapping[str, Array]:
    """ "auroc" (within folds) and "accuracy" (a logit above zero says yes), for every labeling or weighting.

    Args:
        logits: [row].
        labels: [row] or [labeling row].
        folds: that each row was held out of.
        weights: how often each row counts, [weighting row].
    """
    truth = np.atleast_2d(labels)
    rows = np.atleast_2d(np.ones(len(logits)) if weights is None else weights)
    count = max(len(truth), len(rows))
    truth, rows = np.broadcast_to(truth, (count, len(logits))), np.broadcast_to(rows, (count, len(logits)))
    right = np.where(logits == 0, 0.5, (logits > 0) == truth)
    with np.errstate(invalid="ignore"):
        accuracy = (right * rows).sum(axis=1) / rows.sum(axis=1)
    return {"auroc": ranked_within_folds(logits, truth, rows, folds)["auroc"], "accuracy": accuracy}
