"""Values, intervals, nulls and differences between models, from the arrays of the parts of a run."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from probing.metrics.clusters import ALL_INDICES, LOWER_IS_BETTER
from probing.metrics.clusters.indices import alignment_quality_index
from probing.metrics.clusters.intervals import debias, debias_difference
from probing.metrics.clusters.readings import DriftReadings, HeldOutReadings, IndexReadings, PlaceReadings
from probing.runs.clusters.parts import SPACES, ArraysOf, drift_subsets, explain_nothing_varies
from probing.runs.clusters.rows import DRIFT, HELD_OUT, Material
from probing.runs.common.norms import describe_extremes
from probing.runs.common.results import ALL, NOT_KNOWN, Array, NullDistribution, compare
from probing.statistics.intervals import percentile_interval

AQI_FORMS = {"aqi": "paper", "aqi_size_free": "size_free", "aqi_dbs_dunn": "dbs_dunn"}
METRICS = (*ALL_INDICES, *AQI_FORMS)
RANGE_ONLY = ("dunn", "dunn_centroid", "aqi_dbs_dunn")
"""Indices of extremes, which bootstrap replicates can only move one way: their ends are the range of the replicates."""
OF_ONE_PAIR = ("davies_bouldin", "xie_beni", "aqi", "aqi_size_free")
"""Indices of the nearest or the worst pair of clusters. With more than two clusters which pair that is changes between
replicates, and intervals cover too seldom (44 to 90 % where clusters are tied): there are none then."""
EXTREMES_SHOWN = ("silhouette", "aqi_size_free")
"""Indices that are shown with and without rows of extreme norm."""
TEST_ONLY = ("welch",)
"""Statistics of a test, which are no distance: they have a p-value and no interval."""
ROUNDING = 1e-5
"""Largest relative difference of draws, which are computed in float32, from the value of the same labels."""
Where = tuple[str, str, str]
"""Kind and name of a set of rows, and a place."""


@dataclass(frozen=True, eq=False)
class Series:
    """One metric of a view at a place.

    Attributes:
        value: value of the metric.
        null: values under permutations of the labels, [permutation].
        draws: values in bootstrap replicates, [replicate].
    """

    value: float
    null: Array
    draws: Array


SeriesByPlace = Mapping[Where, Mapping[str, Series]]
"""All metrics of every set of rows at every place."""


@dataclass(frozen=True)
class Judged:
    """All results of a run.

    Attributes:
        results: one row a model, set of rows, place and metric.
        drift: one row a model, place, subset and measure; empty for one model.
        best: the place of each model that was chosen inside most folds (or, without folds, has the best silhouette).
        chosen: number of folds that each place was chosen for, for each model.
        layer_weights: mean over folds of every place's weight, for each model.
        silhouettes: silhouette of every row of the data at the best place of each model.
        skipped: places of each model where all states of a label are the same.
        extremes: one row a place where the norms of some rows are far above those of the others.
    """

    results: pd.DataFrame
    drift: pd.DataFrame
    best: dict[str, str]
    chosen: dict[str, dict[str, int]]
    layer_weights: dict[str, dict[str, float]]
    silhouettes: dict[str, Array]
    skipped: dict[str, list[str]]
    extremes: pd.DataFrame


def judge(material: Material, arrays_of: ArraysOf) -> Judged:
    """Compute the results of a run from the arrays of every part.

    Raises:
        DataInvalid: a model has no place at which any index is defined.
    """
    results: list[dict[str, Any]] = []
    best, chosen, weights, silhouettes, skipped = {}, {}, {}, {}, {}
    extremes: list[dict[str, Any]] = []
    first: SeriesByPlace = {}
    for model, name in enumerate(material.names):
        places = material.places[model]
        readings = {place: PlaceReadings.from_arrays(arrays_of((model, "", place))) for place in places}
        held = None
        if material.rows.folds is not None:
            held = HeldOutReadings.from_arrays(arrays_of((model, HELD_OUT, "")))
        series = _gather_series(material, readings, held)
        if all(kind != ALL for kind, _, _ in series):
            raise explain_nothing_varies(name)
        results += _make_rows(material, name, series, first)
        first = series if model == 0 else first
        if held is not None:
            chosen[name] = dict(Counter(places[int(number)] for number in held.chosen))
            weights[name] = dict(zip(places, held.layer_weights.mean(axis=0).tolist(), strict=True))
        best[name] = _find_best(places, series, chosen.get(name, {}))
        silhouettes[name] = readings[best[name]].silhouettes
        known = {place for _, _, place in series}
        skipped[name] = [place for place in places if place not in known]
        extremes += _list_extremes(material, name, readings, series)
    return Judged(
        results=pd.DataFrame(results),
        drift=_list_drift(material, arrays_of),
        best=best,
        chosen=chosen,
        layer_weights=weights,
        silhouettes=silhouettes,
        skipped=skipped,
        extremes=pd.DataFrame(extremes),
    )


def _list_extremes(
    material: Material, model: str, readings: Mapping[str, PlaceReadings], series: SeriesByPlace
) -> list[dict[str, Any]]:
    """One row a place where some norms are far above the others: which rows, and the indices with and without them."""
    listed: list[dict[str, Any]] = []
    ids = [prompt.id for prompt in material.rows.prompts]
    for place, own in readings.items():
        named = describe_extremes(place, own.norms, ids)
        if named is None:
            continue
        row: dict[str, Any] = {"model": model, **named}
        n, clusters = len(own.norms) - named["rows"], len(material.rows.views[0].clusters)
        alone = IndexReadings(own.without, own.without[:, None], own.without[:, None], np.array([float(n)]))
        without = _make_series(alone, float(n), clusters, material.config.weight)
        for metric in EXTREMES_SHOWN:
            known = series.get((ALL, "", place), {}).get(metric)
            row |= {metric: NOT_KNOWN if known is None else known.value, f"{metric} without": without[metric].value}
        listed.append(row)
    return listed


def _gather_series(
    material: Material, readings: Mapping[str, PlaceReadings], held: HeldOutReadings | None
) -> SeriesByPlace:
    """All metrics of every set of rows at every place that has an index, and of what was held out."""
    series: dict[Where, Mapping[str, Series]] = {}
    for place, own in readings.items():
        for view, indices in zip(material.rows.views, own.views, strict=True):
            if np.isfinite(indices.values).any():
                sizes = float(len(view.index)), len(view.clusters)
                series[view.kind, view.name, place] = _make_series(indices, *sizes, material.config.weight)
    if held is not None:
        series |= average_folds(material, held)
    return series


def average_folds(material: Material, held: HeldOutReadings) -> SeriesByPlace:
    """Means over the folds of what each fold gives, in every space that has an index in all of them."""
    series: dict[Where, Mapping[str, Series]] = {}
    clusters, weight = len(material.rows.views[0].clusters), material.config.weight
    for space in SPACES:
        indices = held.spaces[space]
        if not np.isfinite(indices.values).any(axis=1).all():
            continue
        folds = [_make_series(indices.at(fold), n, clusters, weight) for fold, n in enumerate(held.rows.tolist())]
        series[HELD_OUT, "", space] = {
            metric: Series(
                float(np.mean([each[metric].value for each in folds])),
                np.mean([each[metric].null for each in folds], axis=0),
                np.mean([each[metric].draws for each in folds], axis=0),
            )
            for metric in METRICS
        }
    return series


def _make_series(indices: IndexReadings, n: float, clusters: int, weight: float) -> dict[str, Series]:
    """All indices, and the forms of the alignment quality index that are computed from them."""
    values, null, draws = (
        dict(zip(ALL_INDICES, torch.from_numpy(some), strict=True))
        for some in (indices.values, indices.null, indices.draws)
    )
    # Replicates of groups differ in their number of rows, with which the index grows.
    sizes = torch.from_numpy(indices.sizes)
    draws["calinski_harabasz"] = draws["calinski_harabasz"] * (n - clusters) / (sizes - clusters)
    for some in (values, null, draws):
        for metric, form in AQI_FORMS.items():
            some[metric] = alignment_quality_index(some, form, weight, n, clusters)
    return {metric: Series(float(values[metric]), null[metric].numpy(), draws[metric].numpy()) for metric in METRICS}


def _make_rows(material: Material, model: str, series: SeriesByPlace, first: SeriesByPlace) -> list[dict[str, Any]]:
    """One row a metric: value, interval, null, and the difference from the first model on the same replicates."""
    counts = {(view.kind, view.name): len(view.index) for view in material.rows.views}
    counts[HELD_OUT, ""] = material.rows.of_data
    clusters = len(material.rows.views[0].clusters)
    rows = []
    for (kind, name, place), metrics in series.items():
        for metric, own in metrics.items():
            compared = compare(
                own.value,
                own.draws,
                counts[kind, name],
                {"labels": _null_of(series, kind, name, metric, own)},
                higher_is_better=metric not in LOWER_IS_BETTER,
                rounding=ROUNDING,
                debiased=_remove_bias(metric, own, clusters),
            )
            row: dict[str, Any] = {"model": model, "set": kind, "category": name, "place": place, "metric": metric}
            row |= compared.to_columns("rows")
            other = first.get((kind, name, place), {}).get(metric)
            rows.append(row | _compare_models(metric, own, other, clusters))
    return rows


def _null_of(series: SeriesByPlace, kind: str, name: str, metric: str, own: Series) -> NullDistribution:
    """Null distribution of permuted labels at a place, and at all places that it was chosen from."""
    if kind == HELD_OUT:
        return NullDistribution(own.null)
    places = [each[metric].null for (a, b, _), each in series.items() if (a, b) == (kind, name)]
    return NullDistribution(own.null, places)


def has_interval(metric: str, clusters: int) -> bool:
    """Whether there is an interval that holds."""
    return metric not in TEST_ONLY and not (clusters > 2 and metric in OF_ONE_PAIR)


def _remove_bias(metric: str, own: Series, clusters: int) -> tuple[float, float, float]:
    """The value with the bias of few rows taken off, and its interval."""
    if metric in TEST_ONLY:
        return NOT_KNOWN, NOT_KNOWN, NOT_KNOWN
    if metric in RANGE_ONLY:
        return NOT_KNOWN, *percentile_interval(own.draws)
    corrected, low, high = debias(metric, own.value, own.draws)
    return (corrected, low, high) if has_interval(metric, clusters) else (corrected, NOT_KNOWN, NOT_KNOWN)


def _compare_models(metric: str, own: Series, other: Series | None, clusters: int) -> dict[str, float]:
    """The difference from the first model, of the values and of the corrected ones, with the interval of the latter."""
    names = ("minus_first", "minus_first_corrected", "minus_first_low", "minus_first_high")
    if other is None:
        return dict.fromkeys(names, NOT_KNOWN)
    corrected = _remove_bias(metric, own, clusters)[0] - _remove_bias(metric, other, clusters)[0]
    if not has_interval(metric, clusters):
        low, high = NOT_KNOWN, NOT_KNOWN
    elif metric in RANGE_ONLY:
        low, high = percentile_interval(own.draws - other.draws)
    else:
        low, high = debias_difference(metric, own.value, own.draws, other.value, other.draws)
    return dict(zip(names, (own.value - other.value, corrected, low, high), strict=True))


def _find_best(places: list[str], series: SeriesByPlace, chosen: Mapping[str, int]) -> str:
    if chosen:
        return max(places, key=lambda place: chosen.get(place, 0))
    known = [place for place in places if (ALL, "", place) in series]
    return max(known, key=lambda place: series[ALL, "", place]["silhouette"].value)


def _list_drift(material: Material, arrays_of: ArraysOf) -> pd.DataFrame:
    """One row a model, place, subset and measure."""
    rows: list[dict[str, Any]] = []
    for part in material.parts:
        model, kind, place = part
        if kind == DRIFT:
            readings = DriftReadings.from_arrays(arrays_of(part))
            for subset, name, measure, value in _list_measures(material, readings):
                row = {"model": material.names[model], "place": place, "subset": subset, "name": name}
                rows.append({**row, "measure": measure, "value": float(value)})
    return pd.DataFrame(rows, columns=["model", "place", "subset", "name", "measure", "value"])


def _list_measures(material: Material, readings: DriftReadings) -> Iterator[tuple[str, str, str, float]]:
    """Subset of rows and its name, measure, value."""
    for value, measure in zip(readings.cka, ("cka", "cka_debiased"), strict=True):
        yield ALL, "", measure, value
    for values, (subset, name, _) in zip(readings.shift, drift_subsets(material.rows), strict=True):
        for value, measure in zip(values, ("shift", "shift_relative", "shift_noise"), strict=True):
            yield subset, name, measure, value
    for number, angle in enumerate(readings.angles):
        yield "component", str(number + 1), "angle", angle
    labels = sorted(set(material.rows.labels.tolist()))
    for (distance, conflict), label in zip(readings.bures, labels, strict=True):
        yield "label", label, "bures_wasserstein", distance
        yield "label", label, "geometry_conflict", conflict
