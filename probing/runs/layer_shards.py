"""A job over the layers of a model: what each gives is saved when it is done, and known again after a restart."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from probing.errors import OutOfMemory
from probing.report.progress import Progress
from probing.store.activations import fault, states_path, write_states
from probing.store.shards import read_shard, shard_path, write_shard

SCHEMA = pa.schema([("place", pa.string())])
Arrays = Mapping[str, NDArray[np.float64]]


def all_layers(
    folder: Path, places: Sequence[str], make: Callable[[str, Callable[[float], None]], Arrays], doing: str
) -> None:
    """Make what is not there yet.

    Args:
        folder: where the parts lie.
        places: one part each.
        make: the arrays of a place; told how to report which share of it is done.
        doing: for the progress bar.
    """
    known = [_is_there(folder, number, place) for number, place in enumerate(places)]
    with Progress(len(places), sum(known), unit="places", doing=doing) as bar:
        for number, (place, there) in enumerate(zip(places, known, strict=True)):
            if there:
                continue
            arrays = make(place, lambda share: bar.advance(share, 0))
            facts = write_states(
                states_path(folder, number),
                {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()},
            )
            write_shard(shard_path(folder, number), pa.table({"place": [place]}, schema=SCHEMA), facts)


def read_layer_arrays(folder: Path, number: int) -> dict[str, NDArray[np.float64]]:
    """The arrays of one place."""
    return {name: tensor.numpy() for name, tensor in load_file(states_path(folder, number)).items()}


def _is_there(folder: Path, number: int, place: str) -> bool:
    found = read_shard(shard_path(folder, number), SCHEMA)
    if found is None or found[0]["place"].to_pylist() != [place]:
        return False
    return fault(states_path(folder, number), found[1], deep=True) is None


def check_memory(needed: int, device: torch.device, what: str) -> None:
    """Raise unless so many bytes are free.

    Raises:
        OutOfMemory: says how many are needed and what to do.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory()
    if free is not None and needed > free:
        raise OutOfMemory(
            f"{what} needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free on the {device.type}; take "
            f"fewer rows, fewer --restarts or --folds, or a machine with more memory"
        )


def _free_memory() -> int | None:
    """Memory that a process can still get, in bytes; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return int(found[0][1]) * 1024 if found else None
