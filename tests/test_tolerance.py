import pytest
import torch
from tolerance import assert_as_good_as_torch

EXACT = torch.tensor([0.5, -2000.0], dtype=torch.float64)


@pytest.mark.parametrize("error", [[0.0, 0.0], [9e-6, 0.0], [-9e-6, 0.015]])
def test_small_errors_pass(error):
    assert_as_good_as_torch((EXACT + torch.tensor(error)).float(), EXACT.float(), EXACT)


@pytest.mark.parametrize("error", [[2e-5, 0.0], [0.0, 0.03], [float("nan"), 0.0], [0.0, float("inf")]])
def test_large_errors_and_what_was_never_written_fail(error):
    with pytest.raises(AssertionError, match="of 2 elements are off"):
        assert_as_good_as_torch((EXACT + torch.tensor(error)).float(), EXACT.float(), EXACT)


def test_a_kernel_may_err_as_much_as_torch():
    coarse = EXACT + torch.tensor([0.01, 0.0])
    assert_as_good_as_torch(coarse.float(), coarse.float(), EXACT)
    with pytest.raises(AssertionError, match="1 of 2"):
        assert_as_good_as_torch(coarse.float(), EXACT.float(), EXACT)


def test_nothing_to_compare():
    empty = torch.empty(0, 4)
    assert_as_good_as_torch(empty, empty, empty.double())
