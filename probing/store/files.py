"""Files and folders that appear complete or not at all."""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from probing.errors import FolderBusy, UsageError

CHUNK = 1 << 20
TURN_SECONDS = 30.0
"""How long a process waits for its turn to change names in a folder; that takes another one milliseconds."""


@contextlib.contextmanager
def new_file(target: Path, flush: bool = True) -> Iterator[Path]:
    """A temporary file beside ``target`` that takes its place when the block ends well.

    The content is on the disk before the name is, so that after a crash there is either the old file or the complete
    new one. When the block or the disk fails, the temporary file is removed and ``target`` is as it was. A link under
    the name is replaced, and what it leads to is left as it is.

    Args:
        target: the name.
        flush: whether to wait for the disk. Without it the file may be empty after a power failure, though not after a
            kill: for what is soon written again.

    Raises:
        OSError: no space, no permission.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _stage(target, folder=False) as temporary:
        yield temporary
        if flush:
            _flush_to_disk(temporary)
        os.replace(temporary, target)
    if flush:
        _flush_to_disk(target.parent)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that takes its place when the block ends well, within a claimed folder.

    A folder cannot replace another in one step; nobody else may look while the old one is removed.

    Raises:
        OSError: no space, no permission.
    """
    with _stage(target, folder=True) as temporary:
        yield temporary
        _flush_tree(temporary)
        _remove(target)
        os.replace(temporary, target)
    _flush_to_disk(target.parent)


@contextlib.contextmanager
def new_together(
    targets: Sequence[Path],
    folders: bool = False,
    obsolete: Sequence[Path] = (),
    check: Callable[[], None] = lambda: None,
    files: Sequence[Path] = (),
) -> Iterator[list[Path]]:
    """Temporary files (or folders) that take the places of ``targets`` together when the block ends well.

    What stood under any of the names is moved aside first, and the first target appears last: where it stands, the
    others are those that were made with it, whenever a process was killed. Processes that write the same names take
    turns. Files keep the mode of those that they replace.

    Args:
        targets: paths in one folder; one that is a link is written to where it leads.
        folders: whether folders are made, not files.
        obsolete: paths that belong to what is replaced, and are removed with it.
        check: called while no other process changes names there, before any name is changed; raises to change none.
        files: further targets, which are files in any case; their temporary files come last.

    Raises:
        OSError: no space, no permission. FolderBusy: another process does not end its turn.
    """
    paths = [Path(os.path.realpath(target)) for target in (*targets, *files)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as all_of_them:
        kinds = [folders] * len(targets) + [False] * len(files)
        temporaries = [all_of_them.enter_context(_stage(path, kind)) for path, kind in zip(paths, kinds, strict=True)]
        yield temporaries
        for temporary in temporaries:
            _flush_tree(temporary)
        with _take_turn(paths[0].parent):
            check()
            _replace(dict(zip(paths, temporaries, strict=True)), obsolete)
    for folder in {path.parent for path in paths}:
        _flush_to_disk(folder)


def _replace(new: dict[Path, Path], obsolete: Sequence[Path]) -> None:
    """Put every new path under its name, the first one last; if that fails, what stood there is there again."""
    aside: dict[Path, Path] = {}
    placed: list[Path] = []
    try:
        for target in [*new, *obsolete]:
            if os.path.lexists(target):
                if target in new and target.is_file():
                    new[target].chmod(stat.S_IMODE(target.stat().st_mode))
                old = _name_beside(target, "old.partial")
                os.replace(target, old)
                aside[target] = old
        for target in reversed(new):
            os.replace(new[target], target)
            placed.append(target)
    except BaseException:
        for target in placed:
            _remove(target)
        for target, old in aside.items():
            os.replace(old, target)
        raise
    for old in aside.values():
        _remove(old)


def check_output_name(path: Path) -> None:
    """Raise unless this can be the name of a new file or folder.

    Raises:
        UsageError: it is empty, the current folder, the root, in the home of nobody, or no name that a file system can
            hold.
    """
    if not path.name or path.name == "..":
        raise UsageError(f"'{path}' is no name for an output; give one of its own as --out")
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise UsageError(f"{path}: holds characters that no name of a file can have; choose another --out") from error
    if b"\0" in encoded:
        raise UsageError(f"{path}: a name cannot hold the character NUL; choose another --out")
    if str(path).startswith("~") and os.path.expanduser(path) == str(path):
        raise UsageError(f"{path}: there is no such home folder; choose another --out")


def check_free(path: Path) -> None:
    """Raise unless nothing stands under this name.

    Raises:
        UsageError: something does, a broken link for instance.
    """
    if os.path.lexists(path):
        raise UsageError(f"{path}: exists already, and is not written over; choose another --out")


def is_special(path: Path) -> bool:
    """Whether this is a device, a pipe or a socket, which nothing may replace."""
    return path.exists() and not path.is_file() and not path.is_dir()


def file_sha256(path: Path) -> str:
    """Hash of the bytes of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def is_leftover(path: Path, names: str) -> bool:
    """Whether this is a temporary file or folder of a target whose name matches the pattern ``names``."""
    return re.fullmatch(rf"\.({names})\.\d+(\.[0-9a-f]{{8}})?(\.old)?\.partial", path.name) is not None


def remove_leftovers(folder: Path, names: str) -> None:
    """Remove what a killed process left; what a running process is writing is locked by it, and stays."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if is_leftover(path, names) and not _is_locked(path):
            _remove(path)


@contextlib.contextmanager
def _stage(target: Path, folder: bool) -> Iterator[Path]:
    """A new file or folder beside the target under a name that nobody can foresee, locked; removed unless renamed."""
    temporary = _name_beside(target, "partial")
    if folder:
        temporary.mkdir()
        handle = os.open(temporary, os.O_RDONLY)
    else:
        # Fails if there is anything under this name, a link for instance.
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
    finally:
        _remove(temporary)
        os.close(handle)


@contextlib.contextmanager
def _take_turn(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        waited_until = time.monotonic() + TURN_SECONDS
        while not _lock(handle):
            if time.monotonic() > waited_until:
                raise FolderBusy(f"{folder}: another process is writing there; wait for it, or use another --out")
            time.sleep(0.01)
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(path: Path) -> bool:
    """Whether a running process is writing this."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return not _lock(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _name_beside(target: Path, end: str) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.{end}")


def _flush_tree(path: Path) -> None:
    for inner in path.rglob("*") if path.is_dir() else ():
        _flush_to_disk(inner)
    _flush_to_disk(path)


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
