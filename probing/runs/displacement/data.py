"""Shares of raters, and checkpoints in a folder."""

from pathlib import Path

from probing.data.columns import column_values
from probing.data.tables import Table
from probing.errors import DataInvalid, UsageError


def rater_shares(table: Table, name: str) -> list[float]:
    """The share of raters who preferred the chosen response, of each pair.

    Raises:
        DataInvalid: one is no number between 0 and 1; names the row.
    """
    shares: list[float] = []
    for index, value in enumerate(column_values(table, name)):
        share = _number(value)
        if share is None or not 0 <= share <= 1:
            raise DataInvalid(f"{table.where(index)}: '{name}' must be a share of raters, 0 to 1, not {value!r}")
        shares.append(share)
    return shares


def _number(value: object) -> float | None:
    """A number, also where a CSV file gives it as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def find_steps(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoints in a folder whose names end in a number, by that number; step 0 is the reference and left out.

    Raises:
        UsageError: there is no such folder, there are none in it, or two have the same number.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of checkpoints")
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        digits = path.name[len(path.name.rstrip("0123456789")) :]
        if not path.is_dir() or not digits or int(digits) == 0:
            continue
        if int(digits) in found:
            raise UsageError(f"{folder}: {found[int(digits)].name} and {path.name} are the same step")
        found[int(digits)] = path
    if not found:
        raise UsageError(f"{folder}: holds no folders whose names end in the number of a step, like checkpoint-500")
    return sorted(found.items())
