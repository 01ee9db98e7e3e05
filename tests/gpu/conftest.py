"""Tests of what runs on a card: the same body runs on the CPU in every test run, so that it is known to be right."""

import pytest
import torch

CARD = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")],
)


@pytest.fixture(params=["cpu", CARD])
def device(request):
    return request.param
