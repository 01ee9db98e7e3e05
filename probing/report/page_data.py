"""Rows of a report page as column arrays with one table of strings, and what is left out so that the page stays small.

First come the numbers of all rows, then texts, then tokens. Where they do not all fit, the rows at both ends and around
the median of the first column keep theirs, and those between them lose them.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.report.parts import PulledTokens, RowColumn, RowTable, Tokens
from probing.shown import escape_controls, to_message

KEPT = "\n\t\u200c\u200d"
"""What does not print and is kept in texts: lines, and the joiners that emoji and several scripts are written with."""
TOKEN_SHARE = 0.2
"""What the tokens may use of what the numbers leave, where the texts alone would fill the page."""
MISSES = 30
"""After so many rows one after the other that do not fit the page is full; a single long text does not fill it."""
NONE, LEFT_OUT = "-1", "-2"
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def embed_rows(tables: Sequence[RowTable], most_bytes: int, page_bytes: int) -> tuple[str, list[str]]:
    """The rows as JSON that may stand in a script element, and what was left out, in sentences.

    Args:
        tables: the rows.
        most_bytes: largest size of the JSON in UTF-8.
        page_bytes: largest size of the page, to be named where something is left out.
    """
    size = f"{page_bytes / 1e6:.3g} MB"
    strings = StringTable()
    encoded = [EncodedTable(rows, strings) for rows in tables]
    left = most_bytes - len(_write_data(encoded, strings, size).encode("utf-8"))
    left = _leave_out_rows(encoded, left)
    reserve = int(TOKEN_SHARE * max(left, 0)) if any(rows.tokens for rows in tables) else 0
    left = reserve + _fill(encoded, EncodedTable.add_texts, left - reserve)
    left = _fill(encoded, EncodedTable.add_tokens, left)
    # What the tokens did not need.
    _fill(encoded, EncodedTable.add_texts, left)
    told = [sentence for table in encoded for sentence in table.describe_left_out(size)]
    return _write_data(encoded, strings, size), told


@dataclass
class StringTable:
    """Every string once; rows hold its number.

    Attributes:
        encoded: the strings as JSON, by number.
        size: bytes that they take.
    """

    encoded: list[str] = field(default_factory=list)
    size: int = 0
    _numbers: dict[str, int] = field(default_factory=dict)

    def find(self, text: str) -> int:
        """The number of a string, which is added if it is new."""
        number = self._numbers.setdefault(text, len(self._numbers))
        if number == len(self.encoded):
            self.encoded.append(encode_text(text))
            self.size += len(self.encoded[-1].encode("utf-8")) + 1
        return number

    def take_back(self, count: int) -> None:
        """Forget the strings that came after the first so many."""
        while len(self.encoded) > count:
            self._numbers.popitem()
            self.size -= len(self.encoded.pop().encode("utf-8")) + 1


class EncodedTable:
    """A table of rows whose cells are JSON already.

    Args:
        rows: the table.
        strings: where its texts go.
    """

    def __init__(self, rows: RowTable, strings: StringTable) -> None:
        self.rows = rows
        self.order = order_by_use(rows)
        self._strings = strings
        self._ids = [encode_text(name) for name in show_ids(rows.ids)]
        # The column by which rows are sorted stands first, where a narrow screen shows it.
        self.columns = sorted(rows.columns, key=lambda column: column.name != rows.first)
        self._columns = [_encode_column(column, strings) for column in self.columns]
        self._texts = {name: [LEFT_OUT] * len(rows.ids) for name in rows.texts}
        self._tokens = {name: ["0"] * len(rows.ids) for name in rows.tokens}
        self._shown = set(range(len(rows.ids)))
        self._full: dict[str, set[int]] = {"texts": set(), "tokens": set()}

    def add_texts(self, row: int, most: int) -> int | None:
        """Add the texts of a row; returns the bytes that they take, None where these are more than ``most``."""
        return self._add("texts", row, most, lambda: [self._encode_text_of(name, row) for name in self._texts])

    def add_tokens(self, row: int, most: int) -> int | None:
        """The same of its tokens."""

        def encode() -> list[str]:
            return [encode_tokens(tokens, row, self._strings) for tokens in self.rows.tokens.values()]

        return self._add("tokens", row, most, encode)

    def _add(self, kind: str, row: int, most: int, encode: Callable[[], list[str]]) -> int | None:
        if row in self._full[kind] or row not in self._shown:
            return 0
        known, size = len(self._strings.encoded), self._strings.size
        cells = encode()
        taken = self._strings.size - size + sum(len(cell) for cell in cells)
        if taken > most:
            self._strings.take_back(known)
            return None
        for values, cell in zip(getattr(self, f"_{kind}").values(), cells, strict=True):
            values[row] = cell
        self._full[kind].add(row)
        return taken

    def _encode_text_of(self, name: str, row: int) -> str:
        text = self.rows.texts[name][row]
        return NONE if text is None else str(self._strings.find(show_text(text)))

    def leave_out_rows(self, bytes_over: int) -> int:
        """Leave out whole rows from the middle until so many bytes are saved; returns the bytes that were."""
        saved = 0
        for row in reversed(self.order):
            if saved >= bytes_over:
                break
            cells = [*self._columns, *self._texts.values(), *self._tokens.values()]
            saved += len(self._ids[row].encode("utf-8")) + sum(len(values[row]) + 1 for values in cells) + 1
            self._shown.discard(row)
        return saved

    def write(self) -> str:
        """The table as JSON."""
        rows = self.rows
        columns = [
            _write_object(
                name=json.dumps(column.name, ensure_ascii=False).translate(_ESCAPES),
                title=encode_text(to_message(column.title)),
                kind=json.dumps(column.kind),
                values=self._write_values(values),
            )
            for column, values in zip(self.columns, self._columns, strict=True)
        ]
        named = {"texts": self._texts, "tokens": self._tokens}
        return _write_object(
            name=json.dumps(rows.name),
            title=encode_text(to_message(rows.title)),
            first="0" if rows.first is not None else NONE,
            ids=self._write_values(self._ids),
            columns=f"[{','.join(columns)}]",
            **{
                kind: f"[{','.join(self._write_named(*item) for item in cells.items())}]"
                for kind, cells in named.items()
            },
        )

    def _write_named(self, name: str, values: Sequence[str]) -> str:
        return _write_object(name=encode_text(to_message(name)), values=self._write_values(values))

    def _write_values(self, values: Sequence[str]) -> str:
        return f"[{','.join(values[row] for row in sorted(self._shown))}]"

    def describe_left_out(self, size: str) -> list[str]:
        """What was left out, a sentence for each kind."""
        rows, told = self.rows, []
        by = f'by "{rows.first}"' if rows.first is not None else "of the table"
        kept = f"those of the lowest, median and highest rows {by} were kept first"
        lost = {"texts": len(self._shown) - len(self._full["texts"]) if rows.texts else 0}
        lost["tokens"] = len(self._shown) - len(self._full["tokens"]) if rows.tokens else 0
        for kind, count in {"numbers": len(rows.ids) - len(self._shown), **lost}.items():
            if count:
                of = f"{rows.title}: the {kind} of {count:,} of {len(rows.ids):,} rows were left out"
                told.append(f"{of} to keep the page under {size}; {kept}.")
        return told


def _leave_out_rows(tables: Sequence[EncodedTable], left: int) -> int:
    """Leave out whole rows where not even their numbers fit; returns the bytes that are left."""
    for table in sorted(tables, key=lambda table: -len(table.order)):
        if left < 0:
            left += table.leave_out_rows(-left)
    return left


def _fill(tables: Sequence[EncodedTable], add: Callable[[EncodedTable, int, int], int | None], left: int) -> int:
    """Add a kind to the rows of all tables, those of most use first; returns the bytes that are left."""
    turns = sorted((turn, number) for number, table in enumerate(tables) for turn in range(len(table.order)))
    misses = 0
    for turn, number in turns:
        taken = add(tables[number], tables[number].order[turn], left)
        misses = misses + 1 if taken is None else 0
        if misses == MISSES:
            break
        left -= taken or 0
    return left


def order_by_use(rows: RowTable) -> list[int]:
    """The rows in the order in which they keep what does not fit: from both ends and the median towards the middle.

    Rows are ordered by the first column; those without a number in it come last.
    """
    values = next((column.values for column in rows.columns if column.name == rows.first), range(len(rows.ids)))
    numbers = pd.to_numeric(pd.Series(list(values), dtype=object), errors="coerce").to_numpy(np.float64)
    known = np.flatnonzero(~np.isnan(numbers))
    sorted_rows = known[np.argsort(numbers[known], kind="stable")]
    ranks = np.arange(len(known))
    distance = np.minimum(np.minimum(ranks, ranks[::-1]), np.abs(ranks - len(known) // 2))
    found: list[int] = sorted_rows[np.argsort(distance, kind="stable")].tolist()
    return found + np.flatnonzero(np.isnan(numbers)).tolist()


def show_text(text: str) -> str:
    """Text whole, with what does not print spelled out but for lines, tabs, and joiners of letters and emoji."""
    return escape_controls(text, keep=KEPT)


def show_ids(ids: Iterable[str]) -> list[str]:
    """Ids with what does not print spelled out; one that then is the same as another before it gets a number."""
    taken: dict[str, int] = {}
    shown = []
    for name in map(escape_controls, ids):
        taken[name] = count = taken.get(name, 0) + 1
        shown.append(name if count == 1 else f"{name} ({count})")
    return shown


def encode_text(text: str) -> str:
    """A JSON string that ends no script element and no line of a script."""
    return json.dumps(text, ensure_ascii=False).translate(_ESCAPES)


def encode_number(value: Any) -> str:
    """JSON of a number with five digits, integers whole; null for what is no finite number."""
    if value is None or value is pd.NA or not math.isfinite(value):
        return "null"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.5g}"


def _encode_column(column: RowColumn, strings: StringTable) -> list[str]:
    if column.kind == "text":
        return [NONE if pd.isna(text) else str(strings.find(show_text(str(text)))) for text in column.values]
    return [encode_number(value) for value in column.values]


def encode_tokens(tokens: Tokens | PulledTokens, row: int, strings: StringTable) -> str:
    """The tokens of a row as JSON, null where it has none.

    Those with pulls are [numbers of texts, pulls]. Others are [numbers of texts, log-probabilities before, changes,
    gained tokens]: log-probabilities in thousandths of a nat, gained tokens of each token one after the other, each
    with its probabilities before and after in millionths.
    """
    span = slice(tokens.offsets[row], tokens.offsets[row + 1])
    if span.start == span.stop:
        return "null"
    numbers = ",".join(str(strings.find(show_text(text))) for text in tokens.tokens[span])
    if isinstance(tokens, PulledTokens):
        return f"[[{numbers}],[{','.join(map(encode_number, tokens.pulls[span]))}]]"
    before, after = (np.asarray(values[span], dtype=np.float64) for values in (tokens.before, tokens.after))
    gained = ",".join(_encode_gained(some, strings) for some in tokens.gained[span])
    return f"[[{numbers}],[{_encode_scaled(before)}],[{_encode_scaled(after - before)}],[{gained}]]"


def _encode_scaled(values: NDArray[np.float64]) -> str:
    return ",".join(str(round(1000 * value)) if math.isfinite(value) else "null" for value in values.tolist())


def _encode_gained(some: Sequence[tuple[str, float, float]], strings: StringTable) -> str:
    cells = (
        f"{strings.find(show_text(text))},{_to_millionths(low)},{_to_millionths(high)}" for text, low, high in some
    )
    return f"[{','.join(cells)}]"


def _to_millionths(probability: float) -> str:
    return str(round(1e6 * probability)) if math.isfinite(probability) else "null"


def _write_data(tables: Sequence[EncodedTable], strings: StringTable, size: str) -> str:
    return _write_object(
        size=json.dumps(size),
        tables=f"[{','.join(table.write() for table in tables)}]",
        strings=f"[{','.join(strings.encoded)}]",
    )


def _write_object(**members: str) -> str:
    return "{" + ",".join(f'"{name}":{value}' for name, value in members.items()) + "}"
