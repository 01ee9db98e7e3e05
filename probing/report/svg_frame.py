"""The frame of a picture: its axes, and the room around them for their texts."""

import itertools
import math
import textwrap
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from probing.report.axes import TICKS, Axis, make_axis, to_number
from probing.report.figures import Figure
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
TURNED = 0.71
"""Height of a turned text, and its reach to the left, as shares of its length."""


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
        turned: whether the texts below are turned, since they have no room beside each other.
    """

    left: float
    top: float
    width: float
    height: float
    x: Axis
    y: Axis
    whole: tuple[float, float]
    turned: bool

    def across(self, value: Any) -> float:
        """Where a value lies from left to right."""
        return self.left + self.x.locate(value) * self.width

    def up(self, value: Any, clamp: bool = False) -> float:
        """Where a value lies from top to bottom; with ``clamp`` at an end of the picture if it lies beyond."""
        share = self.y.clamp(value) if clamp else self.y.locate(value)
        # Categories are read from the top.
        return self.top + (share if self.y.kind == "category" else 1 - share) * self.height


def make_frame(figure: Figure) -> Frame:
    """The axes, and the room around them for their texts."""
    x, y = _make_axes(figure)
    heat = is_heat(figure)
    left = 12 + max([2 * LETTER, *(measure(text) for _, text in y.ticks)])
    columns, wide = len(x.names), WIDTH
    if heat and any("texttemplate" in trace for trace in figure["data"]):
        wide = max(WIDTH, left + CELL * columns + 8)
    turned = not _fit(x, wide - left - 8)
    if turned:
        # A turned text ends below its tick, and reaches to the left of it.
        reach = [TURNED * measure(text) - (wide - left) * x.locate(value) for value, text in x.ticks]
        left = max(left, 10 + max(reach, default=0))
    # Half of the text, in the larger letters that a phone has.
    first, last = (0.6 * measure(text) for _, text in (x.ticks[0], x.ticks[-1])) if x.ticks and not turned else (0, 8)
    left = max(left, first)
    width = wide - left - max(last, 8)
    top = 10 + LINE * (len(wrap_axis_title(figure, "yaxis", wide)) + len(figure["layout"].get("annotations", [])))
    height = max(HEIGHT, ROW * len(y.names)) if heat else HEIGHT
    names = TURNED * max([measure(text) for _, text in x.ticks], default=0) + LINE if turned else LINE + 6
    bottom = names + LINE * len(wrap_axis_title(figure, "xaxis", wide)) + 6
    whole = (wide, top + height + bottom)
    return Frame(left=left, top=top, width=width, height=height, x=x, y=y, whole=whole, turned=turned)


def _make_axes(figure: Figure) -> tuple[Axis, Axis]:
    across: list[Any] = [mark["x0"] for mark in _near_marks(figure)]
    up: list[Any] = []
    bars: dict[Any, float] = {}
    for trace in figure["data"]:
        if trace["type"] == "bar":
            across += [end for ends in find_bar_ends(trace) for end in ends]
            for x, y in zip(trace["x"], trace["y"], strict=True):
                bars[x] = (bars.get(x, 0.0) if figure["layout"].get("barmode") == "stack" else 0.0) + y
                up += [0.0, bars[x]]
            continue
        across += trace["x"]
        up += trace["y"]
        for sign, ends in ((1, "array"), (-1, "arrayminus")):
            lengths = trace.get("error_y", {}).get(ends, [])
            up += [to_number(y) + sign * to_number(e) for y, e in zip(trace["y"], lengths, strict=False)]
    layout = figure["layout"]
    return _make_lower(layout.get("xaxis", {}), across, 0.0 if bars else 0.04), make_axis(
        layout.get("yaxis", {}), up, whole=bool(bars)
    )


def find_bar_ends(trace: Mapping[str, Any]) -> list[tuple[float, float]]:
    """The lower and the upper end of every bar."""
    middles = zip(trace["x"], trace["width"], strict=True)
    return trace.get("customdata") or [(x - width / 2, x + width / 2) for x, width in middles]


def _make_lower(given: Mapping[str, Any], values: list[Any], room: float) -> Axis:
    """The axis below, with as many ticks as have room beside each other."""
    for most in range(TICKS + 3, 1, -1):
        axis = make_axis(given, values, room=room, most=most)
        if _fit(axis, WIDTH - 100):
            break
    return axis


def _near_marks(figure: Figure) -> list[Mapping[str, Any]]:
    """The vertical lines that lie not so far out that all else would be drawn into a corner."""
    marks = figure["layout"].get("shapes", [])
    known = [x for trace in figure["data"] for x in map(to_number, trace["x"]) if math.isfinite(x)]
    if not known:
        return list(marks)
    low, high = min(known), max(known)
    room = (high - low) / 4 or math.inf
    return [mark for mark in marks if low - room <= mark["x0"] <= high + room]


def _fit(axis: Axis, width: float) -> bool:
    """Whether the texts of an axis that is so wide have room beside each other."""
    ticks = [(axis.locate(value) * width, measure(text)) for value, text in axis.ticks]
    pairs = itertools.pairwise(ticks)
    return all(abs(there - here) > (size + other) / 2 for (here, size), (there, other) in pairs)


def is_heat(figure: Figure) -> bool:
    """Whether a figure is a heat map."""
    return any(trace["type"] == "heatmap" for trace in figure["data"])


def name_kind(trace: Mapping[str, Any]) -> str:
    """How a trace is drawn: "band" for an area between two lines, else its type."""
    return "band" if trace.get("fill") == "toself" else str(trace["type"])


def wrap_axis_title(figure: Figure, axis: str, width: float) -> list[str]:
    """The title of an axis in lines of at most this width, at most three of them."""
    text = figure["layout"].get(axis, {}).get("title", {}).get("text", "")
    return textwrap.wrap(to_plain(text), max(10, int(width / LETTER)))[:3]


def to_plain(text: object) -> str:
    """Text on one line, as it is measured; it is escaped where it is written."""
    return " ".join(str(text).split())


def measure(text: str) -> float:
    """Width of a text, at most; letters of some scripts are twice as wide."""
    return sum(2 * LETTER if unicodedata.east_asian_width(letter) in "WF" else LETTER for letter in text)


def spell(number: float) -> str:
    """A coordinate to one decimal."""
    return f"{number:.1f}".removesuffix(".0")


def quote(text: object) -> str:
    """Text for an attribute."""
    return to_page_text(text).replace('"', "&quot;")


def draw_text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    """A text at a place; ``more`` is written as it is, as further attributes."""
    return f'<text x="{spell(x)}" y="{spell(y)}" text-anchor="{anchor}"{more}>{to_page_text(text)}</text>'
