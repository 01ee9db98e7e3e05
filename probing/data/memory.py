"""Rows that a caller has in memory, as a table."""

import dataclasses
import hashlib
import sys
from collections.abc import Mapping
from typing import Any

from probing.data.formats import Row
from probing.data.portions import Part
from probing.data.tables import Table, canonical
from probing.errors import DataInvalid, UsageError
from probing.types import ContrastPair, LabelledPrompt, PreferencePair

TYPED = (PreferencePair, LabelledPrompt, ContrastPair)


def table_from_memory(given: Any, name: str) -> Table:
    """A table of rows in memory, which are read as those of a JSONL file are.

    Args:
        given: a list of mappings (or of ``PreferencePair``, ``LabelledPrompt`` or ``ContrastPair``), a
            ``pandas.DataFrame`` without its index, or a ``datasets.Dataset``.
        name: takes the place of the path.

    Raises:
        TypeError: it is none of these.
        DataInvalid: there are no rows.
    """
    rows = [_as_row(row, f"{name}, row {number + 1}") for number, row in enumerate(_list_rows(given, name))]
    if not rows:
        raise DataInvalid(f"{name}: there are no rows in it")
    sha256 = hashlib.sha256(b"".join(map(canonical, rows))).hexdigest()
    lines = [f"row {number + 1}" for number in range(len(rows))]
    return Table(name, "jsonl", rows, lines, sha256)


def take_part(table: Table, part: Part) -> Table:
    """The part of a table in memory that is asked for.

    Raises:
        UsageError: a split, a subset or a revision, which rows in memory do not have; or a slice that holds no row.
    """
    if part.subset is not None or part.revision is not None or part.split_name is not None:
        raise UsageError(
            f"{table.path}: rows in memory have no splits, subsets or revisions; give the rows that you mean"
        )
    return table.take(part.choose_rows(len(table.rows), table.path))


def _list_rows(given: Any, name: str) -> list[Any]:
    # Whoever has such an object has imported its library.
    pandas, datasets = sys.modules.get("pandas"), sys.modules.get("datasets")
    if pandas is not None and isinstance(given, pandas.DataFrame):
        return list(given.astype(object).where(given.notna(), None).to_dict("records"))
    if datasets is not None and isinstance(given, datasets.Dataset):
        return list(given.to_list())
    if isinstance(given, list | tuple):
        return list(given)
    advice = "; name one of its splits, as in data=dataset['train']" if isinstance(given, Mapping) else ""
    raise TypeError(
        f"{name}: a {type(given).__name__} holds no rows that can be read; give a list of dicts, a pandas.DataFrame, a "
        f"datasets.Dataset, or the path of a file{advice}"
    )


def _as_row(row: Any, where: str) -> Row:
    if isinstance(row, TYPED):
        return {name: value for name, value in dataclasses.asdict(row).items() if value is not None}
    if not isinstance(row, Mapping):
        raise TypeError(f"{where}: a row is a mapping from columns to values, not a {type(row).__name__}")
    return {str(name): _as_plain(value) for name, value in row.items()}


def _as_plain(value: Any) -> Any:
    """The value without arrays and numbers of numpy, as a file would give it."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _as_plain(inner) for name, inner in value.items()}
    return [_as_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
