"""Figures as plain dictionaries that plotly draws: traces, axes whose ticks read, bins, and the page around them."""

import html
import importlib.util
import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probing.report.layout import shorten
from probing.report.screen import to_message, to_page
from probing.store.files import new_file

Figure = dict[str, Any]
"""``data`` (traces) and ``layout``, as plotly writes it to JSON, with ``title`` and ``about`` as plain text."""
BINS = 100
"""Largest number of bins of a histogram, whatever the number of rows."""
LEAST_BINS = 10
BINS_OF_ROWS = 4.0
"""Bins for each cube root of the number of rows: few rows would leave gaps between narrow bins."""
FAR = 4.0
"""A range is drawn whole unless it is so many times as wide as the middle 98 % of the values."""
SHOWN_TICKS = 16
"""Largest number of names that are written below an axis."""
NAME_WIDTH = 40
SHOWN_NAMES = 3
TITLE_WIDTH = 95
ABOUT_WIDTH = 140
LABEL_WIDTH = 28
LINE_PIXELS = 20
PICTURE_PIXELS = 340
AXIS_PIXELS = 110
"""Room for names of places that are turned, and for the name of the axis."""
LEGEND_WIDTH = 130
"""Characters in a line of the legend of a page that is 1000 pixels wide."""


def is_plotly_here() -> bool:
    """Whether pages can be drawn."""
    return importlib.util.find_spec("plotly") is not None


def describe_run(command: str, **sources: str | Path | Sequence[str] | None) -> str:
    """What a plot was made from, in one line: "probing score: model base; data pairs.jsonl".

    Args:
        command: name of the command.
        sources: paths or hub ids by what they are, None or empty for what there is not; long ones are shortened to
            their last parts.
    """
    told = []
    for kind, given in sources.items():
        if not given:
            continue
        names = [str(given)] if isinstance(given, str | Path) else list(given)
        more = [f"and {len(names) - SHOWN_NAMES} more"] if len(names) > SHOWN_NAMES else []
        told.append(f"{kind} {', '.join([*map(shorten_path, names[:SHOWN_NAMES]), *more])}")
    return f"probing {command}: {'; '.join(told)}"


def shorten_path(name: str) -> str:
    """As many of the last parts of a path as fit into 40 characters; at least the last one, or its beginning."""
    parts = to_message(name).rstrip("/").split("/")
    first = next((at for at in range(len(parts)) if len("/".join(parts[at:])) <= NAME_WIDTH), len(parts) - 1)
    return shorten("/".join(parts[first:]), NAME_WIDTH)


def make_figure(traces: list[dict[str, Any]], title: str, about: str, across: str = "", up: str = "") -> Figure:
    """A figure with a title, what it was made from, and names of both axes, units with them."""
    axes = {"xaxis": {"title": {"text": across}}, "yaxis": {"title": {"text": up}}}
    return {"data": traces, "layout": {**axes, "hovermode": "closest"}, "title": title, "about": about}


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
    width = _round_up(spread / min(max(BINS_OF_ROWS * len(known) ** (1 / 3), LEAST_BINS), BINS - 2))
    digits = max(0, -math.floor(math.log10(width)))
    steps = np.arange(math.floor(low / width), math.floor(high / width) + 2)
    # A product such as 3 * 0.1 is not the nearest number to 0.3.
    edges: NDArray[np.float64] = np.round(steps * width, digits)
    return edges


def _round_up(width: float) -> float:
    """The next of the numbers 1, 2 and 5, with any power of ten."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= width * (1 - 1e-9))


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


def write_page(figures: Sequence[Figure], path: Path) -> None:
    """Write a page with all figures below each other."""
    with new_file(path) as temporary:
        temporary.write_text(make_page(figures), encoding="utf-8")


def make_page(figures: Sequence[Figure]) -> str:
    """A page with all figures below each other; the library, which is most of the page, is in it once."""
    from plotly import io

    template = io.templates["plotly_white"].to_plotly_json()
    parts = [
        io.to_html(
            {"data": to_page(figure["data"]), "layout": _lay_out(figure) | {"template": template}},
            include_plotlyjs=number == 0,
            full_html=False,
            div_id=f"figure{number}",
            # A check of the figure takes twenty times as long as writing it.
            validate=False,
        )
        for number, figure in enumerate(figures)
    ]
    return "\n".join(['<!doctype html><html><head><meta charset="utf-8"></head><body>', *parts, "</body></html>"])


def _lay_out(figure: Figure) -> dict[str, Any]:
    """The layout with its title in lines, made fit for a page."""
    # The marks of lines and sizes are our own, and are added to texts that have passed the gate.
    layout = figure["layout"]
    lines = textwrap.wrap(to_message(figure["title"]), TITLE_WIDTH)
    about = textwrap.wrap(to_message(figure["about"]), ABOUT_WIDTH)
    small = [f'<span style="font-size:12px">{html.escape(line, quote=False)}</span>' for line in about]
    text = "<br>".join([*(html.escape(line, quote=False) for line in lines), *small])
    title = {"text": text, "x": 0.02, "xanchor": "left", "font": {"size": 16}}
    top = 40 + LINE_PIXELS * (len(lines) + len(small) + len(layout.get("annotations", [])))
    names = [trace["name"] for trace in figure["data"] if trace.get("showlegend", True) and "name" in trace]
    legend = LINE_PIXELS * _count_legend_lines(names) if len(names) > 1 else 0
    # The legend stands at the bottom, where long names take no width from the picture.
    below = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
    height = top + layout.get("height", PICTURE_PIXELS) + AXIS_PIXELS + legend
    margin = {"t": top, "b": AXIS_PIXELS + legend}
    return {**to_page(layout), "title": title, "margin": margin, "legend": below, "height": height}


def _count_legend_lines(names: Sequence[str]) -> int:
    """Lines of a legend whose columns are as wide as its longest name, the line beside it included."""
    columns = max(1, LEGEND_WIDTH // (max(map(len, names)) + 8))
    return math.ceil(len(names) / columns)
