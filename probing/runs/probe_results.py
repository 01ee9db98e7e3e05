"""What supervised probes of every layer say of held-out and of fresh rows, beside their nulls and a baseline."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.probes.controls import corrected_p_values, p_value, resamples
from probing.probes.prompts import METRICS, PROBES, LabelledRows, measure_rows
from probing.report.progress import Progress
from probing.runs.ccs_results import CHOSEN, INTERVAL
from probing.runs.probe import ProbeConfig

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
    weights = resamples(rows.units, config.resamples, config.seed)
    labelings = rows.labelings(config.refits, config.seed)
    arrays = []
    with Progress(len(places) + 1, unit="places", doing="judging") as bar:
        for number in range(len(places) + 1):
            arrays.append(dict(read(number)))
            bar.advance(1, 0)
    surface = arrays.pop()
    found: list[dict[str, object]] = []
    logits, best, chosen, nulls = {}, {}, {}, {}
    baseline = surface[f"{BASELINE}.logits"][0]
    for probe in PROBES:
        inner = np.stack([each[f"{probe}.inner"] for each in arrays])  # [place labeling fold]
        picked = inner.argmax(axis=0)  # each labeling chooses its own place for each fold
        best[probe] = places[int(inner[:, 0].mean(axis=1).argmax())]
        chosen[probe] = [places[at] for at in picked[0]]
        values = np.stack([each[f"{probe}.logits"] for each in arrays])  # [place labeling row]
        own = values[picked[:, folds], np.arange(len(labelings))[:, None], np.arange(len(folds))]
        logits[probe] = own[0]
        nulls[probe] = [_null(values[at], labelings, folds) for at in range(len(places))]
        for at, place in enumerate(places):
            found += _rows(place, probe, values[at][0], rows.labels, folds, weights, nulls[probe][at], baseline)
        for row in found:
            if row["probe"] == probe:
                row["p_labels_corrected"] = _corrected(row, nulls[probe])
        rows_chosen = _rows(CHOSEN, probe, own[0], rows.labels, folds, weights, _null(own, labelings, folds), baseline)
        found += [row | {"p_labels_corrected": row["p_labels"]} for row in rows_chosen]
    null = _null(surface[f"{BASELINE}.logits"], labelings, folds)
    found += _rows(SURFACE, BASELINE, baseline, rows.labels, folds, weights, null, None)
    logits[SURFACE] = baseline
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


def _rows(
    place: str,
    probe: str,
    logits: Array,
    labels: NDArray[np.bool_],
    folds: NDArray[np.int64],
    weights: Array,
    null: Mapping[str, Array] | None,
    baseline: Array | None,
    name: str = "held out",
) -> list[dict[str, object]]:
    """One row a metric: value, interval, null, and by how much it is above the baseline."""
    values, drawn = measure_rows(logits, labels, folds), measure_rows(logits, labels, folds, weights)
    other = None if baseline is None else measure_rows(baseline, labels, folds)
    others = None if baseline is None else measure_rows(baseline, labels, folds, weights)
    found = []
    for metric in METRICS:
        row: dict[str, object] = {"set": name, "subset": "all", "place": place, "probe": probe, "metric": metric}
        value = float(values[metric][0])
        row |= {"value": value} | _ends("", drawn[metric]) | {"rows": len(labels)}
        cuts = [np.nan] * 3 if null is None else np.quantile(null[metric], INTERVAL)
        row |= dict(zip(("labels_low", "labels_median", "labels_high"), map(float, cuts), strict=True))
        row["p_labels"] = np.nan if null is None else p_value(value, null[metric])
        row["p_labels_corrected"] = np.nan
        if other is not None and others is not None:
            row["above_surface"] = value - float(other[metric][0])
            row |= _ends("above_surface_", drawn[metric] - others[metric])
        found.append(row)
    return found


def _ends(prefix: str, draws: Array) -> dict[str, object]:
    known = draws[np.isfinite(draws)]
    low, high = np.quantile(known, (INTERVAL[0], INTERVAL[2])) if len(known) else (np.nan, np.nan)
    return {f"{prefix}low": float(low), f"{prefix}high": float(high)}


def _fresh_rows(
    config: ProbeConfig,
    labels: NDArray[np.bool_],
    units: NDArray[np.int64],
    places: Sequence[str],
    arrays: Sequence[Mapping[str, Array]],
    surface: Mapping[str, Array],
) -> list[dict[str, object]]:
    weights = resamples(units, config.resamples, config.seed)
    folds = np.zeros(len(labels), dtype=np.int64)  # one probe read them all
    baseline = surface[f"{BASELINE}.fresh"]
    found = []
    for probe in PROBES:
        for at, place in enumerate(places):
            values = arrays[at][f"{probe}.fresh"]
            found += _rows(place, probe, values, labels, folds, weights, None, baseline, "fresh")
    return found + _rows(SURFACE, BASELINE, baseline, labels, folds, weights, None, None, "fresh")
