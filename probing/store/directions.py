"""Directions on disk: one safetensors file with its description, bound to the model and the place they were read at."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probing.errors import SourceMismatch, StoreCorrupt
from probing.store.activations import tensor_sha256
from probing.store.checks import Check, check_object, is_anything, is_hash, is_list, is_mapping, is_place, is_text
from probing.store.described import read_described, write_described
from probing.store.probes import HASHES
from probing.store.records import check_seal, is_source
from probing.types import Direction, Directions, Place, Source

FORMAT, FORMAT_OF_MANY = "probing-direction-1", "probing-directions-1"
ALL_TENSORS = ("vectors", "harmful_mean", "harmless_mean")
DIRECTIONS_FILE = "directions.safetensors"
DIRECTION_FILE = "direction.safetensors"
VECTOR, MEAN = "vector", "harmless_mean"


def _is_position(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value >= 0:
        raise ValueError(f"{where}: expected a number below 0, found {value!r:.40}")


_COMMON = {"source": is_source, "method": is_text, "facts": is_mapping(is_anything)}
_ONE = check_object(
    {
        "sha256": check_object({VECTOR: is_hash}, {MEAN: is_hash}, closed=True),
        "place": is_place,
        "position": _is_position,
        **_COMMON,
    }
)
_MANY = check_object(
    {
        "sha256": check_object(dict.fromkeys(ALL_TENSORS, is_hash), closed=True),
        "places": is_list(is_place),
        "positions": is_list(_is_position),
        **_COMMON,
    }
)


def save_direction(path: str | Path, direction: Direction) -> None:
    """Write a direction as float64 safetensors; what it is stands in the file's metadata.

    Args:
        path: the file; what is there is replaced.
        direction: the direction.
    """
    tensors = {VECTOR: direction.vector} | ({} if direction.harmless_mean is None else {MEAN: direction.harmless_mean})
    where = {"place": str(direction.place), "position": direction.position}
    _write(path, FORMAT, tensors, {**where, **_describe(direction)})


def save_directions(path: str | Path, directions: Directions) -> None:
    """Write the directions of several places and positions, as ``save_direction`` writes one."""
    tensors = {name: getattr(directions, name) for name in ALL_TENSORS}
    where = {"places": list(map(str, directions.places)), "positions": list(directions.positions)}
    _write(path, FORMAT_OF_MANY, tensors, {**where, **_describe(directions)})


def _describe(what: Direction | Directions) -> dict[str, Any]:
    return {"source": asdict(what.source), "method": what.method, "facts": what.facts}


def _write(path: str | Path, format: str, tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> None:
    arrays = {name: tensor.detach().double().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_described(Path(path).expanduser(), format, arrays, described)


def open_direction(path: str | Path) -> Direction:
    """A direction that ``save_direction`` or ``probing refusal select`` wrote.

    Args:
        path: the file, or the folder of a run that holds ``direction.safetensors``.

    Raises:
        SourceMismatch: there is no such file, or it holds no direction.
        StoreCorrupt: the file is damaged.
    """
    with _read(path, DIRECTION_FILE, FORMAT, _ONE) as (known, tensors):
        return Direction(
            vector=tensors[VECTOR],
            place=Place.parse(known["place"]),
            position=known["position"],
            source=Source(**known["source"]),
            method=known["method"],
            harmless_mean=tensors.get(MEAN),
            facts=known["facts"],
        )


def open_directions(path: str | Path) -> Directions:
    """The directions that ``probing refusal extract`` wrote.

    Args:
        path: the file, or the folder of the run.

    Raises:
        SourceMismatch: there is no such file, or it holds no directions.
        StoreCorrupt: the file is damaged.
    """
    with _read(path, DIRECTIONS_FILE, FORMAT_OF_MANY, _MANY) as (known, tensors):
        shape = (len(known["places"]), len(known["positions"]))
        if any(tensor.shape[:2] != shape for tensor in tensors.values()):
            raise ValueError("the places and positions in it are not those of its numbers")
        return Directions(
            **tensors,
            places=tuple(map(Place.parse, known["places"])),
            positions=tuple(known["positions"]),
            source=Source(**known["source"]),
            method=known["method"],
            facts=known["facts"],
        )


@contextlib.contextmanager
def _read(path: str | Path, name: str, format: str, check: Check) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Description and tensors of a file, both checked; ``ValueError`` inside the block means that it is damaged."""
    file = Path(path).expanduser()
    if name == DIRECTION_FILE and file.is_dir() and not (file / name).exists() and (file / DIRECTIONS_FILE).exists():
        raise SourceMismatch(
            f"{file}: holds the directions of every place; 'probing refusal select' chooses one of them"
        )
    file = file / name if file.is_dir() else file
    what = "direction" if format == FORMAT else "directions"
    known, tensors = read_described(file, format, f"{what} of 'probing refusal'")
    try:
        check(known, "")
        check_seal(known)
        _check_tensors(known["sha256"], tensors)
        yield known, tensors
    except ValueError as error:
        raise StoreCorrupt(f"{file}: damaged, or written by another version ({error})") from error


def _check_tensors(hashes: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` unless the tensors are those that were written."""
    if set(hashes) != set(tensors):
        raise ValueError(f"holds {', '.join(sorted(tensors))}; described are {', '.join(sorted(hashes))}")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float64 or tensor_sha256(tensor) != hashes[name]:
            raise ValueError(f"{name} changed since it was written")


def check_model(direction: Direction, source: Source, width: int, layers: int) -> None:
    """Raise unless a direction is of this model.

    Args:
        direction: the direction.
        source: the model.
        width: width of the model's residual stream.
        layers: number of blocks of the model.

    Raises:
        SourceMismatch: other weights, another tokenizer, another width, or a place that the model does not have; names
            each difference.
    """
    wrong = []
    if direction.width != width:
        wrong.append(f"its width is {direction.width}, that of the model {width}")
    if direction.place.layer is not None and not 0 <= direction.place.layer < layers:
        wrong.append(f"it was read at {direction.place}, and the model has {layers} layers")
    for field in HASHES:
        theirs, own = getattr(source, field), getattr(direction.source, field)
        if theirs != own:
            wrong.append(f"{field} is {str(own)[:12]}, of the model {str(theirs)[:12]}")
    if wrong:
        raise SourceMismatch(
            f"the direction is of {direction.source.model}, not of {source.model}: {'; '.join(wrong)}. 'probing "
            f"refusal transfer' carries a direction over to another model"
        )
