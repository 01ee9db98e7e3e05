"""Which implementation of an operation runs here, and why."""

import functools
import importlib.util
import logging
import os
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from probing.errors import KernelUnavailable

log = logging.getLogger(__name__)

IMPLEMENTATIONS = ("auto", "torch", "triton")


class Choice(NamedTuple):
    """An implementation, "torch" or "triton", and the reason for it."""

    impl: str
    reason: str


def choose(op: str, impl: str, values: Tensor, dtypes: Collection[torch.dtype]) -> Choice:
    """The implementation that will run on ``values``.

    "auto" takes the Triton form for tensors on a CUDA card, wherever it can run, and the torch form elsewhere; the
    first choice of each kind is logged with its reason.

    Args:
        op: name of the operation, for messages.
        impl: "auto", "torch" or "triton".
        values: the tensor that decides: its device, dtype, and whether a gradient is wanted.
        dtypes: dtypes that the Triton form takes.

    Raises:
        ValueError: there is no such ``impl``.
        KernelUnavailable: "triton" was asked for and cannot run; says why.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl is one of {', '.join(map(repr, IMPLEMENTATIONS))}, not {impl!r}")
    if impl == "torch":
        return Choice("torch", "asked for")
    obstacle = find_triton_obstacle(values, dtypes)
    if impl == "triton":
        if obstacle is not None:
            raise KernelUnavailable(f"the Triton form of {op} cannot run: {obstacle}; impl='auto' takes the torch form")
        return Choice("triton", "asked for")
    choice = _choose_automatically(values, obstacle)
    _log_once(op, values.device.type, choice)
    return choice


def find_triton_obstacle(values: Tensor, dtypes: Collection[torch.dtype]) -> str | None:
    """Why a Triton kernel that takes ``dtypes`` cannot run on ``values``, or None when it can."""
    if values.device.type != "cuda" and not is_interpreting():
        return f"the tensors are on the {values.device.type} and TRITON_INTERPRET=1 is not set"
    if not has_triton():
        return "triton is not installed (pip install 'model-probing[cuda]')"
    if values.dtype not in dtypes:
        return f"it takes {', '.join(sorted(map(_name, dtypes)))}, not {_name(values.dtype)}"
    if values.requires_grad and torch.is_grad_enabled():
        return "it has no backward pass and a gradient is wanted"
    return None


def is_interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, on the CPU; slow, and meant for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def has_triton() -> bool:
    """Whether triton can be imported; finding that out does not import it."""
    return importlib.util.find_spec("triton") is not None


def can_sum_wide() -> bool:
    """Whether torch multiplies half-precision matrices into float32 on a card: from 2.8 on."""
    return hasattr(torch.ops.aten.mm, "dtype_out")


def _choose_automatically(values: Tensor, obstacle: str | None) -> Choice:
    if values.device.type != "cuda":
        return Choice("torch", f"the tensors are on the {values.device.type}")
    return Choice("triton", "the tensors are on a CUDA card") if obstacle is None else Choice("torch", obstacle)


_slower: dict[str, str] = {}


def fallbacks() -> dict[str, str]:
    """Operations that ran in a slower way than intended in this process, and why."""
    return dict(sorted(_slower.items()))


def with_fallbacks(how: str) -> str:
    """A description of how something ran, then of what ran in a slower way in this process; nothing is said twice."""
    slower = (f"{what}: {why}" for what, why in fallbacks().items())
    return "; ".join([how, *(reason for reason in slower if reason not in how)])


def fall_back(what: str, why: str) -> None:
    """Warn once that something runs in a slower way, and remember it for the record of the run."""
    if _slower.get(what) != why:
        _slower[what] = why
        log.warning("%s: %s", what, why)


@functools.cache
def _log_once(op: str, device_type: str, choice: Choice) -> None:
    if device_type == "cuda" and choice.impl == "torch":
        fall_back(f"{op} in plain torch", choice.reason)
    else:
        log.info("%s on %s: %s, since %s", op, device_type, choice.impl, choice.reason)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
