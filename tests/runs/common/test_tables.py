import numpy as np
import pandas as pd
import pytest

from probing.runs.common.tables import (
    SIGNIFICANT,
    list_places,
    note_few_draws,
    note_few_groups,
    note_floor,
    pick_columns,
    pick_row,
    pick_rows,
    show_ends,
    show_p,
    smallest_p,
    table_by_place,
)

RESULTS = pd.DataFrame(
    {"place": ["a", "a", "b"], "metric": ["x", "y", "x"], "value": [1.0, 2.0, 3.0], "low": [0.5, np.nan, 2.5]}
)


def test_rows_are_picked_by_columns():
    assert pick_rows(RESULTS, place="a")["value"].tolist() == [1, 2]
    assert pick_rows(RESULTS).equals(RESULTS)
    assert pick_row(RESULTS, place="a", metric="y")["value"] == 2
    assert pick_columns(pick_row(RESULTS, place="b"), "value", "low") == {"value": 3, "low": 2.5}
    with pytest.raises(IndexError):
        pick_row(RESULTS, place="c")


def test_one_row_a_place_in_the_order_of_the_model():
    table = table_by_place(["b", "a"], lambda place: {"value": pick_row(RESULTS, place=place, metric="x")["value"]})
    assert table.to_dict("list") == {"place": ["b", "a"], "value": [3, 1]}


def test_ends_of_an_interval():
    row = pd.Series({"low": 0.12345, "high": 1234.5, "labels_low": np.nan, "labels_high": np.nan})
    assert show_ends(row) == "0.123 .. 1234.500"
    assert show_ends(row, digits=".4g") == "0.1235 .. 1234"
    assert show_ends(row, "labels_") == "-"
    assert show_ends(row, "labels_", missing="") == ""


def test_too_few_draws_are_noted():
    """19 draws are the fewest that a significant p-value can come from."""
    assert smallest_p(19) <= SIGNIFICANT < smallest_p(18)
    assert note_few_draws(random=19, permutations=1000) == []
    assert note_few_draws(random=18, permutations=5, refits=19) == [
        "With fewer than 19 draws (18 random, 5 permutations) no p-value can reach 0.05: take more."
    ]


def test_the_first_places_are_named():
    assert list_places(["a", "b"]) == "a, b"
    assert list_places(list("abcdef")) == "a, b, c, d, e, ..."


def test_a_p_value_at_a_floor_above_a_hundredth_says_so():
    assert show_p(1 / 21, 20) == "<= 0.048"
    assert show_p(2 / 21, 20) == 2 / 21
    assert show_p(1 / 100, 99) == 1 / 100  # .01 itself is small enough
    assert np.isnan(show_p(float("nan"), 20))
    assert note_floor(random=100, permutations=1000) == []
    (said,) = note_floor(random=50, permutations=1000, refits=20)
    assert said.startswith("No p-value can be below 0.020 with 50 random or 0.048 with 20 refits")


def test_few_groups_are_said():
    assert note_few_groups(15) == []
    assert note_few_groups(14) == ["The intervals are of 14 groups of rows: with fewer than 15 they may be too narrow."]
