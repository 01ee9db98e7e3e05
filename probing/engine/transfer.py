"""Small numbers to a device and back, in copies that the host does not wait for on a CUDA card."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(arrays: Sequence[NDArray[np.integer[Any]]], device: torch.device) -> list[Tensor]:
    """Whole numbers below 2^31 as int32 tensors on a device, in one copy for all of them."""
    joined = torch.from_numpy(np.concatenate(arrays).astype(np.int32, copy=False))
    if device.type == "cuda":
        # A copy from pinned memory is queued; from other memory the host would wait for the card.
        joined = joined.pin_memory()
    return list(joined.to(device, non_blocking=True).split([len(array) for array in arrays]))


class Download:
    """Tensors on their way to the host.

    On a card the copies are queued behind the work that makes the values, so that what is launched next does not delay
    them; ``wait`` returns once they have arrived. Tensors that are on the host already are handed out as they are.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._host = [self._queue_copy(tensor) if tensor.is_cuda else tensor.cpu() for tensor in tensors]
        self._events = [_record_event(device) for device in {tensor.device for tensor in tensors if tensor.is_cuda}]

    @staticmethod
    def _queue_copy(tensor: Tensor) -> Tensor:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def wait(self) -> list[Tensor]:
        """The tensors, on the host."""
        for event in self._events:
            event.synchronize()
        return self._host


def _record_event(device: torch.device) -> torch.cuda.Event:
    """An event behind everything that was queued on a card so far."""
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event
