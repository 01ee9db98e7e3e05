"""The direction that an option names: a file, a selected one, or one of those that were extracted."""

from pathlib import Path
from typing import Any

from probing.errors import UsageError
from probing.store.activations import tensor_sha256
from probing.store.directions import DIRECTION_FILE, DIRECTIONS_FILE, open_direction, open_directions
from probing.types import Direction


def read_direction(path: Path, place: str | None, position: int) -> Direction:
    """The direction in a file, or in a folder of 'probing refusal select' or 'probing refusal extract'.

    Args:
        path: the file or folder.
        place: place of one of several directions; None where there is one.
        position: its token, counted from the end of the prompt.

    Raises:
        UsageError: a place where there is one direction, none where there are several, or one that is not there.
        SourceMismatch: there is no direction. StoreCorrupt: the file is damaged.
    """
    many = path.name == DIRECTIONS_FILE or (path.is_dir() and not (path / DIRECTION_FILE).exists())
    if not many or not (path.is_file() or (path / DIRECTIONS_FILE).exists()):
        if place is not None:
            raise UsageError(f"{path}: holds one direction, so leave out --place")
        return open_direction(path)
    if place is None:
        raise UsageError(f"{path}: holds the directions of every place; name one as --place, resid_pre:8 for instance")
    try:
        return open_directions(path).at(place, position)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error


def identify_direction(direction: Direction | None) -> dict[str, Any]:
    """What tells one direction from another in the identity of a run."""
    if direction is None:
        return {}
    mean = direction.harmless_mean
    hashes = {
        "vector": tensor_sha256(direction.vector.double().contiguous()),
        "mean": None if mean is None else tensor_sha256(mean.double().contiguous()),
    }
    return {"direction": hashes | {"place": str(direction.place), "position": direction.position}}
