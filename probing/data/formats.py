"""Rows from the bytes of a file: JSONL, JSON, CSV and Parquet, each also gzipped."""

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from probing.errors import DataInvalid, UsageError
from probing.store.plain_json import parse_json
from probing.types import Format

Row = Mapping[str, Any]
Parsed = tuple[Sequence[Row], Sequence[str], Any]
"""Rows, the place of each, and what a faithful copy of single rows is made from."""
SUFFIXES: Mapping[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}

FOREIGN = frozenset(".xlsx .xls .ods .tsv .arrow .feather .orc .avro .pkl .npy .npz .sqlite .zip .bz2 .xz .zst".split())
"""Endings that name a format which is not written here."""


def file_format(path: Path) -> Format | None:
    """The format that a file's name stands for, looking past ``.gz``; None if it names none."""
    return SUFFIXES.get(_ending(path))


def check_ending(path: Path, form: Format | None) -> None:
    """Raise if the name of a file that is to be written stands for another format than the one it will have.

    Args:
        path: the file, or the folder of a dataset.
        form: the format that was asked for; None where the name chooses it.

    Raises:
        UsageError: the name stands for another format, or for one that is not written.
    """
    ending, named = _ending(path), file_format(path)
    # Files called .json often hold one object a line.
    contradicts = form is not None and named not in (None, form) and (named, form) != ("json", "jsonl")
    if ending in FOREIGN or contradicts or (form == "datasets" and path.suffix.lower() == ".gz"):
        said = f"the format is {form}" if form is not None and ending not in FOREIGN else "that format is not written"
        raise UsageError(
            f"{path}: the name ends in {ending if ending in FOREIGN else path.suffix}, but {said}; choose an --out "
            f"that ends in {', '.join(SUFFIXES)} (each may be followed by .gz), or in nothing that names a format"
        )


def _ending(path: Path) -> str:
    """The last ending of a name, looking past ``.gz``; empty where there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def parse_file(stored: bytes, path: Path, kind: Format) -> tuple[Format, Parsed]:
    """The rows of a file, and the format in which they are stored there.

    Args:
        stored: content of the file.
        path: its name, which is used in messages and says whether it is gzipped.
        kind: the format that its name stands for.

    Raises:
        DataInvalid: the content is empty or damaged, or holds no rows; names the line where there is one.
    """
    content = _unzip(stored, path) if path.suffix.lower() == ".gz" else stored
    if not content.strip():
        raise DataInvalid(f"{path}: the file is empty")
    readers: dict[str, Callable[[bytes, Path], Parsed]] = {
        "jsonl": _read_jsonl,
        "json": _read_json,
        "csv": _read_csv,
        "parquet": _read_parquet,
    }
    if kind == "json" and not content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        nested = _read_object_of_rows(content, path)
        if nested is not None:
            return kind, nested
        # Many tools write one object a line into files that are called .json.
        kind = "jsonl"
    parsed = readers[kind](content, path)
    if not parsed[0]:
        raise DataInvalid(f"{path}: there are no rows in it")
    return kind, parsed


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
        row = parse_json(text)
    except json.JSONDecodeError as error:
        raise DataInvalid(f"{where}: broken JSON at column {error.colno}: {error.msg}") from error
    except ValueError as error:
        raise DataInvalid(f"{where}: JSON that cannot be read ({error})") from error
    if not isinstance(row, dict):
        raise DataInvalid(f'{where}: expected an object like {{"prompt": ...}}, found {type(row).__name__}')
    return row


def _read_json(content: bytes, path: Path) -> Parsed:
    try:
        rows = parse_json(_decode(content, path))
    except json.JSONDecodeError as error:
        raise DataInvalid(f"{path}, line {error.lineno}: broken JSON at column {error.colno}: {error.msg}") from error
    except ValueError as error:
        raise DataInvalid(f"{path}: JSON that cannot be read ({error})") from error
    if rows and all(isinstance(row, str) for row in rows):
        rows = [{"text": row} for row in rows]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataInvalid(f"{path}, entry {number}: expected an object, found {type(row).__name__}")
    return rows, [f"entry {number}" for number in range(1, len(rows) + 1)], None


def _read_object_of_rows(content: bytes, path: Path) -> Parsed | None:
    """Rows of a file that is one object with the list of rows under its only key; None if it is no such file."""
    try:
        whole = parse_json(_decode(content, path))
    except ValueError:
        # It may hold one object a line; what is wrong with a line is said when they are read.
        return None
    if not isinstance(whole, dict) or len(whole) != 1:
        return None
    [(key, rows)] = whole.items()
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return None
    if is_conversation(rows):
        return None
    return rows, [f"entry {number} of '{key}'" for number in range(1, len(rows) + 1)], None


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
            rows.append(dict(zip(header, map(parse_cell, fields), strict=True)))
            lines.append(f"line {first}")
    except csv.Error as error:
        raise DataInvalid(f"{path}, line {reader.line_num}: broken CSV: {error}") from error
    return rows, lines, None


class NotJson(str):
    """A cell that holds messages which are no JSON: to be refused, never scored as if it were text."""


def parse_cell(text: str) -> Any:
    """What a cell of text holds: the text, unless it plainly is messages written as JSON, of whatever file it is.

    CSV can hold a conversation in no other way, and many JSONL and Parquet files do so as well.

    Returns:
        The text; the list of messages, or the message; ``NotJson`` where the text is messages in Python's notation, or
        nested too deeply to be any.
    """
    if re.match(r"\s*(\[\s*)?\{", text) is None:
        return text
    try:
        value = parse_json(text)
    except json.JSONDecodeError:
        return NotJson(text) if re.search(r"'(role|from)'\s*:", text) else text
    except ValueError:
        return NotJson(text) if re.search(r"\"(role|from)\"\s*:", text) else text
    if isinstance(value, dict):
        return value if is_message(value) and len(value) <= MOST_KEYS else text
    return value if is_conversation(value) else text


MOST_KEYS = 4
"""Keys of a single message that is written as text; one with more is taken for an object of another kind."""


def is_message(value: Any) -> bool:
    """Whether a value is a message: with a role, or as ShareGPT writes it, with a sender and what was said."""
    return isinstance(value, Mapping) and ("role" in value or {"from", "value"} <= set(value))


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return isinstance(value, list) and all(map(is_message, value))


def _read_parquet(content: bytes, path: Path) -> tuple[list[Row], list[str], pa.Table]:
    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataInvalid(f"{path}: not a whole Parquet file ({error})") from error
    rows = _arrow_rows(table, str(path))
    return rows, [f"row {number}" for number in range(1, len(table) + 1)], table


def _arrow_rows(table: pa.Table, name: str) -> list[Row]:
    """Rows of an Arrow table.

    Raises:
        DataInvalid: a value has no counterpart in Python (a time out of range, text that is not UTF-8); names the
            column.
    """
    if len(set(table.column_names)) < len(table.column_names):
        raise DataInvalid(f"{name}: a column name occurs twice: {', '.join(table.column_names)}")
    unreadable = (ValueError, OverflowError, pa.ArrowException)
    try:
        rows: list[Row] = table.to_pylist()
    except unreadable as error:
        for column in table.column_names:
            try:
                table[column].to_pylist()
            except unreadable as inner:
                reason = str(inner).splitlines()[0] if str(inner) else type(inner).__name__
                raise DataInvalid(f"{name}: column '{column}' holds a value that cannot be read ({reason})") from inner
        raise DataInvalid(f"{name}: holds a value that cannot be read ({error})") from error
    return rows
