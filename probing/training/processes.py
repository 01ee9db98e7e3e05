"""The processes of a distributed run: which rows are whose, and what all of them measured."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch.distributed as dist

Row = TypeVar("Row")


def count_processes() -> int:
    """Number of processes that train together; 1 where there is no process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def find_rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if count_processes() > 1 else 0


def take_own_rows(rows: Sequence[Row]) -> list[Row]:
    """Every n-th row, beginning with that of this process's number."""
    return list(rows[find_rank() :: count_processes()])


def gather(own: Any) -> list[Any]:
    """What every process has to say, in the order of their numbers; each of them must call this.

    Args:
        own: anything that can be pickled, the same small kind of thing in every process.
    """
    processes = count_processes()
    if processes == 1:
        return [own]
    gathered: list[Any] = [None] * processes
    dist.all_gather_object(gathered, own)
    return gathered
