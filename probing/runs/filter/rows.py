"""The rows of ``probing filter``: those that are kept, and those that are dropped, with their scores."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from probing.data.lazy import make_in_blocks
from probing.data.tables import Row, Table
from probing.data.writing import write_rows
from probing.errors import SourceMismatch, UsageError
from probing.instruments.columns import TOKEN_COLUMNS
from probing.instruments.filtering import SIDE_PREFIX, find_places, list_score_columns
from probing.runs.filter.data import Scores
from probing.types import Format

if TYPE_CHECKING:
    import pandas as pd


RUN_TO_RUN = 1e-3
"""Relative difference up to which two runs are taken to give one value: sums of float32 in other batches."""


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
