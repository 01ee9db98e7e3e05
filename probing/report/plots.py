"""Plots for people, as pages that need nothing else; drawn where plotly is installed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from probing.store.files import new_file

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
    try:
        import plotly.graph_objects as go
    except ImportError:
        return False
    figure = go.Figure()
    for side, color in _COLORS.items():
        values = course.groupby("step")[f"{side}_logprob"]
        low, high = (values.quantile(share) for share in QUARTILES)
        steps = list(low.index)
        figure.add_scatter(
            x=steps + steps[::-1],
            y=[*high, *low[::-1]],
            mode="lines",
            fill="toself",
            line={"width": 0},
            opacity=0.2,
            fillcolor=color,
            name=f"{side}, middle half of the pairs",
            hoverinfo="skip",
        )
        figure.add_scatter(x=steps, y=values.mean(), line={"color": color}, mode="lines+markers", name=f"{side}, mean")
    figure.update_layout(
        title="Log-probability of the responses over training",
        xaxis_title="step (0: the reference)",
        yaxis_title="ln p(response), nats",
        template="plotly_white",
    )
    _write_page([figure], path)
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
    try:
        import plotly.graph_objects as go
    except ImportError:
        return False
    everything = results[results["subset"] == "all"]
    figures = [
        _metric_figure(go, everything[everything["metric"] == metric], f"{metric}, held out", apart)
        for metric in dict.fromkeys(everything["metric"])
    ]
    title = "{}: yes form less no form of every statement, principal components (a picture, no result)"
    figures += [_points_figure(go, points, title.format(place)) for place, points in pictures.items()]
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
    try:
        import plotly.graph_objects as go
    except ImportError:
        return False
    everything = results.rename(columns={"model": "probe"})
    figures = [
        _metric_figure(go, rows, str(metric), (), every_band=True).update_yaxes(
            type="log" if (rows[["value", "low", "labels_low"]] > 0).all(axis=None) else "linear"
        )
        for metric, rows in everything.groupby("metric", sort=False)
    ]
    for (model, metric), rows in categories.groupby(["model", "metric"], sort=False):
        figures.append(_heat_figure(go, rows, f"{metric} by category, {model}"))
    figures += [_points_figure(go, points, title) for title, points in pictures.items()]
    _write_page(figures, path)
    return True


def _heat_figure(go: Any, rows: pd.DataFrame, title: str) -> Any:
    table = rows.pivot(index="category", columns="place", values="value")[list(dict.fromkeys(rows["place"]))]
    values = table.to_numpy().tolist()
    heat = go.Heatmap(
        x=list(table.columns), y=list(table.index), z=values, colorscale="Viridis", texttemplate="%{z:.2f}"
    )
    return go.Figure(heat).update_layout(title=title, template="plotly_white")


def _metric_figure(go: Any, rows: pd.DataFrame, title: str, apart: Sequence[str], every_band: bool = False) -> Any:
    figure = go.Figure()
    probes = list(dict.fromkeys(rows["probe"]))
    for number, probe in enumerate(probes if every_band else probes[:1]):
        own = rows[(rows["probe"] == probe) & ~rows["place"].isin(apart)]
        for band, color in _BANDS.items():
            if f"{band}_low" in own and own[f"{band}_low"].notna().any():
                name = _BAND_NAMES[band] + (f", {probe}" if band == "labels" else "")
                shade = _LINES[number % len(_LINES)] if every_band else color
                _add_band(figure, own["place"], own[f"{band}_low"], own[f"{band}_high"], shade, name)
    metric = rows["metric"].iloc[0]
    # If there are corrected values, the interval belongs to them.
    corrected = "corrected" in rows and rows["corrected"].notna().any()
    for number, probe in enumerate(probes):
        own = rows[rows["probe"] == probe]
        color = _LINES[number % len(_LINES)]
        for values, alone in ((own[~own["place"].isin(apart)], False), (own[own["place"].isin(apart)], True)):
            figure.add_scatter(
                x=values["place"],
                y=values["value"],
                error_y=None if corrected else _bars(values, "value"),
                mode="markers" if alone else "lines+markers",
                marker={"color": color},
                name=probe,
                legendgroup=probe,
                showlegend=not alone,
            )
        if corrected:
            figure.add_scatter(
                x=own["place"],
                y=own["corrected"],
                error_y=_bars(own, "corrected"),
                mode="markers",
                marker={"color": color, "symbol": "diamond-open"},
                name=f"{probe}, corrected for the number of rows",
                legendgroup=probe,
            )
    return figure.update_layout(
        title=f"{title}, by place (bars: 95 % bootstrap intervals)",
        yaxis_title=metric,
        template="plotly_white",
    )


def _bars(values: pd.DataFrame, middle: str) -> dict[str, Any]:
    up, down = values["high"] - values[middle], values[middle] - values["low"]
    return {"type": "data", "array": up, "arrayminus": down, "thickness": 1, "width": 3}


def _add_band(figure: Any, places: pd.Series, low: pd.Series, high: pd.Series, color: str, name: str) -> None:
    figure.add_scatter(
        x=[*places, *places[::-1]],
        y=[*high, *low[::-1]],
        mode="lines",
        fill="toself",
        line={"width": 0},
        opacity=0.3,
        fillcolor=color,
        name=name,
        hoverinfo="skip",
    )


def _points_figure(go: Any, points: pd.DataFrame, title: str) -> Any:
    figure = go.Figure()
    across, up = points.columns[:2]
    for number, (truth, some) in enumerate(points.groupby("truth")):
        figure.add_scatter(
            x=some[across],
            y=some[up],
            mode="markers",
            marker={"color": _LINES[number % len(_LINES)], "symbol": ("circle", "x")[number % 2], "opacity": 0.7},
            text=some["id"] + ": " + some["text"],
            name=str(truth),
        )
    return figure.update_layout(
        title=title,
        xaxis_title=across,
        yaxis_title=up,
        template="plotly_white",
    )


def _write_page(figures: list[Any], path: Path) -> None:
    """All figures below each other; the library, which is most of the page, once."""
    parts = [
        figure.to_html(include_plotlyjs=number == 0, full_html=False, div_id=f"figure{number}")
        for number, figure in enumerate(figures)
    ]
    page = "\n".join(['<!doctype html><html><head><meta charset="utf-8"></head><body>', *parts, "</body></html>"])
    with new_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
