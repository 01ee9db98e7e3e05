"""Files that are the shards of one dataset: those of a folder, or those that a pattern matches."""

import glob
import io
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from probing.data.formats import file_format
from probing.errors import DataInvalid

PATTERN = re.compile(r"[*?[]")
SPLITS = re.compile(
    r"(^|[^a-z])(train|training|valid|validation|val|dev|test|testing|eval|evaluation)([^a-z]|$)", re.IGNORECASE
)
"""Words by which the datasets library tells the splits of a folder apart."""


def choose_shards(names: Sequence[str], folder: str) -> list[str] | None:
    """The files of a folder that are shards of one dataset, in the order of their names.

    Args:
        names: names of all files in the folder. Hidden ones, and those that begin with "_", as writers of many files
            make them, are passed over.
        folder: the folder, for messages.

    Returns:
        None where the folder is not plainly one of shards: it holds other files than JSONL and Parquet, or files of
        splits.

    Raises:
        DataInvalid: some files are JSONL, others Parquet.
    """
    seen = sorted(name for name in names if not name.startswith((".", "_")))
    kinds = {file_format(PurePosixPath(name)) for name in seen}
    if not seen or not kinds <= {"jsonl", "parquet"} or any(SPLITS.search(name) for name in seen):
        return None
    if len(kinds) > 1:
        raise DataInvalid(
            f"{folder}: holds JSONL and Parquet files, which may be the same rows twice; name those to read by a "
            f"pattern, such as {folder.rstrip('/')}/*.parquet"
        )
    return seen


def find_shards(source: str) -> list[Path] | None:
    """The files that a folder of shards or a pattern stands for; None where a name is neither.

    Raises:
        DataInvalid: no file matches the pattern, or the files of the folder do not belong together.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        inside = list(path.iterdir())
        if not all(one.is_file() for one in inside if not one.name.startswith((".", "_"))):
            return None
        names = choose_shards([one.name for one in inside], source)
        return None if names is None else [path / name for name in names]
    if path.exists() or PATTERN.search(source) is None:
        return None
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if not found:
        raise DataInvalid(f"{source}: no file matches this pattern")
    return found


class FileOnDemand(io.RawIOBase):
    """A file that is open only while it is read: a dataset may have more files than a process may open.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._at, self._size = path, 0, path.stat().st_size

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        """Read as many bytes as there are, at most as many as the buffer holds."""
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._at)
            count = file.readinto(buffer) or 0
        self._at += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place counted from the start, from here, or from the end."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """The present place."""
        return self._at
