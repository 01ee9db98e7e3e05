"""Datasets as rows: read from any common format, with the place of every row."""

import csv
import gzip
import hashlib
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from probing.errors import DataInvalid, UsageError
from probing.types import Format

Row = Mapping[str, Any]
SUFFIXES: Mapping[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}


@dataclass(frozen=True)
class Table:
    """The rows of one dataset.

    Attributes:
        path: where the table came from, for messages.
        format: format that the table was stored in.
        rows: one mapping a row.
        lines: the place of each row, as a reader of the file would name it ("line 7").
        sha256: over the bytes of the file (of the rows, where there is no single file).
        original: what a faithful copy of single rows is made from: raw lines, an Arrow table or a ``datasets.Dataset``.
    """

    path: str
    format: Format
    rows: Sequence[Row]
    lines: Sequence[str]
    sha256: str
    original: Any = None

    def where(self, index: int) -> str:
        """File and line of one row."""
        return f"{self.path}, {self.lines[index]}"

    def facts(self) -> dict[str, Any]:
        """Facts of the dataset for the record of a run."""
        return {"path": self.path, "format": self.format, "rows": len(self.rows), "sha256": self.sha256}

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


def read_table(source: str, split: str | None = None) -> Table:
    """Read JSONL, JSON, CSV or Parquet (each also gzipped), a saved ``datasets`` folder, or a dataset of the hub.

    Args:
        source: a path or a hub id. What exists on disk wins.
        split: which split, for folders and hub ids that hold several.

    Raises:
        DataInvalid: the file is missing, empty, damaged or in no known format; names the line where there is one.
    """
    if not source:
        raise UsageError("no dataset was named")
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(str(path), split)
    if path.is_file():
        if split is not None:
            raise UsageError(f"{source} is a single file and has no splits; leave out --split")
        return _read_file(path)
    if file_format(path) is None and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        return _read_hub(source, split)
    raise DataInvalid(f"{source}: no such file")


def file_format(path: Path) -> Format | None:
    """The format that a file's name stands for, looking past ``.gz``; None if it names none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def _read_file(path: Path) -> Table:
    kind = file_format(path)
    if kind is None:
        raise DataInvalid(f"{path}: the name ends in none of {', '.join(SUFFIXES)} (each may be followed by .gz)")
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise DataInvalid(f"{path}: cannot be read ({error.strerror})") from error
    content = _unzip(stored, path) if path.suffix.lower() == ".gz" else stored
    if not content.strip():
        raise DataInvalid(f"{path}: the file is empty")
    readers: dict[str, Callable[[bytes, Path], tuple[Sequence[Row], Sequence[str], Any]]] = {
        "jsonl": _read_jsonl,
        "json": _read_json,
        "csv": _read_csv,
        "parquet": _read_parquet,
    }
    if kind == "json" and not content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        # Many tools write one object a line into files that are called .json.
        kind = "jsonl"
    rows, lines, original = readers[kind](content, path)
    if not rows:
        raise DataInvalid(f"{path}: there are no rows in it")
    return Table(str(path), kind, rows, lines, hashlib.sha256(stored).hexdigest(), original)


def _unzip(stored: bytes, path: Path) -> bytes:
    try:
        return gzip.decompress(stored)
    except (OSError, EOFError, zlib.error) as error:
        raise DataInvalid(f"{path}: not a whole gzip file ({error}); fetch or compress it again") from error


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataInvalid(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; convert the file, "
            f"for instance with: iconv -f latin1 -t utf-8"
        ) from error


def _read_jsonl(content: bytes, path: Path) -> tuple[list[Row], list[str], list[bytes]]:
    _decode(content, path)
    rows: list[Row] = []
    lines: list[str] = []
    raw: list[bytes] = []
    # Only "\n" ends a row: str.splitlines would also cut at U+2028, which JSON allows inside a string.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        rows.append(_parse_object(line, f"{path}, line {number}"))
        lines.append(f"line {number}")
        raw.append(line)
    return rows, lines, raw


def _parse_object(text: bytes, where: str) -> Row:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataInvalid(f"{where}: broken JSON at column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DataInvalid(f"{where}: JSON that cannot be read ({error})") from error
    if not isinstance(row, dict):
        raise DataInvalid(f'{where}: expected an object like {{"prompt": ...}}, found {type(row).__name__}')
    return row


def _read_json(content: bytes, path: Path) -> tuple[list[Row], list[str], None]:
    try:
        rows = json.loads(_decode(content, path))
    except json.JSONDecodeError as error:
        raise DataInvalid(f"{path}, line {error.lineno}: broken JSON at column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DataInvalid(f"{path}: JSON that cannot be read ({error})") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataInvalid(f"{path}, entry {number}: expected an object, found {type(row).__name__}")
    return rows, [f"entry {number}" for number in range(1, len(rows) + 1)], None


def _read_csv(content: bytes, path: Path) -> tuple[list[Row], list[str], None]:
    # A long dialogue exceeds the default of 128 KiB.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(io.StringIO(_decode(content, path), newline=""), strict=True)
    rows: list[Row] = []
    lines: list[str] = []
    line = 1
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise DataInvalid(f"{path}, line 1: a column name occurs twice: {', '.join(header)}")
        for fields in reader:
            first, line = line + 1, reader.line_num
            if not fields:
                continue
            if len(fields) != len(header):
                raise DataInvalid(f"{path}, line {first}: {len(fields)} fields where the header names {len(header)}")
            rows.append(dict(zip(header, map(_csv_value, fields), strict=True)))
            lines.append(f"line {first}")
    except csv.Error as error:
        raise DataInvalid(f"{path}, line {reader.line_num}: broken CSV: {error}") from error
    return rows, lines, None


def _csv_value(text: str) -> Any:
    """A cell of CSV: text, unless it plainly holds a list of messages, which CSV can only store as JSON."""
    if re.match(r"\s*\[\s*\{", text) is None:
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return NotJson(text) if re.search(r"'role'\s*:", text) else text
    return value if all(isinstance(entry, dict) and "role" in entry for entry in value) else text


class NotJson(str):
    """A cell that holds messages in Python's notation: to be refused, never scored as if it were text."""


def _read_parquet(content: bytes, path: Path) -> tuple[list[Row], list[str], pa.Table]:
    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataInvalid(f"{path}: not a whole Parquet file ({error})") from error
    return table.to_pylist(), [f"row {number}" for number in range(1, len(table) + 1)], table


def _read_folder(source: str, split: str | None) -> Table:
    import datasets

    try:
        loaded = datasets.load_from_disk(source)
    except FileNotFoundError:
        # This is a folder of data files, which the same loader reads.
        return _read_hub(source, split)
    except (OSError, ValueError, IndexError, pa.ArrowInvalid) as error:
        raise DataInvalid(f"{source}: not a whole saved dataset ({error})") from error
    return _from_dataset(source, loaded, split)


def _read_hub(source: str, split: str | None) -> Table:
    import datasets

    try:
        loaded = datasets.load_dataset(source)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataInvalid(
            f"{source}: neither a file or dataset folder here nor a dataset of the hub: {reason}"
        ) from error
    return _from_dataset(source, loaded, split)


def _from_dataset(source: str, loaded: Any, split: str | None) -> Table:
    if isinstance(loaded, Mapping):
        if split is None and len(loaded) > 1:
            raise DataInvalid(f"{source}: holds the splits {', '.join(loaded)}; choose one with --split")
        name = split if split is not None else next(iter(loaded))
        if name not in loaded:
            raise DataInvalid(f"{source}: no split '{name}'; there are {', '.join(loaded)}")
        loaded = loaded[name]
    elif split is not None:
        raise UsageError(f"{source} holds a single unnamed split; leave out --split")
    rows = loaded.to_list()
    if not rows:
        raise DataInvalid(f"{source}: there are no rows in it")
    digest = hashlib.sha256()
    for row in rows:
        digest.update(canonical(row))
    lines = [f"row {number}" for number in range(1, len(rows) + 1)]
    return Table(source, "datasets", rows, lines, digest.hexdigest(), loaded)


def canonical(value: Any) -> bytes:
    """A single spelling for equal values, for hashing."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode(errors="backslashreplace") + b"\n"
