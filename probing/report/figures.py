"""Figures as plain dictionaries: traces, axes whose ticks read, and bins."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probing.report.axes import round_up
from probing.report.layout import shorten

Figure = dict[str, Any]
"""``data`` (traces) and ``layout``, as plotly writes it to JSON, with a ``title`` as plain text.

``rows``, where it is there, names the table and the column whose rows the bars count.
"""
BINS = 100
"""Largest number of bins of a histogram, whatever the number of rows."""
LEAST_BINS = 10
BINS_OF_ROWS = 4.0
"""Bins for each cube root of the number of rows: few rows would leave gaps between narrow bins."""
FAR = 4.0
"""A range is drawn whole unless it is so many times as wide as the middle 98 % of the values."""
SHOWN_TICKS = 16
"""Largest number of names that are written below an axis."""
LABEL_WIDTH = 28
LINE_PIXELS = 20
PICTURE_PIXELS = 340


def make_figure(traces: list[dict[str, Any]], title: str, across: str = "", up: str = "") -> Figure:
    """A figure with a title and names of both axes, units with them."""
    axes = {"xaxis": {"title": {"text": across}}, "yaxis": {"title": {"text": up}}}
    return {"data": traces, "layout": {**axes, "hovermode": "closest"}, "title": title}


def make_line(x: Iterable[Any], y: Iterable[Any], mode: str, name: str) -> dict[str, Any]:
    """Points, with or without lines between them."""
    return {"type": "scatter", "x": list(x), "y": list(y), "mode": mode, "name": name}


def make_band(
    x: Iterable[Any], low: Iterable[float], high: Iterable[float], color: str, name: str, opacity: float
) -> dict[str, Any]:
    """The area between two lines."""
    there = list(x)
    edge = make_line(there + there[::-1], [*high, *list(low)[::-1]], "lines", name)
    area = {"fill": "toself", "fillcolor": color, "opacity": opacity, "line": {"width": 0}, "hoverinfo": "skip"}
    return {**edge, **area}


def make_interval_bars(middle: ArrayLike, low: ArrayLike, high: ArrayLike) -> dict[str, Any]:
    """Bars from one end of an interval to the other, around the values of a line; none where it is NaN."""
    up, down = np.subtract(high, middle), np.subtract(middle, low)
    return {"type": "data", "array": up.tolist(), "arrayminus": down.tolist(), "thickness": 1, "width": 3}


def choose_edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges of bins at round numbers, at most 100 of them.

    Where a few values lie far out, which would put all others into one bin, the bins cover the middle of the values and
    as much again on either side.

    Args:
        values: [row], at least one; those that are not finite are left out.
    """
    known = values[np.isfinite(values)]
    low, high = float(known.min()), float(known.max())
    first, last = np.quantile(known, [0.01, 0.99]).tolist()
    if last > first and high - low > FAR * (last - first):
        low, high = max(low, 2 * first - last), min(high, 2 * last - first)
    # Values that are all but equal get bins that are wide enough to be told apart.
    spread = max(high - low, 1e-6 * max(abs(low), abs(high)), 1e-12)
    width = round_up(spread / min(max(BINS_OF_ROWS * len(known) ** (1 / 3), LEAST_BINS), BINS - 2))
    digits = max(0, -math.floor(math.log10(width)))
    steps = np.arange(math.floor(low / width), math.floor(high / width) + 2)
    # A product such as 3 * 0.1 is not the nearest number to 0.3.
    edges: NDArray[np.float64] = np.round(steps * width, digits)
    return edges


def make_histogram(values: ArrayLike, edges: NDArray[np.float64], name: str, color: str) -> dict[str, Any]:
    """Counts of values between edges, as bars; the rows themselves are not part of the page."""
    counts, _ = np.histogram(np.asarray(values, dtype=np.float64), edges)
    ends = [f"{edge:.10g}" for edge in edges]
    hover = [f"{low} to {high}: {count:,} pairs" for low, high, count in zip(ends, ends[1:], counts, strict=False)]
    trace = {"type": "bar", "name": name, "marker": {"color": color, "line": {"width": 0}}}
    widths = np.diff(edges)
    return trace | {
        "x": (edges[:-1] + widths / 2).tolist(),
        "y": counts.tolist(),
        "width": widths.tolist(),
        # The exact ends, which the middle and the width do not always give back.
        "customdata": list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)),
        "hovertext": hover,
        "hoverinfo": "text+name",
    }


def note_outside(values: NDArray[np.float64], edges: NDArray[np.float64]) -> str:
    """How many values the bins do not show, for a title; empty where they show all."""
    known = values[np.isfinite(values)]
    outside = int(((known < edges[0]) | (known > edges[-1])).sum())
    return f" ({outside:,} of {len(known):,} lie outside the picture)" if outside else ""


def stack_bars(figure: Figure, mode: str = "stack") -> Figure:
    """The figure with bars that touch, on top of each other or (``mode`` "overlay") in front of each other."""
    figure["layout"] |= {"barmode": mode, "bargap": 0}
    return figure


def mark_value(figure: Figure, value: float, label: str) -> Figure:
    """The figure with a vertical line at a value, and a label above it."""
    ends = {"x0": value, "x1": value, "yref": "paper", "y0": 0, "y1": 1}
    layout = figure["layout"]
    layout.setdefault("shapes", []).append({"type": "line", **ends, "line": {"dash": "dash", "width": 1.5}})
    text = {"x": value, "yref": "paper", "y": 1, "yanchor": "bottom", "showarrow": False, "text": label}
    layout.setdefault("annotations", []).append(text)
    return figure


def name_places(figure: Figure, places: Sequence[str], always: Sequence[str] = ()) -> Figure:
    """The figure with places below it in this order; where there are many, only some of their names are written.

    Args:
        figure: a figure over places.
        places: all places, in order, no matter how often.
        always: places whose names are written whatever their number.
    """
    names = list(dict.fromkeys(places))
    usual = [name for name in names if name not in always]
    every = math.ceil(len(usual) / SHOWN_TICKS)
    shown = [*usual[::every], *(name for name in names if name in always)] if usual else names
    axis = figure["layout"]["xaxis"]
    axis |= {"type": "category", "categoryorder": "array", "categoryarray": names}
    axis |= {"tickmode": "array", "tickvals": shown, "ticktext": [shorten(name, LABEL_WIDTH) for name in shown]}
    return figure


def scale_log(figure: Figure, low: float, high: float) -> Figure:
    """The figure with a logarithmic axis for values from ``low`` to ``high``, both positive."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = last - first
    steps = (1, 2, 5) if decades <= 4 else (1,)
    powers = range(first, last + 1, max(1, math.ceil(decades / 8)))
    # Such a number has one digit, so that its shortest text is exact: 0.001, 2000, 1e+08.
    ticks = [float(f"{step}e{power}") for power in powers for step in steps]
    named = {"tickmode": "array", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    figure["layout"]["yaxis"] |= {"type": "log", **named}
    return figure
