"""Tables and notes that several jobs share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from probing.statistics.intervals import FEW

SIGNIFICANT = 0.05
"""A p-value of at most this is called significant in the notes."""
BY_PLACE = "By place"
"""Beginning of the title of every table with one row a place."""
LISTED_PLACES = 5
"""Largest number of places that a note names."""


def table_by_place(places: Sequence[str], describe: Callable[[str], Mapping[str, Any]]) -> pd.DataFrame:
    """The table "By place": one row a place of the model, in order.

    Args:
        places: places of the model.
        describe: the other columns of a place.
    """
    return pd.DataFrame([{"place": place, **describe(place)} for place in places])


def pick_rows(results: pd.DataFrame, **where: str) -> pd.DataFrame:
    """The rows of a results table that have these values in these columns."""
    kept = results
    for name, value in where.items():
        kept = kept[kept[name] == value]
    return kept


def pick_row(results: pd.DataFrame, **where: str) -> "pd.Series[Any]":
    """The first of these rows.

    Raises:
        IndexError: there is none.
    """
    return pick_rows(results, **where).iloc[0]


def pick_columns(row: "pd.Series[Any]", *names: str) -> dict[str, Any]:
    """Some columns of a row, under their own names."""
    return {name: row[name] for name in names}


def show_ends(row: "pd.Series[Any]", prefix: str = "", digits: str = ".3f", missing: str = "-") -> str:
    """The columns ``PREFIXlow`` and ``PREFIXhigh`` of a results table as "low .. high".

    Args:
        row: row of the results.
        prefix: prefix of the columns' names: "" for the interval, "labels_" for the null distribution of permuted
            labels.
        digits: a format of numbers.
        missing: text where there is no interval.
    """
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    return missing if pd.isna(low) else f"{low:{digits}} .. {high:{digits}}"


def smallest_p(draws: int) -> float:
    """The smallest p-value that so many draws of a null distribution can give."""
    return 1 / (1 + draws)


LARGE_FLOOR = 0.01
"""A null distribution whose smallest p-value is above this says so."""


def note_floor(**draws: int) -> list[str]:
    """A note of the smallest p-value that each null distribution can give, where it is above .01.

    Args:
        draws: numbers of draws, by the option that sets each.
    """
    high = [
        f"{smallest_p(count):.3f} with {count} {name}"
        for name, count in draws.items()
        if count and _has_large_floor(count)
    ]
    if not high:
        return []
    return [f"No p-value can be below {' or '.join(high)}: one that stands there may be far smaller. Take more."]


def note_few_groups(groups: int, rows: str = "rows") -> list[str]:
    """A note where intervals are of few groups of rows, which may be too narrow."""
    if groups >= FEW:
        return []
    return [f"The intervals are of {groups} groups of {rows}: with fewer than {FEW} they may be too narrow."]


def show_p(p: float, draws: int) -> str | float:
    """A p-value for a table; one that stands at a floor above .01, below which no draw can bring it, as "<= 0.048"."""
    if _has_large_floor(draws) and abs(p - smallest_p(draws)) < 1e-9:
        return f"<= {p:.3f}"
    return p


def _has_large_floor(draws: int) -> bool:
    return smallest_p(draws) > LARGE_FLOOR


def note_few_draws(**draws: int) -> list[str]:
    """A note where a null distribution has too few draws for any p-value to be significant; else nothing.

    Args:
        draws: numbers of draws, by the option that sets each.
    """
    few = [f"{count} {name}" for name, count in draws.items() if smallest_p(count) > SIGNIFICANT]
    if not few:
        return []
    least = round(1 / SIGNIFICANT) - 1
    return [f"With fewer than {least} draws ({', '.join(few)}) no p-value can reach {SIGNIFICANT}: take more."]


def list_places(places: Sequence[str]) -> str:
    """The first few of some places, for a note."""
    return ", ".join(places[:LISTED_PLACES]) + (", ..." if len(places) > LISTED_PLACES else "")
