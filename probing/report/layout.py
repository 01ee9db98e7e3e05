"""Tables as text that fits the width of a terminal."""

import bisect
import re
import textwrap
from collections.abc import Callable, Sequence

import pandas as pd

LEAST_TEXT_WIDTH = 16
"""No text is cut shorter than this before a column is left out."""
NUMBER = r"-?\d[\d.e+-]*"
NUMBERS = re.compile(rf"-|NaN|(<= )?{NUMBER}|{NUMBER} \.\. {NUMBER}")
"""Numbers and intervals, which would be other ones if they were cut."""

Render = Callable[[pd.DataFrame, bool], str]


def fit_table(table: pd.DataFrame, width: int, render: Render, given_up: Sequence[Sequence[str]] = ()) -> str:
    """A table as text whose lines are at most ``width`` characters long.

    A table of one column is wrapped. Of others first headings are wrapped and the longest sentences are cut, then
    columns are left out as declared, then names are cut, and last columns are left out from the right. What is left
    out is named below the table; the first column always stays.

    Args:
        table: at least one row.
        width: characters in a line.
        render: writes a table as text, whatever its width; with wrapped headings or not.
        given_up: columns that may be left out, those of one list together, in this order.
    """
    text = render(table, False)
    if _width(text) <= width:
        return text
    if table.shape[1] == 1:
        return "\n".join(textwrap.fill(line, width, subsequent_indent="  ") for line in text.splitlines())
    for shown, names_too in _list_smaller(table, given_up):
        found = _cut_to_fit(shown, width, render, _list_texts(shown, names_too))
        if found is not None:
            return _add_note(found, [name for name in table.columns if name not in shown.columns], width)
    return _add_note(render(table.iloc[:, :1], True), list(table.columns[1:]), width)


def shorten(text: str, width: int, end: bool = False) -> str:
    """At most ``width`` characters: the beginning, or the end."""
    if len(text) <= width:
        return text
    return f"…{text[-width + 1 :]}" if end else f"{text[: width - 1]}…"


def _list_smaller(table: pd.DataFrame, given_up: Sequence[Sequence[str]]) -> list[tuple[pd.DataFrame, bool]]:
    """The table with fewer and fewer columns, and whether names in it may be cut."""
    smaller = [(table, False)]
    for group in given_up:
        smaller.append((smaller[-1][0].drop(columns=list(group)), False))
    least = smaller[-1][0]
    return smaller + [(least.iloc[:, :count], True) for count in range(least.shape[1], 0, -1)]


def _cut_to_fit(table: pd.DataFrame, width: int, render: Render, names: Sequence[str]) -> str | None:
    """The table with the texts in some columns as long as fits; None where it does not fit."""
    longest = max((int(table[name].astype(str).str.len().max()) for name in names), default=0)
    # The longer texts may be, the wider is the table: the greatest length that fits is found in a few steps.
    lengths = range(LEAST_TEXT_WIDTH, max(longest, LEAST_TEXT_WIDTH) + 1)

    def render_with(most: int) -> str:
        return render(table.assign(**{name: table[name].map(lambda value: _cut(value, most)) for name in names}), True)

    fitting = bisect.bisect_right(lengths, width, key=lambda most: _width(render_with(most)))
    return render_with(lengths[fitting - 1]) if fitting else None


def _add_note(text: str, left_out: Sequence[object], width: int) -> str:
    if not left_out:
        return text
    named = f"(--full also shows {', '.join(str(name) for name in left_out)})"
    return f"{text}\n{textwrap.fill(named, width, subsequent_indent=' ')}"


def _width(text: str) -> int:
    return max(map(len, text.splitlines()))


def _list_texts(table: pd.DataFrame, names_too: bool) -> list[str]:
    """The columns whose texts may be cut: those of sentences, or of names too, which have no space in them."""
    listed = []
    for name in table.columns:
        texts = [value for value in table[name] if isinstance(value, str) and NUMBERS.fullmatch(value) is None]
        if texts and (names_too or any(" " in text for text in texts)):
            listed.append(str(name))
    return listed


def _cut(value: object, most: int) -> object:
    # A text that was cut at its beginning already keeps its end.
    return shorten(value, most, end=value.startswith("…")) if isinstance(value, str) else value
