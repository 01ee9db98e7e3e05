"""Devices: which one is chosen, on which ones a model computes, and how much memory is free there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from probing.errors import ModelInvalid
from probing.models.checkpoints import BALANCED, TENSOR_PARALLEL, check_device
from probing.ranks import current_ranks


def describe_shares(shares: int) -> str:
    """What is added to the name of a device where so many processes hold a model together; nothing for one."""
    return f", tensor parallel over {shares}" if shares > 1 else ""


class Placed(Protocol):
    """The part of a ``LanguageModel`` that is used here."""

    @property
    def model(self) -> Any:
        """A transformers model."""

    @property
    def device(self) -> torch.device:
        """Device on which inputs have to be."""


def device_of(module: nn.Module, weight: torch.Tensor) -> torch.device:
    """Device on which a module's inputs have to be: that of its weight, or to which accelerate brings the weight."""
    # Until accelerate brings the weight, it is on the device "meta".
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return weight.device if device is None else torch.device(device)


def devices_of(language_model: Placed) -> list[torch.device]:
    """The devices that a model computes on, the one that takes its inputs first; one, unless the model is spread.

    Weights that lie in the memory of the host, and are brought to a card when they are needed, count for the card.
    """
    modules = language_model.model.modules()
    computing = [device_of(module, weight) for module in modules for weight in module.parameters(recurse=False)]
    return list(dict.fromkeys([language_model.device, *computing]))


def device_names(devices: Sequence[torch.device]) -> str:
    """Names of the kinds of devices, and of the models of cards, by which arithmetic differs; each once.

    In tensor parallel sums are split over the processes, so that their number counts, too.
    """
    names = [torch.cuda.get_device_name(one) if one.type == "cuda" else one.type for one in devices]
    shares = current_ranks().size if current_ranks().share_model else 1
    return " + ".join(dict.fromkeys(names)) + describe_shares(shares)


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process can still get on a device; None where the system does not say."""
    if device.type == "cuda":
        # Torch keeps freed memory for itself, and the card does not count it as free.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    available = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return int(available[0][1]) * 1024 if available else None


def choose_device(device: str = "auto") -> torch.device:
    """The device to run on: "auto" is the first CUDA card, or the CPU where there is none.

    Of several processes of one launch on a machine each has a card of its own, for "auto" and "cuda". "balanced" says
    where the layers of a model go, and "tensor-parallel" that they are split over the processes; what is computed
    besides runs where it would for "auto".

    Raises:
        ModelInvalid: there is no such device, or none for this process. UsageError: see ``check_device``.
    """
    if device == TENSOR_PARALLEL:
        check_device(device)
    automatic = device in ("auto", BALANCED, TENSOR_PARALLEL)
    if current_ranks().size > 1 and (device == "cuda" or (automatic and torch.cuda.is_available())):
        return _choose_own_card(device)
    if automatic:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelInvalid(f"device '{device}' cannot be used here: {reason}") from error
    chosen = torch.device(device)
    if chosen.type == "meta":
        raise ModelInvalid("device 'meta' holds no numbers; nothing can be computed there")
    return chosen


def _choose_own_card(device: str) -> torch.device:
    """The card of this process among the processes on its machine.

    Raises:
        ModelInvalid: there are fewer cards than processes, or the model is to be spread over all of them.
    """
    own, cards = current_ranks().local_rank, torch.cuda.device_count()
    if device == BALANCED:
        raise ModelInvalid("device 'balanced' spreads one model over all cards of a machine; launch one process there")
    if own >= cards:
        raise ModelInvalid(
            f"there are {cards} CUDA cards here and more processes; launch one process a card, such as with torchrun "
            f"--nproc_per_node {cards}, or give --device cpu"
        )
    return torch.device("cuda", own)
