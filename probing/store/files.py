"""Files and folders that appear complete or not at all."""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

CHUNK = 1 << 24


@contextlib.contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A temporary file beside ``target`` that takes its place when the block ends well.

    The content is on the disk before the name is, so that after a crash there is either the old file or the complete
    new one. When the block or the disk fails, the temporary file is removed and ``target`` is as it was.

    Raises:
        OSError: no space, no permission.
    """
    # Replace the file that a link points to, not the link.
    target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _name_beside(target)
    try:
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_to_disk(target.parent)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """``new_file`` for a folder. An existing ``target`` is moved aside, and removed once the new one is in place."""
    target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _name_beside(target)
    try:
        temporary.mkdir()
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _flush_to_disk(path)
        old = target.with_name(f".{target.name}.{os.getpid()}.old.partial")
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(temporary, target)
        except OSError:
            os.replace(old, target)
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    _flush_to_disk(target.parent)


def file_sha256(path: Path) -> str:
    """Hash of the bytes of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def is_leftover(path: Path, names: str) -> bool:
    """Whether this is a temporary file of ``new_file`` for a target whose name matches the pattern ``names``."""
    return re.fullmatch(rf"\.({names})\.\d+\.partial", path.name) is not None


def remove_leftovers(folder: Path, names: str) -> None:
    """Remove the temporary files that a killed process left; the caller knows that nobody else is writing."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if is_leftover(path, names):
            path.unlink()


def _name_beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.partial")


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
