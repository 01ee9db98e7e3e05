"""Rows of extreme norm, as tables and notes name them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.metrics.norms import find_extreme_norms
from probing.runs.common.tables import list_places
from probing.shown import count_of

EXTREMES = "Places where some rows have a norm far above the others"
"""Title of the table of such rows."""


def describe_extremes(place: str, norms: NDArray[np.float64], ids: Sequence[str]) -> dict[str, Any] | None:
    """Columns that name the rows of extreme norm at a place; None where there are none.

    Args:
        place: place of the model.
        norms: norm of every row, [row].
        ids: id of every row; rows of one id (the forms of a pair) are named once.
    """
    extreme = find_extreme_norms(norms)
    if not len(extreme):
        return None
    named = list(dict.fromkeys(ids[at] for at in extreme))
    row: dict[str, Any] = {"place": place, "rows": len(named), "ids": list_places(named)}
    return row | {"largest norm": float(norms[extreme].max()), "median norm": float(np.median(norms))}


def tabulate_extremes(rows: Iterable[Mapping[Any, Any]]) -> dict[str, pd.DataFrame]:
    """The table of rows of extreme norm under its title; nothing where there are none."""
    frame = pd.DataFrame(list(rows))
    return {EXTREMES: frame} if len(frame) else {}


def note_extremes(rows: Iterable[Mapping[str, Any]], noun: str, effect: str) -> list[str]:
    """A note for each place with rows of extreme norm.

    Args:
        rows: what ``describe_extremes`` gives.
        noun: word for one of what the ids name.
        effect: what such a norm does here, as a clause.
    """
    return [f"{row['place']}: {name_extremes(row, noun)}{effect}." for row in rows]


def name_extremes(row: Mapping[Any, Any], noun: str) -> str:
    """How many rows have an extreme norm, which they are, and what the norm is."""
    rows = f"{count_of(row['rows'], noun)} {'has' if row['rows'] == 1 else 'have'}"
    return f"{rows} a norm of up to {row['largest norm']:.4g}, of a median of {row['median norm']:.4g} ({row['ids']})"
