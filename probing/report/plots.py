"""Plots for people, as figures: plain dictionaries that pages draw."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.report.figures import (
    LABEL_WIDTH,
    LINE_PIXELS,
    PICTURE_PIXELS,
    SHOWN_TICKS,
    Figure,
    choose_edges,
    make_band,
    make_figure,
    make_histogram,
    make_interval_bars,
    make_line,
    mark_value,
    name_places,
    note_outside,
    scale_log,
    stack_bars,
)
from probing.report.layout import shorten
from probing.types import Estimate

MOST_CATEGORIES = 40
"""Largest number of categories in a heat map: the ones with the most rows."""
POINTS = 1000
"""Largest number of points in a picture; jobs draw them from their rows."""
_COLORS = {"chosen": "#1b6ca8", "rejected": "#c8553d", "margin": "#3a7d44"}
_KEPT, _DROPPED, _DISPLACED = "#1b6ca8", "#c8553d", "#b8860b"
_LINES = ("#1b6ca8", "#c8553d", "#3a7d44", "#7d5ba6", "#b8860b", "#555555")
_BANDS = {"random": "#999999", "pairings": "#d9b38c", "labels": "#9fb8c8"}
_BAND_NAMES = {
    "random": "95 % of random probes",
    "pairings": "trained on permuted pairings",
    "labels": "95 % under permuted labels",
}
_METRICS = {
    "esa": ("Accuracy (ESA)", "higher is better"),
    "accuracy": ("Accuracy", "higher is better"),
    "auroc": ("Area under the ROC curve", "higher is better"),
    "polar_consistency": ("Polar consistency", "near 0 is better"),
    "median_abs_polar_consistency": ("Median of |polar consistency|", "lower is better"),
    "contradiction_index": ("Contradiction index", "lower is better"),
    "silhouette": ("Silhouette", "higher: further apart"),
    "aqi_size_free": ("Alignment quality index, form free of the sample size", "higher: further apart"),
    "davies_bouldin": ("Davies-Bouldin index", "lower: further apart"),
    "dunn": ("Dunn index", "higher: further apart"),
    "calinski_harabasz": ("Calinski-Harabasz index", "higher: further apart"),
    "xie_beni": ("Xie-Beni index", "lower: further apart"),
}
"""Name of each metric in words, and which end is which."""

CANDIDATE_SCORES = {
    "bypass": ("Refusal score of harmful prompts without the direction, mean", "log-odds"),
    "induce": ("Refusal score of harmless prompts with the direction added, mean", "log-odds"),
    "kl": ("Divergence of the first token of harmless answers without the direction, mean", "nats"),
    "cosmic": ("COSMIC: likeness of edited states to those of the other kind", "mean cosine"),
}
"""Titles and units of the scores of candidate directions."""


def draw_scores(scores: pd.DataFrame, axes: Mapping[str, str], marks: Mapping[str, tuple[float, str]]) -> list[Figure]:
    """A histogram of every column of scores.

    Args:
        scores: one row a pair; NaN for a pair that has no score.
        axes: what each column holds, with its unit, by name; one figure for each.
        marks: a value of a column with a label for it, drawn as a line.

    Returns:
        One figure for each column that has a value.
    """
    known = {name: scores[name].to_numpy(dtype=np.float64) for name in axes if scores[name].notna().any()}
    figures = []
    for name, values in known.items():
        edges = choose_edges(values)
        title = f"Distribution of {name} over {np.isfinite(values).sum():,} pairs{note_outside(values, edges)}"
        figure = make_figure([make_histogram(values, edges, "pairs", _KEPT)], title, axes[name], "pairs")
        figures.append(mark_value(figure, *marks[name]) if name in marks else figure)
    return [stack_bars(figure) for figure in figures]


def draw_filter(
    scores: NDArray[np.float64], kept: NDArray[np.bool_], axis: str, mark: tuple[float, str] | None
) -> list[Figure]:
    """The distribution of a score over the pairs that were kept and those that were dropped.

    Args:
        scores: [pair]; NaN for a pair that has none.
        kept: whether each pair was kept, [pair].
        axis: name of the score.
        mark: the threshold, and a label for it; None where all pairs went one way.

    Returns:
        One figure; none where no pair has a score.
    """
    if not np.isfinite(scores).any():
        return []
    edges = choose_edges(scores)
    parts = [("kept", scores[kept], _KEPT), ("dropped", scores[~kept], _DROPPED)]
    bars = [make_histogram(part, edges, f"{name}, {len(part):,} pairs", color) for name, part, color in parts]
    without = int((~np.isfinite(scores)).sum())
    title = f"Pairs that were kept and dropped by {axis}{note_outside(scores, edges)}"
    title += f"; {without:,} pairs have no score" if without else ""
    figure = stack_bars(make_figure(bars, title, axis, "pairs"))
    return [mark_value(figure, *mark) if mark else figure]


def draw_changes(pairs: pd.DataFrame, displaced: Estimate) -> list[Figure]:
    """The distribution of the changes of both log-probabilities, with the displaced pairs marked among the chosen.

    Args:
        pairs: one row a pair, with ``chosen_change`` and ``rejected_change`` in nats, and ``displaced``.
        displaced: the share of the displaced pairs, with its interval.
    """
    chosen, rejected = (pairs[f"{side}_change"].to_numpy() for side in ("chosen", "rejected"))
    lost = pairs["displaced"].to_numpy(dtype=bool)
    edges = choose_edges(np.concatenate([chosen, rejected]))
    share = f"share displaced {displaced.value:.4g}"
    share += "" if np.isnan(displaced.low) else f" (95 % interval {displaced.low:.4g} to {displaced.high:.4g})"
    what = "displaced: ln p(chosen) fell while the margin rose"
    sides = [
        make_histogram(chosen[lost], edges, what, _DISPLACED),
        make_histogram(chosen[~lost], edges, "the other pairs", _COLORS["chosen"]),
    ]
    outside = note_outside(chosen, edges), note_outside(rejected, edges)
    title = f"Change of ln p(chosen) from reference to policy, {len(pairs):,} pairs; {share}{outside[0]}"
    axis = "change of ln p({}), nats (below 0: it lost probability)"
    figures = [make_figure(sides, title, axis.format("chosen"), "pairs")]
    title = f"Change of ln p(rejected) from reference to policy, {len(pairs):,} pairs{outside[1]}"
    bars = [make_histogram(rejected, edges, "pairs", _COLORS["rejected"])]
    figures.append(make_figure(bars, title, axis.format("rejected"), "pairs"))
    for figure in figures:
        # Both sides on one scale, to be compared.
        figure["layout"]["xaxis"]["range"] = [edges[0], edges[-1]]
    return [mark_value(stack_bars(figure), 0.0, "no change") for figure in figures]


def draw_course(course: pd.DataFrame) -> list[Figure]:
    """Changes of both log-probabilities and of their margin against the reference, over the steps of a training.

    Args:
        course: one row a ``step`` and ``measure`` ("chosen", "rejected", "margin"): the ``mean`` of the change with its
            interval (``low``, ``high``) and its quartiles (``quarter``, ``three_quarters``) over pairs, in nats, and
            ``pairs``, their number.
    """
    if course.empty:
        return []
    traces = []
    names = {"chosen": "ln p(chosen)", "rejected": "ln p(rejected)", "margin": "margin"}
    for measure, color in _COLORS.items():
        rows = course[course["measure"] == measure]
        band = make_band(
            rows["step"],
            rows["quarter"],
            rows["three_quarters"],
            color,
            f"{names[measure]}, middle half of the pairs",
            0.12,
        )
        bars = make_interval_bars(rows["mean"], rows["low"], rows["high"])
        line = make_line(rows["step"], rows["mean"], "lines+markers", f"{names[measure]}, mean with 95 % interval")
        traces += [band, {**line, "line": {"color": color}, "error_y": bars}]
    title = f"Change of log-probabilities against the reference over training, {course['pairs'].iloc[0]:,} pairs"
    up = "change against the reference, nats"
    figure = make_figure(traces, title, "step (0: the reference)", up)
    if course["step"].nunique() <= SHOWN_TICKS:
        figure["layout"]["xaxis"] |= _tick_steps(course["step"].unique().tolist())
    return [figure]


def _tick_steps(steps: Sequence[int]) -> dict[str, Any]:
    """Ticks at the steps, without those that would stand too near the one before."""
    shown = [steps[0]]
    least = (steps[-1] - steps[0]) / SHOWN_TICKS
    for step in steps[1:]:
        if step - shown[-1] >= least:
            shown.append(step)
    # The last step is always named.
    shown[-1] = steps[-1]
    return {"tickmode": "array", "tickvals": shown}


def draw_layers(results: pd.DataFrame, pictures: Mapping[str, pd.DataFrame], apart: Sequence[str] = ()) -> list[Figure]:
    """Metrics of probes over the places of a model with the bands of their nulls, and points of some places.

    Args:
        results: one row a ``place``, ``probe`` and ``metric``, with ``value``, ``low``, ``high``, and for the bands
            ``random_low``, ``random_high`` and so on, places in order; rows of a ``subset`` other than "all" are left
            out.
        pictures: points to draw, by place, at most 1000: two columns of coordinates, ``truth``, ``id`` and ``text``.
        apart: rows that stand among the places without being one, and are not joined to the others by a line.
    """
    everything = results[results["subset"] == "all"]
    figures = [
        _metric_figure(everything[everything["metric"] == metric], "held out, by place", apart)
        for metric in dict.fromkeys(everything["metric"])
    ]
    title = "{}: yes form less no form of every statement, principal components (a picture, no result)"
    figures += [_points_figure(points, title.format(place)) for place, points in pictures.items()]
    return figures


def draw_clusters(
    results: pd.DataFrame, categories: pd.DataFrame, pictures: Mapping[str, pd.DataFrame]
) -> list[Figure]:
    """Cluster indices over the places of models with the bands of permuted labels, heat maps by category, and points.

    Args:
        results: one row a ``model``, ``place`` and ``metric`` of all rows, with ``value``, ``low``, ``high``,
            ``labels_low`` and ``labels_high``, places in order.
        categories: the same table of the rows of each ``category``, ``rows`` of them; one heat map a model and metric.
        pictures: points to draw, by title, at most 1000: two columns of coordinates, ``truth``, ``id`` and ``text``.
    """
    everything = results.rename(columns={"model": "probe"})
    figures = [
        _metric_figure(rows, "by place", every_band=True) for _, rows in everything.groupby("metric", sort=False)
    ]
    for (model, metric), rows in categories.groupby(["model", "metric"], sort=False):
        figures.append(_heat_figure(rows, f"{_name_metric(str(metric))[0]} by category and place, {model}"))
    figures += [_points_figure(points, title) for title, points in pictures.items()]
    return figures


def draw_candidates(table: pd.DataFrame) -> list[Figure]:
    """Scores of candidate directions over the places of a model, one figure a score and one line a position.

    Args:
        table: ``place``, ``position``, ``bypass``, ``induce``, ``kl`` and ``cosmic``, one row a candidate, places in
            order; NaN where a score was not measured.
    """
    figures = []
    for score, (title, unit) in CANDIDATE_SCORES.items():
        known = table[table[score].notna()]
        # A position of which nothing was measured keeps its place, so that each has one color in all figures.
        lines = [(position, known[known["position"] == position]) for position in sorted(set(table["position"]))]
        traces = [make_line(own["place"], own[score], "lines+markers", f"position {at}") for at, own in lines]
        if len(known):
            figure = make_figure(traces, title, "place", unit)
            # A single line that was measured has to be named too.
            figure["layout"]["showlegend"] = True
            figures.append(name_places(figure, list(dict.fromkeys(known["place"]))))
    return figures


def _heat_figure(rows: pd.DataFrame, title: str) -> Figure:
    sizes = rows.groupby("category", sort=False)["rows"].max()
    shown = sizes.sort_values(ascending=False, kind="stable").index[:MOST_CATEGORIES]
    if len(shown) < len(sizes):
        title += f" (the {len(shown)} categories with the most rows, of {len(sizes)})"
    rows = rows[rows["category"].isin(shown)]
    places: list[str] = list(dict.fromkeys(rows["place"]))
    table = rows.pivot(index="category", columns="place", values="value")[places]
    names = [str(name) for name in table.index]
    heat: dict[str, Any] = {
        "type": "heatmap",
        "x": places,
        "y": names,
        "z": table.to_numpy().tolist(),
        "colorscale": "Viridis",
        "hoverongaps": False,
    }
    if len(places) <= SHOWN_TICKS:
        # Numbers in cells that are narrower than they would lie over each other.
        heat["texttemplate"] = "%{z:.2f}"
    figure = make_figure([heat], title, "place", "category")
    ticks = {"tickmode": "array", "tickvals": names, "ticktext": [shorten(name, LABEL_WIDTH) for name in names]}
    figure["layout"]["yaxis"] |= {"type": "category", "automargin": True, **ticks}
    figure["layout"]["height"] = max(PICTURE_PIXELS, LINE_PIXELS * len(names))
    return name_places(figure, places)


def _metric_figure(rows: pd.DataFrame, over: str, apart: Sequence[str] = (), every_band: bool = False) -> Figure:
    """One metric over places: the bands of the first probe or of every one, and the values of all with intervals."""
    probes = list(dict.fromkeys(rows["probe"]))
    traces = []
    for number, probe in enumerate(probes if every_band else probes[:1]):
        own = rows[(rows["probe"] == probe) & ~rows["place"].isin(apart)]
        traces += _null_bands(own, probe, _pick_color(number) if every_band else None)
    for number, probe in enumerate(probes):
        traces += _probe_traces(rows[rows["probe"] == probe], probe, _pick_color(number), apart)
    title, axis = _name_metric(rows["metric"].iloc[0])
    figure = make_figure(traces, f"{title}, {over} (bars: 95 % intervals)", "place", axis)
    if every_band and bool((rows[["value", "low", "labels_low"]] > 0).all(axis=None)):
        # Labels that are parted by a gap without any spread have an infinite index.
        known = rows[["value", "low", "labels_low", "high", "labels_high"]].to_numpy(dtype=np.float64)
        known = known[np.isfinite(known)]
        if len(known):
            scale_log(figure, float(known.min()), float(known.max()))
    return name_places(figure, rows["place"].tolist(), apart)


def _name_metric(metric: str) -> tuple[str, str]:
    """A metric for a title, in words, and for an axis, by its name in the files."""
    words, direction = _METRICS.get(metric, (metric, ""))
    return words, f"{metric} ({direction})" if direction else metric


def _pick_color(number: int) -> str:
    return _LINES[number % len(_LINES)]


def _null_bands(own: pd.DataFrame, probe: str, color: str | None) -> list[dict[str, Any]]:
    """The areas of the null distributions that one probe has, in their own colours or in that of the probe."""
    bands = []
    for band, usual in _BANDS.items():
        if f"{band}_low" in own and own[f"{band}_low"].notna().any():
            name = _BAND_NAMES[band] + (f", {probe}" if band == "labels" else "")
            ends = own[f"{band}_low"], own[f"{band}_high"]
            bands.append(make_band(own["place"], *ends, color=color or usual, name=name, opacity=0.3))
    return bands


def _probe_traces(own: pd.DataFrame, probe: str, color: str, apart: Sequence[str]) -> list[dict[str, Any]]:
    """The values of one probe: places joined by lines, others apart, and corrected values where there are any."""
    # If there are corrected values, the interval belongs to them.
    corrected = "corrected" in own and own["corrected"].notna().any()
    shared = {"marker": {"color": color}}
    traces = []
    for values, alone in ((own[~own["place"].isin(apart)], False), (own[own["place"].isin(apart)], True)):
        line = make_line(values["place"], values["value"], "markers" if alone else "lines+markers", probe)
        bars = {} if corrected else {"error_y": make_interval_bars(values["value"], values["low"], values["high"])}
        traces.append({**line, **shared, **bars, "showlegend": not alone})
    if corrected:
        points = make_line(own["place"], own["corrected"], "markers", f"{probe}, corrected for the number of rows")
        marker = {**shared["marker"], "symbol": "diamond-open"}
        bars = make_interval_bars(own["corrected"], own["low"], own["high"])
        traces.append({**points, **shared, "marker": marker, "error_y": bars})
    return traces


def _points_figure(points: pd.DataFrame, title: str) -> Figure:
    across, up = points.columns[:2]
    traces = []
    for number, (truth, some) in enumerate(points.groupby("truth")):
        marker = {"color": _pick_color(number), "symbol": ("circle", "x")[number % 2], "opacity": 0.7}
        trace = make_line(some[across], some[up], "markers", shorten(str(truth), LABEL_WIDTH))
        traces.append({**trace, "marker": marker, "text": list(some["id"] + ": " + some["text"])})
    return make_figure(traces, title, across, up)
