"""Weights split over several processes: told from others, gathered, or refused where whole ones are needed."""

from typing import Any

from torch import Tensor

from probing.errors import ModelInvalid


def count_shares(model: Any) -> int:
    """Number of processes that hold a transformers model together in tensor parallel; 1 for one that is whole."""
    return int(getattr(model, "tp_size", None) or 1)


def is_split(weight: Tensor) -> bool:
    """Whether this process holds only a share of a weight."""
    return hasattr(weight, "full_tensor")


def gather(weight: Tensor) -> Tensor:
    """A whole weight from the shares of all processes, each of which has to call this; any other weight as it is."""
    whole: Tensor = weight.full_tensor() if is_split(weight) else weight  # type: ignore[attr-defined]
    return whole


def refuse_shares(model: Any, what: str) -> None:
    """Raise ``ModelInvalid`` for a model whose weights are split; ``what`` says what needs whole ones."""
    if count_shares(model) > 1:
        raise ModelInvalid(
            f"{what}, and in tensor parallel a process holds only its share of them; give another --device"
        )
