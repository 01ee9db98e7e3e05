"""What the folder of a run tells of how far it is: by its lock, its record, its note, and the parts that are there."""

import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from probing.errors import ProbingError, StoreCorrupt
from probing.runs.common.token_shards import PREFIX as OF_TOKENS
from probing.store.manifest import MANIFEST, RUN_FILE, SHARDS, is_claimed
from probing.store.progress import Note, Work, Worker, read_note
from probing.store.records import read_run
from probing.store.shards import summarize_shard

State = Literal["running", "finished", "dead", "unreadable", "no run"]
FRESH_SECONDS = 120.0
"""A lock of another machine may not be seen here: a run there is taken to be on if it noted something so lately."""


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes:
        folder: its folder.
        state: whether it is on.
        command: what runs, or ran; None where that is not known.
        note: what the run noted last, if anything.
        parts: work that was done, in order, each with the folder within that of the run that it is for.
        counted: whether the parts were counted from the files that are there, for want of a note.
        seconds: how long the command took, of a finished run.
        why: why the folder cannot be read, or why there is no note.
    """

    folder: Path
    state: State
    command: str | None = None
    note: Note | None = None
    parts: list[tuple[str, Work]] = field(default_factory=list)
    counted: bool = False
    seconds: float | None = None
    why: str = ""


def read_status(folder: Path) -> RunStatus:
    """How far the run in a folder is."""
    if not folder.is_dir():
        return RunStatus(folder, "no run", why="there is no such folder")
    try:
        return _read_folder(folder)
    except OSError as error:
        return RunStatus(folder, "unreadable", why=error.strerror or str(error))


def _read_folder(folder: Path) -> RunStatus:
    record, claimed = find_record(folder), is_claimed(folder)
    if record is None:
        why = "it has not begun to work yet" if claimed else f"the folder holds neither {RUN_FILE} nor {MANIFEST}"
        return RunStatus(folder, "running" if claimed else "no run", why=why)
    try:
        facts = read_run(folder, record)
    except ProbingError as error:
        return RunStatus(folder, "unreadable", why=str(error))
    command = str(facts["command"])
    # It may have ended, or begun, since the first look.
    if facts["status"] == "done" and not (claimed and is_claimed(folder)):
        return _describe_finished(folder, command, facts)
    status = _describe_begun(folder, command)
    goes_on = claimed or is_claimed(folder) or _is_elsewhere(status.note)
    return replace(status, state="running") if goes_on else status


def find_record(folder: Path) -> str | None:
    """Name of the record of the run in a folder; None where there is none."""
    return next((name for name in (RUN_FILE, MANIFEST) if os.path.lexists(folder / name)), None)


def _is_elsewhere(note: Note | None) -> bool:
    """Whether a run goes on on another machine, as far as that can be seen."""
    if note is None or note.ended is not None or note.host == socket.gethostname():
        return False
    return time.time() - note.time < FRESH_SECONDS


def _describe_finished(folder: Path, command: str, facts: Mapping[str, Any]) -> RunStatus:
    # An export has no rows.
    statuses = facts.get("rows_by_status", {})
    rows = sum(statuses.values())
    tokens, seconds = (_number(facts.get(name)) for name in ("tokens", "scoring_seconds"))
    worker = Worker(rows, int(tokens or 0), seconds or 0.0, statuses)
    parts = [("", Work("done", "rows", rows, workers={0: worker}))] if statuses else []
    return RunStatus(folder, "finished", command, parts=parts, seconds=_number(facts.get("wall_seconds")))


def _number(value: object) -> float | None:
    return float(value) if type(value) in (int, float) and value >= 0 else None  # type: ignore[arg-type,operator]


def _describe_begun(folder: Path, command: str) -> RunStatus:
    """A run that is not finished, taken to be dead."""
    try:
        note = read_note(folder)
        why = ""
    except StoreCorrupt as error:
        note, why = None, str(error)
    if note is not None:
        return RunStatus(folder, "dead", command, note, note.parts)
    return RunStatus(folder, "dead", command, parts=list(_count_parts(folder)), counted=True, why=why)


def _count_parts(folder: Path) -> Iterator[tuple[str, Work]]:
    """What is done of a run by the files that are there: the states for it, then its own parts."""
    for manifest in sorted(folder.glob(f"*/{MANIFEST}")):
        if not manifest.is_symlink():
            inner = read_status(manifest.parent)
            yield from ((manifest.parent.name, work) for _, work in inner.parts)
    works: dict[str, Work] = {}
    for path in sorted((folder / SHARDS).glob("*.parquet")):
        # Of the millionth part on, a number has more digits.
        name = re.fullmatch(r"(\w*?)\d{6,}\.parquet", path.name)
        known = summarize_shard(path) if name is not None and name[1] != OF_TOKENS else None
        if name is not None and known is not None:
            # Parts of different work are told apart by how their names begin: steps of a training, for instance.
            doing = name[1].strip("_").replace("_", " ") or "rows"
            work = works.setdefault(doing, Work(doing, "rows", None, workers={0: Worker()}))
            _add(work.workers[0], *known)
    yield from (("", work) for work in works.values())


def _add(worker: Worker, rows: int, statuses: Mapping[str, int], facts: Mapping[str, Any]) -> None:
    worker.rows += rows
    worker.tokens += int(_number(facts.get("tokens")) or 0)
    worker.seconds += _number(facts.get("seconds")) or 0.0
    for status, count in statuses.items():
        worker.statuses[status] = worker.statuses.get(status, 0) + count
