"""Arrays of every place, each saved when they are made, and the pieces of those that take long."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from probing.instruments.reading import Advance
from probing.report.progress import Progress
from probing.runs.common.makers import make_one_after_another, make_several_at_once
from probing.runs.common.parts import complete_parts, find_shard
from probing.store.activations import find_fault, states_path, write_states
from probing.store.records import refuse_link
from probing.store.shards import shard_path, write_shard

SCHEMA = pa.schema([("place", pa.string())])
Arrays = Mapping[str, NDArray[np.float64]]
SAVED_SECONDS = 5.0
"""Pieces of a part are saved at most so often."""
PIECES = "pieces"


class Pieces:
    """Arrays of which a part is made, saved while it is being made, so that an interrupt loses little of a long one.

    Attributes:
        folder: folder of the pieces; None where nothing is saved.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is not None:
            refuse_link(folder)
        self.folder = folder
        self._known: dict[str, dict[str, NDArray[np.float64]]] = {}
        self._new: dict[str, NDArray[np.float64]] = {}
        self._files, self._saved = 0, time.monotonic()
        while folder is not None and _find_arrays(folder, self._files, PIECES) is not None:
            for name, array in read_layer_arrays(folder, self._files).items():
                piece, _, entry = name.rpartition("/")
                self._known.setdefault(piece, {})[entry] = array
            self._files += 1

    def find(self, name: str) -> Arrays | None:
        """A piece that was made before."""
        return self._known.get(name)

    def put(self, name: str, arrays: Arrays) -> None:
        """Keep a piece; it is written with others, a few seconds after the last ones."""
        if self.folder is None:
            return
        self._new |= {f"{name}/{entry}": array for entry, array in arrays.items()}
        if time.monotonic() - self._saved >= SAVED_SECONDS:
            _write_arrays(self.folder, self._files, PIECES, self._new)
            self._files, self._new, self._saved = self._files + 1, {}, time.monotonic()

    def complete(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """A piece that was made before, or is made now."""
        known = self.find(name)
        if known is None:
            known = make()
            self.put(name, known)
        return known

    def within(self, name: str) -> "PiecesWithin":
        """The same pieces under names that begin with this one."""
        return PiecesWithin(self, name)


@dataclass(frozen=True)
class PiecesWithin:
    """Pieces of a piece."""

    pieces: Pieces
    prefix: str

    def find(self, name: str) -> Arrays | None:
        """A piece that was made before."""
        return self.pieces.find(f"{self.prefix}, {name}")

    def put(self, name: str, arrays: Arrays) -> None:
        """Keep a piece."""
        self.pieces.put(f"{self.prefix}, {name}", arrays)


def pieces_path(folder: Path, number: int) -> Path:
    """Folder of the pieces of the part with this number, while it is being made."""
    return folder / f"{number:06d}"


def complete_layers(
    folder: Path,
    places: Sequence[str],
    make: Callable[[str, Callable[[float], None]], Arrays],
    doing: str,
    at_once: int | None = None,
    unit: str = "places",
) -> None:
    """Make the arrays of every place that are not there yet.

    Args:
        folder: folder of the parts.
        places: places, one part each.
        make: the arrays of a place; told how to report which share of it is done.
        doing: label of the progress bar.
        at_once: number of parts that are made at once, by a thread each, in which torch has no others; by default one,
            in this thread.
        unit: what the progress bar counts.
    """

    def make_place(number: int, report: Advance) -> Arrays:
        return make(places[number], lambda share: report(share, 0))

    def write(number: int, arrays: Arrays) -> dict[str, Any]:
        facts = _write_arrays(folder, number, places[number], arrays)
        shutil.rmtree(pieces_path(folder, number), ignore_errors=True)
        return facts

    known = [_find_arrays(folder, number, place) for number, place in enumerate(places)]
    done = sum(facts is not None for facts in known)
    maker = make_one_after_another(make_place) if at_once is None else make_several_at_once(make_place, at_once)
    complete_parts(known, maker, write, Progress(len(places), done, unit=unit, doing=doing))


def _write_arrays(folder: Path, number: int, place: str, arrays: Arrays) -> dict[str, Any]:
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    facts = write_states(states_path(folder, number), tensors)
    write_shard(shard_path(folder, number), pa.table({"place": [place]}, schema=SCHEMA), facts)
    return facts


def read_layer_arrays(folder: Path, number: int) -> dict[str, NDArray[np.float64]]:
    """The arrays of one place."""
    return {name: tensor.numpy() for name, tensor in load_file(states_path(folder, number)).items()}


def _find_arrays(folder: Path, number: int, place: str) -> dict[str, Any] | None:
    """Facts of the arrays of a place; None unless an earlier run wrote them and they are intact."""
    shard = find_shard(shard_path(folder, number), SCHEMA, {"place": [place]})
    if shard is None or find_fault(states_path(folder, number), shard.facts, deep=True) is not None:
        return None
    return shard.facts
