import math

import numpy as np
import pytest

from probing.errors import UsageError
from probing.statistics.bootstrap import estimate_share
from probing.training.alarms import explain_silence, read_alarms
from probing.types import Estimate

COLUMNS = {"share_displaced": True, "entropy": True, "regime": False}


def alarm(text, column="share_displaced"):
    return read_alarms({column: text}, COLUMNS)[0]


@pytest.mark.parametrize(
    ("text", "low", "high", "rings"),
    [
        ("> 0.2", 0.21, 0.4, True),
        ("> 0.2", 0.2, 0.4, False),
        (">=.2", 0.25, 0.4, True),
        ("< -1e-1", -0.4, -0.2, True),
        ("<0", -0.4, 0.1, False),
        ("> 0", math.nan, math.nan, False),
    ],
)
def test_the_whole_interval_has_to_be_beyond(text, low, high, rings):
    assert alarm(text).goes_off(Estimate((low + high) / 2, low, high, 9)) is rings


def test_the_prefix_of_the_trackers_may_stand_there():
    assert str(read_alarms({"probing/entropy": "> 3"}, COLUMNS)[0]) == "entropy > 3"
    assert read_alarms(None, COLUMNS) == []


@pytest.mark.parametrize(
    ("column", "text", "said"),
    [
        ("shares", "> 1", "'shares' is not measured; there are share_displaced"),
        ("regime", "> 1", "'regime' has no interval"),
        ("entropy", "3", "write it as '> 0.2'"),
        ("entropy", "> high", "write it as '> 0.2'"),
        ("entropy", "= 3", "write it as '> 0.2'"),
        ("entropy", 3, "write it as '> 0.2'"),
        ("entropy", "> nan", "write it as '> 0.2'"),
    ],
)
def test_what_is_no_alarm(column, text, said):
    with pytest.raises(UsageError, match=said):
        read_alarms({column: text}, COLUMNS)


@pytest.mark.parametrize("rows", [2, 5, 12, 40])
@pytest.mark.parametrize("text", ["> 0.2", "> 0.7", "> 0.95", "< 0.3", "< 0.02"])
def test_alarms_that_can_never_go_off_are_said(rows, text):
    # What the message says is what the estimate itself gives where all rows agree.
    agreed = estimate_share(np.full(rows, 1.0 if text[0] == ">" else 0.0))
    silence = explain_silence(alarm(text), rows, is_share=True)
    assert (silence is None) is alarm(text).goes_off(agreed)


def test_one_row_has_no_interval():
    assert "at least 2" in explain_silence(alarm("> 3", "entropy"), 1, is_share=False)
    assert explain_silence(alarm("> 3", "entropy"), 2, is_share=False) is None
