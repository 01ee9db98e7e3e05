"""The pairs with log-probabilities under the names that TRL's DPOTrainer has for those of its reference model."""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from probing.data.lazy import make_in_blocks
from probing.data.tables import Row, Table
from probing.data.writing import write_rows
from probing.errors import StoreCorrupt
from probing.instruments.columns import REF_LOGPS
from probing.store.files import file_sha256, new_file, new_folder
from probing.store.manifest import RunFolder

log = logging.getLogger(__name__)

NAME = "ref_logps"


def write_ref_logps(folder: RunFolder, table: Table, frame: pd.DataFrame) -> dict[str, Any]:
    """Write the rows that have a score, with both columns, in the format of the data.

    A trainer needs a number for every row, so the others are left out, which a warning says.

    Args:
        folder: folder of the run.
        table: the dataset.
        frame: the scores, a row for each of its rows.

    Returns:
        Facts for the record: name and hash of the file (or folder), and how many rows are in it and left out.
    """
    good = (frame["status"] == "ok").to_numpy().nonzero()[0].tolist()
    name = NAME if table.format == "datasets" else f"{NAME}.{table.format}"
    if len(good) < len(frame):
        counted = Counter(frame["status"][frame["status"] != "ok"])
        summary = ", ".join(f"{count} {status}" for status, count in sorted(counted.items()))
        log.warning("%s: %d of %d pairs are left out (%s)", name, len(frame) - len(good), len(frame), summary)
    logps = frame.iloc[good]

    def make(start: int, stop: int) -> list[Row]:
        block = logps.iloc[start:stop]
        return [
            dict(zip(REF_LOGPS, values, strict=True))
            for values in zip(*(block[ours].tolist() for ours in REF_LOGPS.values()), strict=True)
        ]

    new = new_folder if table.format == "datasets" else new_file
    with new(folder.path / name) as temporary:
        write_rows(table, good, temporary, table.format, make_in_blocks(len(good), make))
    return {"file": name, "sha256": _hash(folder.path / name), "rows": len(good), "left_out": len(frame) - len(good)}


def check_ref_logps(folder: RunFolder, facts: Mapping[str, Any]) -> list[str]:
    """The name of what a finished run wrote, if it did.

    Raises:
        StoreCorrupt: it is missing or changed.
    """
    if NAME not in facts:
        return []
    path = folder.path / facts[NAME]["file"]
    if path.is_symlink() or not path.exists() or _hash(path) != facts[NAME]["sha256"]:
        raise StoreCorrupt(f"{path}: gone or changed since the run ended; delete {folder.path} and run again")
    return [path.name]


def _hash(path: Path) -> str:
    """Hash of a file, or of the names and the hashes of all files in a folder."""
    if path.is_file():
        return file_sha256(path)
    files = sorted(inner for inner in path.rglob("*") if inner.is_file())
    lines = (f"{inner.relative_to(path)} {file_sha256(inner)}\n" for inner in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
