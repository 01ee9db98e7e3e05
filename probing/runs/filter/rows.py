"""The rows of ``probing filter``: those that are kept, and those that are dropped, with their scores."""

from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from probing.data.arrow_rows import ArrowRows, open_parquet
from probing.data.lazy import BLOCK, make_in_blocks
from probing.data.tables import Row, Table
from probing.data.writing import write_rows
from probing.errors import DataInvalid, SourceMismatch, StoreCorrupt, UsageError
from probing.instruments.columns import TOKEN_COLUMNS
from probing.instruments.filtering import (
    SIDE_PREFIX,
    check_score_column,
    find_places,
    find_scores,
    list_score_columns,
)
from probing.runs.filter.data import Scores
from probing.types import Format, PreferencePair

if TYPE_CHECKING:
    import pandas as pd


RUN_TO_RUN = 1e-3
"""Relative difference up to which two runs are taken to give one value: sums of float32 in other batches."""


@dataclass(frozen=True, eq=False)
class OrderedScores:
    """The scores of the pairs of a dataset, in their order.

    Attributes:
        status: status of each pair.
        values: the score that pairs are filtered by, NaN where there is none, [pair].
        read: all columns of some pairs, given their numbers.
    """

    status: "pd.Categorical"
    values: NDArray[np.float64]
    read: "Callable[[NDArray[np.int64]], pd.DataFrame]"


@dataclass(frozen=True, eq=False)
class Filtered:
    """What is written.

    Attributes:
        table: the rows.
        pairs: the pairs that they are.
        kept: whether each of them is kept, [row].
        scores: their scores.
        page: the page of plots.
    """

    table: Table
    pairs: Sequence[PreferencePair]
    kept: NDArray[np.bool_]
    scores: OrderedScores
    page: str | None

    def write(self, keep: bool, path: Path, form: Format, zipped: bool) -> None:
        """Write the rows that are kept, or the others with their scores."""
        rows = np.flatnonzero(self.kept == keep)
        extra = () if keep else list_side_columns(rows, self.scores)
        write_rows(self.table, array("q", rows.tobytes()), path, form, extra, zipped)


def list_side_columns(dropped: NDArray[np.int64], scores: OrderedScores) -> Sequence[Row]:
    """The scores of every dropped row under names that no dataset uses, NaN as None."""

    def make(start: int, stop: int) -> list[Row]:
        records = scores.read(dropped[start:stop]).to_dict("records")
        return [
            {f"{SIDE_PREFIX}{name}": value if value == value else None for name, value in row.items()}
            for row in records
        ]

    return make_in_blocks(len(dropped), make)


def order_scores(ids: Sequence[str], scores: Scores, by: str, held: ExitStack) -> OrderedScores:
    """The scores of the pairs with these ids.

    Where they are in the order of the pairs, as a scoring writes them, their table stays in its file.

    Args:
        ids: ids of the pairs of the dataset.
        scores: the scores.
        by: the score that pairs are filtered by.
        held: keeps the table open.

    Raises:
        UsageError: there is no such column of scores.
        SourceMismatch: ids are not the same ones.
        StoreCorrupt: the table is damaged.
    """
    import pandas as pd

    try:
        stored = open_parquet(held.enter_context(scores.file.open("rb")), scores.file)
        check_score_column(_to_frame(stored.schema.empty_table()), by)
        found = _read_in_order(ids, stored, by)
    except DataInvalid as error:
        raise StoreCorrupt(f"{error}; score again") from error
    if found is not None:
        return found
    frame = scores.frame
    places = find_scores(ids, frame, by)
    status = pd.Categorical(frame["status"].to_numpy()[places])
    values = frame[by].to_numpy(dtype=np.float64)[places]
    return OrderedScores(status, values, lambda rows: frame.iloc[places[rows]])


def _read_in_order(ids: Sequence[str], stored: ArrowRows, by: str) -> OrderedScores | None:
    """The scores from a table whose ids are these, in this order; None where they are not."""
    import pandas as pd

    if len(stored) != len(ids):
        return None
    numbers: dict[Any, int] = {}
    codes, values = np.empty(len(ids), np.int16), np.empty(len(ids), np.float64)
    lacking: set[str] = set()
    for start in range(0, len(ids), BLOCK):
        block = stored.read(start, min(start + BLOCK, len(ids)))
        if block["id"].to_pylist() != ids[start : start + BLOCK]:
            return None
        codes[start : start + BLOCK] = [numbers.setdefault(one, len(numbers)) for one in block["status"].to_pylist()]
        frame = _to_frame(block)
        values[start : start + BLOCK] = frame[by].to_numpy(dtype=np.float64)
        lacking |= {name for name in block.column_names if block[name].null_count}
    # A column of whole numbers in which one is missing is of floats for pandas, in all of its rows.
    dtypes = {name: np.float64 for name in lacking if pa.types.is_integer(stored.schema.field(name).type)}

    def read(rows: NDArray[np.int64]) -> "pd.DataFrame":
        return _to_frame(pa.concat_tables(stored.tables(rows.tolist()))).astype(dtypes)

    return OrderedScores(pd.Categorical.from_codes(codes, pd.Index(list(numbers))), values, read)


def _to_frame(table: pa.Table) -> "pd.DataFrame":
    """A part of a table as a frame with the columns that the whole has as a frame."""
    frame: pd.DataFrame = table.to_pandas()
    return frame


@dataclass(frozen=True, eq=False)
class JoinedScores:
    """The scores of several runs over the same pairs.

    Attributes:
        frame: a row a pair of the dataset, in its order: id, status, tokens and every column of scores. The status is
            that of the first run in which it is not ok.
        sources: the run that each column of scores is from.
        notes: columns that two runs have with different values.
    """

    frame: "pd.DataFrame"
    sources: Mapping[str, str]
    notes: Sequence[str]


def join_scores(ids: Sequence[str], runs: Sequence[Scores]) -> JoinedScores:
    """The scores of all runs, side by side; a column that several have is that of the first.

    Args:
        ids: ids of the pairs of the dataset.
        runs: the scores of each run.

    Raises:
        SourceMismatch: ids are not the same ones; names the run.
        UsageError: the first table does not say how many tokens the pairs have.
    """
    first, *others = [_order_rows(ids, run) for run in runs]
    if not set(TOKEN_COLUMNS) <= set(first.columns):
        raise UsageError(f"{runs[0].path}: has no {', '.join(TOKEN_COLUMNS)}; name first a table that has them")
    frame = first[["id", "status", *TOKEN_COLUMNS, *list_score_columns(first)]].copy()
    sources, notes = dict.fromkeys(list_score_columns(first), str(runs[0].path)), []
    for run, other in zip(runs[1:], others, strict=True):
        frame["status"] = frame["status"].where(frame["status"] != "ok", other["status"])
        for name in list_score_columns(other):
            if name not in sources:
                sources[name], frame[name] = str(run.path), other[name]
            elif not _agree(frame[name], other[name]):
                notes.append(f"{name} has other values in {run.path}; those of {sources[name]} are compared")
    return JoinedScores(frame, sources, notes)


def _order_rows(ids: Sequence[str], run: Scores) -> "pd.DataFrame":
    try:
        return run.frame.iloc[find_places(ids, run.frame)].reset_index(drop=True)
    except SourceMismatch as error:
        raise SourceMismatch(f"{run.path}: {error}") from error


def _agree(one: "pd.Series[float]", other: "pd.Series[float]") -> bool:
    """Whether two runs give the same values, up to the rounding of float32."""
    return bool(np.isclose(one, other, rtol=RUN_TO_RUN, atol=0, equal_nan=True).all())
