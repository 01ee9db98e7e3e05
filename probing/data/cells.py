"""Cells of a table, and whether they are empty.

A cell is empty where it holds None, NaN, or text of white space only: JSON writes null, Parquet null or NaN, and CSV
has nothing but text. This holds for labels, categories, ids, pairs, polarities, and columns to group or split by.

A text that a model reads is no such cell, nor is a span of it. It is there, however short, or it is None: a response
of no characters is a response, and its row gets a status that says so; a line break can be the span that counts.
"""

from collections.abc import Mapping
from typing import Any


def is_empty(value: Any) -> bool:
    """Whether there is nothing in a cell: None, NaN or white space."""
    return plain_value(value) is None


def plain_value(value: Any) -> Any:
    """What a cell holds, as a plain Python value; None where it is empty."""
    kind = type(value)
    # Most cells are of these types, which are never empty.
    if kind is int or kind is bool:
        return value
    if kind is not str and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str):
        return value if value.strip() else None
    return None if value is None or value != value else value


def drop_none(value: Any) -> Any:
    """The value without the None that tables fill in for keys that only other rows have."""
    if isinstance(value, Mapping):
        return {key: drop_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [drop_none(inner) for inner in value]
    return value
