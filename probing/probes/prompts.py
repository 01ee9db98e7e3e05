"""Supervised probes of one layer on labelled prompts, on every split, with labels permuted as their null."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probing.probes.evaluate import Array, measure_auroc, rank_within_folds
from probing.probes.supervised import LinearProbe, fit_lda, fit_logistic, fit_mass_mean
from probing.statistics.folds import Splits
from probing.statistics.permutation import permute_labels

PROBES = ("logistic", "mass_mean", "lda")
METRICS = ("auroc", "accuracy")
Fit = Callable[[Tensor, Tensor], LinearProbe]
"""Fits probes to states [row width] and targets [row column] of 0 and 1."""


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Labels, units and splits of the prompts.

    Attributes:
        labels: [row].
        units: rows of one unit belong together, [row].
        splits: splits of the rows.
    """

    labels: NDArray[np.bool_]
    units: NDArray[np.int64]
    splits: Splits

    def labelings(self, refits: int, seed: int) -> NDArray[np.bool_]:
        """The labels, then permutations of them inside the folds, which are stratified by label, [labeling row].

        Every split trains on as many rows of each class as with the labels themselves, unless groups that hold both
        classes are spread unevenly.
        """
        drawn = permute_labels(self.labels, self.units, refits, seed, self.splits.train, self.splits.folds)
        return np.concatenate([self.labels[None], drawn])


@dataclass(frozen=True, eq=False)
class ProbeReadings:
    """Readings of the rows by one kind of probe.

    Attributes:
        logits: held out, [labeling row]: for the labels, then for each permutation of them.
        inner: mean AUROC of the probes that saw neither a fold nor the one they are judged on, [labeling fold].
        weight: weight vector of the probe that was fitted to every row, [width].
        bias: bias of that probe.
        fresh: logits of that probe for other rows, [other]; None without them.
    """

    logits: Array
    inner: Array
    weight: Array
    bias: float
    fresh: Array | None = None


@dataclass(frozen=True, eq=False)
class LabelledReadings:
    """Readings of the rows by the probes of one layer, by the name of the probe."""

    probes: Mapping[str, ProbeReadings]

    def shift_origin(self, origin: Float[Tensor, " width"]) -> "LabelledReadings":
        """Turn probes for states with ``origin`` taken off into the same probes for the states themselves."""
        moved = origin.double().cpu().numpy()
        probes = {
            name: replace(each, bias=float(each.bias - each.weight @ moved)) for name, each in self.probes.items()
        }
        return LabelledReadings(probes)

    def to_arrays(self) -> dict[str, Array]:
        """The arrays of a part file, by the names that they have there."""
        arrays: dict[str, Array] = {}
        for name, probe in self.probes.items():
            arrays |= {f"{name}.logits": probe.logits, f"{name}.inner": probe.inner}
            arrays |= {f"{name}.weight": probe.weight, f"{name}.bias": np.array([probe.bias])}
            if probe.fresh is not None:
                arrays[f"{name}.fresh"] = probe.fresh
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> "LabelledReadings":
        """Readings from the arrays of a part file."""
        return cls(
            {
                name: ProbeReadings(
                    logits=arrays[f"{name}.logits"],
                    inner=arrays[f"{name}.inner"],
                    weight=arrays[f"{name}.weight"],
                    bias=float(arrays[f"{name}.bias"][0]),
                    fresh=arrays.get(f"{name}.fresh"),
                )
                for name in PROBES
            }
        )


def fit_prompts(
    states: Float[Tensor, "row width"],
    rows: LabelledRows,
    refits: int,
    seed: int = 0,
    inverse_penalty: float = 1.0,
    fresh: Float[Tensor, "other width"] | None = None,
) -> LabelledReadings:
    """Fit every probe on every split, and read what it says of the rows.

    Args:
        states: states of one layer.
        rows: labels, units, splits.
        refits: permutations of the labels.
        seed: seed of the permutations.
        inverse_penalty: C of the logistic regression.
        fresh: states of other rows, for the probe that saw all of ``states``.
    """
    fits: dict[str, Fit] = {
        "logistic": lambda rows, targets: fit_logistic(rows, targets, inverse_penalty),
        "mass_mean": fit_mass_mean,
        "lda": fit_lda,
    }
    labelings = rows.labelings(refits, seed)
    return LabelledReadings({name: fit_splits(fits[name], states, rows.splits, labelings, fresh) for name in PROBES})


def fit_splits(
    fit: Fit, states: Tensor, splits: Splits, labelings: NDArray[np.bool_], fresh: Tensor | None = None
) -> ProbeReadings:
    """Fit one kind of probe for every split and labeling.

    Args:
        fit: fits probes to rows.
        states: states of one layer, [row width].
        splits: splits of the rows; weight and bias are those of the last one, which by itself sees every row.
        labelings: the labels, then others, [labeling row].
        fresh: states of other rows, for the last probe.
    """
    targets = torch.from_numpy(labelings.T.astype(np.float32)).to(states.device)
    logits = np.empty((len(labelings), len(states), len(splits.left_out)))
    for split in range(logits.shape[2]):
        kept = torch.from_numpy(splits.train[:, split]).to(states.device)
        probe = fit_where_states_differ(fit, states[kept], targets[kept])
        logits[:, :, split] = probe.logits(states).double().cpu().numpy().T
    return ProbeReadings(
        logits=splits.held_out(logits),
        inner=_score_inner(logits, labelings, splits),
        weight=probe.weight[:, 0].double().cpu().numpy(),
        bias=float(probe.bias[0].double()),
        fresh=None if fresh is None else probe.logits(fresh)[:, 0].double().cpu().numpy(),
    )


def fit_where_states_differ(
    fit: Fit, states: Float[Tensor, "row width"], targets: Float[Tensor, "row column"]
) -> LinearProbe:
    """The fitted probes; ones whose weights are all zero for rows that are all the same."""
    if not bool((states == states[:1]).all()):
        return fit(states, targets)
    columns = targets.shape[1]
    dtype = torch.promote_types(states.dtype, torch.float32)
    return LinearProbe(states.new_zeros(states.shape[1], columns, dtype=dtype), states.new_zeros(columns, dtype=dtype))


def _score_inner(logits: Array, labelings: NDArray[np.bool_], splits: Splits) -> Array:
    """[labeling fold]: mean AUROC on each other fold, by the probe that saw neither; no folds without such probes."""
    if not splits.inner(0):
        return np.empty((len(labelings), 0))
    columns = []
    for fold in range(splits.count):
        scores = []
        for at, other in splits.inner(fold):
            judged = splits.folds == other
            scores.append(
                [measure_auroc(row[judged, at], labels[judged]) for row, labels in zip(logits, labelings, strict=True)]
            )
        with np.errstate(invalid="ignore"):
            columns.append(_mean_known(np.array(scores)))
    return np.stack(columns, axis=1)


def _mean_known(scores: Array) -> Array:
    """Mean over the folds that hold both classes; a half where none does."""
    known = np.isfinite(scores)
    mean: Array = np.where(known, scores, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(known.any(axis=0), mean, 0.5)


def measure_rows(
    logits: Array, labels: NDArray[np.bool_], folds: NDArray[np.int64], weights: Array | None = None
) -> Mapping[str, Array]:
    """ "auroc" (within folds) and "accuracy" (a logit above zero says yes), for every labeling or weighting.

    Args:
        logits: [row].
        labels: [row] or [labeling row].
        folds: fold that each row was held out of.
        weights: number of times that each row counts, [weighting row].
    """
    truth = np.atleast_2d(labels)
    rows = np.atleast_2d(np.ones(len(logits)) if weights is None else weights)
    count = max(len(truth), len(rows))
    truth, rows = np.broadcast_to(truth, (count, len(logits))), np.broadcast_to(rows, (count, len(logits)))
    right = np.where(logits == 0, 0.5, (logits > 0) == truth)
    with np.errstate(invalid="ignore"):
        accuracy = (right * rows).sum(axis=1) / rows.sum(axis=1)
    return {"auroc": rank_within_folds(logits, truth, rows, folds)["auroc"], "accuracy": accuracy}
