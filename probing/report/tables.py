"""Small tables for people."""

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from probing.report.columns import list_given_up, number_names, to_snake_case
from probing.report.layout import fit_table, shorten
from probing.shown import LONGEST_CELL, LONGEST_MESSAGE, escape_controls, to_message
from probing.types import Estimate, PreferencePair, Text, message_text

FindPairs = Callable[[Sequence[str]], Mapping[str, PreferencePair]]
"""Finds pairs by their ids."""
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
TEXT_WIDTH = 34
BINS = 12
LONGEST_BAR = 40
ID_WIDTH = 32


def quantiles(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Quantiles of some columns over the rows that have a value, one row a column."""
    table = frame[list(columns)].quantile(list(QUANTILES)).T
    table.columns = pd.Index([f"{share:.0%}" for share in QUANTILES])
    table.insert(0, "pairs", frame[list(columns)].notna().sum())
    return table.rename_axis("score").reset_index()


def extremes(frame: pd.DataFrame, by: str, find: FindPairs, rows: int, highest: bool) -> pd.DataFrame:
    """The rows with the highest (or lowest) score, with their texts shortened; ties by id.

    Args:
        frame: a row a pair.
        by: the score.
        find: the pairs with some ids, by id.
        rows: number of rows, at most.
        highest: whether those with the highest scores are listed.
    """
    known = frame[by].dropna()
    first = known.nlargest(rows, keep="all") if highest else known.nsmallest(rows, keep="all")
    scored = frame.loc[first.index].sort_values([by, "id"], ascending=[not highest, True]).head(rows)
    texts = find(scored["id"].tolist())
    return pd.DataFrame(
        {
            by: scored[by],
            "id": [shorten(to_line(identity), ID_WIDTH) for identity in scored["id"]],
            "prompt": [shorten(to_line(texts[identity].prompt), TEXT_WIDTH, end=True) for identity in scored["id"]],
            "chosen": [shorten(to_line(texts[identity].chosen), TEXT_WIDTH) for identity in scored["id"]],
            "rejected": [shorten(to_line(texts[identity].rejected), TEXT_WIDTH) for identity in scored["id"]],
        }
    )


def histogram(values: "pd.Series[float]", bins: int = BINS) -> pd.DataFrame:
    """Counts of values in equally wide bins, with bars; no rows where there are fewer than two different values."""
    finite = values[np.isfinite(values)]
    if finite.nunique() < 2:
        return pd.DataFrame(columns=["from", "to", "pairs", "bar"])
    found, edges = np.histogram(finite, bins)
    bars = ["#" * round(LONGEST_BAR * count / found.max()) for count in found]
    return pd.DataFrame({"from": edges[:-1], "to": edges[1:], "pairs": found, "bar": bars})


def estimates(rows: Sequence[tuple[str, Estimate]], unit: str = "pairs") -> pd.DataFrame:
    """Named estimates with their intervals, one a row."""
    return pd.DataFrame(
        [(name, estimate.value, estimate.low, estimate.high, estimate.n) for name, estimate in rows],
        columns=["measure", "value", "low", "high", unit],
    )


def counts(values: Mapping[str, int], name: str, unit: str = "pairs") -> pd.DataFrame:
    """A count a row, largest first."""
    ordered = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    return pd.DataFrame(ordered, columns=[name, unit])


def to_line(text: Text) -> str:
    """Text or messages on one line."""
    joined = text if isinstance(text, str) else " / ".join(message_text(message) for message in text)
    return escape_controls(" ".join(joined.split()))


def name_tables(titles: Iterable[str]) -> dict[str, str]:
    """A name for every table, in snake case: its title up to the first comma, colon or bracket, which does not vary.

    Returns:
        Titles by name. Where two tables would have one name, the second is numbered.
    """
    return number_names((_name_table(title), title) for title in titles)


def _name_table(title: str) -> str:
    return to_snake_case(re.split("[,:(]", title)[0])


def render(tables: Mapping[str, pd.DataFrame], width: int | None = None) -> str:
    """All tables as text, with their titles; lines are as long as it takes, or at most ``width`` characters."""

    def body(title: str, table: pd.DataFrame) -> str:
        if not len(table):
            return "(none)"
        if width is None:
            return _render_body(table)
        # The tables of several jobs are told apart by "[JOB] " before their titles.
        name = _name_table(re.sub(r"^\[\w+\] ", "", title))
        return fit_table(table, width, _render_body, list_given_up(name, table.columns))

    def heading(title: str) -> str:
        return to_message(title) if width is None else textwrap.fill(to_message(title), width)

    return "\n\n".join(f"{heading(title)}\n{body(title, table)}" for title, table in tables.items())


def _render_body(table: pd.DataFrame, wrap: bool = False) -> str:
    """A table as text: numbers are aligned to the right, text and headings of text to the left.

    Args:
        table: at least one row.
        wrap: whether headings that are wider than their columns are wrapped.
    """
    # Sentences of a column of its own are not cut.
    longest = LONGEST_MESSAGE if len(table.columns) == 1 else LONGEST_CELL
    columns = [_render_column(table.iloc[:, at], longest) for at in range(table.shape[1])]
    numeric = [pd.api.types.is_numeric_dtype(table.iloc[:, at]) for at in range(table.shape[1])]
    headings = [to_message(name, longest) for name in table.columns]
    if wrap:
        wrapped = [_wrap_heading(head, max(map(len, cells))) for head, cells in zip(headings, columns, strict=True)]
    else:
        # Headings of numbers of which each has several words stand further apart.
        wrapped = [[f" {head}" if at and numeric[at] else head] for at, head in enumerate(headings)]
    lines = max(map(len, wrapped))
    filled = [
        _align([""] * (lines - len(head)) + head + cells, right)
        for head, cells, right in zip(wrapped, columns, numeric, strict=True)
    ]
    return "\n".join(" ".join(cells).rstrip() for cells in zip(*filled, strict=True))


def _render_column(column: "pd.Series[Any]", longest: int) -> list[str]:
    return [to_message(_spell(cell), longest) for cell in column.astype(object).where(column.notna(), "NaN")]


def _wrap_heading(heading: str, width: int) -> list[str]:
    """The lines of a heading, no wider than the cells or its own longest word."""
    longest = max(map(len, heading.split()), default=0)
    return textwrap.wrap(heading, max(width, longest), break_long_words=False, break_on_hyphens=False) or [""]


def _align(cells: list[str], right: bool) -> list[str]:
    width = max(map(len, cells))
    return [cell.rjust(width) if right else cell.ljust(width) for cell in cells]


def _spell(cell: object) -> object:
    """A number that stands among texts, with as many digits as in a column of numbers."""
    return f"{cell:.4g}" if isinstance(cell, float) else cell
