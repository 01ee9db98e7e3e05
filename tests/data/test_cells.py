import numpy as np
import pytest

from probing.data.cells import drop_none, is_empty, plain_value


@pytest.mark.parametrize(
    "value", [None, "", " ", "\n\t", "\u00a0", float("nan"), np.float32("nan"), np.float64("nan"), np.array(None)]
)
def test_nothing_is_none_nan_or_white_space(value):
    assert is_empty(value)
    assert plain_value(value) is None


@pytest.mark.parametrize("value", [0, False, 0.0, "0", " a ", "nan", "None", [], {}, [None], float("inf")])
def test_everything_else_is_something(value):
    assert not is_empty(value)
    assert plain_value(value) is value


def test_values_of_numpy_become_plain():
    values = [plain_value(value) for value in (np.int64(3), np.bool_(True), np.array([1.0, 2.0]), np.str_("a"))]
    assert values == [3, True, [1.0, 2.0], "a"]
    assert [type(value) for value in values[:3]] == [int, bool, list]


def test_none_is_dropped_wherever_it_stands_under_a_key():
    assert drop_none({"a": None, "b": [{"c": None, "d": 0}, None], "e": ""}) == {"b": [{"d": 0}, None], "e": ""}
