import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probing.statistics.groups import connected_groups, find_twins, number_values


def groups_by_hand(units, values):
    """Spread the least number of any neighbour until nothing changes; then number by the least unit."""
    labels = list(range(len(units)))
    while True:
        spread = [
            min(
                labels[other]
                for other in range(len(units))
                if units[other] == units[row] or values[other] == values[row]
            )
            for row in range(len(units))
        ]
        if spread == labels:
            break
        labels = spread
    least = {label: min(unit for unit, own in zip(units, labels, strict=True) if own == label) for label in labels}
    order = sorted(least, key=lambda label: least[label])
    return [order.index(label) for label in labels]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("abcdefghij")), max_size=15))
def test_groups_are_connected_components(rows):
    units, values = [unit for unit, _ in rows], [value for _, value in rows]
    assert connected_groups(units, values).tolist() == groups_by_hand(units, values)


def test_a_chain_is_one_group_and_a_unit_is_no_value():
    assert connected_groups([0, 0, 1, 1, 5], ["a", "b", "b", "c", "d"]).tolist() == [0, 0, 0, 0, 1]
    assert connected_groups([1, 2], [2, 1]).tolist() == [0, 1]
    assert connected_groups([7, 3, 7], [0, 1, 2]).tolist() == [1, 0, 1]  # in the order of the units


def test_values_are_compared_whole():
    """An array of texts would drop zeros at their ends."""
    assert connected_groups([0, 1, 2], ["a", "a\0", "a"]).tolist() == [0, 1, 0]


def test_as_many_values_as_units():
    with pytest.raises(ValueError, match="2 units and 1 values"):
        connected_groups([0, 1], ["a"])


def test_numbers_are_in_order_of_appearance():
    assert number_values(["b", "a", "b", "c"]) == [0, 1, 0, 2]
    assert number_values([]) == []
    assert isinstance(connected_groups(np.array([], dtype=int), []), np.ndarray)


def test_twins_differ_in_white_space_only():
    assert find_twins(["safe", "unsafe", " safe"]) == (" safe", "safe")
    assert find_twins(["safe", "Safe", "un safe"]) is None
