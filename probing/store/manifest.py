"""The folder of one run: claimed by one process, bound to what it was made from, resumable."""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probing.errors import FolderBusy, SourceMismatch
from probing.ranks import current_ranks
from probing.store.files import check_output_name, is_leftover, new_file, remove_leftovers
from probing.store.progress import NOTE, keep_note
from probing.store.records import MANIFEST as MANIFEST
from probing.store.records import RUN_FILE as RUN_FILE
from probing.store.records import SCHEMA_VERSION, SEAL, refuse_link, seal
from probing.store.records import read_run as read_run

log = logging.getLogger(__name__)

SHARDS = "shards"
SAFETENSORS_LEFTOVER = ".tmp??????"
"""Pattern of the file that the safetensors library writes first, beside the requested one."""
LONGEST_SHOWN = 200
LOOKED_SECONDS = 0.2
"""How long a lock is tried for: whoever looks whether a folder is locked has a lock on it for a moment."""
OWN_FILES = r"run\.json|manifest\.json|progress\.json|\w+\.parquet|\w+\.safetensors|ref_logps(\.\w+)?"


@dataclass(frozen=True)
class RunFolder:
    """A claimed output folder.

    Attributes:
        path: the folder.
        command: the job that writes it.
        record: the file that says what it was made from and how far it got.
    """

    path: Path
    command: str
    record: str = RUN_FILE

    @property
    def shards(self) -> Path:
        """Folder of the finished parts until the whole is done."""
        return self.path / SHARDS

    @property
    def finished(self) -> bool:
        """Whether the run in this folder is complete."""
        return bool(self.facts().get("status") == "done")

    @property
    def worth_keeping(self) -> bool:
        """Whether there is anything that a later run could go on from."""
        # These are the records of states that were captured for this run.
        within = self.path.glob(f"*/{MANIFEST}")
        return self.finished or any(self.shards.rglob("*.parquet")) or any(within)

    @property
    def failed(self) -> bool:
        """Whether the run in this folder has no result that could be lost: it made no part, or not one row is ok."""
        rows = self.facts().get("rows_by_status")
        return not self.worth_keeping or (self.finished and rows is not None and not rows.get("ok"))

    def facts(self) -> dict[str, Any]:
        """The content of the record; empty before the run began.

        Raises:
            StoreCorrupt: the file is damaged.
        """
        return read_run(self.path, self.record) if os.path.lexists(self.path / self.record) else {}

    def begin(
        self, identity: Mapping[str, Any], facts: Mapping[str, Any], recorded: Mapping[str, Any] | None = None
    ) -> None:
        """Start the run, or go on with it if everything it depends on is the same.

        Args:
            identity: facts that the numbers depend on: hashes, options, versions.
            facts: further facts to write into the record.
            recorded: the identity of the run that the folder holds, if any; by default what its record calls so.

        Raises:
            SourceMismatch: the folder's run was made from something else; names each difference.
        """
        known = self.facts()
        if known:
            before = known.get("identity", {}) if recorded is None else recorded
            differences = find_differences(before, identity)
            if differences and self.failed and current_ranks().leads:
                log.warning("%s: the run in it ended without a result; it is replaced", self.path)
                # Only the parts of this run: states in a folder within have a record of their own, and may be a user's.
                shutil.rmtree(self.shards, ignore_errors=True)
            elif differences:
                told = "; ".join(f"{name} was {was}, is {now}" for name, (was, now) in differences.items())
                raise SourceMismatch(
                    f"{self.path} holds a run that was made from something else: {told}. "
                    f"Choose another --out, or delete the folder to start anew"
                )
            else:
                return
        self.write({**facts, "status": "running", "identity": dict(identity)})

    def write(self, facts: Mapping[str, Any]) -> None:
        """Write the record; of the processes of one launch the first does so, the others do nothing."""
        if not current_ranks().leads:
            return
        content = {"schema_version": SCHEMA_VERSION, "command": self.command, **facts}
        content |= {SEAL: seal(content)}
        with new_file(self.path / self.record) as temporary:
            text = json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n"
            # A path that is not UTF-8 holds lone surrogates, which are written as JSON escapes.
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@dataclass(frozen=True)
class Unwritten(RunFolder):
    """A claimed folder as it would be: what is written into its record is only remembered."""

    _kept: dict[str, Any] = field(default_factory=dict, init=False)

    def facts(self) -> dict[str, Any]:
        """The record as it was written last."""
        return dict(self._kept) or super().facts()

    def write(self, facts: Mapping[str, Any]) -> None:
        """Remember the record."""
        self._kept.clear()
        self._kept.update(facts)


@contextlib.contextmanager
def claim(path: Path, command: str, record: str = RUN_FILE) -> Iterator[RunFolder]:
    """Lock an output folder against other processes; a new one is removed if the run fails before anything is done.

    Of the processes of one launch the first has the lock for all, and the others touch nothing.

    Raises:
        UsageError: the path cannot be that of a new folder.
        SourceMismatch: the folder holds files of something else, or the run of another command.
        FolderBusy: another process holds the folder.
        StoreCorrupt: the record, or the folder of the parts, is a link or damaged.
    """
    if not current_ranks().leads:
        yield RunFolder(path, command, record)
        return
    check_output_name(path)
    if path.exists() and not path.is_dir():
        raise SourceMismatch(f"{path}: is a file; give a folder as --out")
    made = _make(path)
    handle = os.open(path, os.O_RDONLY)
    try:
        _lock(handle, path)
        folder = RunFolder(path, command, record)
        try:
            refuse_link(folder.shards)
            _check_content(folder)
            remove_leftovers(path, OWN_FILES)
            remove_leftovers(path / SHARDS, OWN_FILES)
            for leftover in (path / SHARDS).glob(SAFETENSORS_LEFTOVER):
                leftover.unlink()
            with keep_note(path, record):
                yield folder
        except BaseException:
            if made and not folder.worth_keeping:
                _remove(folder)
            raise
    finally:
        os.close(handle)


def _make(path: Path) -> bool:
    """Make the folder; False if it was there."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    except NotADirectoryError as error:
        parent = next(parent for parent in path.parents if parent.exists())
        raise SourceMismatch(f"{path}: {parent} is no folder; give a folder as --out") from error
    return True


def _remove(folder: RunFolder) -> None:
    """Remove what a run made, and the folder if nothing else has come into it."""
    (folder.path / NOTE).unlink(missing_ok=True)
    (folder.path / folder.record).unlink(missing_ok=True)
    shutil.rmtree(folder.shards, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.path.rmdir()


def _lock(handle: int, path: Path) -> None:
    """Take the folder, unless another process has it or has just removed it."""
    tried_until = time.monotonic() + LOOKED_SECONDS
    while not _try_lock(handle, fcntl.LOCK_EX):
        if time.monotonic() > tried_until:
            raise FolderBusy(f"{path}: another process is writing there; wait for it, or use another --out")
        time.sleep(0.01)
    if not path.exists() or os.fstat(handle).st_ino != path.stat().st_ino:
        raise FolderBusy(f"{path}: another process has just removed it; run the same command again")


def _try_lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_claimed(path: Path) -> bool:
    """Whether a running process has claimed this folder; looked up without disturbing it, or one that begins now.

    Raises:
        OSError: the folder cannot be read.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        # Given back when the folder is closed.
        return not _try_lock(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)


def _check_content(folder: RunFolder) -> None:
    path, command = folder.path, folder.command
    if not os.path.lexists(path / folder.record):
        foreign = sorted(entry.name for entry in path.iterdir() if not is_leftover(entry, OWN_FILES))
        if foreign:
            raise SourceMismatch(
                f"{path}: is not empty and holds no run of 'probing {command}' ({', '.join(foreign[:5])}); choose "
                f"another --out, nothing there was touched"
            )
        return
    other = folder.facts().get("command")
    if other != command:
        raise SourceMismatch(
            f"{path}: holds a run of 'probing {other}', not of 'probing {command}'; choose another --out"
        )


def find_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The values in which two identities differ, shortened for a message, by their names."""
    left, right = _flatten(one), _flatten(other)
    return {
        name: (_shorten(left.get(name)), _shorten(right.get(name)))
        for name in sorted(left.keys() | right.keys())
        if left.get(name) != right.get(name)
    }


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(_flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return flat


def _shorten(value: Any) -> str:
    text = str(value)
    if len(text) == 64:
        return f"{text[:12]}..."
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
