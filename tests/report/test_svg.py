"""Pictures are read back: what a browser draws is held against the numbers that were given."""

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probing.report import plots, trace_plots
from probing.report.axes import TICKS, choose_ticks, make_axis, write_numbers
from probing.report.figures import (
    choose_edges,
    make_band,
    make_figure,
    make_histogram,
    make_interval_bars,
    make_line,
    mark_value,
    name_places,
    scale_log,
    stack_bars,
)
from probing.report.svg import SVG_STYLE, draw_svg
from probing.report.svg_frame import make_frame
from probing.report.svg_style import COLORS, DARK, DASHES, LIGHT, SERIES
from probing.report.svg_traces import MOST_OPACITY
from probing.types import Estimate

PLACES = [f"resid_post:{layer}" for layer in range(12)]
SVG = "{http://www.w3.org/2000/svg}"
any_number = st.floats(allow_nan=True, allow_infinity=True)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def read(figure):
    """The picture of a figure, as XML, once it is known to be whole and inside its frame."""
    text = draw_svg(figure, "f")
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"<(title|desc|text|figcaption|span)[^>]*>.*?</\1>", "", text))
    root = ElementTree.fromstring(text)
    assert root.tag == "figure"
    (svg,) = (each for each in root.iter("svg") if "role" in each.attrib)
    check_inside(svg)
    return svg


def check_inside(svg):
    """Nothing reaches out of the picture, texts included."""
    _, _, width, height = map(float, svg.get("viewBox").split())
    for rect in svg.iter("rect"):
        x, y, w, h = (float(rect.get(name)) for name in ("x", "y", "width", "height"))
        assert -0.2 <= x <= x + w <= width + 0.2
        assert -0.2 <= y <= y + h <= height + 0.2
    for text in svg.iter("text"):
        x, y = float(text.get("x")), float(text.get("y"))
        assert 8 <= y <= height
        length = 7.2 * len("".join(text.itertext()))
        before = {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor")] * length
        if "transform" in text.attrib:
            assert x - 0.71 * length >= -1
            assert y + 0.71 * length <= height
        else:
            assert x - before >= -1
            assert x - before + length <= width + 1
    for path in svg.iter("path"):
        for point in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.get("d")):
            assert -0.2 <= float(point[0]) <= width + 0.2
            assert -0.2 <= float(point[1]) <= height + 0.2


def list_marks(svg, style, tag="path"):
    groups = [each for each in svg.iter("g") if each.get("class") == style]
    return [mark for group in groups for mark in group.iter(tag)]


def start_of(path):
    return tuple(map(float, NUMBER.findall(path.get("d"))[:2]))


def make_line_back(axis_points):
    """From places in the picture back to numbers, through two known points: (pixel, number)."""
    (pixel, number), (other, further) = axis_points
    return lambda at: number + (at - pixel) * (further - number) / (other - pixel)


def read_ticks(svg, anchor):
    """Pixels and numbers beside an axis, as a reader sees them."""
    ticks = []
    for text in svg.iter("text"):
        if text.get("text-anchor") == anchor and NUMBER.fullmatch((text.text or "").replace(",", "")):
            ticks.append((float(text.get("x" if anchor == "middle" else "y")), float(text.text.replace(",", ""))))
    return ticks[0], ticks[-1]


def test_bars_are_as_high_and_as_wide_as_the_counts_and_bins():
    values = np.random.default_rng(0).normal(size=500)
    edges = choose_edges(values)
    svg = read(stack_bars(make_figure([make_histogram(values, edges, "pairs", "red")], "t", "value", "pairs")))
    up = make_line_back([(y - 4.5, number) for y, number in read_ticks(svg, "end")])
    across = make_line_back(read_ticks(svg, "middle"))
    counts = dict(zip(edges[:-1].round(9).tolist(), np.histogram(values, edges)[0], strict=True))
    bars = list_marks(svg, "fig-bar", "rect")
    assert len(bars) == sum(count > 0 for count in counts.values())
    for bar in bars:
        x, y, width, height = (float(bar.get(name)) for name in ("x", "y", "width", "height"))
        low = min(counts, key=lambda edge: abs(edge - across(x)))
        # A tenth of a unit of the picture, twice.
        assert across(x) == pytest.approx(low, abs=0.02 * np.diff(edges)[0])
        assert across(x + width) - across(x) == pytest.approx(np.diff(edges)[0], rel=0.05)
        assert up(y) - up(y + height) == pytest.approx(counts[low], abs=0.1)
        assert up(y + height) == pytest.approx(0, abs=0.1)
        assert bar.find("title").text.endswith(f": {counts[low]:,} pairs")


def test_stacked_bars_stand_on_each_other_and_overlaid_ones_on_the_axis():
    edges = np.array([0.0, 1.0, 2.0])
    parts = [make_histogram([0.5, 0.6, 1.5], edges, "a", "#1b6ca8"), make_histogram([0.5], edges, "b", "#c8553d")]
    for mode, beneath in (("stack", 2), ("overlay", 0)):
        svg = read(stack_bars(make_figure(parts, "t", "x", "pairs"), mode))
        up = make_line_back([(y - 4.5, number) for y, number in read_ticks(svg, "end")])
        bars = list_marks(svg, "fig-bar", "rect")
        assert len(bars) == 3
        assert up(float(bars[2].get("y")) + float(bars[2].get("height"))) == pytest.approx(beneath, abs=0.02)
        assert up(float(bars[2].get("y"))) == pytest.approx(beneath + 1, abs=0.02)


def test_points_lie_at_their_values_with_their_intervals():
    x, y = [0.0, 1.0, 3.0], [-1.0, 2.0, 0.5]
    bars = make_interval_bars(y, [-2.0, 1.5, math.nan], [0.0, math.inf, math.nan])
    svg = read(make_figure([make_line(x, y, "lines+markers", "name") | {"error_y": bars}], "t", "across", "up"))
    up = make_line_back([(at - 4.5, number) for at, number in read_ticks(svg, "end")])
    across = make_line_back(read_ticks(svg, "middle"))
    dots = list_marks(svg, "fig-dot")
    assert [across(start_of(dot)[0]) for dot in dots] == pytest.approx(x, abs=0.01)
    assert [up(start_of(dot)[1]) for dot in dots] == pytest.approx(y, abs=0.01)
    titles = ["name, 0.0: -1 (-2 to 0)", "name, 1.0: 2", "name, 3.0: 0.5"]
    assert [dot.find("title").text for dot in dots] == titles
    (errors,) = (path for path in svg.iter("path") if path.get("class") == "fig-error")
    ends = re.findall(r"M[-\d.]+ ([-\d.]+)h6m-3 0V([-\d.]+)", errors.get("d"))
    assert len(ends) == 2
    assert [up(float(end)) for end in ends[0]] == pytest.approx([0, -2], abs=0.01)
    # An infinite end lies at the end of the picture.
    assert float(ends[1][0]) == pytest.approx(make_frame(make_figure([], "t", "a", "b")).top, abs=0.1)


def test_what_is_nan_parts_a_line_and_an_area():
    y = [1.0, 2.0, math.nan, 3.0, math.inf, 1.0, 2.0]
    x = list(range(7))
    svg = read(make_figure([make_line(x, y, "lines+markers", "a"), make_band(x, y, y, "#999999", "b", 0.3)], "t"))
    (line,) = (path for path in svg.iter("path") if path.get("class") == "fig-line")
    assert line.get("d").count("M") == 3
    assert len(list_marks(svg, "fig-dot")) == 5
    (band,) = (path for path in svg.iter("path") if path.get("class") == "fig-band")
    # Infinity is an end of an interval here, which lies at the end of the picture.
    assert band.get("d").count("M") == 2


def test_a_heat_map_has_its_numbers_in_cells_that_are_darker_the_greater_they_are():
    rows = pd.DataFrame(
        [
            {"model": "m", "metric": "silhouette", "place": place, "category": category, "value": value, "rows": 3}
            for (category, place), value in zip(
                itertools.product(["one", "two"], ["a", "b"]), [0.1, 0.9, math.nan, 0.5], strict=True
            )
        ]
    )
    (figure,) = plots.draw_clusters(pd.DataFrame({"model": [], "metric": []}), rows, {})
    svg = read(figure)
    cells = list_marks(svg, "fig-bar", "rect")
    assert [cell.find("title").text for cell in cells] == ["one, a: 0.1", "one, b: 0.9", "two, b: 0.5"]
    shades = [float(cell.get("fill-opacity")) for cell in cells]
    assert shades[0] < shades[2] < shades[1]
    assert cells[1].get("x") == cells[2].get("x")
    named = {text.text: float(text.get("y")) for text in svg.iter("text")}
    for cell, category in zip(cells, ["one", "one", "two"], strict=True):
        middle = float(cell.get("y")) + float(cell.get("height")) / 2
        assert middle == pytest.approx(named[category] - 4.5, abs=0.2)
    assert named["one"] < named["two"]
    assert {"0.10", "0.90", "0.50"} <= set(named)


def test_a_logarithmic_axis_has_equal_steps_for_equal_ratios():
    line = make_line(["a", "b", "c", "d"], [1.0, 10.0, 100.0, -5.0], "markers", "n")
    svg = read(name_places(scale_log(make_figure([line], "t"), 1, 100), ["a", "b", "c", "d"]))
    heights = [start_of(dot)[1] for dot in list_marks(svg, "fig-dot")]
    assert len(heights) == 3
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)


def test_a_mark_lies_at_its_value_and_one_far_out_is_told():
    values = np.linspace(0, 1, 50)
    for value, near in ((0.5, True), (1.1, True), (1e6, False)):
        figure = stack_bars(
            make_figure([make_histogram(values, choose_edges(values), "pairs", "red")], "t", "x", "pairs")
        )
        svg = read(mark_value(figure, value, "here"))
        lines = [path for path in svg.iter("path") if path.get("class") == "fig-mark"]
        if near:
            across = make_line_back(read_ticks(svg, "middle"))
            assert across(start_of(lines[0])[0]) == pytest.approx(value, abs=0.01)
        else:
            assert not lines
            assert "here (outside the picture, at 1,000,000)" in {text.text for text in svg.iter("text")}


def test_bars_lead_to_their_rows_and_are_pressed_by_keys():
    values = np.array([0.05, 0.15, 0.17])
    edges = choose_edges(values)
    figure = make_figure([make_histogram(values, edges, "pairs", "red")], "t", "x", "pairs")
    figure["rows"] = {"table": 'pa"irs', "column": "ches<"}
    svg = read(figure)
    assert svg.get("role") == "group"
    bars = [each for each in svg.iter() if each.get("class") == "bar"]
    counted = 0
    for bar in bars:
        assert (bar.get("data-table"), bar.get("data-column")) == ('pa"irs', "ches<")
        assert (bar.get("tabindex"), bar.get("role")) == ("0", "button")
        low, high = float(bar.get("data-from")), float(bar.get("data-to"))
        assert {low, high} <= set(edges.tolist())
        inside = int(((values >= low) & (values < high)).sum())
        assert bar.get("aria-label") == f"{low:.10g} to {high:.10g}: {inside} pairs"
        counted += inside
    assert counted == 3
    del figure["rows"]
    svg = read(figure)
    assert svg.get("role") == "img"
    assert not [each for each in svg.iter() if "tabindex" in each.attrib]


def test_points_lead_to_their_rows():
    trace = make_line([1, 2], [1, 2], "markers", "n") | {"ids": ["a<", 'b"']}
    figure = make_figure([trace], "t") | {"rows": {"table": "pairs", "column": "x"}}
    dots = list_marks(read(figure), "fig-dot")
    assert [(dot.get("data-table"), dot.get("data-id")) for dot in dots] == [("pairs", "a<"), ("pairs", 'b"')]


def test_a_picture_is_named_and_told():
    svg = read(make_figure([make_line([1, 2], [1, 2], "lines", "n")], "A & title", "across", "up"))
    names = svg.get("aria-labelledby").split()
    texts = {each.get("id"): each.text for each in svg if each.tag in ("title", "desc")}
    assert texts[names[0]] == "A & title"
    assert (
        texts[names[1]] == "A picture of lines or points. Across: across, from 1 to 2; up: up, from 1 to 2. Shown: n."
    )


def test_series_differ_in_color_and_dash_and_the_legend_names_them():
    lines = [make_line([0, 1], [n, n], "lines", f"line {n}") for n in range(SERIES)]
    text = draw_svg(make_figure(lines, "t"), "f")
    assert all(f'<g class="fig-s{n}">' in text for n in range(1, SERIES + 1))
    assert re.findall(r"<span>(.*?)</span>", text) == [f"line {n}" for n in range(SERIES)]
    assert len(set(DASHES)) == SERIES
    assert "fig-legend" not in draw_svg(make_figure(lines[:1], "t"), "f")


def luminance(color):
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(color, other):
    bright, dark = sorted((luminance(color), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_colors_stand_out_from_the_paper(scheme):
    """Ratios of WCAG: 3:1 for what is drawn, 4.5:1 for text, also of a number in the strongest cell."""
    assert contrast(scheme["ink"], scheme["paper"]) > 7
    for number in range(1, SERIES + 1):
        assert contrast(scheme[f"series-{number}"], scheme["paper"]) >= 3
    mixed = [
        MOST_OPACITY * int(scheme["series-1"][at : at + 2], 16)
        + (1 - MOST_OPACITY) * int(scheme["paper"][at : at + 2], 16)
        for at in (1, 3, 5)
    ]
    assert contrast(scheme["ink"], "#" + "".join(f"{round(part):02x}" for part in mixed)) >= 4.5


def test_every_color_of_a_figure_has_a_series():
    modules = [*Path(plots.__file__).parent.glob("plots*.py"), Path(trace_plots.__file__)]
    source = "".join(module.read_text() for module in modules)
    assert set(re.findall(r"#[0-9a-f]{6}", source)) <= set(COLORS)
    for name in [*LIGHT, *DARK]:
        assert f"--{name}:" in SVG_STYLE


def test_sizes():
    values = np.random.default_rng(0).normal(size=100_000)
    edges = choose_edges(values)
    histogram = make_figure([make_histogram(values, edges, "pairs", "red")], "t", "x", "pairs")
    assert len(draw_svg(histogram, "f")) < 20_000
    points = pd.DataFrame(np.random.default_rng(0).normal(size=(1000, 2)), columns=["first", "second"])
    points = points.assign(truth=points["first"] > 0, id=[f"row-{n}" for n in range(1000)], text="x" * 80)
    results = pd.DataFrame({"subset": [], "metric": []})
    (scatter,) = plots.draw_layers(results, {"a": points}, [])
    assert len(draw_svg(scatter, "f")) < 120_000


@settings(max_examples=150, deadline=None)
@given(st.lists(any_number, min_size=1, max_size=30), st.data())
def test_no_numbers_break_a_picture(values, data):
    low, high = (data.draw(st.lists(any_number, min_size=len(values), max_size=len(values))) for _ in range(2))
    x = [PLACES[at % 12] for at in range(len(values))]
    with np.errstate(all="ignore"):
        line = make_line(x, values, "lines+markers", "n") | {"error_y": make_interval_bars(values, low, high)}
    band = make_band(x, low, high, "#999999", "b", 0.3)
    frame = make_figure([band, line], "t", "place", "value")
    read(name_places(frame, x))
    scatter = make_figure([make_line(values, low, "markers", "n") | {"text": ["t"] * len(values)}], "t")
    svg = read(scatter)
    drawn = [a for a, b in zip(values, low, strict=True) if abs(a) <= 1e300 and abs(b) <= 1e300]
    assert len(list_marks(svg, "fig-dot")) == len(drawn)
    heat = {"type": "heatmap", "x": ["a"], "y": [f"{at}" for at in range(len(values))], "z": [[v] for v in values]}
    read(name_places(make_figure([heat | {"texttemplate": "%{z:.2f}"}], "t"), ["a"]))


moderate = st.floats(-1e12, 1e12).filter(lambda value: value == 0 or abs(value) > 1e-6)


@settings(max_examples=100, deadline=None)
@given(st.lists(moderate, min_size=1, max_size=40), moderate)
def test_no_values_break_a_histogram(values, mark):
    sample = np.array(values)
    edges = choose_edges(sample)
    figure = stack_bars(make_figure([make_histogram(sample, edges, "pairs", "red")], "t", "x", "pairs"))
    svg = read(mark_value(figure, mark, "mark"))
    counts = np.histogram(sample, edges)[0]
    assert len(list_marks(svg, "fig-bar", "rect")) == int((counts > 0).sum())


@given(st.floats(-1e15, 1e15), st.floats(1e-12, 1e15), st.booleans())
def test_ticks_are_few_round_and_told_apart(low, width, whole):
    high = low + width
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        return
    whole = whole and width > 2
    ticks = choose_ticks(low, high, whole)
    assert len(ticks) <= TICKS + 1
    assert all(low - 1e-9 * width <= tick <= high + 1e-9 * width for tick in ticks)
    assert len(ticks) >= 2
    assert len(set(write_numbers(ticks))) == len(ticks)


def test_ticks_are_the_numbers_that_a_reader_would_write():
    assert write_numbers(choose_ticks(0, 1)) == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert write_numbers(choose_ticks(-0.31, 0.3)) == ["-0.2", "0", "0.2"]
    assert write_numbers(choose_ticks(0, 34_000)) == ["0", "10,000", "20,000", "30,000"]
    assert write_numbers(choose_ticks(0, 2, whole=True)) == ["0", "1", "2"]
    assert write_numbers(choose_ticks(1_000_000.1, 1_000_000.5)) == [
        "1,000,000.1",
        "1,000,000.2",
        "1,000,000.3",
        "1,000,000.4",
        "1,000,000.5",
    ]


def test_an_axis_without_values_and_one_of_equal_values():
    assert make_axis({}, []).locate(0.5) == pytest.approx(0.5, abs=0.1)
    assert make_axis({}, [3.0, 3.0]).locate(3.0) == pytest.approx(0.5)
    assert make_axis({}, [math.nan, math.inf]).locate(math.inf) != make_axis({}, []).locate(0.0)
    log = make_axis({"type": "log"}, [-1.0, 0.0])
    assert math.isnan(log.locate(-1.0))
    assert log.clamp(-1.0) == 0.0
    assert log.clamp(math.inf) == 1.0


def make_everything():
    """A figure of every kind that a job draws."""
    generator = np.random.default_rng(0)
    change = generator.normal(size=200)
    pairs = pd.DataFrame({"chosen_change": change, "rejected_change": change * 2 - 1, "displaced": change < -0.5})
    yield from plots.draw_changes(pairs, Estimate(0.3, 0.2, 0.4, 200))
    yield from plots.draw_filter(change, change < 0.8, "ches_normalized", (0.8, "--drop-highest 0.2"))
    steps = [(step, measure) for measure in ("chosen", "rejected", "margin") for step in (0, 10, 200)]
    course = pd.DataFrame(steps, columns=["step", "measure"]).assign(mean=1.0, low=0.5, high=1.5, pairs=7)
    yield from plots.draw_course(course.assign(quarter=0.0, three_quarters=2.0))
    ends = {"value": 0.7, "low": 0.6, "high": 0.8} | {
        f"{band}_{end}": 0.5 for band in ("random", "labels") for end in ("low", "high")
    }
    results = pd.DataFrame(
        itertools.product([*PLACES, "chosen inside folds"], ["ccs", "logistic"]), columns=["place", "probe"]
    )
    results = results.assign(metric="accuracy", subset="all", corrected=0.65, **ends)
    yield from plots.draw_layers(results, {}, ["chosen inside folds"])
    table = pd.DataFrame(itertools.product(PLACES, [-2, -1]), columns=["place", "position"])
    yield from plots.draw_candidates(table.assign(bypass=1.0, induce=2.0, kl=1e-5, cosmic=math.nan))
    places = pd.DataFrame({"place": PLACES, "depth": 0.5, "lens_gap": 1.0})
    heads = {f"decision_f1{end}": 0.5 for end in ("", "_low", "_high", "_labels_low", "_labels_high")}
    lens = {f"lens_{kind}{end}": 0.5 for kind in ("harmful", "harmless") for end in ("", "_low", "_high")}
    bands = pd.DataFrame(itertools.product(["harmful", "harmless"], range(-3, 3)), columns=["kind", "position"])
    quantiles = {f"quantile_{share}": share / 100 for share in (10, 25, 50, 75, 90)}
    bands = bands.assign(aligned_at="end of the prompt", random_low=0.1, random_high=0.2, **quantiles)
    yield from trace_plots.draw_trace(places.assign(**heads, **lens), bands)


def test_every_figure_of_every_job_is_drawn_inside_its_frame():
    figures = list(make_everything())
    assert len(figures) == 11
    for figure in figures:
        svg = read(figure)
        assert list_marks(svg, "fig-bar", "rect") or [
            path for path in svg.iter("path") if path.get("class") in ("fig-line", "fig-band")
        ]


def test_an_axis_of_given_ends_is_drawn_even_where_they_are_one():
    line = make_line([1.0, 2.0], [0.5, 0.5], "markers", "n")
    figure = make_figure([line, make_histogram([1.2], np.array([1.0, 2.0]), "pairs", "red")], "t")
    figure["layout"]["yaxis"]["range"] = [0.5, 0.5]
    figure["layout"]["xaxis"]["range"] = [1.0, 2.0]
    assert len(list_marks(read(figure), "fig-dot")) == 2


def test_names_at_numbers_are_turned_where_they_have_no_room():
    names = [f"a long name of an edit {at}" for at in range(6)]
    figure = make_figure([make_line(range(6), range(6), "markers", "n")], "t")
    figure["layout"]["xaxis"] |= {"tickvals": list(range(6)), "ticktext": names}
    turned = [text.text for text in read(figure).iter("text") if "transform" in text.attrib]
    assert turned == names
