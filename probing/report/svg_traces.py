"""Bars, lines, points, areas and cells of a picture."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from probing.report.axes import to_number
from probing.report.figures import Figure
from probing.report.layout import shorten
from probing.report.svg_frame import Frame, draw_text, find_bar_ends, quote, spell, to_plain
from probing.report.svg_style import COLORS, SERIES
from probing.shown import to_page_text

NAMED = 60
"""Letters of the text of a point that are shown."""
MOST_OPACITY = 0.5
"""Of a cell: numbers in it are read on any of its colours."""


def pick_series(trace: Mapping[str, Any], number: int) -> int:
    """The series, from 1, in whose colour a trace is drawn."""
    given = trace.get("fillcolor") or trace.get("marker", {}).get("color") or trace.get("line", {}).get("color")
    return COLORS.get(str(given), number % SERIES + 1)


def _draw_bars(trace: Mapping[str, Any], frame: Frame, figure: Figure, below: dict[Any, float]) -> list[str]:
    """One rectangle for each bar that counts anything, on those of earlier traces where bars are stacked."""
    parts = []
    rows, stacked = figure.get("rows"), figure["layout"].get("barmode") == "stack"
    ends = find_bar_ends(trace)
    words = trace.get("hovertext") or [
        f"{low:g} to {high:g}: {y:,}" for (low, high), y in zip(ends, trace["y"], strict=True)
    ]
    for x, y, (low, high), text in zip(trace["x"], trace["y"], ends, words, strict=True):
        base = below.get(x, 0.0) if stacked else 0.0
        below[x] = base + y
        left, right, top, bottom = (
            frame.across(low),
            frame.across(high),
            frame.up(base + y, clamp=True),
            frame.up(base, clamp=True),
        )
        if y <= 0 or math.isnan(left + right):
            continue
        name = f"{trace['name']}, {text}" if len(figure["data"]) > 1 else text
        # A bar of one among a million is seen too.
        tall = max(bottom - top, 0.5)
        box = _draw_box(left, bottom - tall, max(right - left, 0.5), tall)
        link = "" if rows is None else _link_bar(rows, low, high, name)
        parts.append(f"<rect {box}{link}><title>{to_page_text(name)}</title></rect>")
    opacity = ' fill-opacity=".6"' if figure["layout"].get("barmode") == "overlay" else ""
    return [f'<g class="fig-bar"{opacity}>', *parts, "</g>"]


def _link_bar(rows: Mapping[str, str], low: float, high: float, label: str) -> str:
    where = f'data-table="{quote(rows["table"])}" data-column="{quote(rows["column"])}"'
    ends = f'data-from="{low!r}" data-to="{high!r}"'
    return f' class="bar" {where} {ends} tabindex="0" role="button" aria-label="{quote(label)}"'


def _draw_box(x: float, y: float, width: float, height: float) -> str:
    return f'x="{spell(x)}" y="{spell(y)}" width="{spell(width)}" height="{spell(height)}"'


def _draw_band(trace: Mapping[str, Any], frame: Frame, figure: Figure, below: dict[Any, float]) -> list[str]:
    """The area between two lines, in parts where either is NaN."""
    half = len(trace["x"]) // 2
    high, low = trace["y"][:half], trace["y"][half:][::-1]
    points = [
        (frame.across(x), frame.up(a, clamp=True), frame.up(b, clamp=True))
        for x, a, b in zip(trace["x"][:half], high, low, strict=True)
    ]
    path = ""
    for run in _split_at_gaps(points):
        if len(run) == 1:
            # An area of no width would not be seen.
            x, top, bottom = run[0]
            run = [(x - 3, top, bottom), (x + 3, top, bottom)]
        there = [(x, top) for x, top, _ in run] + [(x, bottom) for x, _, bottom in run[::-1]]
        path += _join(there) + "z"
    title = to_page_text(trace["name"])
    opacity = f'fill-opacity="{trace["opacity"]:g}"'
    return [f'<path class="fig-band" {opacity} d="{path}"><title>{title}</title></path>'] if path else []


def _draw_scatter(trace: Mapping[str, Any], frame: Frame, figure: Figure, below: dict[Any, float]) -> list[str]:
    """A line, its points, and the intervals around them."""
    points = [(frame.across(x), frame.up(y)) for x, y in zip(trace["x"], trace["y"], strict=True)]
    parts = []
    if "lines" in trace["mode"]:
        path = "".join(map(_join, _split_at_gaps(points)))
        parts += (
            [f'<path class="fig-line" d="{path}"><title>{to_page_text(trace["name"])}</title></path>'] if path else []
        )
    parts += _draw_errors(trace, frame, points)
    if "markers" in trace["mode"]:
        parts += _draw_points(trace, figure, points)
    return parts


def _draw_errors(trace: Mapping[str, Any], frame: Frame, points: Sequence[tuple[float, float]]) -> list[str]:
    bars = trace.get("error_y", {})
    path = ""
    for (x, _), y, up, down in zip(points, trace["y"], bars.get("array", []), bars.get("arrayminus", []), strict=False):
        value = to_number(y)
        top = frame.up(value + to_number(up, infinite=True), clamp=True)
        bottom = frame.up(value - to_number(down, infinite=True), clamp=True)
        if not math.isnan(x + top + bottom):
            path += f"M{spell(x - 3)} {spell(top)}h6m-3 0V{spell(bottom)}m-3 0h6"
    return [f'<path class="fig-error" d="{path}"/>'] if path else []


def _draw_points(trace: Mapping[str, Any], figure: Figure, points: Sequence[tuple[float, float]]) -> list[str]:
    symbol = trace.get("marker", {}).get("symbol", "circle")
    shape, style = {"x": ("m-3-3 6 6m0-6-6 6", "fig-thin"), "diamond-open": ("m0-5 5 5-5 5-5-5z", "fig-thin")}.get(
        symbol, ("h0", "fig-dot")
    )
    opacity = trace.get("marker", {}).get("opacity")
    more = f' stroke-opacity="{opacity:g}"' if opacity else ""
    table, ids = figure.get("rows", {}).get("table", ""), trace.get("ids")
    parts = [f'<g class="{style}"{more}>']
    for at, (x, y) in enumerate(points):
        if not math.isnan(x + y):
            link = f' data-table="{quote(table)}" data-id="{quote(ids[at])}"' if ids and table else ""
            title = to_page_text(_name_point(trace, at))
            parts.append(f'<path d="M{spell(x)} {spell(y)}{shape}"{link}><title>{title}</title></path>')
    return [*parts, "</g>"]


def _name_point(trace: Mapping[str, Any], at: int) -> str:
    """A point in words: its own text, or its value with its interval."""
    if trace.get("text"):
        return shorten(to_plain(trace["text"][at]), NAMED)
    value, bars = to_number(trace["y"][at]), trace.get("error_y", {})
    up, down = (to_number(bars.get(end, [])[at]) if bars.get(end) else math.nan for end in ("array", "arrayminus"))
    interval = "" if math.isnan(up + down) else f" ({value - down:.4g} to {value + up:.4g})"
    return f"{trace['name']}, {trace['x'][at]}: {value:.4g}{interval}"


def _draw_heat(trace: Mapping[str, Any], frame: Frame, figure: Figure, below: dict[Any, float]) -> list[str]:
    """Cells, the more of the colour the greater the value, with their numbers if they are wide enough."""
    width, height = frame.width / max(len(frame.x.names), 1), frame.height / max(len(frame.y.names), 1)
    low, high = find_ends(trace)
    parts = ['<g class="fig-bar">']
    for name, values in zip(trace["y"], trace["z"], strict=True):
        for place, value in zip(trace["x"], values, strict=True):
            number = to_number(value)
            if math.isnan(number):
                continue
            x, y = frame.across(place) - width / 2, frame.up(name) - height / 2
            share = (number - low) / (high - low) if high > low else 0.5
            box = _draw_box(x, y, width, height)
            title = to_page_text(f"{shorten(str(name), NAMED)}, {place}: {number:.4g}")
            parts.append(f'<rect {box} fill-opacity="{shade(share)}"><title>{title}</title></rect>')
            if "texttemplate" in trace:
                parts.append(
                    draw_text(
                        x + width / 2, y + height / 2 + 4.5, f"{number:.2f}" if abs(number) < 1000 else f"{number:.0e}"
                    )
                )
    return [*parts, "</g>"]


def find_ends(trace: Mapping[str, Any]) -> tuple[float, float]:
    """The least and the greatest value of a heat map; 0 where it has none."""
    known = [number for row in trace["z"] for number in map(to_number, row) if not math.isnan(number)]
    return min(known, default=0.0), max(known, default=0.0)


def shade(share: float) -> str:
    """Opacity of a cell whose value lies this far between the least and the greatest, 0 to 1."""
    return f"{0.04 + share * (MOST_OPACITY - 0.04):.2f}"


def _split_at_gaps(points: Iterable[tuple[float, ...]]) -> list[list[Any]]:
    """The points in runs between those of which a number is NaN."""
    runs: list[list[Any]] = [[]]
    for point in points:
        if math.isnan(sum(point)):
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def _join(points: Sequence[tuple[float, float]]) -> str:
    """A path through points; a single one is a dot."""
    path = "M" + "L".join(f"{spell(x)} {spell(y)}" for x, y in points)
    return path if len(points) > 1 else f"{path}h0"


DRAWN: Mapping[str, Callable[[Mapping[str, Any], Frame, Figure, dict[Any, float]], list[str]]] = {
    "bar": _draw_bars,
    "band": _draw_band,
    "scatter": _draw_scatter,
    "heatmap": _draw_heat,
}
