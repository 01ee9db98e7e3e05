import logging
from unittest.mock import Mock

import pytest
import torch

from probing import KernelUnavailable
from probing.kernels import dispatch
from probing.kernels.segment_pool import segment_sum

HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    dispatch._log_once.cache_clear()


def tensor(device="cpu", dtype=torch.bfloat16, requires_grad=False):
    """What the choice looks at, also of a device that is not there."""
    return Mock(spec=torch.Tensor, device=torch.device(device), dtype=dtype, requires_grad=requires_grad)


def chosen(impl, *args, **options):
    return dispatch.choose("op", impl, tensor(*args, **options), HALF)


def test_automatic_choices_and_their_reasons(monkeypatch):
    assert chosen("auto", "cuda:1") == ("triton", "the tensors are on a CUDA card")
    assert chosen("auto") == ("torch", "the tensors are on the cpu")
    assert chosen("auto", "mps") == ("torch", "the tensors are on the mps")
    assert chosen("auto", "cuda", torch.float64) == ("torch", "it takes bfloat16, float16, not float64")
    assert chosen("auto", "cuda", requires_grad=True) == (
        "torch",
        "it has no backward pass and a gradient is wanted",
    )
    with torch.no_grad():
        assert chosen("auto", "cuda", requires_grad=True).impl == "triton"
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    assert chosen("auto", "cuda") == ("torch", "triton is not installed (pip install 'model-probing[cuda]')")


def test_the_interpreter_is_never_chosen_by_itself(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert chosen("auto").impl == "torch"
    assert chosen("triton").impl == "triton"


def test_what_was_asked_for_runs_or_says_why_not(monkeypatch):
    assert chosen("torch", "cuda").impl == "torch"
    assert chosen("triton", "cuda").impl == "triton"
    with pytest.raises(KernelUnavailable, match=r"Triton form of op cannot run.*on the cpu and TRITON_INTERPRET=1 is"):
        chosen("triton")
    with pytest.raises(KernelUnavailable, match="not float32"):
        chosen("triton", "cuda", torch.float32)
    with pytest.raises(KernelUnavailable, match="a gradient is wanted"):
        chosen("triton", "cuda", requires_grad=True)
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    with pytest.raises(KernelUnavailable, match="triton is not installed"):
        chosen("triton", "cuda")


def test_an_unknown_implementation_is_refused_with_the_ones_there_are():
    with pytest.raises(ValueError, match="one of 'auto', 'torch', 'triton', not 'cuda'"):
        chosen("cuda")


def test_a_choice_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, logger="probing.kernels.dispatch"):
        for device in ("cpu", "cpu", "cuda:0", "cuda:1"):
            chosen("auto", device)
        chosen("torch")
    assert caplog.messages == [
        "op on cpu: torch, since the tensors are on the cpu",
        "op on cuda: triton, since the tensors are on a CUDA card",
    ]


def test_the_plain_form_on_a_card_is_said_aloud_and_remembered(caplog):
    for _ in range(2):
        chosen("auto", "cuda", torch.float64)
    chosen("auto", "cpu", torch.float64)
    why = "it takes bfloat16, float16, not float64"
    assert caplog.messages == [f"op in plain torch: {why}"]
    assert dispatch.fallbacks() == {"op in plain torch": why}


def test_an_operation_hands_it_on(generator):
    values, bound = torch.randn(4, 2, generator=generator), torch.tensor([0])
    with pytest.raises(KernelUnavailable, match="Triton form of segment_sum"):
        segment_sum(values, bound, bound, impl="triton")
    with pytest.raises(ValueError, match="not 'fast'"):
        segment_sum(values, bound, bound, impl="fast")
    assert torch.equal(segment_sum(values, bound, bound, impl="torch"), torch.zeros(1, 2))


def test_what_ran_slower_is_told_once_behind_how():
    assert dispatch.with_fallbacks("packed") == "packed"
    dispatch.fall_back("sums", "no card")
    assert dispatch.with_fallbacks("packed") == "packed; sums: no card"
    assert dispatch.with_fallbacks("packed; sums: no card") == "packed; sums: no card"
