"""Figures as inline SVG: drawn without a library, small, in the colours of the page, and read aloud."""

import math
import re
from collections.abc import Mapping
from typing import Any

from probing.report.axes import write_number
from probing.report.figures import Figure
from probing.report.layout import shorten
from probing.report.svg_frame import (
    LETTER,
    LINE,
    WIDTH,
    Frame,
    draw_text,
    is_heat,
    make_frame,
    measure,
    name_kind,
    spell,
    to_plain,
    wrap_axis_title,
)
from probing.report.svg_style import SVG_STYLE as SVG_STYLE
from probing.report.svg_traces import DRAWN, find_ends, pick_series, shade
from probing.shown import to_page_text


def draw_svg(figure: Figure, name: str) -> str:
    """A figure as HTML that is also XML: its title, an SVG picture and a legend.

    What is NaN or infinite is not drawn, and parts the line that it lies on; an end of an interval that is infinite
    lies at the end of the picture.

    Args:
        figure: as ``figures.make_figure`` makes it, of bars, lines, points, bands and heat maps.
        name: name for the ids of its parts, unique on a page.
    """
    name = re.sub(r"[^A-Za-z0-9-]+", "-", name)
    frame, heat = make_frame(figure), is_heat(figure)
    linked = any(trace["type"] == "bar" for trace in figure["data"]) and "rows" in figure
    parts = [f'<title id="{name}-t">{to_page_text(figure["title"])}</title>']
    parts.append(f'<desc id="{name}-d">{to_page_text(_describe(figure, frame))}</desc>')
    parts += [*([] if heat else _draw_grid(frame)), *_draw_axes(figure, frame)]
    below: dict[Any, float] = {}
    for number, trace in enumerate(figure["data"]):
        drawn = DRAWN[name_kind(trace)](trace, frame, figure, below)
        if drawn:
            parts.append(f'<g class="fig-s{pick_series(trace, number)}">{"".join(drawn)}</g>')
    parts += _draw_marks(figure, frame)
    width, height = frame.whole
    # Inside an image nothing can be pressed.
    role = "group" if linked else "img"
    head = f'<svg role="{role}" aria-labelledby="{name}-t {name}-d" viewBox="0 0 {spell(width)} {spell(height)}">'
    wide = width > WIDTH
    scroll = '<div class="fig-scroll" tabindex="0">' if wide else '<div class="fig-scroll">'
    picture = "\n".join([head, *parts, "</svg>"])
    caption = f"<figcaption>{to_page_text(figure['title'])}</figcaption>"
    legend = _draw_heat_legend(figure) if heat else _draw_legend(figure)
    return f'<figure class="fig{" fig-wide" if wide else ""}">{caption}{scroll}{picture}</div>{legend}</figure>'


def _describe(figure: Figure, frame: Frame) -> str:
    """What is drawn, in a sentence, for people who do not see it."""
    kinds = {"bar": "bars", "scatter": "lines or points", "band": "areas", "heatmap": "cells"}
    seen = ", ".join(dict.fromkeys(kinds[name_kind(trace)] for trace in figure["data"])) or "nothing"
    names = ", ".join(dict.fromkeys(str(trace["name"]) for trace in figure["data"] if "name" in trace))
    told = []
    for word, key, axis in (("Across", "xaxis", frame.x), ("up", "yaxis", frame.y)):
        title = figure["layout"].get(key, {}).get("title", {}).get("text", "") or "no name"
        ends = [text for _, text in ((axis.ticks[0], axis.ticks[-1]) if axis.ticks else ())]
        told.append(f"{word}: {title}" + (f", from {ends[0]} to {ends[-1]}" if ends else ""))
    return f"A picture of {seen}. {'; '.join(told)}." + (f" Shown: {names}." if names else "")


def _draw_grid(frame: Frame) -> list[str]:
    """Lines at the ticks of the axis at the left, and a stronger one at zero."""
    lines = "".join(f"M{spell(frame.left)} {spell(frame.up(value))}h{spell(frame.width)}" for value, _ in frame.y.ticks)
    zero = f"M{spell(frame.left)} {spell(frame.up(0))}h{spell(frame.width)}" if frame.y.has_zero else ""
    zero += f"M{spell(frame.across(0))} {spell(frame.top)}v{spell(frame.height)}" if frame.x.has_zero else ""
    drawn = [f'<path class="fig-grid" d="{lines}"/>'] if lines else []
    return drawn + ([f'<path class="fig-axis" stroke-opacity=".45" d="{zero}"/>'] if zero else [])


def _draw_axes(figure: Figure, frame: Frame) -> list[str]:
    bottom = frame.top + frame.height
    ticks = "".join(f"M{spell(frame.across(value))} {spell(bottom)}v4" for value, _ in frame.x.ticks)
    path = f"M{spell(frame.left)} {spell(frame.top)}V{spell(bottom)}h{spell(frame.width)}{ticks}"
    parts = [f'<path class="fig-axis" d="{path}"/>']
    for value, text in frame.x.ticks:
        x, y = frame.across(value), bottom + (12 if frame.turned else LINE)
        more = f' transform="rotate(-45 {spell(x)} {spell(y)})"' if frame.turned else ""
        parts.append(draw_text(x, y, text, "end" if frame.turned else "middle", more))
    parts += [draw_text(frame.left - 6, frame.up(value) + 4.5, text, "end") for value, text in frame.y.ticks]
    width, height = frame.whole
    below = wrap_axis_title(figure, "xaxis", width)
    parts += [
        draw_text(max(frame.left + frame.width / 2, measure(line) / 2), height - 6 - LINE * (len(below) - 1 - at), line)
        if measure(line) / 2 < width - frame.left - frame.width / 2
        else draw_text(width / 2, height - 6 - LINE * (len(below) - 1 - at), line)
        for at, line in enumerate(below)
    ]
    above = wrap_axis_title(figure, "yaxis", width)
    return parts + [draw_text(2, 14 + LINE * at, line, "start") for at, line in enumerate(above)]


def _draw_marks(figure: Figure, frame: Frame) -> list[str]:
    """Vertical lines at values, each with its label above the picture."""
    parts = []
    shapes, labels = figure["layout"].get("shapes", []), figure["layout"].get("annotations", [])
    for at, (shape, label) in enumerate(zip(shapes, labels, strict=True)):
        x, text = frame.across(shape["x0"]), shorten(to_plain(label["text"]), int(frame.whole[0] / LETTER) - 24)
        if math.isnan(x):
            text, x = f"{text} (outside the picture, at {write_number(shape['x0'])})", frame.whole[0] / 2
        else:
            path = f"M{spell(x)} {spell(frame.top)}v{spell(frame.height)}"
            parts.append(f'<path class="fig-mark" d="{path}"><title>{to_page_text(text)}</title></path>')
        half = measure(text) / 2
        x = min(max(x, half), max(frame.whole[0] - half, half))
        parts.append(draw_text(x, frame.top - 5 - LINE * (len(labels) - 1 - at), text))
    return parts


def _draw_heat_legend(figure: Figure) -> str:
    low, high = find_ends(figure["data"][0])
    keys = [
        _draw_key(1, f'<rect class="fig-bar" width="28" height="14" fill-opacity="{shade(share)}"/>', f"{value:.4g}")
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
    kind = name_kind(trace)
    if kind == "band":
        return f'<rect class="fig-band" y="1" width="28" height="12" fill-opacity="{trace["opacity"]:g}"/>'
    if kind == "bar":
        return '<rect class="fig-bar" x="7" width="14" height="14"/>'
    line = '<path class="fig-line" d="M0 7h28"/>' if "lines" in trace["mode"] else ""
    symbol = trace.get("marker", {}).get("symbol", "circle")
    points = {"x": ("M11 4l6 6m0-6l-6 6", "fig-thin"), "diamond-open": ("M14 2l5 5-5 5-5-5z", "fig-thin")}
    path, style = points.get(symbol, ("M14 7h0", "fig-dot"))
    return line + (f'<path class="{style}" d="{path}"/>' if "markers" in trace["mode"] else "")
