"""Rows as statements with their opposites, in each of the three ways in which files lay them out."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from probing.data.cells import plain_value
from probing.data.columns import ColumnResolver
from probing.data.rows import Where, text_of
from probing.data.tables import Row
from probing.data.words import collapse_spaces
from probing.errors import DataInvalid

Layout = Literal["auto", "wide", "long", "halves"]
LAYOUTS: tuple[Layout, ...] = ("auto", "wide", "long", "halves")

USUAL_COLUMNS = {
    "id": ("id",),
    "statement": ("statement", "text"),
    "opposite": ("opposite", "negation"),
    "label": ("label", "is_true", "truth"),
    "category": ("category",),
    "formulation": ("formulation",),
    "pair": ("pair", "pair_id"),
    "polarity": ("polarity",),
}
UNUSED = {"wide": ("pair", "polarity"), "long": ("id", "opposite"), "halves": ("opposite", "pair")}
"""Columns that a layout does not read, so that naming one is a mistake."""
TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
LABELS = "true/false, yes/no or 1/0"
POLARITIES = {
    **dict.fromkeys(("true", "1", "affirmative", "positive", "a", "+"), True),
    **dict.fromkeys(("false", "0", "-1", "negative", "n", "-"), False),
}
POLARITY_WORDS = "affirmative/negative, positive/negative, A/N, true/false, +/-, 1/0 or 1/-1"


@dataclass(frozen=True)
class StatementColumns:
    """Which columns of a table hold what; by default what they are usually called."""

    id: str | None = None
    statement: str | None = None
    opposite: str | None = None
    label: str | None = None
    category: str | None = None
    formulation: str | None = None
    pair: str | None = None
    polarity: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pair without its id, and the rows that its two texts were found in."""

    rows: tuple[int, int]
    statement: str
    opposite: str
    label: bool
    category: str | None
    formulation: str | None

    @property
    def texts(self) -> frozenset[str]:
        """Both texts in the form in which they are compared."""
        return frozenset((collapse_spaces(self.statement), collapse_spaces(self.opposite)))


@dataclass(frozen=True)
class Cells:
    """Rows, with the columns that were found in them and how each is named in messages."""

    rows: Sequence[Row]
    columns: StatementColumns
    where: Where
    resolver: ColumnResolver

    @property
    def name(self) -> str:
        """Name of the data."""
        return self.resolver.name

    def name_both(self, left: int, right: int) -> str:
        """The names of the two rows of a pair, which may be one row."""
        return self.where(left) if left == right else f"{self.where(left)} and {self.where(right)}"

    def require(self, role: str, why: str = "") -> str:
        """The name of a column that there must be."""
        column: str | None = getattr(self.columns, role)
        if column is None:
            raise self.resolver.explain_missing(
                f"there is no column of the {role} ({', '.join(USUAL_COLUMNS[role])}){why}", f"--{role}-column"
            )
        return column

    def value(self, index: int, column: str) -> Any:
        """What a row holds, as a plain value; None where that is nothing."""
        return plain_value(self.rows[index].get(column))

    def text(self, index: int, role: str) -> str:
        """A statement or an opposite."""
        column = self.require(role)
        row, place = self.rows[index], self.where(index)
        if column in row and not isinstance(row[column], str):
            raise DataInvalid(
                f"{place}: '{column}' must be plain text, found {type(row[column]).__name__} ({row[column]!r:.40}); "
                f"conversations are not taken"
            )
        text = str(text_of(row, column, place, self.rows))
        if not text.strip():
            raise DataInvalid(f"{place}: '{column}' is empty")
        return text

    def label(self, index: int) -> bool:
        """Whether the statement of a row is true."""
        column = self.require("label", ", and without it nothing can be said of truth")
        return self._word(index, column, TRUTHS, f"labels are {LABELS}")

    def polarity(self, index: int, column: str) -> bool:
        """Whether a row is the affirmative one of its pair."""
        return self._word(index, column, POLARITIES, f"a polarity is {POLARITY_WORDS}")

    def _word(self, index: int, column: str, known: dict[str, bool], accepted: str) -> bool:
        value = self.value(index, column)
        if value is None:
            raise DataInvalid(f"{self.where(index)}: there is nothing in column '{column}'; {accepted}")
        meaning = known.get(_normalize_spelling(value))
        if meaning is None:
            raise DataInvalid(f"{self.where(index)}: {value!r:.40} in column '{column}' is not understood; {accepted}")
        return meaning

    def words(self, index: int, role: str) -> str | None:
        """The category, the formulation or the pair of a row; None if it has none."""
        column = getattr(self.columns, role)
        value = None if column is None else self.value(index, column)
        if value is None:
            return None
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            raise DataInvalid(f"{self.where(index)}: '{column}' holds half of a surrogate pair; remove it") from error
        return str(value)


def _normalize_spelling(value: Any) -> str:
    """One spelling for the values of a label or polarity that mean the same, in whatever way a format holds them."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", str(value).strip().casefold())


def read_wide(cells: Cells) -> list[Candidate]:
    """Pairs of a table with a statement and its opposite in every row."""
    candidates = []
    for index in range(len(cells.rows)):
        statement, opposite = cells.text(index, "statement"), cells.text(index, "opposite")
        category, formulation = cells.words(index, "category"), cells.words(index, "formulation")
        candidates.append(Candidate((index, index), statement, opposite, cells.label(index), category, formulation))
    return candidates


def read_long(cells: Cells) -> list[Candidate]:
    """Pairs of a table with one statement a row, joined by the id of the pair.

    Raises:
        UsageError: there is no column of pair ids or of polarities.
        DataInvalid: a pair does not have two rows, one of each polarity.
    """
    cells.require("pair")
    column = cells.require("polarity")
    affirmative = _read_polarities(cells, column)
    members: dict[str, list[int]] = {}
    for index in range(len(cells.rows)):
        pair = cells.words(index, "pair")
        if pair is None:
            raise DataInvalid(f"{cells.where(index)}: there is nothing in column '{cells.columns.pair}'")
        members.setdefault(pair, []).append(index)
    candidates = []
    for pair, rows in members.items():
        if len(rows) == 1:
            raise DataInvalid(f"{cells.where(rows[0])}: pair '{pair}' has no other row, so no partner")
        if len(rows) > 2:
            places = ", ".join(map(cells.where, rows[:3]))
            raise DataInvalid(f"{places}: pair '{pair}' has {len(rows)} rows, where a pair has two")
        candidates.append(_pair_rows(cells, rows[0], rows[1], affirmative))
    return candidates


def read_halves(cells: Cells) -> list[Candidate]:
    """Pairs of a table with one statement a row, of which row i and row i + N/2 belong together.

    Raises:
        DataInvalid: the number of rows is odd, or both rows of a pair have one polarity.
    """
    half, odd = divmod(len(cells.rows), 2)
    if odd:
        raise DataInvalid(
            f"{cells.where(len(cells.rows) - 1)}: {len(cells.rows)} rows cannot be halved, so one has no partner"
        )
    column = cells.columns.polarity
    affirmative = [True] * half + [False] * half if column is None else _read_polarities(cells, column)
    return [_pair_rows(cells, index, index + half, affirmative) for index in range(half)]


def _read_polarities(cells: Cells, column: str) -> list[bool]:
    """Whether each row is affirmative, by two words that are the same in the whole file."""
    spellings: dict[str, int] = {}
    affirmative = []
    for index in range(len(cells.rows)):
        affirmative.append(cells.polarity(index, column))
        spellings.setdefault(_normalize_spelling(cells.value(index, column)), index)
        if len(spellings) > 2:
            words, places = (", ".join(map(str, part)) for part in (spellings, map(cells.where, spellings.values())))
            raise DataInvalid(f"{places}: column '{column}' holds more than two polarities ({words})")
    if len(set(affirmative)) == 1:
        kind = "affirmative" if affirmative[0] else "negative"
        raise DataInvalid(
            f"{cells.name}: one polarity only: every row is {kind} by column '{column}'; a pair needs one of each"
        )
    return affirmative


def _pair_rows(cells: Cells, left: int, right: int, affirmative: Sequence[bool]) -> Candidate:
    """Two rows as one pair."""
    if affirmative[left] == affirmative[right]:
        kind = "affirmative" if affirmative[left] else "negative"
        raise DataInvalid(f"{cells.name_both(left, right)}: one polarity only: both rows of a pair are {kind}")
    if not affirmative[left]:
        left, right = right, left
    statement, opposite = cells.text(left, "statement"), cells.text(right, "statement")
    label, other = cells.label(left), cells.label(right)
    if label == other:
        raise DataInvalid(
            f"{cells.name_both(left, right)}: both rows of a pair are labelled {str(label).lower()}, where exactly "
            f"one of a statement and its opposite is true; if these two are no pair, look at --layout and --pair-column"
        )
    shared = []
    for role in ("category", "formulation"):
        mine, theirs = cells.words(left, role), cells.words(right, role)
        if mine != theirs:
            raise DataInvalid(
                f"{cells.name_both(left, right)}: the {role} of a pair differs: {mine!r:.40}, {theirs!r:.40}"
            )
        shared.append(mine)
    return Candidate((left, right), statement, opposite, label, shared[0], shared[1])


LAYOUT_READERS: Mapping[str, Callable[[Cells], list[Candidate]]] = {
    "wide": read_wide,
    "long": read_long,
    "halves": read_halves,
}
