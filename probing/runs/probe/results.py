"""What supervised probes of every layer say of held-out and of fresh rows, beside their nulls and a baseline."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.probes.prompts import METRICS, PROBES, LabelledRows, measure_rows
from probing.report.progress import Progress
from probing.runs.common.results import CHOSEN, null_columns
from probing.runs.probe.config import ProbeConfig
from probing.statistics.bootstrap import draw_bootstrap_weights
from probing.statistics.intervals import percentile_interval
from probing.statistics.permutation import corrected_p_values, p_value

Array = NDArray[np.float64]
SURFACE = "surface"
"""Stands for the baseline that reads lengths and punctuation only; always logistic."""
BASELINE = "logistic"


@dataclass(frozen=True, eq=False)
class Judged:
    """Everything that is said of a run.

    Attributes:
        results: one row a set ("held out", "fresh"), place, probe and metric.
        chosen: for each probe, the place that was chosen for each fold.
        best: for each probe, the place with the best inner scores over all folds.
        logits: held out, at the chosen places, [row]; the baseline's under ``SURFACE``.
        fresh: of fresh rows at the best place.
        weights: [place probe width] of the probes that saw every row; ``biases`` [place probe].
    """

    results: pd.DataFrame
    chosen: dict[str, list[str]]
    best: dict[str, str]
    logits: dict[str, Array]
    fresh: dict[str, Array]
    weights: Array
    biases: Array


def judge(
    config: ProbeConfig,
    rows: LabelledRows,
    fresh: tuple[NDArray[np.bool_], NDArray[np.int64]] | None,
    places: Sequence[str],
    read: Callable[[int], Mapping[str, Array]],
) -> Judged:
    """Go through the arrays of every place and say what they mean.

    Args:
        config: seeds and resamples.
        rows: labels, units, splits.
        fresh: labels and units of the fresh rows.
        places: in order; the baseline comes after them.
        read: the arrays of a place.
    """
    folds = rows.splits.folds
    weights = draw_bootstrap_weights(rows.units, config.resamples, config.seed)
    labelings = rows.labelings(config.refits, config.seed)
    arrays = []
    with Progress(len(places) + 1, unit="places", doing="judging") as bar:
        for number in range(len(places) + 1):
            arrays.append(dict(read(number)))
            bar.advance(1, 0)
    surface = arrays.pop()
    found: list[dict[str, object]] = []
    logits, best, chosen = {}, {}, {}
    logits[SURFACE] = surface[f"{BASELINE}.logits"][0]

    def measured(values: Array) -> Measured:
        return _measured(values, rows.labels, folds, weights)

    baseline = measured(logits[SURFACE])
    for probe in PROBES:
        inner = np.stack([each[f"{probe}.inner"] for each in arrays])  # [place labeling fold]
        picked = inner.argmax(axis=0)  # each labeling chooses its own place for each fold
        best[probe] = places[int(inner[:, 0].mean(axis=1).argmax())]
        chosen[probe] = [places[at] for at in picked[0]]
        values = np.stack([each[f"{probe}.logits"] for each in arrays])  # [place labeling row]
        own = values[picked[:, folds], np.arange(len(labelings))[:, None], np.arange(len(folds))]
        logits[probe] = own[0]
        nulls = [_null(each, labelings, folds) for each in values]
        for place, each, null in zip(places, values, nulls, strict=True):
            of_place = _rows("held out", place, probe, measured(each[0]), null, baseline)
            found += [row | {"p_labels_corrected": _corrected(row, nulls)} for row in of_place]
        of_chosen = _rows("held out", CHOSEN, probe, measured(own[0]), _null(own, labelings, folds), baseline)
        found += [row | {"p_labels_corrected": row["p_labels"]} for row in of_chosen]
    null = _null(surface[f"{BASELINE}.logits"], labelings, folds)
    found += _rows("held out", SURFACE, BASELINE, baseline, null, None)
    new: dict[str, Array] = {}
    if fresh is not None:
        found += _fresh_rows(config, *fresh, places, arrays, surface)
        new = {probe: arrays[places.index(best[probe])][f"{probe}.fresh"] for probe in PROBES}
        new[SURFACE] = surface[f"{BASELINE}.fresh"]
    return Judged(
        pd.DataFrame(found),
        chosen,
        best,
        logits,
        new,
        np.stack([[each[f"{probe}.weight"] for probe in PROBES] for each in arrays]),
        np.stack([[each[f"{probe}.bias"][0] for probe in PROBES] for each in arrays]),
    )


def _null(logits: Array, labelings: NDArray[np.bool_], folds: NDArray[np.int64]) -> dict[str, Array]:
    """Metrics of the probes that were fitted to permuted labels, on those labels."""
    found = [measure_rows(row, labels, folds) for row, labels in zip(logits[1:], labelings[1:], strict=True)]
    return {metric: np.array([each[metric][0] for each in found]) for metric in METRICS}


def _corrected(row: Mapping[str, object], nulls: Sequence[Mapping[str, Array]]) -> float:
    metric = str(row["metric"])
    own = np.array([float(row["value"])])  # type: ignore[arg-type]
    return float(corrected_p_values(own, np.stack([null[metric] for null in nulls]))[0])


@dataclass(frozen=True)
class Measured:
    """Metrics of some logits: their value, and the draws of the bootstrap."""

    values: Mapping[str, float]
    draws: Mapping[str, Array]
    rows: int


def _measured(logits: Array, labels: NDArray[np.bool_], folds: NDArray[np.int64], weights: Array) -> Measured:
    values = {metric: float(value[0]) for metric, value in measure_rows(logits, labels, folds).items()}
    return Measured(values, measure_rows(logits, labels, folds, weights), len(labels))


def _rows(
    name: str,
    place: str,
    probe: str,
    own: Measured,
    null: Mapping[str, Array] | None,
    baseline: Measured | None,
) -> list[dict[str, object]]:
    """One row a metric: value, interval, null, and by how much it is above the baseline."""
    found = []
    for metric in METRICS:
        row: dict[str, object] = {"set": name, "subset": "all", "place": place, "probe": probe, "metric": metric}
        value = own.values[metric]
        row |= {"value": value} | _ends("", own.draws[metric]) | {"rows": own.rows}
        row |= null_columns("labels", None if null is None else null[metric])
        row["p_labels"] = np.nan if null is None else p_value(value, null[metric])
        row["p_labels_corrected"] = np.nan
        if baseline is not None:
            row["above_surface"] = value - baseline.values[metric]
            row |= _ends("above_surface_", own.draws[metric] - baseline.draws[metric])
        found.append(row)
    return found


def _ends(prefix: str, draws: Array) -> dict[str, object]:
    low, high = percentile_interval(draws)
    return {f"{prefix}low": low, f"{prefix}high": high}


def _fresh_rows(
    config: ProbeConfig,
    labels: NDArray[np.bool_],
    units: NDArray[np.int64],
    places: Sequence[str],
    arrays: Sequence[Mapping[str, Array]],
    surface: Mapping[str, Array],
) -> list[dict[str, object]]:
    weights = draw_bootstrap_weights(units, config.resamples, config.seed)
    folds = np.zeros(len(labels), dtype=np.int64)  # one probe read them all

    def measured(values: Array) -> Measured:
        return _measured(values, labels, folds, weights)

    baseline = measured(surface[f"{BASELINE}.fresh"])
    found = []
    for probe in PROBES:
        for place, each in zip(places, arrays, strict=True):
            found += _rows("fresh", place, probe, measured(each[f"{probe}.fresh"]), None, baseline)
    return found + _rows("fresh", SURFACE, BASELINE, baseline, None, None)
