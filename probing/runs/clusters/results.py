"""Values, intervals, nulls and differences between models, from the arrays of the parts of a run."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from probing.metrics.clusters import ALL_INDICES, LOWER_IS_BETTER
from probing.metrics.clusters.indices import alignment_quality_index
from probing.metrics.clusters.intervals import debias, debias_difference
from probing.runs.clusters.parts import CHOSEN, DRIFT, EQUAL, HELD_OUT, LEARNED, Material, drift_subsets, nothing_varies
from probing.runs.clusters.rows import ALL
from probing.runs.common.results import null_columns
from probing.statistics.intervals import percentile_interval
from probing.statistics.permutation import corrected_p_values, p_value

Array = NDArray[np.float64]
AQI_FORMS = {"aqi": "paper", "aqi_size_free": "size_free", "aqi_dbs_dunn": "dbs_dunn"}
METRICS = (*ALL_INDICES, *AQI_FORMS)
SPACES = (CHOSEN, LEARNED, EQUAL)
RANGE_ONLY = ("dunn", "dunn_centroid", "aqi_dbs_dunn")
"""Indices of extremes, which resamples can only move one way: their ends are the range of resamples."""
ROUNDING = 1e-5
"""Relative: how far draws, which are computed in float32, may be from the value of the same labels."""


@dataclass(frozen=True)
class Series:
    """One metric of a view at a place: its value, under permuted labels, and in resamples."""

    value: float
    null: Array
    draws: Array

    def p(self, metric: str) -> float:
        """Share of permuted labels that do as well."""
        return p_value(_lenient(self.value, metric), self.null, metric not in LOWER_IS_BETTER)


def _lenient(value: float, metric: str) -> float:
    """A value that draws of the same labels reach in spite of rounding."""
    return value + abs(value) * ROUNDING * (1 if metric in LOWER_IS_BETTER else -1)


@dataclass(frozen=True)
class Judged:
    """What a run found.

    Attributes:
        results: one row a model, set of rows, place and metric.
        drift: one row a model, place, subset and measure; empty for one model.
        best: of each model, the place that was chosen inside most folds (or, without folds, has the best silhouette).
        chosen: of each model, how often each place was chosen.
        layer_weights: of each model, the mean over folds of every place's weight.
        silhouettes: of each model, of every row of the data at its best place.
        skipped: of each model, places where all states of a label are the same.
    """

    results: pd.DataFrame
    drift: pd.DataFrame
    best: dict[str, str]
    chosen: dict[str, dict[str, int]]
    layer_weights: dict[str, dict[str, float]]
    silhouettes: dict[str, Array]
    skipped: dict[str, list[str]]


ArraysOf = Callable[[tuple[int, str, str]], Mapping[str, Array]]


def judge(material: Material, arrays_of: ArraysOf) -> Judged:
    """Everything that is said, from the arrays of every part.

    Raises:
        DataInvalid: a model has no place with anything to say.
    """
    found: list[dict[str, Any]] = []
    best, chosen, weights, silhouettes, skipped = {}, {}, {}, {}, {}
    first: dict[tuple[str, str, str], dict[str, Series]] = {}
    for model, name in enumerate(material.names):
        series = _all_series(material, model, arrays_of)
        if all(kind != ALL for kind, _, _ in series):
            raise nothing_varies(name)
        found += _rows(material, name, series, first)
        first = series if model == 0 else first
        if material.rows.folds is not None:
            held = arrays_of((model, HELD_OUT, ""))
            times = Counter(material.places[model][int(number)] for number in held["chosen"])
            chosen[name] = dict(times)
            means = held["layer_weights"].mean(axis=0).tolist()
            weights[name] = dict(zip(material.places[model], means, strict=True))
        best[name] = _best(material.places[model], series, chosen.get(name, {}))
        silhouettes[name] = arrays_of((model, "", best[name]))["silhouettes"]
        known = {place for _, _, place in series}
        skipped[name] = [place for place in material.places[model] if place not in known]
    return Judged(pd.DataFrame(found), _drift(material, arrays_of), best, chosen, weights, silhouettes, skipped)


def _all_series(material: Material, model: int, arrays_of: ArraysOf) -> dict[tuple[str, str, str], dict[str, Series]]:
    """By kind and name of the view and place: all metrics."""
    found = {}
    for place in material.places[model]:
        arrays = arrays_of((model, "", place))
        for number, view in enumerate(material.rows.views):
            if np.isfinite(arrays[f"{number}.values"]).any():
                metrics = _series(
                    arrays, str(number), float(len(view.index)), len(view.clusters), material.config.weight
                )
                found[view.kind, view.name, place] = metrics
    if material.rows.folds is not None:
        found |= _held_out_series(material, arrays_of((model, HELD_OUT, "")))
    return found


def _held_out_series(material: Material, arrays: Mapping[str, Array]) -> dict[tuple[str, str, str], dict[str, Series]]:
    """Means over the folds of what each fold gives."""
    found = {}
    clusters, weight = len(material.rows.views[0].clusters), material.config.weight
    for space in SPACES:
        if not np.isfinite(arrays[f"{space}.values"]).any(axis=1).all():
            continue
        folds = []
        for fold, rows in enumerate(arrays["rows"].tolist()):
            own = {name: values[fold] for name, values in arrays.items() if name.startswith(f"{space}.")}
            folds.append(_series(own, space, rows, clusters, weight))
        found[HELD_OUT, "", space] = {
            metric: Series(
                float(np.mean([each[metric].value for each in folds])),
                np.mean([each[metric].null for each in folds], axis=0),
                np.mean([each[metric].draws for each in folds], axis=0),
            )
            for metric in METRICS
        }
    return found


def _series(arrays: Mapping[str, Array], name: str, n: float, clusters: int, weight: float) -> dict[str, Series]:
    values, null, draws = (
        dict(zip(ALL_INDICES, torch.from_numpy(arrays[f"{name}.{kind}"]), strict=True))
        for kind in ("values", "null", "draws")
    )
    # A resample of all rows has more or fewer of some of them; the index grows with their number.
    sizes = torch.from_numpy(arrays[f"{name}.sizes"])
    draws["calinski_harabasz"] = draws["calinski_harabasz"] * (n - clusters) / (sizes - clusters)
    for some in (values, null, draws):
        for metric, form in AQI_FORMS.items():
            some[metric] = alignment_quality_index(some, form, weight, n, clusters)
    return {metric: Series(float(values[metric]), null[metric].numpy(), draws[metric].numpy()) for metric in METRICS}


def _rows(
    material: Material,
    model: str,
    series: Mapping[tuple[str, str, str], Mapping[str, Series]],
    first: Mapping[tuple[str, str, str], Mapping[str, Series]],
) -> list[dict[str, Any]]:
    """One row a metric: value, interval, null, and the difference from the first model on the same resamples."""
    counts = {(view.kind, view.name): len(view.index) for view in material.rows.views}
    counts[HELD_OUT, ""] = material.rows.of_data
    found = []
    for (kind, name, place), metrics in series.items():
        for metric, own in metrics.items():
            row: dict[str, Any] = {"model": model, "set": kind, "category": name, "place": place, "metric": metric}
            row |= {"value": own.value, **_interval(metric, own), "rows": counts[kind, name]}
            row |= null_columns("labels", own.null)
            row |= {"p_labels": own.p(metric), "p_labels_corrected": np.nan}
            if kind != HELD_OUT:
                row["p_labels_corrected"] = _corrected(series, kind, name, place, metric)
            other = first.get((kind, name, place), {}).get(metric)
            change = dict.fromkeys(("", "_corrected", "_low", "_high"), np.nan)
            if other is not None:
                change = {"": own.value - other.value, "_corrected": row["corrected"]}
                change["_corrected"] -= _interval(metric, other)["corrected"]
                change |= dict(zip(("_low", "_high"), _change(metric, own, other), strict=True))
            found.append(row | {f"minus_first{name}": value for name, value in change.items()})
    return found


def _interval(metric: str, own: Series) -> dict[str, float]:
    """What the value is with the bias of few rows taken off, and the interval of that."""
    if metric in RANGE_ONLY:
        low, high = percentile_interval(own.draws)
        return {"corrected": np.nan, "low": low, "high": high}
    return dict(zip(("corrected", "low", "high"), debias(metric, own.value, own.draws), strict=True))


def _change(metric: str, own: Series, other: Series) -> tuple[float, float]:
    """The interval of the difference of two models."""
    if metric in RANGE_ONLY:
        return percentile_interval(own.draws - other.draws)
    return debias_difference(metric, own.value, own.draws, other.value, other.draws)


def _corrected(
    series: Mapping[tuple[str, str, str], Mapping[str, Series]], kind: str, name: str, place: str, metric: str
) -> float:
    """p-value against the best place of every permutation."""
    nulls = np.stack([each[metric].null for (a, b, _), each in series.items() if (a, b) == (kind, name)])
    own = np.array([_lenient(series[kind, name, place][metric].value, metric)])
    return float(corrected_p_values(own, nulls, metric not in LOWER_IS_BETTER)[0])


def _best(
    places: list[str], series: Mapping[tuple[str, str, str], Mapping[str, Series]], chosen: Mapping[str, int]
) -> str:
    if chosen:
        return max(places, key=lambda place: chosen.get(place, 0))
    known = [place for place in places if (ALL, "", place) in series]
    return max(known, key=lambda place: series[ALL, "", place]["silhouette"].value)


def _drift(material: Material, arrays_of: ArraysOf) -> pd.DataFrame:
    """One row a model, place, subset and measure."""
    found: list[dict[str, Any]] = []
    labels = sorted(set(material.rows.labels.tolist()))
    for model, kind, place in material.parts:
        if kind != DRIFT:
            continue
        arrays = arrays_of((model, kind, place))

        def add(subset: str, name: str, measure: str, value: float, at: tuple[int, str] = (model, place)) -> None:
            row = {"model": material.names[at[0]], "place": at[1], "subset": subset, "name": name}
            found.append({**row, "measure": measure, "value": float(value)})

        for value, measure in zip(arrays["cka"], ("cka", "cka_debiased"), strict=True):
            add("all", "", measure, value)
        for value, (subset, name, _) in zip(arrays["shift"], drift_subsets(material.rows), strict=True):
            for part, measure in zip(value, ("shift", "shift_relative", "shift_noise"), strict=True):
                add(subset, name, measure, part)
        for number, angle in enumerate(arrays["angles"]):
            add("component", str(number + 1), "angle", angle)
        for (distance, conflict), label in zip(arrays["bures"], labels, strict=True):
            add("label", label, "bures_wasserstein", distance)
            add("label", label, "geometry_conflict", conflict)
    return pd.DataFrame(found, columns=["model", "place", "subset", "name", "measure", "value"])
