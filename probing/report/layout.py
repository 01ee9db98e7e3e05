"""Tables as text that fits the width of a terminal."""

import bisect
import textwrap
from collections.abc import Callable

import pandas as pd

LEAST_TEXT_WIDTH = 16
"""No text is cut shorter than this before a column is left out."""


def fit_table(table: pd.DataFrame, width: int, render: Callable[[pd.DataFrame], str]) -> str:
    """A table as text whose lines are at most ``width`` characters long.

    A table of one column is wrapped. Of others the longest texts are cut first, then columns are left out from the
    right and named below the table; the first column always stays.

    Args:
        table: at least one row.
        width: characters in a line.
        render: writes a table as text, whatever its width.
    """
    text = render(table)
    if _width(text) <= width:
        return text
    if table.shape[1] == 1:
        return "\n".join(textwrap.fill(line, width, subsequent_indent="  ") for line in text.splitlines())

    def width_with(most: int) -> int:
        return _width(render(_cut_texts(table, most)))

    # The longer texts may be, the wider is the table: the greatest length that fits is found in a few steps.
    lengths = range(LEAST_TEXT_WIDTH, _longest_text(table) + 1)
    fitting = bisect.bisect_right(lengths, width, key=width_with)
    shown, left_out = _cut_texts(table, lengths[fitting - 1] if fitting else LEAST_TEXT_WIDTH), list[str]()
    text = render(shown)
    if fitting:
        return text
    while shown.shape[1] > 1 and _width(text) > width:
        left_out.insert(0, str(shown.columns[-1]))
        shown = shown.iloc[:, :-1]
        text = render(shown)
    note = textwrap.fill(
        f"(--full also shows {', '.join(name.strip() for name in left_out)})", width, subsequent_indent=" "
    )
    return f"{text}\n{note}"


def shorten(text: str, width: int, end: bool = False) -> str:
    """At most ``width`` characters: the beginning, or the end."""
    if len(text) <= width:
        return text
    return f"…{text[-width + 1 :]}" if end else f"{text[: width - 1]}…"


def _width(text: str) -> int:
    return max(map(len, text.splitlines()))


def _texts(table: pd.DataFrame) -> list[str]:
    return [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]


def _longest_text(table: pd.DataFrame) -> int:
    return max((int(table[name].astype(str).str.len().max()) for name in _texts(table)), default=0)


def _cut_texts(table: pd.DataFrame, most: int) -> pd.DataFrame:
    return table.assign(**{str(name): table[name].map(lambda value: _cut(value, most)) for name in _texts(table)})


def _cut(value: object, most: int) -> object:
    # A text that was cut at its beginning already keeps its end.
    return shorten(value, most, end=value.startswith("…")) if isinstance(value, str) else value
