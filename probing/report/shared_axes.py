"""Figures of several runs that stand side by side, on the same axes: what looks larger is larger."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from probing.report.axes import ROOM
from probing.report.figures import Figure
from probing.report.parts import Section
from probing.report.svg_frame import find_bar_ends


def share_axes(sections: Sequence[Section]) -> None:
    """Give figures of the same measure in sections of the same question the same ranges on both axes.

    Figures are of the same measure if both axes have the same names. Bars keep zero as their foot, and axes of names or
    of logarithms stay as they are.
    """
    alike: dict[tuple[object, ...], list[Figure]] = {}
    for section in sections:
        for figure in section.figures:
            names = [figure["layout"][axis]["title"]["text"] for axis in ("xaxis", "yaxis")]
            alike.setdefault((section.question, *names), []).append(figure)
    for figures in alike.values():
        if len(figures) > 1:
            _share(figures, "xaxis", _across)
            _share(figures, "yaxis", _up)


def _share(figures: Sequence[Figure], axis: str, values_of: Any) -> None:
    layouts = [figure["layout"][axis] for figure in figures]
    if any(layout.get("type") in ("category", "log") for layout in layouts):
        return
    known = [np.asarray(list(values_of(figure)), dtype=np.float64) for figure in figures]
    known = [values[np.isfinite(values)] for values in known]
    given = [value for layout in layouts for value in layout.get("range", [])]
    every = np.concatenate([*known, np.asarray(given, dtype=np.float64)])
    if not len(every):
        return
    low, high = float(every.min()), float(every.max())
    for layout in layouts:
        layout["range"] = [low, high] if axis == "xaxis" else [low, high + ROOM * (high - low)]


def _across(figure: Figure) -> Iterable[float]:
    """Ends of bars, and places of points."""
    for trace in figure["data"]:
        if trace["type"] == "bar":
            yield from (end for ends in find_bar_ends(trace) for end in ends)
        elif trace["type"] == "scatter":
            yield from (value for value in trace["x"] if isinstance(value, int | float))


def _up(figure: Figure) -> Iterable[float]:
    """Heights of bars, stacked where they are, and ends of the intervals of points."""
    bars = [trace for trace in figure["data"] if trace["type"] == "bar"]
    if bars:
        heights = [np.asarray(trace["y"], dtype=np.float64) for trace in bars]
        stacked = figure["layout"].get("barmode") == "stack" and len({len(each) for each in heights}) == 1
        yield 0.0
        yield from np.sum(heights, axis=0) if stacked else np.concatenate(heights)
    for trace in figure["data"]:
        if trace["type"] == "scatter":
            yield from (value for value in trace["y"] if isinstance(value, int | float))
            bar = trace.get("error_y", {})
            for end, sign in (("array", 1), ("arrayminus", -1)):
                if end in bar:
                    yield from np.asarray(trace["y"], dtype=np.float64) + sign * np.asarray(bar[end], dtype=np.float64)
