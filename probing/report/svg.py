"""Figures as inline SVG: drawn without a library, small, in the colours of the page, and read aloud."""

import math
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from probing.report.axes import Axis, make_axis, to_number, write_number
from probing.report.figures import Figure
from probing.report.layout import shorten
from probing.report.svg_style import COLORS, SERIES
from probing.report.svg_style import SVG_STYLE as SVG_STYLE
from probing.shown import to_page_text

WIDTH = 520.0
"""Width of a picture, in its own units: on a screen they are up to 1.2 pixels wide, on a telephone 0.7."""
HEIGHT = 260.0
CELL = 46.0
"""Least width of a cell of a heat map that has its number in it."""
ROW = 22.0
LETTER = 8.4
"""Width of a letter of the largest text that the style sets, on a telephone."""
LINE = 18.0
NAMED = 60
"""Letters of the text of a point that are shown."""
MOST_OPACITY = 0.55
"""Of a cell: numbers in it are read on any of its colours."""


@dataclass(frozen=True)
class Frame:
    """The part of a picture inside its axes.

    Attributes:
        left: its left end, in units of the picture.
        top: its upper end.
        width: its width.
        height: its height.
        x: the axis below.
        y: the axis at the left.
        whole: width and height of the picture.
    """

    left: float
    top: float
    width: float
    height: float
    x: Axis
    y: Axis
    whole: tuple[float, float]

    def across(self, value: Any) -> float:
        """Where a value lies from left to right."""
        return self.left + self.x.locate(value) * self.width

    def up(self, value: Any, clamp: bool = False) -> float:
        """Where a value lies from top to bottom; with ``clamp`` at an end of the picture if it lies beyond."""
        return self.top + (1 - (self.y.clamp(value) if clamp else self.y.locate(value))) * self.height


def draw_svg(figure: Figure, name: str) -> str:
    """A figure as HTML that is also XML: its title, an SVG picture and a legend.

    What is NaN or infinite is not drawn, and parts the line that it lies on; an end of an interval that is infinite
    lies at the end of the picture.

    Args:
        figure: as ``figures.make_figure`` makes it, of bars, lines, points, bands and heat maps.
        name: name for the ids of its parts, unique on a page.
    """
    name = re.sub(r"[^A-Za-z0-9-]+", "-", name)
    frame, heat = _frame(figure), _is_heat(figure)
    linked = any(trace["type"] == "bar" for trace in figure["data"]) and "rows" in figure
    parts = [f'<title id="{name}-t">{to_page_text(figure["title"])}</title>']
    parts.append(f'<desc id="{name}-d">{to_page_text(_describe(figure, frame))}</desc>')
    parts += [*([] if heat else _draw_grid(frame)), *_draw_axes(figure, frame)]
    below: dict[Any, float] = {}
    for number, trace in enumerate(figure["data"]):
        drawn = _DRAWN[_kind(trace)](trace, frame, figure, below)
        if drawn:
            parts.append(f'<g class="fig-s{pick_series(trace, number)}">{"".join(drawn)}</g>')
    parts += _draw_marks(figure, frame)
    width, height = frame.whole
    # Inside an image nothing can be pressed.
    role = "group" if linked else "img"
    head = f'<svg role="{role}" aria-labelledby="{name}-t {name}-d" viewBox="0 0 {_write(width)} {_write(height)}">'
    wide = width > WIDTH
    scroll = '<div class="fig-scroll" tabindex="0">' if wide else '<div class="fig-scroll">'
    picture = "\n".join([head, *parts, "</svg>"])
    caption = f"<figcaption>{to_page_text(figure['title'])}</figcaption>"
    legend = _draw_heat_legend(figure) if heat else _draw_legend(figure)
    return f'<figure class="fig{" fig-wide" if wide else ""}">{caption}{scroll}{picture}</div>{legend}</figure>'


def pick_series(trace: Mapping[str, Any], number: int) -> int:
    """The series, from 1, in whose colour a trace is drawn."""
    given = trace.get("fillcolor") or trace.get("marker", {}).get("color") or trace.get("line", {}).get("color")
    return COLORS.get(str(given), number % SERIES + 1)


def _kind(trace: Mapping[str, Any]) -> str:
    return "band" if trace.get("fill") == "toself" else str(trace["type"])


def _is_heat(figure: Figure) -> bool:
    return any(trace["type"] == "heatmap" for trace in figure["data"])


def _write(number: float) -> str:
    """A coordinate to one decimal."""
    return f"{number:.1f}".removesuffix(".0")


def _quote(text: object) -> str:
    """Text for an attribute."""
    return to_page_text(text).replace('"', "&quot;")


def _measure(text: str) -> float:
    """Width of a text, at most; letters of some scripts are twice as wide."""
    return sum(2 * LETTER if unicodedata.east_asian_width(letter) in "WF" else LETTER for letter in text)


def _axis_title(figure: Figure, axis: str, width: float) -> list[str]:
    text = figure["layout"].get(axis, {}).get("title", {}).get("text", "")
    return textwrap.wrap(to_plain(text), max(10, int(width / LETTER)))[:3]


def to_plain(text: object) -> str:
    """Text on one line, as it is measured; it is escaped where it is written."""
    return " ".join(str(text).split())


def _frame(figure: Figure) -> Frame:
    """The axes, and the room around them for their texts."""
    x, y = _make_axes(figure)
    heat = _is_heat(figure)
    left = 12 + max([2 * LETTER, *(_measure(text) for _, text in y.ticks)])
    columns, wide = len(x.names), WIDTH
    if heat and any("texttemplate" in trace for trace in figure["data"]):
        wide = max(WIDTH, left + CELL * columns + 8)
    turned = x.kind == "category" and not _fit(x, wide - left - 8)
    if turned:
        # A turned text ends below its tick, and reaches to the left of it.
        reach = [0.71 * _measure(text) - (wide - left) * x.locate(value) for value, text in x.ticks]
        left = max(left, 10 + max(reach, default=0))
    last = 0.5 * _measure(x.ticks[-1][1]) if x.ticks and x.kind != "category" else 8
    width = wide - left - max(last, 8)
    top = 10 + LINE * (len(_axis_title(figure, "yaxis", wide)) + len(figure["layout"].get("annotations", [])))
    height = max(HEIGHT, ROW * len(y.names)) if heat else HEIGHT
    names = 0.71 * max([_measure(text) for _, text in x.ticks], default=0) + LINE if turned else LINE + 6
    bottom = names + LINE * len(_axis_title(figure, "xaxis", wide)) + 6
    return Frame(left, top, width, height, x, y, (wide, top + height + bottom))


def _fit(axis: Axis, width: float) -> bool:
    """Whether the names of categories fit beside each other."""
    return all(_measure(text) < width / max(len(axis.names), 1) for _, text in axis.ticks)


def _make_axes(figure: Figure) -> tuple[Axis, Axis]:
    across: list[Any] = [mark["x0"] for mark in _near_marks(figure)]
    up: list[Any] = []
    bars: dict[Any, float] = {}
    for trace in figure["data"]:
        if trace["type"] == "bar":
            for x, y, width in zip(trace["x"], trace["y"], trace["width"], strict=True):
                across += [x - width / 2, x + width / 2]
                bars[x] = (bars.get(x, 0.0) if figure["layout"].get("barmode") == "stack" else 0.0) + y
                up += [0.0, bars[x]]
            continue
        across += trace["x"]
        up += trace["y"]
        for sign, ends in ((1, "array"), (-1, "arrayminus")):
            lengths = trace.get("error_y", {}).get(ends, [])
            up += [to_number(y) + sign * to_number(e) for y, e in zip(trace["y"], lengths, strict=False)]
    layout = figure["layout"]
    x = make_axis(layout.get("xaxis", {}), across, room=0.0 if bars else 0.04)
    return x, make_axis(layout.get("yaxis", {}), up, whole=bool(bars))


def _near_marks(figure: Figure) -> list[Mapping[str, Any]]:
    """The vertical lines that lie not so far out that all else would be drawn into a corner."""
    marks = figure["layout"].get("shapes", [])
    known = [x for trace in figure["data"] for x in map(to_number, trace["x"]) if math.isfinite(x)]
    if not known:
        return list(marks)
    low, high = min(known), max(known)
    room = (high - low) / 4 or math.inf
    return [mark for mark in marks if low - room <= mark["x0"] <= high + room]


def _describe(figure: Figure, frame: Frame) -> str:
    """What is drawn, in a sentence, for people who do not see it."""
    kinds = {"bar": "bars", "scatter": "lines or points", "band": "areas", "heatmap": "cells"}
    seen = ", ".join(dict.fromkeys(kinds[_kind(trace)] for trace in figure["data"])) or "nothing"
    names = ", ".join(dict.fromkeys(str(trace["name"]) for trace in figure["data"] if "name" in trace))
    told = []
    for word, key, axis in (("Across", "xaxis", frame.x), ("up", "yaxis", frame.y)):
        title = figure["layout"].get(key, {}).get("title", {}).get("text", "") or "no name"
        ends = [text for _, text in ((axis.ticks[0], axis.ticks[-1]) if axis.ticks else ())]
        told.append(f"{word}: {title}" + (f", from {ends[0]} to {ends[-1]}" if ends else ""))
    return f"A picture of {seen}. {'; '.join(told)}." + (f" Shown: {names}." if names else "")


def _draw_text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{_write(x)}" y="{_write(y)}" text-anchor="{anchor}"{more}>{to_page_text(text)}</text>'


def _draw_grid(frame: Frame) -> list[str]:
    """Lines at the ticks of the axis at the left, and a stronger one at zero."""
    lines = "".join(
        f"M{_write(frame.left)} {_write(frame.up(value))}h{_write(frame.width)}" for value, _ in frame.y.ticks
    )
    zero = f"M{_write(frame.left)} {_write(frame.up(0))}h{_write(frame.width)}" if frame.y.has_zero else ""
    zero += f"M{_write(frame.across(0))} {_write(frame.top)}v{_write(frame.height)}" if frame.x.has_zero else ""
    drawn = [f'<path class="fig-grid" d="{lines}"/>'] if lines else []
    return drawn + ([f'<path class="fig-axis" stroke-opacity=".45" d="{zero}"/>'] if zero else [])


def _draw_axes(figure: Figure, frame: Frame) -> list[str]:
    bottom = frame.top + frame.height
    ticks = "".join(f"M{_write(frame.across(value))} {_write(bottom)}v4" for value, _ in frame.x.ticks)
    path = f"M{_write(frame.left)} {_write(frame.top)}V{_write(bottom)}h{_write(frame.width)}{ticks}"
    parts = [f'<path class="fig-axis" d="{path}"/>']
    turned = frame.x.kind == "category" and not _fit(frame.x, frame.width)
    for value, text in frame.x.ticks:
        x, y = frame.across(value), bottom + (12 if turned else LINE)
        more = f' transform="rotate(-45 {_write(x)} {_write(y)})"' if turned else ""
        parts.append(_draw_text(x, y, text, "end" if turned else "middle", more))
    parts += [_draw_text(frame.left - 6, frame.up(value) + 4.5, text, "end") for value, text in frame.y.ticks]
    width, height = frame.whole
    below = _axis_title(figure, "xaxis", width)
    parts += [
        _draw_text(
            max(frame.left + frame.width / 2, _measure(line) / 2), height - 6 - LINE * (len(below) - 1 - at), line
        )
        if _measure(line) / 2 < width - frame.left - frame.width / 2
        else _draw_text(width / 2, height - 6 - LINE * (len(below) - 1 - at), line)
        for at, line in enumerate(below)
    ]
    above = _axis_title(figure, "yaxis", width)
    return parts + [_draw_text(2, 14 + LINE * at, line, "start") for at, line in enumerate(above)]


def _draw_marks(figure: Figure, frame: Frame) -> list[str]:
    """Vertical lines at values, each with its label above the picture."""
    parts = []
    shapes, labels = figure["layout"].get("shapes", []), figure["layout"].get("annotations", [])
    for at, (shape, label) in enumerate(zip(shapes, labels, strict=True)):
        x, text = frame.across(shape["x0"]), shorten(to_plain(label["text"]), int(frame.whole[0] / LETTER) - 24)
        if math.isnan(x):
            text, x = f"{text} (outside the picture, at {write_number(shape['x0'])})", frame.whole[0] / 2
        else:
            path = f"M{_write(x)} {_write(frame.top)}v{_write(frame.height)}"
            parts.append(f'<path class="fig-mark" d="{path}"><title>{to_page_text(text)}</title></path>')
        half = _measure(text) / 2
        x = min(max(x, half), max(frame.whole[0] - half, half))
        parts.append(_draw_text(x, frame.top - 5 - LINE * (len(labels) - 1 - at), text))
    return parts


def _draw_bars(trace: Mapping[str, Any], frame: Frame, figure: Figure, below: dict[Any, float]) -> list[str]:
    """One rectangle for each bar that counts anything, on those of earlier traces where bars are stacked."""
    parts = []
    rows, stacked = figure.get("rows"), figure["layout"].get("barmode") == "stack"
    ends = trace.get("customdata") or [(x - w / 2, x + w / 2) for x, w in zip(trace["x"], trace["width"], strict=True)]
    words = trace.get("hovertext") or [
        f"{low:g} to {high:g}: {y:,}" for (low, high), y in zip(ends, trace["y"], strict=True)
    ]
    for x, y, (low, high), text in zip(trace["x"], trace["y"], ends, words, strict=True):
        base = below.get(x, 0.0) if stacked else 0.0
        below[x] = base + y
        left, right, top, bottom = frame.across(low), frame.across(high), frame.up(base + y), frame.up(base)
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
    where = f'data-table="{_quote(rows["table"])}" data-column="{_quote(rows["column"])}"'
    ends = f'data-from="{low!r}" data-to="{high!r}"'
    return f' class="bar" {where} {ends} tabindex="0" role="button" aria-label="{_quote(label)}"'


def _draw_box(x: float, y: float, width: float, height: float) -> str:
    return f'x="{_write(x)}" y="{_write(y)}" width="{_write(width)}" height="{_write(height)}"'


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
            path += f"M{_write(x - 3)} {_write(top)}h6m-3 0V{_write(bottom)}m-3 0h6"
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
            link = f' data-table="{_quote(table)}" data-id="{_quote(ids[at])}"' if ids and table else ""
            title = to_page_text(_name_point(trace, at))
            parts.append(f'<path d="M{_write(x)} {_write(y)}{shape}"{link}><title>{title}</title></path>')
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
    low, high = _find_ends(trace)
    parts = ['<g class="fig-bar">']
    for name, values in zip(trace["y"], trace["z"], strict=True):
        for place, value in zip(trace["x"], values, strict=True):
            number = to_number(value)
            if math.isnan(number):
                continue
            # The first category stands at the top.
            x, y = frame.across(place) - width / 2, frame.top + frame.y.locate(name) * frame.height - height / 2
            share = (number - low) / (high - low) if high > low else 0.5
            box = _draw_box(x, y, width, height)
            title = to_page_text(f"{shorten(str(name), NAMED)}, {place}: {number:.4g}")
            parts.append(f'<rect {box} fill-opacity="{_shade(share)}"><title>{title}</title></rect>')
            if "texttemplate" in trace:
                parts.append(
                    _draw_text(x + width / 2, y + height / 2 + 4.5, f"{number:.2f}", more=' class="fig-number"')
                )
    return [*parts, "</g>"]


def _find_ends(trace: Mapping[str, Any]) -> tuple[float, float]:
    known = [number for row in trace["z"] for number in map(to_number, row) if not math.isnan(number)]
    return min(known, default=0.0), max(known, default=0.0)


def _shade(share: float) -> str:
    return f"{0.04 + share * (MOST_OPACITY - 0.04):.2f}"


def _draw_heat_legend(figure: Figure) -> str:
    low, high = _find_ends(figure["data"][0])
    keys = [
        _draw_key(1, f'<rect class="fig-bar" width="28" height="14" fill-opacity="{_shade(share)}"/>', f"{value:.4g}")
        for share, value in ((0.0, low), (0.5, low / 2 + high / 2), (1.0, high))
    ]
    return f'<ul class="fig-legend">{"".join(keys)}</ul>'


def _draw_legend(figure: Figure) -> str:
    """The names of the traces with a piece of each, where there are several."""
    shown = [
        (number, trace)
        for number, trace in enumerate(figure["data"])
        if trace.get("showlegend", True) and "name" in trace
    ]
    if len(shown) < 2 and not figure["layout"].get("showlegend"):
        return ""
    keys = [_draw_key(pick_series(trace, number), _draw_sample(trace), trace["name"]) for number, trace in shown]
    return f'<ul class="fig-legend">{"".join(keys)}</ul>'


def _draw_key(series: int, sample: str, name: str) -> str:
    picture = f'<svg class="fig-key fig-s{series}" viewBox="0 0 28 14" aria-hidden="true">{sample}</svg>'
    return f"<li>{picture}<span>{to_page_text(name)}</span></li>"


def _draw_sample(trace: Mapping[str, Any]) -> str:
    kind = _kind(trace)
    if kind == "band":
        return f'<rect class="fig-band" y="1" width="28" height="12" fill-opacity="{trace["opacity"]:g}"/>'
    if kind == "bar":
        return '<rect class="fig-bar" x="7" width="14" height="14"/>'
    line = '<path class="fig-line" d="M0 7h28"/>' if "lines" in trace["mode"] else ""
    symbol = trace.get("marker", {}).get("symbol", "circle")
    points = {"x": ("M11 4l6 6m0-6l-6 6", "fig-thin"), "diamond-open": ("M14 2l5 5-5 5-5-5z", "fig-thin")}
    path, style = points.get(symbol, ("M14 7h0", "fig-dot"))
    return line + (f'<path class="{style}" d="{path}"/>' if "markers" in trace["mode"] else "")


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
    path = "M" + "L".join(f"{_write(x)} {_write(y)}" for x, y in points)
    return path if len(points) > 1 else f"{path}h0"


_DRAWN: Mapping[str, Callable[[Mapping[str, Any], Frame, Figure, dict[Any, float]], list[str]]] = {
    "bar": _draw_bars,
    "band": _draw_band,
    "scatter": _draw_scatter,
    "heatmap": _draw_heat,
}
