"""States on disk: safetensors shards with one tensor a place, so that one layer is read without the others."""

import errno
import hashlib
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from probing.errors import StoreCorrupt, UsageError
from probing.shown import Shown, list_some
from probing.store.files import file_sha256, new_file
from probing.store.manifest import MANIFEST, SHARDS, read_run
from probing.store.records import refuse_link
from probing.types import Activations, Place, Problem, Source, TokenActivations

ROWS_FILE = "rows.parquet"
ROW_COLUMNS = ("id", "status", "counted", "content", "detail")
REPAIR = "run the same 'probing capture' with --repair to compute it again"


def states_path(folder: Path, index: int) -> Path:
    """Name of the states of the part with this number."""
    return folder / f"{index:06d}.safetensors"


def write_states(path: Path, states: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Write one part, with no more than one entry of metadata; its size and hashes, and those of each tensor."""
    with new_file(path) as temporary:
        try:
            contiguous = {name: tensor.contiguous() for name, tensor in states.items()}
            # The library writes several entries in any order, so that equal content could have different bytes; one has
            # no order.
            save_file(contiguous, temporary, dict(metadata or {"format": "pt"}))
        except SafetensorError as error:
            match = re.search(r"os error (\d+)", str(error))
            raise OSError(int(match[1]) if match else errno.EIO, f"{error}", str(path)) from error
        # The library makes the file readable for its owner alone.
        temporary.chmod(0o666 & ~_umask())
        facts = {"file": path.name, "bytes": temporary.stat().st_size, "sha256": file_sha256(temporary)}
    return {**facts, "tensors": {name: tensor_sha256(tensor) for name, tensor in states.items()}}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def find_fault(path: Path, facts: Mapping[str, Any], deep: bool) -> str | None:
    """What is wrong with a part: "missing" or "damaged" (by its size; by all its bytes, if ``deep``), or "a link"."""
    if path.is_symlink():
        return "a link"
    if not path.is_file():
        return "missing"
    if path.stat().st_size != facts["bytes"] or (deep and file_sha256(path) != facts["sha256"]):
        return "damaged"
    return None


def tensor_sha256(tensor: Tensor) -> str:
    """Hash of the dtype, the shape and the bytes of a tensor."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().contiguous().flatten()
    # A tensor of one number counts as contiguous whatever its stride.
    flat = flat.as_strided(flat.shape, (1,))
    digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


@dataclass(frozen=True, eq=False, repr=False)
class ActivationStore(Shown):
    """States that ``probing capture`` wrote; nothing but the manifest is read until it is asked for.

    Made by ``open_store``.

    Attributes:
        path: the folder.
        facts: the content of its manifest.
    """

    path: Path
    facts: Mapping[str, Any]

    @property
    def places(self) -> tuple[Place, ...]:
        """Places that were captured, with layers counted from 0."""
        return tuple(Place.parse(name) for name in self.facts["places"])

    @property
    def pooling(self) -> str:
        """Pooling of each row's states."""
        return str(self.facts["request"]["pooling"])

    @property
    def source(self) -> Source:
        """The model that the states are of."""
        return Source(**self.facts["source"])

    @property
    def rows(self) -> pd.DataFrame:
        """Every row of the data, also those without states: id, status, tokens, label, category, shard, detail.

        Raises:
            StoreCorrupt: the table is missing or damaged.
        """
        path = self.path / ROWS_FILE
        refuse_link(path)
        try:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != self.facts["rows_sha256"]:
                raise StoreCorrupt(
                    f"{path}: changed since the store was opened; if rows were added, open it again, otherwise {REPAIR}"
                )
            rows = pd.read_parquet(io.BytesIO(content))
        except OSError as error:
            raise StoreCorrupt(f"{path}: gone or unreadable ({error.strerror}); {REPAIR}") from error
        except pa.ArrowException as error:
            raise StoreCorrupt(f"{path}: damaged ({error}); {REPAIR}") from error
        lacking = [name for name in ROW_COLUMNS if name not in rows]
        if lacking:
            raise StoreCorrupt(f"{path}: has no column {', '.join(lacking)}; {REPAIR}")
        return rows

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the rows that have states, in their order."""
        return _ids(self.rows)

    @property
    def offsets(self) -> Tensor:
        """[row + 1]: where the tokens of each row begin, if every token was kept."""
        return _offsets(self.rows)

    def read(self, place: Place | str) -> Tensor:
        """States at one place, [row width] (or [token width] if every token was kept), checked against their hashes.

        Raises:
            UsageError: the place was not captured.
            StoreCorrupt: a shard is missing or damaged; names it.
        """
        name = self._name(place)
        parts = [self._part(facts, name) for facts in self.facts["shards"]]
        return torch.cat(parts) if parts else torch.empty((0, int(self.facts["width"])))

    def activations(self, places: Sequence[Place | str] | None = None) -> Activations | TokenActivations:
        """Some places (by default all) as ``probing.capture`` returns them."""
        wanted = tuple(Place.parse(self._name(place)) for place in (self.places if places is None else places))
        values = torch.stack([self.read(place) for place in wanted], dim=1)
        rows = self.rows
        problems = row_problems(rows)
        if self.pooling == "tokens":
            return TokenActivations(values, _offsets(rows), _ids(rows), wanted, self.source, problems)
        return Activations(values, _ids(rows), wanted, self.source, problems)

    def shown_facts(self) -> Mapping[str, object]:
        """Folder, model and size, from the manifest alone."""
        rows = {"rows": self.facts["rows_by_status"].get("ok", 0), "places": list_some(self.facts["places"])}
        kind = {"pooling": self.pooling, "width": self.facts["width"], "dtype": self.facts["dtype"]}
        return {"path": self.path, "model": self.source.model, **rows, **kind}

    def verify(self) -> list[str]:
        """Read everything; what is missing or damaged, by name."""
        folder = self.path / SHARDS
        faults = {facts["file"]: find_fault(folder / facts["file"], facts, deep=True) for facts in self.facts["shards"]}
        bad = [f"{SHARDS}/{name} is {problem}" for name, problem in faults.items() if problem]
        try:
            _ = self.rows
        except StoreCorrupt as error:
            bad.append(str(error))
        return bad

    def _name(self, place: Place | str) -> str:
        parsed = Place.parse(place) if isinstance(place, str) else place
        layers = int(self.facts["layers"])
        if parsed.layer is not None and -layers <= parsed.layer < 0:
            parsed = Place(parsed.kind, parsed.layer + layers)
        if str(parsed) not in self.facts["places"]:
            raise UsageError(f"{self.path}: {parsed} was not captured; there are {', '.join(self.facts['places'])}")
        return str(parsed)

    def _part(self, facts: Mapping[str, Any], name: str) -> Tensor:
        path = self.path / SHARDS / facts["file"]
        refuse_link(path.parent)
        refuse_link(path)
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except FileNotFoundError as error:
            raise StoreCorrupt(f"{path}: missing; {REPAIR}") from error
        except (SafetensorError, OSError, ValueError) as error:
            raise StoreCorrupt(f"{path}: damaged ({error}); {REPAIR}") from error
        if tensor_sha256(tensor) != facts["tensors"][name]:
            raise StoreCorrupt(f"{path}: {name} in it changed since it was written; {REPAIR}")
        return tensor


def row_problems(rows: pd.DataFrame) -> tuple[Problem, ...]:
    """The rows of a store's table that have no states, and why."""
    bad = rows[rows["status"] != "ok"]
    return tuple(Problem(*row) for row in zip(bad["id"], bad["status"], bad["detail"].fillna(""), strict=True))


def _ids(rows: pd.DataFrame) -> tuple[str, ...]:
    return tuple(rows.loc[rows["status"] == "ok", "id"])


def _offsets(rows: pd.DataFrame) -> Tensor:
    counts = torch.tensor(rows.loc[rows["status"] == "ok", "counted"].tolist(), dtype=torch.long)
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def open_store(path: str | Path) -> ActivationStore:
    """Open what ``probing capture`` wrote.

    Raises:
        SourceMismatch: the folder holds no such store.
        StoreCorrupt: the store's manifest is damaged, or its run was never finished.
    """
    folder = Path(path).expanduser()
    facts = read_run(folder, MANIFEST)
    if facts["command"] != "capture":
        raise StoreCorrupt(f"{folder / MANIFEST}: is of 'probing {facts['command']}', not of 'probing capture'")
    if facts["status"] == "running":
        raise StoreCorrupt(f"{folder}: the run that writes it has not finished; run the same 'probing capture' again")
    return ActivationStore(folder, facts)
