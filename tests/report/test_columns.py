import pandas as pd
import pytest

from probing.report.columns import list_given_up, name_columns
from probing.report.tables import render

BY_PLACE = pd.DataFrame(
    {
        "place": ["resid_post:10", "resid_post:11"],
        "logistic": [0.91234, 0.95],
        "low": [0.8, 0.9],
        "high": [0.95, 0.99],
        "p corrected": [0.001, "<= 0.048"],
        "permuted labels": ["0.475 .. 0.545", "0.471 .. 0.545"],
        "lda": [0.5, 0.6],
        "lda fresh": [0.4, 0.5],
        "chosen by logistic": [3, 0],
    }
)


def test_columns_have_names_that_do_not_vary_with_the_data():
    printed = [
        "p(labels)",
        "silhouette 95 %",
        "5%",
        "accuracy (ESA)",
        "conflict, a\x1b b",
        "conflict, 有害",
        "low",
        "low",
    ]
    assert list(name_columns(printed)) == [
        "p_labels",
        "silhouette_interval",
        "quantile_5",
        "esa",
        "conflict",
        "conflict_2",
        "low",
        "low_2",
    ]
    assert name_columns(printed)["conflict_2"] == "conflict, 有害"


def test_columns_that_go_together_are_left_out_together():
    assert list_given_up("by_place", BY_PLACE.columns)[:3] == [
        ["lda", "lda fresh"],
        ["chosen by logistic"],
        ["permuted labels"],
    ]
    assert list_given_up("a_table_of_ones_own", BY_PLACE.columns) == []


@pytest.mark.parametrize("prefix", ["", "[probe] "])
@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (100, None),
        (75, None),
        (70, "lda, lda fresh"),
        (60, "lda, lda fresh, chosen by logistic"),
        (45, "permuted labels, lda, lda fresh, chosen by logistic"),
    ],
)
def test_what_decides_is_left_out_last(prefix, width, left_out):
    shown = render({f"{prefix}By place: AUROC": BY_PLACE}, width)
    assert max(map(len, shown.splitlines())) <= width
    assert all(value in shown for value in ("resid_post:10", "0.9123", "0.8", "0.99", "<= 0.048"))
    said = " ".join(shown.split("(--full also shows ")[1].split()) if left_out else None
    assert said == (f"{left_out})" if left_out else None)
    assert left_out is not None or "--full" not in shown


def test_headings_are_wrapped_before_anything_is_left_out():
    lines = render({"By place": BY_PLACE}, 80).splitlines()
    assert [line.split()[-1] for line in lines[1:4]] == ["chosen", "by", "logistic"]
    assert lines[3].split() == "place logistic low high corrected labels lda fresh logistic".split()


def test_names_numbers_and_intervals_are_cut_after_sentences():
    table = pd.DataFrame(
        {"name": ["x" * 30], "text": ["y " * 30], "ends": ["-0.0003015 .. 0.01707"], "p": ["<= 0.048"], "more": [1]}
    )
    lines = render({"T": table}, 84).splitlines()
    assert "x" * 30 in lines[2]
    assert "-0.0003015 .. 0.01707" in lines[2]
    assert "y …" in lines[2]
    shorter = render({"T": table}, 75).splitlines()
    assert "x" * 17 in shorter[2]
    assert "x…" in shorter[2]
    assert "-0.0003015 .. 0.01707" in shorter[2]
    assert shorter[1].split() == ["name", "text", "ends", "p", "more"]
