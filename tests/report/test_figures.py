import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from probing.report.figures import (
    BINS,
    SHOWN_TICKS,
    choose_edges,
    make_figure,
    make_histogram,
    name_places,
    note_outside,
    scale_log,
)

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
    figure = make_figure([], "t")
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
    axis = scale_log(make_figure([], "t"), low, high)["layout"]["yaxis"]
    assert axis["ticktext"] == names
    assert [f"{value:g}" for value in axis["tickvals"]] == names
