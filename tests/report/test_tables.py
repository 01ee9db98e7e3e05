from functools import partial

import pandas as pd

from probing import PreferencePair
from probing.data.pairs import find_pairs
from probing.report.layout import shorten
from probing.report.tables import counts, extremes, histogram, name_tables, quantiles, render

PAIRS = [PreferencePair(f"p{n}", f"a long question number {n} " * 4, f" yes\n{n}", " no") for n in range(4)]
FIND = partial(find_pairs, PAIRS)
FRAME = pd.DataFrame({"id": [f"p{n}" for n in range(4)], "ches": [1.0, 3.0, float("nan"), 3.0]})


def test_extremes_are_ordered_by_score_then_id_and_leave_out_what_has_none():
    assert extremes(FRAME, "ches", FIND, 2, highest=True)["id"].tolist() == ["p1", "p3"]
    assert extremes(FRAME, "ches", FIND, 9, highest=False)["id"].tolist() == ["p0", "p1", "p3"]
    first = extremes(FRAME, "ches", FIND, 1, highest=False).iloc[0]
    assert first["chosen"] == "yes 0"
    assert first["prompt"].startswith("…")
    assert len(first["prompt"]) == 34


def test_quantiles_count_what_has_a_value():
    table = quantiles(FRAME, ["ches"])
    assert table["pairs"].item() == 3
    assert (table["0%"].item(), table["50%"].item(), table["100%"].item()) == (1.0, 3.0, 3.0)


def test_a_histogram_counts_every_finite_value():
    table = histogram(pd.Series([0.0, 0.1, 0.1, 1.0, float("nan"), float("inf")]), bins=2)
    assert table["pairs"].tolist() == [3, 1]
    assert (table["from"].tolist(), table["to"].tolist()) == ([0.0, 0.5], [0.5, 1.0])
    assert [len(bar) for bar in table["bar"]] == [40, 13]
    assert len(histogram(pd.Series([2.0, 2.0]))) == 0


def test_tables_have_names_that_do_not_vary():
    titles = [
        "By place, all rows (36 rows)",
        "Drift, from a model: x",
        "AUROC (positive = yes)",
        "AUROC (other)",
        "By place, b",
    ]
    assert name_tables(titles) == dict(
        zip(["by_place", "drift", "auroc", "auroc_2", "by_place_2"], titles, strict=True)
    )


def test_counts_come_largest_first():
    assert counts({"a": 1, "ok": 5, "b": 1}, "status")["status"].tolist() == ["ok", "a", "b"]


def test_shorten_keeps_either_end():
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("abcdefg", 6) == "abcde…"
    assert shorten("abcdefg", 6, end=True) == "…cdefg"


def test_text_stands_left_and_numbers_right():
    table = pd.DataFrame({"name": ["a", "long"], "value": [1.0, 20000.0]})
    lines = render({"Title": table, "Nothing": table[:0]}).splitlines()
    assert lines[0] == "Title"
    assert [line.split()[0] for line in lines[1:4]] == ["name", "a", "long"]
    assert lines[2].startswith("a ")
    assert lines[3].endswith("2e+04")
    assert lines[-1] == "(none)"


def test_a_column_of_nothing():
    lines = render({"Title": pd.DataFrame({"name": ["a", "b"], "value": [None, None]})}).splitlines()
    assert [line.split() for line in lines[1:]] == [["name", "value"], ["a", "NaN"], ["b", "NaN"]]
