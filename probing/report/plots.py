"""Plots for people, as pages that need nothing else; drawn where plotly is installed."""

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from probing.report.screen import to_page
from probing.store.files import new_file

Figure = dict[str, Any]
"""``data`` (traces) and ``layout``, as plotly writes it to JSON."""
QUARTILES = (0.25, 0.75)
_COLORS = {"chosen": "#1b6ca8", "rejected": "#c8553d"}
_LINES = ("#1b6ca8", "#c8553d", "#3a7d44", "#7d5ba6", "#b8860b", "#555555")
_BANDS = {"random": "#999999", "pairings": "#d9b38c", "labels": "#9fb8c8"}
_BAND_NAMES = {
    "random": "95 % of random probes",
    "pairings": "trained on permuted pairings",
    "labels": "95 % under permuted labels",
}


def draw_course(course: pd.DataFrame, path: Path) -> bool:
    """Log-probabilities of both responses over the steps of a training: the mean, and the middle half of the pairs.

    Args:
        course: ``step``, ``chosen_logprob``, ``rejected_logprob``, one row a step and pair.
        path: path of the page.

    Returns:
        Whether it was drawn; False where plotly is not installed.
    """
    if not _plotly_is_here():
        return False
    traces = []
    for side, color in _COLORS.items():
        values = course.groupby("step")[f"{side}_logprob"]
        low, high = (values.quantile(share) for share in QUARTILES)
        steps = list(low.index)
        traces.append(_band(steps, low, high, color, f"{side}, middle half of the pairs", opacity=0.2))
        mean = _scatter(steps, values.mean(), "lines+markers", f"{side}, mean")
        traces.append({**mean, "line": {"color": color}})
    title = "Log-probability of the responses over training"
    _write_page([_figure(traces, title, "step (0: the reference)", "ln p(response), nats")], path)
    return True


def draw_layers(
    results: pd.DataFrame, pictures: Mapping[str, pd.DataFrame], path: Path, apart: Sequence[str] = ()
) -> bool:
    """Metrics of probes over the places of a model with the bands of their nulls, and points of some places.

    Args:
        results: one row a ``place``, ``probe`` and ``metric``, with ``value``, ``low``, ``high``, and for the bands
            ``random_low``, ``random_high`` and so on, places in order; rows of a ``subset`` other than "all" are left
            out.
        pictures: points to draw, by place: two columns of coordinates, ``truth``, ``id`` and ``text``.
        path: path of the page.
        apart: rows that stand among the places without being one, and are not joined to the others by a line.

    Returns:
        Whether it was drawn; False where plotly is not installed.
    """
    if not _plotly_is_here():
        return False
    everything = results[results["subset"] == "all"]
    figures = [
        _metric_figure(everything[everything["metric"] == metric], f"{metric}, held out", apart)
        for metric in dict.fromkeys(everything["metric"])
    ]
    title = "{}: yes form less no form of every statement, principal components (a picture, no result)"
    figures += [_points_figure(points, title.format(place)) for place, points in pictures.items()]
    _write_page(figures, path)
    return True


def draw_clusters(
    results: pd.DataFrame, categories: pd.DataFrame, pictures: Mapping[str, pd.DataFrame], path: Path
) -> bool:
    """Cluster indices over the places of models with the bands of permuted labels, heat maps by category, and points.

    Args:
        results: one row a ``model``, ``place`` and ``metric`` of all rows, with ``value``, ``low``, ``high``,
            ``labels_low`` and ``labels_high``, places in order.
        categories: the same table of the rows of each ``category``; one heat map a model and metric.
        pictures: points to draw, by title: two columns of coordinates, ``truth``, ``id`` and ``text``.
        path: path of the page.

    Returns:
        Whether it was drawn; False where plotly is not installed.
    """
    if not _plotly_is_here():
        return False
    everything = results.rename(columns={"model": "probe"})
    figures = [
        _metric_figure(
            rows, str(metric), (), every_band=True, log=bool((rows[["value", "low", "labels_low"]] > 0).all(axis=None))
        )
        for metric, rows in everything.groupby("metric", sort=False)
    ]
    for (model, metric), rows in categories.groupby(["model", "metric"], sort=False):
        figures.append(_heat_figure(rows, f"{metric} by category, {model}"))
    figures += [_points_figure(points, title) for title, points in pictures.items()]
    _write_page(figures, path)
    return True


def draw_candidates(table: pd.DataFrame, path: Path) -> bool:
    """Scores of candidate directions over the places of a model, one figure a score and one line a position.

    Args:
        table: ``place``, ``position``, ``bypass``, ``induce``, ``kl`` and ``cosmic``, one row a candidate, places in
            order; NaN where a score was not measured.
        path: path of the page.

    Returns:
        Whether it was drawn; False where plotly is not installed.
    """
    if not _plotly_is_here():
        return False
    titles = {
        "bypass": "bypass: mean refusal score of harmful prompts, direction ablated",
        "induce": "induce: mean refusal score of harmless prompts, direction added",
        "kl": "kl: divergence of the first token of harmless answers, direction ablated, nats",
        "cosmic": "COSMIC",
    }
    figures = []
    for score, title in titles.items():
        known = table[table[score].notna()]
        traces = [
            _scatter(own["place"], own[score], "lines+markers", f"position {position}")
            for position, own in known.groupby("position")
        ]
        figures += [_figure(traces, title)] if traces else []
    _write_page(figures, path)
    return True


def _plotly_is_here() -> bool:
    return importlib.util.find_spec("plotly") is not None


def _heat_figure(rows: pd.DataFrame, title: str) -> Figure:
    table = rows.pivot(index="category", columns="place", values="value")[list(dict.fromkeys(rows["place"]))]
    heat = {
        "type": "heatmap",
        "x": list(table.columns),
        "y": list(table.index),
        "z": table.to_numpy(),
        "colorscale": "Viridis",
        "texttemplate": "%{z:.2f}",
    }
    return _figure([heat], title)


def _metric_figure(
    rows: pd.DataFrame, title: str, apart: Sequence[str], every_band: bool = False, log: bool = False
) -> Figure:
    traces = []
    probes = list(dict.fromkeys(rows["probe"]))
    for number, probe in enumerate(probes if every_band else probes[:1]):
        own = rows[(rows["probe"] == probe) & ~rows["place"].isin(apart)]
        for band, color in _BANDS.items():
            if f"{band}_low" in own and own[f"{band}_low"].notna().any():
                name = _BAND_NAMES[band] + (f", {probe}" if band == "labels" else "")
                shade = _LINES[number % len(_LINES)] if every_band else color
                traces.append(_band(own["place"], own[f"{band}_low"], own[f"{band}_high"], shade, name, opacity=0.3))
    metric = rows["metric"].iloc[0]
    # If there are corrected values, the interval belongs to them.
    corrected = "corrected" in rows and rows["corrected"].notna().any()
    for number, probe in enumerate(probes):
        own = rows[rows["probe"] == probe]
        shared = {"marker": {"color": _LINES[number % len(_LINES)]}, "legendgroup": probe}
        for values, alone in ((own[~own["place"].isin(apart)], False), (own[own["place"].isin(apart)], True)):
            line = _scatter(values["place"], values["value"], "markers" if alone else "lines+markers", probe)
            bars = {} if corrected else {"error_y": _bars(values, "value")}
            traces.append({**line, **shared, **bars, "showlegend": not alone})
        if corrected:
            name = f"{probe}, corrected for the number of rows"
            points = _scatter(own["place"], own["corrected"], "markers", name)
            marker = {**shared["marker"], "symbol": "diamond-open"}
            traces.append({**points, **shared, "marker": marker, "error_y": _bars(own, "corrected")})
    figure = _figure(traces, f"{title}, by place (bars: 95 % bootstrap intervals)", up=metric)
    figure["layout"]["yaxis"]["type"] = "log" if log else "linear"
    return figure


def _points_figure(points: pd.DataFrame, title: str) -> Figure:
    across, up = points.columns[:2]
    traces = []
    for number, (truth, some) in enumerate(points.groupby("truth")):
        marker = {"color": _LINES[number % len(_LINES)], "symbol": ("circle", "x")[number % 2], "opacity": 0.7}
        trace = _scatter(some[across], some[up], "markers", str(truth))
        traces.append({**trace, "marker": marker, "text": list(some["id"] + ": " + some["text"])})
    return _figure(traces, title, across, up)


def _figure(traces: list[dict[str, Any]], title: str, across: str = "", up: str = "") -> Figure:
    axes = {"xaxis": {"title": {"text": across}}, "yaxis": {"title": {"text": up}}}
    return {"data": traces, "layout": {"title": {"text": title}, **axes}}


def _scatter(x: Iterable[Any], y: Iterable[Any], mode: str, name: str) -> dict[str, Any]:
    return {"type": "scatter", "x": list(x), "y": list(y), "mode": mode, "name": name}


def _band(
    places: Iterable[Any], low: Iterable[float], high: Iterable[float], color: str, name: str, opacity: float
) -> dict[str, Any]:
    """The area between two lines."""
    there = list(places)
    edge = _scatter(there + there[::-1], [*high, *list(low)[::-1]], "lines", name)
    area = {"fill": "toself", "fillcolor": color, "opacity": opacity, "line": {"width": 0}, "hoverinfo": "skip"}
    return {**edge, **area}


def _bars(values: pd.DataFrame, middle: str) -> dict[str, Any]:
    up, down = values["high"] - values[middle], values[middle] - values["low"]
    return {"type": "data", "array": list(up), "arrayminus": list(down), "thickness": 1, "width": 3}


def _write_page(figures: list[Figure], path: Path) -> None:
    """All figures below each other; the library, which is most of the page, once."""
    from plotly import io

    template = io.templates["plotly_white"].to_plotly_json()
    parts = [
        io.to_html(
            {"data": to_page(figure["data"]), "layout": {**to_page(figure["layout"]), "template": template}},
            include_plotlyjs=number == 0,
            full_html=False,
            div_id=f"figure{number}",
            # A check of the figure takes twenty times as long as writing it.
            validate=False,
        )
        for number, figure in enumerate(figures)
    ]
    page = "\n".join(['<!doctype html><html><head><meta charset="utf-8"></head><body>', *parts, "</body></html>"])
    with new_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
