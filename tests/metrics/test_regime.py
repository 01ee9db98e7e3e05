import math

import pytest

from probing.metrics.regime import Regime, describe_regime, find_regime
from probing.types import Estimate

CASES = [
    (1.0, 1.0, "both up"),
    (1.0, -1.0, "chosen up, rejected down"),
    (-1.0, -2.0, "both down"),
    (-1.0, 0.5, "chosen down, rejected up"),
    (0.0, 0.0, "both up"),
]


def around(value, width=0.1):
    return Estimate(value, value - width, value + width, 8)


@pytest.mark.parametrize(("chosen", "rejected", "words"), CASES)
def test_signs_make_the_regime(chosen, rejected, words):
    assert find_regime(chosen, rejected).words == words
    if chosen:
        told = describe_regime(around(chosen), around(rejected))
        assert told.startswith(words)
        assert "too few" not in told


def test_displacement_is_called_by_its_name():
    assert "likelihood displacement" in describe_regime(around(-3), around(-5))
    assert [int(regime) for regime in Regime] == [0, 1, 2, 3]


def test_an_interval_that_holds_zero_is_said():
    told = describe_regime(around(-0.1, 0.2), around(-5))
    assert told.startswith("both down (chosen -0.1 [-0.3, +0.1], rejected -5 [-5.1, -4.9] nats)")
    assert "the interval of the chosen change holds 0" in told
    assert "displacement" not in told
    bare = Estimate(-1.0, math.nan, math.nan, 1)
    assert "of the chosen and of the rejected change" in describe_regime(bare, bare)


def test_nan_has_no_regime():
    with pytest.raises(ValueError, match="no regime"):
        find_regime(math.nan, 1.0)
