"""What happens when memory runs out, and what is said of slow products; the logits are in test_token_stats.py."""

import logging

import pytest
import torch

from probing.kernels import output_head as file
from probing.kernels.output_head import FEWEST_ROWS, out_of_memory, sums_wide, with_fewer_rows
from probing.kernels.token_stats import token_stats


@pytest.fixture(autouse=True)
def unsaid():
    """Warnings are given once a process."""
    file._warn_of_fewer_rows.cache_clear()
    file._warn_of_wide_products.cache_clear()


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
    assert "out of memory with the logits of 512 rows: trying with 256 rows at a time" in caplog.text


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
    assert out_of_memory(error) is expected


def test_the_operation_that_is_looked_for_exists_in_this_torch():
    """Without it a card would take the slow way, with a warning; its name is not a public one."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    assert sums_wide() == ((major, minor) >= (2, 8))


def test_slow_products_are_said_aloud_once(caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            file._warn_of_wide_products(torch.float32, torch.bfloat16)
    [record] = caplog.records
    assert "states are torch.float32 and weights torch.bfloat16, and they would have to be alike" in record.message
