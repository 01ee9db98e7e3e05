import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import probing
from probing.probes.polarity import contradiction_index, polar_consistency, symmetric_contradiction_index


def one(*forms):
    return [torch.tensor([value], dtype=torch.float64) for value in forms]


def dumb_consistency(a1, a0, n1, n0):
    def sign(value):
        return (value > 0) - (value < 0)

    return 0.5 * ((a1 - n0) ** 2 + (a0 - n1) ** 2) * sign(a1 - n1) * sign(n0 - a0)


def test_a_perfect_probe_contradicts_nothing():
    assert polar_consistency(*one(1.0, 0.0, 0.0, 1.0)).item() == 0
    assert contradiction_index(*one(1.0, 0.0, 0.0, 1.0)).item() == 0


def test_a_constant_probe_is_consistent_and_contradicts_itself():
    """Why polar consistency is never to be read alone."""
    assert polar_consistency(*one(0.5, 0.5, 0.5, 0.5)).item() == 0
    assert contradiction_index(*one(0.5, 0.5, 0.5, 0.5)).item() == 0.5


def test_affirming_both_is_a_contradiction():
    assert contradiction_index(*one(1.0, 0.0, 1.0, 0.0)).item() == 1


def test_the_sign_says_whether_both_forms_turn_with_the_polarity():
    assert polar_consistency(*one(0.9, 0.3, 0.2, 0.6)).item() > 0  # A above N when affirmed, below when denied
    assert polar_consistency(*one(0.2, 0.6, 0.9, 0.3)).item() > 0  # the other way round in both
    assert polar_consistency(*one(0.9, 0.6, 0.2, 0.3)).item() < 0  # A above N in both forms
    value = polar_consistency(*one(0.9, 0.6, 0.2, 0.3)).item()
    assert value == pytest.approx(-((0.9 - 0.3) ** 2 + (0.6 - 0.2) ** 2) / 2)


probability = st.floats(0, 1)


@given(probability, probability, probability, probability)
def test_against_the_formula_and_its_symmetries(a1, a0, n1, n0):
    value = polar_consistency(*one(a1, a0, n1, n0)).item()
    assert value == pytest.approx(dumb_consistency(a1, a0, n1, n0), abs=1e-15)
    assert value == polar_consistency(*one(n1, n0, a1, a0)).item()
    index = contradiction_index(*one(a1, a0, n1, n0)).item()
    assert index == pytest.approx(a1 * n1 + a0 * n0)
    assert index == contradiction_index(*one(n1, n0, a1, a0)).item()
    turned = contradiction_index(*one(1 - a1, 1 - a0, 1 - n1, 1 - n0)).item()
    both = symmetric_contradiction_index(*one(a1, a0, n1, n0)).item()
    assert both == pytest.approx((index + turned) / 2)
    assert both == pytest.approx(symmetric_contradiction_index(*one(1 - a1, 1 - a0, 1 - n1, 1 - n0)).item(), abs=1e-12)
    assert 0 <= index <= 2
    assert -1 <= value <= 1


def test_axes_before_the_pairs_are_kept():
    forms = torch.rand(4, 3, 5, 7)
    assert probing.polar_consistency(*forms).shape == probing.contradiction_index(*forms).shape == (3, 5, 7)
    assert torch.equal(probing.polar_consistency(*forms)[1], polar_consistency(*forms[:, 1]))


@pytest.mark.parametrize("bad", [1.1, -0.1, float("nan")])
@pytest.mark.parametrize("metric", [polar_consistency, contradiction_index])
def test_what_is_no_probability_is_refused(metric, bad):
    with pytest.raises(ValueError, match="between 0 and 1"):
        metric(*one(0.5, 0.5, bad, 0.5))
