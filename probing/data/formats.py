"""Rows from the bytes of a file: JSONL, JSON, CSV and Parquet, each also gzipped."""

import codecs
import csv
import gzip
import io
import json
import re
import shutil
import tempfile
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import PurePath
from typing import Any, BinaryIO

import pyarrow as pa

from probing.data.arrow_rows import open_parquet
from probing.data.lazy import LazyRows, LazySequence, make_in_blocks
from probing.errors import DataInvalid, UsageError
from probing.store.plain_json import parse_json
from probing.types import Format

Row = Mapping[str, Any]
Parsed = tuple[Sequence[Row], Sequence[str], Any]
"""Rows, the place of each, and what a faithful copy of single rows is made from."""
MOST_CHARACTERS = 2**24
"""Most bytes of a line, and most characters of a cell or of a row's text: ten times what the longest contexts hold."""
CHUNK = 2**20
LINES_BLOCK = 64
"""Lines that are read together, if they are no more than a chunk."""
BOM = b"\xef\xbb\xbf"
SUFFIXES: Mapping[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}

FOREIGN = frozenset(".xlsx .xls .ods .tsv .arrow .feather .orc .avro .pkl .npy .npz .sqlite .zip .bz2 .xz .zst".split())
"""Endings that name a format which is not written here."""


def file_format(path: PurePath) -> Format | None:
    """The format that a file's name stands for, looking past ``.gz``; None if it names none."""
    return SUFFIXES.get(_ending(path))


def check_ending(path: PurePath, form: Format | None) -> None:
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


def _ending(path: PurePath) -> str:
    """The last ending of a name, looking past ``.gz``; empty where there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def parse_file(file: BinaryIO, path: PurePath, kind: Format, held: ExitStack | None = None) -> tuple[Format, Parsed]:
    """The rows of a file, and the format in which they are stored there.

    Args:
        file: the opened file.
        path: its name, which is used in messages and says whether it is gzipped.
        kind: the format that its name stands for.
        held: keeps files open; then rows are read when they are asked for. A list in JSON is read at once all the
            same. By default everything is read at once.

    Raises:
        DataInvalid: the content is empty or damaged, or holds no rows; names the line where there is one.
    """
    if path.suffix.lower() == ".gz":
        file = _unzip(file, path, held)
    start = _find_start(file)
    if not start:
        raise DataInvalid(f"{path}: the file is empty")
    readers: dict[str, Callable[[BinaryIO, PurePath], Parsed]] = {
        "jsonl": _read_jsonl,
        "json": _read_json,
        "csv": _read_csv,
        "parquet": _read_parquet,
    }
    if kind == "json" and start != b"[":
        nested = _read_object_of_rows(file, path)
        if nested is not None:
            return kind, nested
        # Many tools write one object a line into files that are called .json.
        kind = "jsonl"
    rows, lines, original = readers[kind](file, path)
    if not rows:
        raise DataInvalid(f"{path}: there are no rows in it")
    if held is None:
        return kind, (list(rows), list(lines), list(original) if isinstance(original, LazySequence) else original)
    return kind, (rows, lines, original)


def _unzip(file: BinaryIO, path: PurePath, held: ExitStack | None) -> BinaryIO:
    unzipped: BinaryIO = io.BytesIO()
    if held is not None:
        # The stack closes it.
        unzipped = held.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    file.seek(0)
    try:
        shutil.copyfileobj(gzip.GzipFile(fileobj=file), unzipped)
    except (OSError, EOFError, zlib.error) as error:
        raise DataInvalid(f"{path}: not a whole gzip file ({error}); fetch or compress it again") from error
    return unzipped


def _find_start(file: BinaryIO) -> bytes:
    """The first byte that is neither white space nor part of a byte order mark that text follows; none if empty."""
    file.seek(0)
    head = file.read(len(BOM))
    kept = head.removeprefix(BOM)
    while not kept.strip():
        kept = file.read(CHUNK)
        if not kept:
            return head.strip()[:1]
    return kept.strip()[:1]


def _decode(content: bytes, path: PurePath, line: int = 1) -> str:
    """Text of bytes that begin with this line of a file."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        raise DataInvalid(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; convert the file, "
            f"for instance with: iconv -f latin1 -t utf-8"
        ) from error


def _read_whole(file: BinaryIO, path: PurePath) -> str:
    file.seek(0)
    return _decode(file.read().removeprefix(BOM), path)


def _read_at(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    return file.read(length)


def _list_lines(file: BinaryIO, path: PurePath) -> Iterator[tuple[int, int, bytes]]:
    """Start, number and bytes of every line, which is UTF-8; a byte order mark is left out.

    Only "\\n" ends a line: str.splitlines would also cut at U+2028, which JSON allows inside a string.
    """
    file.seek(0)
    start = len(BOM) if file.read(len(BOM)) == BOM else 0
    file.seek(start)
    number = 1
    while line := file.readline(MOST_CHARACTERS + 1):
        if len(line) > MOST_CHARACTERS:
            raise explain_too_long(f"{path}, line {number}")
        _decode(line, path, number)
        yield start, number, line
        start, number = start + len(line), number + 1


def explain_too_long(where: str) -> DataInvalid:
    """The error to raise for a row with more text than is read."""
    return DataInvalid(
        f"{where}: holds more than {MOST_CHARACTERS // 2**20} MB of text, which no model reads; cut it, or leave the "
        f"row out"
    )


def _read_jsonl(file: BinaryIO, path: PurePath) -> Parsed:
    numbers, raw = _find_rows(file, path)
    rows = LazyRows(len(numbers), lambda at: _parse_object(raw[at], f"{path}, line {numbers[at]}"))
    return rows, LazySequence(len(numbers), lambda at: f"line {numbers[at]}"), raw


def _find_rows(file: BinaryIO, path: PurePath) -> tuple[Sequence[int], Sequence[bytes]]:
    """The number of the line of every row, and its bytes, which are read again when they are asked for.

    Where each block of rows begins is kept, and not where each row does.
    """
    starts, firsts, numbers = array("q"), array("q"), array("q")
    end = 0
    for start, number, line in _list_lines(file, path):
        if line.strip():
            if not starts or len(numbers) - firsts[-1] >= LINES_BLOCK or end - starts[-1] >= CHUNK:
                starts.append(start)
                firsts.append(len(numbers))
            numbers.append(number)
        end = start + len(line)
    starts.append(end)
    firsts.append(len(numbers))

    def read(block: int, _: int) -> list[list[bytes]]:
        lines = _read_at(file, starts[block], starts[block + 1] - starts[block]).split(b"\n")
        return [[line for line in lines if line.strip()]]

    blocks = make_in_blocks(len(starts) - 1, read, size=1)

    def find(row: int) -> bytes:
        block = bisect_right(firsts, row) - 1
        return blocks[block][row - firsts[block]]

    count = len(numbers)
    # Most files have no blank lines, and then rows are numbered as lines are.
    plain = not count or numbers[-1] == count
    return range(1, count + 1) if plain else numbers, LazySequence(count, find)


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


def _read_json(file: BinaryIO, path: PurePath) -> Parsed:
    try:
        rows = parse_json(_read_whole(file, path))
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


def _read_object_of_rows(file: BinaryIO, path: PurePath) -> Parsed | None:
    """Rows of a file that is one object with the list of rows under its only key; None if it is no such file."""
    try:
        whole = parse_json(_read_whole(file, path))
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


def _read_csv(file: BinaryIO, path: PurePath) -> Parsed:
    # A long dialogue exceeds the default of 128 KiB.
    csv.field_size_limit(MOST_CHARACTERS)
    _check_utf8(file, path)
    lines = _CountedLines(file, path)
    try:
        header, spans, numbers = _list_csv_rows(lines, path)
    finally:
        lines.text.detach()

    def make(at: int) -> Row:
        row = io.StringIO(_read_at(file, spans[2 * at], spans[2 * at + 1]).decode(), newline="")
        [fields] = csv.reader(row, strict=True)
        return dict(zip(header, map(parse_cell, fields), strict=True))

    rows = make_in_blocks(len(numbers), lambda start, stop: [make(at) for at in range(start, stop)], LINES_BLOCK)
    places = LazySequence(len(numbers), lambda at: f"line {numbers[at]}")
    return LazyRows(len(rows), rows.__getitem__, header), places, None


def _list_csv_rows(lines: "_CountedLines", path: PurePath) -> tuple[list[str], "array[int]", "array[int]"]:
    """The header; start and length of every row in the file, one behind the other; the line that each begins with."""
    spans, numbers = array("q"), array("q")
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise DataInvalid(f"{path}, line 1: a column name occurs twice: {', '.join(header)}")
        start, first = lines.end, reader.line_num + 1
        for fields in reader:
            if fields and len(fields) != len(header):
                raise DataInvalid(f"{path}, line {first}: {len(fields)} fields where the header names {len(header)}")
            if fields:
                spans.extend((start, lines.end - start))
                numbers.append(first)
            start, first = lines.end, reader.line_num + 1
    except csv.Error as error:
        if "field limit" in str(error):
            raise explain_too_long(f"{path}, line {reader.line_num}") from error
        raise DataInvalid(f"{path}, line {reader.line_num}: broken CSV: {error}") from error
    return header, spans, numbers


class _CountedLines:
    """The lines of a text, with the ends that they have in its file, and where the latest one ends there."""

    def __init__(self, file: BinaryIO, path: PurePath) -> None:
        file.seek(0)
        self.end = len(BOM) if file.read(len(BOM)) == BOM else 0
        file.seek(self.end)
        self.text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        self._path = path

    def __iter__(self) -> Iterator[str]:
        number = 0
        while line := self.text.readline(MOST_CHARACTERS + 1):
            number += 1
            if len(line) > MOST_CHARACTERS:
                raise explain_too_long(f"{self._path}, line {number}")
            self.end += len(line.encode())
            yield line


def _check_utf8(file: BinaryIO, path: PurePath) -> None:
    """Raise ``DataInvalid`` unless a file is UTF-8; names the line."""
    file.seek(0)
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    while chunk := file.read(CHUNK):
        cut = decoder.getstate()[0]
        try:
            decoder.decode(chunk)
        except UnicodeDecodeError:
            _decode(cut + chunk, path, line)
        line += chunk.count(b"\n")
    _decode(decoder.getstate()[0], path, line)


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


def _read_parquet(file: BinaryIO, path: PurePath) -> Parsed:
    file.seek(0)
    kept = open_parquet(file, path)
    rows = make_in_blocks(len(kept), lambda start, stop: _arrow_rows(kept.read(start, stop), str(path)))
    lines = LazySequence(len(kept), lambda at: f"row {at + 1}")
    return LazyRows(len(rows), rows.__getitem__, kept.schema.names), lines, kept


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
