import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probing.directions.extract import (
    METHODS,
    NoDirection,
    bootstrap_angles,
    cosine,
    difference_in_means,
    find_direction,
    project_off,
    winsorize,
)

WIDTH = 12


def planted(seed, apart=4.0, harmful=60, harmless=50, width=WIDTH):
    """States around a common mean that differ along one direction; the direction."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
    mean = 3 * torch.randn(width, generator=generator)
    sides = [mean + torch.randn(count, width, generator=generator) for count in (harmful, harmless)]
    return sides[0] + apart * unit, sides[1], unit


def mean_by_hand(states):
    """Every number added up as an exact fraction."""
    return np.array([math.fsum(map(float, column)) / len(states) for column in states.T.tolist()])


@given(st.integers(0, 1000))
def test_difference_in_means_is_that_of_exact_sums(seed):
    harmful, harmless, _ = planted(seed)
    found = difference_in_means(harmful, harmless)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), mean_by_hand(harmful) - mean_by_hand(harmless), rtol=1e-12, atol=1e-13)


def test_half_precision_states_are_not_rounded_again():
    """A mean in bfloat16 of states around 30 loses the difference; ours is that of the states as they are."""
    harmful, harmless, _ = planted(3, apart=0.5, harmful=400, harmless=400)
    harmful, harmless = (harmful + 30).bfloat16(), (harmless + 30).bfloat16()
    found = difference_in_means(harmful, harmless)
    np.testing.assert_allclose(found.numpy(), mean_by_hand(harmful.double()) - mean_by_hand(harmless.double()))
    rounded = harmful.mean(0) - harmless.mean(0)
    assert float(cosine(rounded, found)) < 0.98


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_a_planted_direction_at_its_length(method):
    harmful, harmless, unit = planted(1, apart=6.0, harmful=400, harmless=400)
    found = find_direction(harmful, harmless, method).reshape(-1)
    assert float(cosine(found, unit)) > 0.95
    # Moving the harmless mean along it makes it lie beside the harmful one.
    apart = difference_in_means(harmful, harmless)
    if method != "paired_svd":
        assert float(found.norm()) == pytest.approx(float(apart @ found / found.norm()), rel=1e-9)


def test_mass_mean_is_the_inverse_covariance_times_the_difference():
    """One dimension has a hundred times the spread: the plain difference follows it, the whitened one does not."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.ones(4)
    spread[0] = 100
    apart = torch.tensor([10.0, 1.0, 0.0, 0.0])
    harmless = torch.randn(5000, 4, generator=generator) * spread
    harmful = torch.randn(5000, 4, generator=generator) * spread + apart
    truth = apart.double() / spread.double().square()
    assert float(cosine(find_direction(harmful, harmless, "mass_mean"), truth)) > 0.99
    assert abs(float(cosine(find_direction(harmful, harmless), truth))) < 0.6


def test_svd_of_pairs_is_not_centred():
    """Pairs whose differences are all the same have no spread about their mean; centred, nothing would be left."""
    harmless = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    apart = torch.arange(1.0, WIDTH + 1, dtype=torch.float64)
    found = find_direction(harmless + apart, harmless, "paired_svd")
    torch.testing.assert_close(found[0], apart)


def test_svd_of_pairs_is_that_of_numpy():
    harmful, harmless, _ = planted(7)
    found = find_direction(harmful, harmless, "paired_svd", rank=3).numpy()
    pairs = (harmful[:50].double() - harmless.double()).numpy()
    values, vectors = np.linalg.eigh(pairs.T @ pairs)
    for at in range(3):
        expected = vectors[:, -1 - at] * math.sqrt(values[-1 - at] / 50)
        assert min(np.abs(found[at] - expected).max(), np.abs(found[at] + expected).max()) < 1e-8
    assert (found @ difference_in_means(harmful, harmless).numpy() > 0).all()


def test_rank_and_method_have_to_fit():
    harmful, harmless, _ = planted(0, harmful=5, harmless=4)
    for method, rank, said in (
        ("logistic", 2, "needs paired_svd"),
        ("paired_svd", 5, "at most 4"),
        ("paired_svd", 0, "a rank of 0"),
    ):
        with pytest.raises(ValueError, match=said):
            find_direction(harmful, harmless, method, rank)
    with pytest.raises(ValueError, match="1 harmful and 4 harmless"):
        find_direction(harmful[:1], harmless)


def test_equal_means_have_no_direction():
    states = torch.randn(10, WIDTH, generator=torch.Generator().manual_seed(0)) + 1000
    for method in METHODS:
        with pytest.raises(NoDirection):
            find_direction(states, states.flip(0), method)


def test_states_that_are_not_finite_are_refused():
    harmful, harmless, _ = planted(0)
    harmless[3, 4] = torch.inf
    with pytest.raises(ValueError, match="harmless states that are not finite"):
        difference_in_means(harmful, harmless)
    with pytest.raises(ValueError, match="no harmful states"):
        difference_in_means(harmful[:0], harmless)


def test_off_the_harmless_mean():
    harmful, harmless, _ = planted(2)
    mean = harmless.double().mean(0)
    found = project_off(difference_in_means(harmful, harmless), mean)
    assert abs(float(found @ mean)) < 1e-12 * float(mean.norm()) * WIDTH
    # What is left is the direction but for that component.
    torch.testing.assert_close(
        found,
        difference_in_means(harmful, harmless)
        - (mean / mean.norm()) * float(difference_in_means(harmful, harmless) @ mean / mean.norm()),
    )


def test_winsorized_states_are_those_of_scipy():
    from scipy.stats import mstats

    states = torch.randn(201, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    states[7, 2] = 1e6
    found = winsorize(states, 0.05)
    # With 201 rows the quantiles are values of rows, as scipy's are.
    expected = mstats.winsorize(states.numpy(), limits=(0.05, 0.05), axis=0)
    np.testing.assert_array_equal(found.numpy(), np.asarray(expected))
    assert torch.equal(winsorize(states, 0.0), states)
    for share in (-0.1, 0.5):
        with pytest.raises(ValueError, match="from 0 to below"):
            winsorize(states, share)


def test_angle_of_replicates():
    harmful, harmless, _ = planted(4)
    whole = [torch.ones(1, len(side)) for side in (harmful, harmless)]
    assert float(bootstrap_angles(harmful, harmless, *whole)[0]) < 1e-5
    first = [torch.zeros(1, len(side)) for side in (harmful, harmless)]
    for weights, count in zip(first, (30, 20), strict=True):
        weights[0, :count] = 2
    part = difference_in_means(harmful[:30], harmless[:20]).numpy()
    plain = difference_in_means(harmful, harmless).numpy()
    expected = np.degrees(np.arccos(part @ plain / np.linalg.norm(part) / np.linalg.norm(plain)))
    assert float(bootstrap_angles(harmful, harmless, *first)[0]) == pytest.approx(expected, rel=1e-9)


def test_a_replicate_without_a_direction_counts_as_ninety_degrees():
    states = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    nothing = torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    assert float(bootstrap_angles(states, torch.zeros(2, 2) + states[:1], *nothing)[0]) == pytest.approx(90)
