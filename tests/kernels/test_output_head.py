"""What happens when memory runs out, and what is said of slow products; the logits are in test_token_stats.py."""

import logging

import pytest
import torch

from probing.kernels import output_head as file
from probing.kernels.dispatch import can_sum_wide, fallbacks
from probing.kernels.output_head import FEWEST_ROWS, is_out_of_memory, with_fewer_rows
from probing.kernels.token_stats import token_stats


def test_token_stats_goes_on_with_fewer_rows_and_the_same_numbers(generator, caplog):
    hidden, weight = torch.randn(1500, 8, generator=generator), torch.randn(300, 8, generator=generator)
    targets = torch.arange(1500) % 300
    plain = token_stats(hidden, weight, targets, top=2)
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        asked, make = [], file.logit_buffers

        def some(hidden, vocabulary, chunks, count):
            asked.append(chunks[0].stop)
            if chunks[0].stop > 300:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return make(hidden, vocabulary, chunks, count)

        patch.setattr("probing.kernels.token_stats.logit_buffers", some)
        found = token_stats(hidden, weight, targets, top=2)
    assert asked == [1500, 1024, 512, 256]
    assert all(torch.equal(left, right) for left, right in zip(found, plain, strict=True))
    assert "logits of fewer rows at a time: memory ran out with 512 rows" in caplog.text
    assert fallbacks() == {"logits of fewer rows at a time": "memory ran out with 512 rows"}


def test_where_nothing_fits_the_error_is_raised():
    tried = []

    def work(rows):
        tried.append(rows)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        with_fewer_rows(work, 700)
    assert tried == [700, 350, 175, FEWEST_ROWS]


def test_other_errors_are_raised_at_once():
    tried = []

    def work(rows):
        tried.append(rows)
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        with_fewer_rows(work, 700)
    assert tried == [700]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("shapes do not fit"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_the_operation_that_is_looked_for_exists_in_this_torch():
    """Without it a card would take the slow way, with a warning; its name is not a public one."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    assert can_sum_wide() == ((major, minor) >= (2, 8))
    # The operation without a tensor to write to, for distances of points.
    assert hasattr(torch.ops.aten.mm, "dtype") == can_sum_wide()


def test_slow_products_are_said_aloud_once(generator, caplog):
    """Of a card: a tensor that says that it is on one."""

    class OnCard(torch.Tensor):
        is_cuda = True

    states, weight = torch.randn(4, 8, generator=generator), torch.randn(6, 8, generator=generator).bfloat16()
    out = torch.empty(4, 6).as_subclass(OnCard)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            file.write_product(out, states, weight)
    assert torch.equal(torch.Tensor(out), states @ weight.float().T)
    [record] = caplog.records
    assert "states are torch.float32, weights torch.bfloat16: they would have to be alike" in record.message
