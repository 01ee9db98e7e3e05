"""Datasets as rows: read from any common format, whole or in part, with the place of every row."""

import hashlib
import io
import json
import re
import sys
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, cast

import pyarrow as pa

from probing.data.addresses import fetch, is_address, is_local, local_path
from probing.data.arrow_rows import ArrowRows, chain_arrow_rows
from probing.data.bars import hide_bars
from probing.data.formats import SUFFIXES, NotJson, Row, file_format, parse_file
from probing.data.hub import find_hub_problem
from probing.data.lazy import LazyRows, LazySequence, chain, list_columns, make_in_blocks, pick
from probing.data.portions import Part
from probing.data.shards import FileOnDemand, find_shards
from probing.errors import DataInvalid, UsageError
from probing.types import Format

__all__ = ["Format", "NotJson", "Part", "Row", "Table", "canonical", "file_format", "join_tables", "read_table"]

STDIN = "-"


@dataclass(frozen=True)
class Table:
    """The rows of one dataset.

    Attributes:
        path: where the table came from, for messages.
        format: format that the table was stored in.
        rows: one mapping a row.
        lines: the place of each row, as a reader of the file would name it ("line 7").
        sha256: over the bytes of the file (of the rows, where there is no single file or not all of it is used).
        original: what a faithful copy of single rows is made from: raw lines, ``ArrowRows`` or a ``datasets.Dataset``;
            None where there is no such thing.
        numbers: the number of each row in its file, from 0; None where the table is one whole file.
        files: the file of each row, where the table was joined from several.
    """

    path: str
    format: Format
    rows: Sequence[Row]
    lines: Sequence[str]
    sha256: str
    original: Any = None
    numbers: Sequence[int] | None = None
    files: Sequence[str] | None = None

    def where(self, index: int) -> str:
        """File and line of one row."""
        return f"{self.file_of(index)}, {self.lines[index]}"

    def row_of(self, index: int) -> int:
        """Number of a row in its file, from 0, whatever part of the file was taken."""
        return index if self.numbers is None else self.numbers[index]

    def file_of(self, index: int) -> str:
        """File that a row came from."""
        return self.path if self.files is None else self.files[index]

    def place(self, index: int) -> str:
        """Line of a row, with its file where there are several."""
        return self.lines[index] if self.files is None else self.where(index)

    def facts(self) -> dict[str, Any]:
        """Facts of the dataset for the record of a run."""
        return {"path": self.path, "format": self.format, "rows": len(self.rows), "sha256": self.sha256}

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in order of appearance."""
        return list(list_columns(self.rows))

    def take(self, indices: Sequence[int]) -> "Table":
        """A table of some of the rows, in the order given; the same table where these are all in their order."""
        if len(indices) == len(self.rows) and all(at == index for at, index in enumerate(indices)):
            return self
        rows = pick(self.rows, indices)
        return replace(
            self,
            rows=rows,
            lines=pick(self.lines, indices),
            sha256=_rows_sha256(rows),
            original=_take_original(self.original, indices),
            numbers=array("q", map(self.row_of, indices)),
            files=None if self.files is None else pick(self.files, indices),
        )


def _take_original(original: Any, indices: Sequence[int]) -> Any:
    if original is None:
        return None
    if isinstance(original, ArrowRows):
        return original.take(indices)
    return pick(original, indices) if isinstance(original, Sequence) else original.select(indices)


WHOLE = Part()
MOST_OPEN = 100
"""Files of one dataset that are open at once; of more, each is open only while it is read."""


def read_table(source: str, split: str | None = None, part: Part = WHOLE, held: ExitStack | None = None) -> Table:
    """Read JSONL, JSON, CSV or Parquet (each also gzipped), a saved ``datasets`` folder, or a dataset of the hub.

    Args:
        source: a path, a pattern of paths, an address such as "s3://bucket/pairs.jsonl", a hub id, or "-" for JSONL
            on standard input. What exists on disk wins.
        split: which split or slice; in place of ``part.split``.
        part: which part of it is read.
        held: keeps files open; then rows are read when they are asked for, and a large file needs little memory (see
            ``parse_file``). By default everything is read at once.

    Raises:
        DataInvalid: the file is missing, empty, damaged or in no known format; names the line where there is one.
        UsageError: a split, a subset or a revision of something that has none, or a slice that is none.
    """
    part = part if split is None else replace(part, split=split)
    if not source:
        raise UsageError("no dataset was named")
    if is_address(source) and not is_local(source):
        return _read_address(source, part, held)
    source = local_path(source) if is_local(source) else source
    path = Path(source).expanduser()
    if source == STDIN or path.is_file():
        table = _read_stdin(held) if source == STDIN else _read_file(path, path, held)
        return _take_part(table, source, "a single file", part)
    shards = None if _is_of_loader(path, part) else find_shards(source)
    if shards is not None:
        return _read_shards(source, [(path, path) for path in shards], part, held)
    if path.is_dir():
        return _read_folder(str(path), part, held)
    if file_format(path) is None and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        return _read_hub(source, part, held)
    raise DataInvalid(f"{source}: no such file")


def list_files(source: str) -> list[Path]:
    """The files that a name stands for: those of a pattern or a folder of shards; otherwise the name as a path."""
    source = local_path(source) if is_local(source) else source
    path = Path(source).expanduser()
    shards = None if is_address(source) or _is_of_loader(path, WHOLE) else find_shards(source)
    return [path] if shards is None else shards


def join_tables(tables: Sequence[Table], part: Part = WHOLE) -> Table:
    """Several tables as one, in their order.

    Args:
        tables: one or more; a single one is answered as it is.
        part: its ``limit`` or ``sample`` is taken of the rows of several tables together.
    """
    if len(tables) == 1:
        return tables[0]
    formats = {table.format for table in tables}
    original = _join_originals(tables) if len(formats) == 1 else None
    digest = hashlib.sha256("\n".join(table.sha256 for table in tables).encode()).hexdigest()
    joined = Table(
        path=", ".join(dict.fromkeys(table.path for table in tables)),
        format=tables[0].format if len(formats) == 1 else "jsonl",
        rows=_chain_rows([table.rows for table in tables]),
        lines=chain([table.lines for table in tables]),
        sha256=digest,
        original=original,
        numbers=chain([_numbers(table) for table in tables]),
        files=chain([LazySequence(len(table.rows), table.file_of) for table in tables]),
    )
    return joined.take(part.choose_among(range(len(joined.rows))))


def _chain_rows(parts: Sequence[Sequence[Row]]) -> Sequence[Row]:
    rows = chain(parts)
    if not isinstance(rows, LazySequence):
        return rows
    # Of each file the columns are known, or found once.
    return LazyRows(
        len(rows), rows.__getitem__, list(dict.fromkeys(name for part in parts for name in list_columns(part)))
    )


def _numbers(table: Table) -> Sequence[int]:
    """The number of each row of a table in its file."""
    return LazySequence(len(table.rows), table.row_of)


def _join_originals(tables: Sequence[Table]) -> Any:
    """Originals of tables of one format as one; None where they cannot be joined without a change."""
    originals = [table.original for table in tables]
    first = originals[0]
    if any(original is None for original in originals):
        return None
    if isinstance(first, Sequence):
        return chain(originals)
    if isinstance(first, ArrowRows):
        same = all(original.schema.equals(first.schema) for original in originals)
        return chain_arrow_rows(originals) if same else None
    import datasets

    same = all(original.features == first.features for original in originals)
    return datasets.concatenate_datasets(originals) if same else None


def _is_of_loader(path: Path, part: Part) -> bool:
    """Whether a folder is read by the datasets library: one that it saved, or of which a split is asked for."""
    asked = part.split_name is not None or part.subset is not None or part.revision is not None
    return path.is_dir() and (asked or _is_saved_dataset(path))


def _take_part(table: Table, source: str, what: str, part: Part) -> Table:
    _check_no_hub(source, part)
    if part.split is not None and not part.is_sliced:
        raise UsageError(f"{source} is {what} and has no splits; leave out --split, or slice it like [:200]")
    return table.take(part.choose_rows(len(table.rows), table.path))


def _read_shards(source: str, files: Sequence[tuple[PurePath, Path]], part: Part, held: ExitStack | None) -> Table:
    """The rows of several files as those of one dataset, of which a part is taken.

    Args:
        source: what was named, for messages.
        files: the name of each file, and where it lies.
        part: which part of all rows is read.
        held: see ``read_table``.
    """
    several = len(files) > MOST_OPEN
    joined = join_tables([_read_file(name, path, held, several) for name, path in files])
    table = replace(joined, path=source) if len(files) > 1 else joined
    return _take_part(table, source, "no saved dataset", part)


def _read_address(source: str, part: Part, held: ExitStack | None) -> Table:
    """The rows of what lies at an address, which is fetched first."""
    with ExitStack() as ours:
        folder = Path((held or ours).enter_context(TemporaryDirectory()))
        return _read_shards(source, fetch(source, folder), part, held)


def _check_no_hub(source: str, part: Part) -> None:
    for option, value in (("--subset", part.subset), ("--data-revision", part.revision)):
        if value is not None:
            raise UsageError(f"{source} is not a dataset of the hub; leave out {option}")


def _read_file(name: PurePath, path: Path, held: ExitStack | None, on_demand: bool = False) -> Table:
    """The rows of a file.

    Args:
        name: its name, which says the format.
        path: where it lies.
        held: see ``read_table``.
        on_demand: whether the file is open only while it is read.
    """
    kind = file_format(name)
    if kind is None:
        raise DataInvalid(f"{name}: the name ends in none of {', '.join(SUFFIXES)} (each may be followed by .gz)")
    try:
        if held is None:
            file: BinaryIO = io.BytesIO(path.read_bytes())
        elif on_demand:
            file = held.enter_context(cast(BinaryIO, io.BufferedReader(FileOnDemand(path))))
        else:
            file = held.enter_context(path.open("rb"))
    except OSError as error:
        raise DataInvalid(f"{name}: cannot be read ({error.strerror})") from error
    return _parse(file, name, kind, held)


def _read_stdin(held: ExitStack | None) -> Table:
    return _parse(io.BytesIO(sys.stdin.buffer.read()), Path("standard input"), "jsonl", held)


def _parse(file: BinaryIO, path: PurePath, kind: Format, held: ExitStack | None) -> Table:
    digest = hashlib.file_digest(cast(io.BufferedReader, file), "sha256").hexdigest()
    kind, (rows, lines, original) = parse_file(file, path, kind, held)
    return Table(str(path), kind, rows, lines, digest, original)


def _is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``, also where files are missing in it now."""
    names = ("state.json", "dataset_info.json", "dataset_dict.json")
    return any((path / name).exists() for name in names) or next(path.glob("**/*.arrow"), None) is not None


@hide_bars()
def _read_folder(source: str, part: Part, held: ExitStack | None) -> Table:
    import datasets

    if not _is_saved_dataset(Path(source)):
        # This is a folder of data files, which the same loader reads.
        return _read_hub(source, part, held)
    _check_no_hub(source, part)
    try:
        loaded = datasets.load_from_disk(source)
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataInvalid(
            f"{source}: not a whole saved dataset, of which a part would be taken for all ({reason}); save it again"
        ) from error
    return _from_dataset(source, _choose_split(source, loaded, part.split_name), part, held)


def _choose_split(source: str, loaded: Any, name: str | None) -> Any:
    if isinstance(loaded, Mapping):
        if name is None and len(loaded) > 1:
            raise DataInvalid(f"{source}: holds the splits {', '.join(loaded)}; choose one with --split")
        name = name if name is not None else next(iter(loaded))
        if name not in loaded:
            raise DataInvalid(f"{source}: no split '{name}'; there are {', '.join(loaded)}")
        return loaded[name]
    if name is not None:
        raise UsageError(f"{source} holds a single unnamed split; leave out --split, or take a slice like [:200]")
    return loaded


@hide_bars()
def _read_hub(source: str, part: Part, held: ExitStack | None) -> Table:
    import datasets

    cached = Path(datasets.config.HF_DATASETS_CACHE) / source.replace("/", "___")
    problem = None if Path(source).is_dir() or cached.exists() else find_hub_problem()
    if problem is not None:
        raise DataInvalid(f"{source}: no such file or folder, not in the cache of the datasets library, and {problem}")
    try:
        split = part.split_name or _only_split(source, part)
        loaded = datasets.load_dataset(source, part.subset, split=split, revision=part.revision)
    except (OSError, ValueError, RuntimeError, AssertionError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        kind = "neither a file or dataset folder here nor a dataset of the hub"
        kind = "the files of this folder cannot be read as one dataset" if Path(source).is_dir() else kind
        raise DataInvalid(f"{source}: {kind}: {reason}") from error
    return _from_dataset(source, loaded, part, held)


def _only_split(source: str, part: Part) -> str:
    """The split of a dataset that has one; which there are is known before any is fetched.

    Raises:
        DataInvalid: there are several.
    """
    import datasets

    names = datasets.get_dataset_split_names(source, part.subset, revision=part.revision)
    if len(names) != 1:
        raise DataInvalid(f"{source}: holds the splits {', '.join(names)}; choose one with --split")
    return str(names[0])


def _from_dataset(source: str, loaded: Any, part: Part, held: ExitStack | None) -> Table:
    """The part of a dataset's rows that is asked for; the others are not turned into Python objects."""
    count = len(loaded)
    numbers = part.choose_rows(count, source)
    whole = len(numbers) == count
    chosen = loaded if whole else loaded.select(numbers)
    if not len(chosen):
        raise DataInvalid(f"{source}: there are no rows in it")
    blocks = make_in_blocks(len(chosen), lambda start, stop: _read_block(source, chosen, start, stop))
    rows: Sequence[Row] = LazyRows(len(blocks), blocks.__getitem__, chosen.column_names)
    lines: Sequence[str] = LazySequence(len(numbers), lambda at: f"row {numbers[at] + 1}")
    if held is None:
        rows, lines = list(rows), list(lines)
    table = Table(source, "datasets", rows, lines, _rows_sha256(rows), chosen)
    return table if whole else replace(table, numbers=array("q", numbers))


def _read_block(source: str, loaded: Any, start: int, stop: int) -> list[Row]:
    block = loaded.select(range(start, stop))
    try:
        rows: list[Row] = block.to_list()
    except (ValueError, OverflowError, pa.ArrowException) as error:
        raise DataInvalid(f"{source}: {_find_unreadable_column(block)} ({error})") from error
    return rows


def _find_unreadable_column(loaded: Any) -> str:
    for name in loaded.column_names:
        try:
            loaded.select_columns([name]).to_list()
        except (ValueError, OverflowError, pa.ArrowException):
            return f"column '{name}' holds a value that cannot be read"
    return "holds a value that cannot be read"


def _rows_sha256(rows: Sequence[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(canonical(row))
    return digest.hexdigest()


def canonical(value: Any) -> bytes:
    """A single spelling for equal values, for hashing."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode(errors="backslashreplace") + b"\n"
