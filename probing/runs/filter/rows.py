"""The rows of ``probing filter``: those that are kept, and those that are dropped, with their scores."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from probing.data.lazy import make_in_blocks
from probing.data.tables import Row, Table
from probing.data.writing import write_rows
from probing.instruments.filtering import SIDE_PREFIX
from probing.types import Format

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Filtered:
    """What is written.

    Attributes:
        table: the rows.
        ids: their ids.
        kept: whether each of them is kept.
        scores: their scores, in their order.
        extra: the columns that those dropped get.
        page: the page of plots.
    """

    table: Table
    ids: Sequence[str]
    kept: Sequence[bool]
    scores: "pd.DataFrame"
    extra: Sequence[Row]
    page: str | None

    def write(self, keep: bool, path: Path, form: Format, zipped: bool) -> None:
        """Write the rows that are kept, or the others with their scores."""
        rows = array("q", (at for at, known in enumerate(self.kept) if known == keep))
        write_rows(self.table, rows, path, form, () if keep else self.extra, zipped)


def list_side_columns(dropped: NDArray[np.int64], frame: "pd.DataFrame") -> Sequence[Row]:
    """The scores of every dropped row under names that no dataset uses, NaN as None."""

    def make(start: int, stop: int) -> list[Row]:
        records = frame.iloc[dropped[start:stop]].to_dict("records")
        return [
            {f"{SIDE_PREFIX}{name}": value if value == value else None for name, value in row.items()}
            for row in records
        ]

    return make_in_blocks(len(dropped), make)
