"""Checks of a report: the state follows from the interval and the threshold, and the sentence says both."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probing.report.checks import THRESHOLDS, judge, judge_rows
from probing.report.parts import RunData
from probing.types import Estimate

NAN = math.nan


def state_of(value, low, high, limit=None, name="share_displaced"):
    thresholds = {} if limit is None else {name: limit}
    return judge(name, "run", "section", Estimate(value, low, high, 100), thresholds).state


@pytest.mark.parametrize(
    ("estimate", "state"),
    [
        ((0.41, 0.36, 0.47), "WARN"),
        ((0.21, 0.15, 0.27), "unclear"),
        ((0.15, 0.1, 0.22), "unclear"),
        ((0.1, 0.05, 0.15), "ok"),
        ((0.2, 0.2, 0.2), "ok"),
        ((0.21, NAN, NAN), "WARN"),
        ((0.2, NAN, NAN), "ok"),
        ((NAN, NAN, NAN), "not judged"),
    ],
)
def test_a_check_warns_where_its_whole_interval_lies_beyond_the_threshold(estimate, state):
    assert state_of(*estimate) == state


def test_a_check_of_the_other_side_warns_below_its_threshold():
    states = [state_of(value, value - 0.02, value + 0.02, name="ranking_accuracy_change") for value in (-0.1, -0.05, 0)]
    assert states == ["WARN", "unclear", "ok"]


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1), st.floats(-1, 1), st.sampled_from(sorted(THRESHOLDS)))
def test_states_are_those_of_the_definition(value, down, up, limit, name):
    estimate = Estimate(value, value - down, value + up, 10)
    found = judge(name, "run", "section", estimate, {name: limit})
    beyond = [end > limit if found.side == "above" else end < limit for end in (estimate.low, estimate.high)]
    assert found.state == {2: "WARN", 1: "unclear", 0: "ok"}[sum(beyond)]


def test_the_sentence_has_number_interval_rows_and_threshold():
    found = judge("share_displaced", "run", "section", Estimate(0.4125, 0.3587, 0.4635, 1320))
    assert found.sentence == (
        "ln p(chosen) fell while the margin rose in 41.2 % [35.9, 46.4] of 1,320 pairs: WARN above 20 %"
    )
    given_one = judge("share_displaced", "run", "section", Estimate(0.4125, NAN, NAN, 10), {"share_displaced": 0.5})
    assert given_one.sentence.endswith("in 41.2 % of 10 pairs: WARN above 50 %")
    assert (given_one.state, given_one.threshold) == ("ok", 0.5)


def test_a_check_that_is_switched_off_is_not_made():
    assert judge("share_displaced", "run", "section", Estimate(1.0, 1.0, 1.0, 9), {"share_displaced": None}) is None


@pytest.mark.parametrize(
    ("counts", "share", "state"),
    [({"ok": 95, "empty": 5}, 0.05, "ok"), ({"ok": 94, "empty": 6}, 0.06, "WARN"), ({}, NAN, "not judged")],
)
def test_rows_without_a_number_are_counted_from_the_record(counts, share, state):
    [found] = judge_rows(RunData("run", "score", {"rows_by_status": counts}, {}), "section", {})
    assert found.value == pytest.approx(share, nan_ok=True)
    assert (found.state, found.n) == (state, sum(counts.values()))


def list_rows():
    """The checks as the table of the docs has them."""
    for name, check in THRESHOLDS.items():
        bound = f"{100 * check.value:g} %" if check.share else f"{check.value:g}"
        yield f"| `{name}` | {check.words.format(value='X', n='N')} | {check.side} {bound} |"


def test_the_docs_list_every_check_with_its_threshold():
    page = (Path(__file__).parents[2] / "docs/report.md").read_text("utf-8")
    table = page.split("|---|---|---|\n")[1].split("\n\n")[0]
    assert table.split("\n") == list(list_rows())
