"""Figures that plotly draws: a page of five megabytes with plotly in it, on which pictures can be zoomed."""

import html
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from probing.report.figures import LINE_PIXELS, PICTURE_PIXELS, Figure
from probing.report.screen import to_message, to_page

TITLE_WIDTH = 95
AXIS_PIXELS = 110
"""Room for names of places that are turned, and for the name of the axis."""
LEGEND_WIDTH = 130
"""Characters in a line of the legend of a page that is 1000 pixels wide."""


def make_plotly_page(figures: Sequence[Figure], facts: Mapping[str, str]) -> str:
    """A page with all figures below each other; the library, which is most of the page, is in it once.

    Args:
        figures: the figures.
        facts: what they were made from, by name: the lines at the head of the page.
    """
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
    lines = [f"<p>{to_page(name)}: {to_page(text)}</p>" for name, text in facts.items()]
    head = '<meta charset="utf-8"><title>Plots</title>'
    return "\n".join([f'<!doctype html><html lang="en"><head>{head}</head><body>', *lines, *parts, "</body></html>"])


def _lay_out(figure: Figure) -> dict[str, Any]:
    """The layout with its title in lines, made fit for a page."""
    # The marks of lines are our own, and are added to texts that have passed the gate.
    layout = figure["layout"]
    lines = [html.escape(line, quote=False) for line in textwrap.wrap(to_message(figure["title"]), TITLE_WIDTH)]
    title = {"text": "<br>".join(lines), "x": 0.02, "xanchor": "left", "font": {"size": 16}}
    top = 40 + LINE_PIXELS * (len(lines) + len(layout.get("annotations", [])))
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
