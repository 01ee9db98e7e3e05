"""Columns of a table by their role: the one that is named, or the first of its usual names that exists."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from probing.data.cells import is_empty
from probing.data.lazy import list_columns
from probing.data.tables import Row, Table
from probing.errors import DataInvalid, UsageError


@dataclass(frozen=True)
class ColumnResolver:
    """The columns of some rows.

    Attributes:
        name: name of the data, for messages.
        present: names of all columns, in order of appearance.
    """

    name: str
    present: tuple[str, ...]

    @classmethod
    def of(cls, rows: Iterable[Row], name: str) -> "ColumnResolver":
        """The columns that any of the rows has."""
        return cls(name, list_columns(rows))

    @property
    def listing(self) -> str:
        """The names of all columns, for messages."""
        return ", ".join(map(str, self.present))

    def check(self, column: str, purpose: str = "", advice: str = "the columns are") -> None:
        """Raise unless there is such a column.

        Args:
            column: name of the column.
            purpose: purpose of the column, to be said in the message.
            advice: words that precede the list of columns in the message.

        Raises:
            UsageError: there is no such column; lists the columns.
        """
        if column not in self.present:
            raise UsageError(f"{self.name}: there is no column '{column}'{purpose}; {advice} {self.listing}")

    def find(self, named: str | None, usual: Sequence[str] = ()) -> str | None:
        """The column that was named, or the first of the usual ones that exists; None where there is neither.

        Raises:
            UsageError: the named column does not exist.
        """
        if named is not None:
            self.check(named)
            return named
        return next((column for column in usual if column in self.present), None)

    def explain_missing(self, what: str, option: str) -> DataInvalid:
        """The error to raise where a required column was not found.

        Args:
            what: is missing.
            option: the option of the command line that names such a column.
        """
        return DataInvalid(f"{self.name}: {what}; name one with {option}; the columns are {self.listing}")


def column_values(table: Table, name: str) -> list[object]:
    """Values of a column in which no row may be empty.

    Raises:
        DataInvalid: a row has no such column or nothing in it; names the row.
    """
    for index, row in enumerate(table.rows):
        if name not in row:
            raise DataInvalid(f"{table.where(index)}: has no '{name}'; it has {', '.join(map(str, row))}")
        if is_empty(row[name]):
            raise DataInvalid(f"{table.where(index)}: '{name}' is empty there")
    return [row[name] for row in table.rows]


def require_split_values(
    table: Table, column: str, ids: Sequence[str], values: Sequence[object], row: str
) -> list[str]:
    """Values that must not be in two folds, as text.

    Args:
        table: table that the values come from, for messages.
        column: column that the values come from.
        ids: ids of the rows.
        values: one value a row.
        row: word for a row in messages.

    Raises:
        DataInvalid: a row has no value.
    """
    missing = [id for id, value in zip(ids, values, strict=True) if is_empty(value)]
    if missing:
        raise DataInvalid(f"{table.path}: {row} '{missing[0]}' has no {column} to split by")
    return [str(value) for value in values]
