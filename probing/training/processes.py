"""The processes of a distributed run: which rows are whose, and what all of them measured."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn

from probing.errors import UsageError

Row = TypeVar("Row")
Value = TypeVar("Value")


def count_processes() -> int:
    """Number of processes that train together; 1 where there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def find_rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if count_processes() > 1 else 0


def check_whole(model: nn.Module) -> None:
    """Raise unless every weight is whole in this process.

    Raises:
        UsageError: FSDP, DeepSpeed ZeRO 3 or tensor parallelism splits the weights, so that one process alone cannot
            run the model.
    """
    for name, weight in model.named_parameters():
        if hasattr(weight, "ds_id") or type(weight.data).__name__ == "DTensor" or "_fsdp_wrapped_module" in name:
            raise UsageError(
                f"the weights {name} are split between processes (FSDP, DeepSpeed ZeRO 3 or tensor parallelism), which "
                f"callbacks cannot read; compare checkpoints by 'probing displacement --steps'"
            )


def take_own_rows(rows: Sequence[Row]) -> list[Row]:
    """Every n-th row, beginning with that of this process's number."""
    return list(rows[find_rank() :: count_processes()])


def gather_all(measure: Callable[[], Value]) -> list[Value]:
    """What every process measures, in the order of their numbers; each of them must call this.

    Args:
        measure: gives anything that can be pickled.

    Raises:
        Exception: whatever ``measure`` raised in this process; in the others ``ProcessFailed``, so that none of them
            waits for one that gave up.
    """
    if count_processes() == 1:
        return [measure()]
    own: tuple[Value | None, str | None] = (None, None)
    failure: Exception | None = None
    try:
        own = (measure(), None)
    except Exception as error:  # noqa: BLE001 (it is raised again, once the others know)
        own, failure = (None, f"{type(error).__name__}: {error}"), error
    gathered: list[Any] = [None] * count_processes()
    dist.all_gather_object(gathered, own)
    if failure is not None:
        raise failure
    for number, (_, trouble) in enumerate(gathered):
        if trouble is not None:
            raise ProcessFailed(f"process {number}: {trouble}")
    return [value for value, _ in gathered]


class ProcessFailed(RuntimeError):
    """Another process of a distributed run could not measure its share."""
