import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from probing.report.figures import (
    BINS,
    NAME_WIDTH,
    SHOWN_TICKS,
    choose_edges,
    describe_run,
    make_figure,
    make_histogram,
    make_page,
    mark_value,
    name_places,
    note_outside,
    scale_log,
    shorten_path,
)


def test_a_run_is_told_in_one_line_with_the_last_parts_of_long_paths():
    assert (
        describe_run("score", model="bundled", data=["pairs.jsonl"]) == "probing score: model bundled; data pairs.jsonl"
    )
    assert describe_run("ccs", model=None, states="out/states", data=[]) == "probing ccs: states out/states"
    many = describe_run("clusters", model=["a", "b"], data=[f"{n}.jsonl" for n in range(5)])
    assert many == "probing clusters: model a, b; data 0.jsonl, 1.jsonl, 2.jsonl, and 2 more"
    assert (
        shorten_path("/data/of/an/organisation/with/a/long/name/runs/dpo/checkpoint-500/")
        == "with/a/long/name/runs/dpo/checkpoint-500"
    )
    assert shorten_path("m" * 100) == "m" * (NAME_WIDTH - 1) + "…"
    assert shorten_path("/tmp/\x1b[31mred\u202e") == "/tmp/\\x1b[31mred\\u202e"
    assert shorten_path("/") == ""


values = st.floats(-1e12, 1e12).filter(lambda value: value == 0 or abs(value) > 1e-6)


@given(arrays.arrays(np.float64, st.integers(1, 60), elements=values))
def test_bins_have_round_edges_and_count_every_value_they_cover(sample):
    edges = choose_edges(sample)
    assert 1 <= len(edges) - 1 <= BINS + 1
    assert (np.diff(edges) > 0).all()
    counted = sum(make_histogram(sample, edges, "pairs", "red")["y"])
    outside = int(((sample < edges[0]) | (sample > edges[-1])).sum())
    assert counted == len(sample) - outside
    assert (
        f"{outside:,} of {len(sample):,}" in note_outside(sample, edges) if outside else not note_outside(sample, edges)
    )
    # The middle of the values is always shown.
    assert edges[0] <= np.quantile(sample, 0.01) <= np.quantile(sample, 0.99) <= edges[-1]


def test_edges_are_the_numbers_that_a_reader_would_write():
    edges = choose_edges(np.array([0.0, 0.29, 0.98]))
    assert edges.tolist() == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    hover = make_histogram([0.31], edges, "pairs", "red")["hovertext"]
    assert hover[3] == "0.3 to 0.4: 1 pairs"


def test_one_value_far_out_does_not_put_all_others_into_one_bin():
    sample = np.append(np.linspace(0, 1, 1000), 1e9)
    edges = choose_edges(sample)
    assert (np.histogram(sample, edges)[0] > 0).sum() > 9
    assert note_outside(sample, edges) == " (1 of 1,001 lie outside the picture)"


def test_equal_values_and_values_that_are_not_finite_have_bins():
    assert sum(make_histogram([3.0, 3.0, np.nan], choose_edges(np.array([3.0, 3.0, np.nan])), "", "")["y"]) == 2
    assert sum(make_histogram([1.0, np.inf], choose_edges(np.array([1.0, np.inf])), "", "")["y"]) == 1
    assert note_outside(np.array([1.0, np.inf]), np.array([0.0, 2.0])) == ""


@pytest.mark.parametrize("layers", [1, 4, 16, 17, 30, 80, 1000])
def test_few_enough_names_of_places_are_written_to_be_read(layers):
    places = [f"resid_post:{layer}" for layer in range(layers)]
    figure = make_figure([], "t", "a")
    axis = name_places(figure, [*places, "chosen inside folds"] * 2, ["chosen inside folds"])["layout"]["xaxis"]
    assert axis["categoryarray"] == [*places, "chosen inside folds"]
    assert len(axis["tickvals"]) <= SHOWN_TICKS + 1
    assert axis["tickvals"][0] == "resid_post:0"
    assert axis["tickvals"][-1] == "chosen inside folds"
    steps = np.diff([places.index(place) for place in axis["tickvals"][:-1]])
    assert len(set(steps)) <= 1
    if layers <= SHOWN_TICKS:
        assert axis["tickvals"] == axis["categoryarray"]


@pytest.mark.parametrize(
    ("low", "high", "names"),
    [
        (0.4, 7.0, ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50"]),
        (1e-3, 900.0, ["0.001", "0.01", "0.1", "1", "10", "100", "1000"]),
        (1e-9, 1e9, ["1e-09", "1e-06", "0.001", "1", "1000", "1e+06", "1e+09"]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_whole_numbers_of_a_decade(low, high, names):
    axis = scale_log(make_figure([], "t", "a"), low, high)["layout"]["yaxis"]
    assert axis["ticktext"] == names
    assert [f"{value:g}" for value in axis["tickvals"]] == names


def read_figure(page):
    """What a browser reads of the only figure of a page: plotly takes marks of HTML in these texts for marks."""
    own = page[page.rindex("Plotly.newPlot(") :]
    data, end = json.JSONDecoder().raw_decode(own, own.index("[{"))
    layout, _ = json.JSONDecoder().raw_decode(own, own.index("{", end))
    return data, layout


def list_texts(value):
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [text for each in inner for text in list_texts(each)]
    return [value] if isinstance(value, str) else []


def test_hostile_texts_are_spelled_out_and_escaped_everywhere_on_a_page():
    hostile = "<script>alert(1)</script>\x1b]0;t\x07\u202e<b>"
    trace = {"type": "scatter", "x": [hostile], "y": [1], "name": hostile, "text": [hostile]}
    figure = make_figure([trace, trace], hostile, hostile, hostile, hostile)
    page = make_page([mark_value(name_places(figure, [hostile]), 1.0, hostile)])
    data, layout = read_figure(page)
    texts = list_texts([data, {name: part for name, part in layout.items() if name != "template"}])
    assert sum("alert(1)" in text for text in texts) == 13
    ours = re.compile(r"<br>|<span style=.font-size:12px.>|</span>")
    for text in texts:
        assert "<" not in ours.sub("", text)
        assert text.isprintable()
    for character in "\x1b\x07\u202e":
        assert character not in page[page.rindex("Plotly.newPlot(") :]


def test_a_page_is_the_same_to_the_byte_whenever_it_is_made():
    def make():
        edges = choose_edges(np.arange(10.0))
        return make_page([make_figure([make_histogram(np.arange(10.0), edges, "pairs", "red")], "t", "a")])

    assert make() == make()
