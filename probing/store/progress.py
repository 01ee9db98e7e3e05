"""How far a run is: told to whoever listens in its process, and noted beside its record for other processes.

The note is a file of its own, which changes about once a second while the run is on. It is removed when the run ends
well, since the record has everything then, and stays when the run died.
"""

import contextlib
import json
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from probing.errors import StoreCorrupt
from probing.store.checks import (
    check_object,
    is_amount,
    is_count,
    is_list,
    is_mapping,
    is_none_or,
    is_text,
)
from probing.store.files import new_file
from probing.store.records import DELETE, SCHEMA_VERSION, read_json

log = logging.getLogger(__name__)

NOTE = "progress.json"
NOTED_SECONDS = 1.0
"""A note is written again after at least so many seconds,"""
NOTED_TIMES = 100
"""and so many times as long as the last writing took: on a slow disk, too, notes cost one percent at most."""


def add_counts(*counts: Mapping[str, int]) -> dict[str, int]:
    """The sum of several counts by name."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


@dataclass
class Worker:
    """What one process has done of some work.

    Attributes:
        rows: number of rows; those that are being worked on count in part.
        tokens: number of tokens.
        seconds: time from the beginning of the work to the last row that this process did.
        statuses: number of rows of each status in the parts that are finished.
        pid: number of the process.
        host: name of its machine.
    """

    rows: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)


@dataclass
class Work:
    """Rows that are worked through one after the other: what one progress bar shows.

    Attributes:
        doing: word for the work, such as "scoring".
        unit: word for the rows, such as "pairs".
        total: number of rows in all; None where it is not known.
        earlier: number of rows that an earlier run has done.
        earlier_statuses: number of these of each status.
        workers: what each process of this run has done, by its rank; the first is 0.
    """

    doing: str
    unit: str
    total: float | None
    earlier: float = 0.0
    earlier_statuses: dict[str, int] = field(default_factory=dict)
    workers: dict[int, Worker] = field(default_factory=dict)

    @property
    def rows(self) -> float:
        """Rows that are done."""
        # Rounded fractions may add up to slightly more than the total.
        done = self.earlier + sum(worker.rows for worker in self.workers.values())
        return done if self.total is None else min(done, self.total)

    @property
    def tokens(self) -> int:
        """Tokens that this run has done."""
        return sum(worker.tokens for worker in self.workers.values())

    @property
    def seconds(self) -> float:
        """Time that this run has worked."""
        return max((worker.seconds for worker in self.workers.values()), default=0.0)

    @property
    def statuses(self) -> dict[str, int]:
        """Number of rows of each status in the parts that are finished, most frequent first."""
        counted = add_counts(self.earlier_statuses, *(worker.statuses for worker in self.workers.values()))
        return dict(Counter(counted).most_common())

    @property
    def failures(self) -> dict[str, int]:
        """Number of rows without numbers by status."""
        return {status: count for status, count in self.statuses.items() if status != "ok"}

    @property
    def rows_per_second(self) -> float | None:
        """Rows that this run does in a second; None before the first."""
        return (self.rows - self.earlier) / self.seconds if self.seconds > 0 and self.rows > self.earlier else None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens that this run does in a second; None where no token is counted."""
        return self.tokens / self.seconds if self.seconds > 0 and self.tokens else None

    @property
    def seconds_left(self) -> float | None:
        """Time that the rows which are left will take at this rate; None where it is not known."""
        rate = self.rows_per_second
        return None if rate is None or self.total is None else (self.total - self.rows) / rate


Listener = Callable[[Work, bool], None]
"""Told of some work whenever it goes on, and whether this is its end."""
_listeners: list[Listener] = []
_noted: list[Path] = []


def tell(work: Work, ended: bool = False) -> None:
    """Tell all listeners how far some work is."""
    for listener in _listeners:
        listener(work, ended)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have a listener told of all work inside the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextlib.contextmanager
def keep_note(folder: Path, record: str) -> Iterator[None]:
    """Note in a folder how far its run is while the block runs.

    Args:
        folder: folder of the run.
        record: name of its record. Before that is there, nothing is written.
    """
    writer = _Writer(folder, record)
    _noted.append(folder)
    try:
        with listening(writer.hear):
            yield
    except BaseException as error:
        writer.end(type(error).__name__)
        raise
    finally:
        _noted.pop()
    (folder / NOTE).unlink(missing_ok=True)


class _Writer:
    """Writes the note of a run."""

    def __init__(self, folder: Path, record: str) -> None:
        self._folder, self._record = folder, record
        self._works: list[tuple[Work, str]] = []
        self._due, self._failed = 0.0, False

    def hear(self, work: Work, ended: bool) -> None:
        """Note how far some work is, unless that was done just now."""
        if not self._works or self._works[-1][0] is not work:
            # Work for states within the folder is noted in both.
            within = os.path.relpath(_noted[-1], self._folder)
            self._works.append((work, "" if within == os.curdir else within))
        if time.monotonic() >= self._due - (NOTED_SECONDS if ended else 0.0):
            self._write(None)

    def end(self, why: str) -> None:
        """Note that the run ended without a result."""
        if self._works:
            self._write(why)

    def _write(self, ended: str | None) -> None:
        if not os.path.lexists(self._folder / self._record):
            return
        began = time.monotonic()
        parts = [_describe_work(work, within) for work, within in self._works]
        content: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "time": time.time(), "pid": os.getpid()}
        content |= {"host": socket.gethostname(), "ended": ended, "parts": parts}
        try:
            with new_file(self._folder / NOTE, flush=False) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            # The run itself will meet a full disk when it writes its next part.
            if not self._failed:
                log.warning("%s: how far the run is cannot be noted (%s)", self._folder, error.strerror or error)
            self._failed = True
        now = time.monotonic()
        self._due = now + NOTED_SECONDS + NOTED_TIMES * (now - began)


def _describe_work(work: Work, within: str) -> dict[str, Any]:
    described = asdict(work)
    described["workers"] = [{"rank": rank, **worker} for rank, worker in sorted(described["workers"].items())]
    return {"within": within, **described}


@dataclass(frozen=True)
class Note:
    """What a run noted last.

    Attributes:
        time: when, in seconds since 1970.
        pid: number of its process; of the leading one, where there were several.
        host: name of the machine.
        ended: name of the error that ended the run; None if it was killed, or is on.
        parts: all work in the order in which it was begun, by the folder within that of the run that it is for.
    """

    time: float
    pid: int
    host: str
    ended: str | None
    parts: list[tuple[str, Work]]


_COUNTS = is_mapping(is_count)
_OF_WORKER = {
    "rows": is_amount,
    "tokens": is_count,
    "seconds": is_amount,
    "statuses": _COUNTS,
    "pid": is_count,
    "host": is_text,
}
_OF_WORK = {
    "doing": is_text,
    "unit": is_text,
    "total": is_none_or(is_amount),
    "earlier": is_amount,
    "earlier_statuses": _COUNTS,
}
_PART = check_object(
    {**_OF_WORK, "within": is_text, "workers": is_list(check_object({**_OF_WORKER, "rank": is_count}))}
)
_NOTE = check_object(
    {"time": is_amount, "pid": is_count, "host": is_text, "ended": is_none_or(is_text), "parts": is_list(_PART)}
)


def read_note(folder: Path) -> Note | None:
    """What the run in a folder noted last; None where there is no note.

    Raises:
        StoreCorrupt: it is a link, damaged, or of another version.
    """
    path = folder / NOTE
    if not os.path.lexists(path):
        return None
    content = read_json(path)
    try:
        _NOTE(content, "")
    except ValueError as error:
        raise StoreCorrupt(f"{path}: damaged, or written by another version ({error}); {DELETE}") from error
    parts = [_read_work(part) for part in content["parts"]]
    return Note(content["time"], content["pid"], content["host"], content["ended"], parts)


def _read_work(part: Mapping[str, Any]) -> tuple[str, Work]:
    workers = {worker["rank"]: Worker(**{name: worker[name] for name in _OF_WORKER}) for worker in part["workers"]}
    return part["within"], Work(**{name: part[name] for name in _OF_WORK}, workers=workers)
