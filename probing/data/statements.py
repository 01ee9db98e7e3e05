"""Rows of any dataset as statements with their opposites, and the yes and no forms that are run of each."""

import logging
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from probing.data.pairs import Where, row_ids, text_of
from probing.data.prompts import SIDE_MARK
from probing.data.tables import Row, Table
from probing.errors import DataInvalid, UsageError
from probing.statistics.groups import connected_groups
from probing.types import ContrastPair, LabelledPrompt

log = logging.getLogger(__name__)

Layout = Literal["auto", "wide", "long", "halves"]
LAYOUTS: tuple[Layout, ...] = ("auto", "wide", "long", "halves")
FORMS = ("A1", "A0", "N1", "N0")
"""The four texts of a pair: the statement with a yes and with a no, its opposite with a yes and with a no."""

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
PLAIN_TEXT = "{statement} {answer}."
CHAT_TEXT = "{answer}"
CHAT_QUESTION = "Is this true? {statement}"
APOSTROPHES_AND_HYPHENS = "'’-\u2010\u2011"


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
class _Found:
    """A pair without its id, and the rows that its two texts were found in."""

    rows: tuple[int, int]
    statement: str
    opposite: str
    label: bool
    category: str | None
    formulation: str | None

    @property
    def texts(self) -> frozenset[str]:
        return frozenset((_spaced(self.statement), _spaced(self.opposite)))


@dataclass(frozen=True)
class _Cells:
    """Rows, with the columns that were found in them and how each is named in messages."""

    rows: Sequence[Row]
    columns: StatementColumns
    where: Where
    name: str

    def both(self, left: int, right: int) -> str:
        return self.where(left) if left == right else f"{self.where(left)} and {self.where(right)}"

    def needed(self, role: str, why: str = "") -> str:
        """The name of a column that there must be."""
        column: str | None = getattr(self.columns, role)
        if column is None:
            usual = ", ".join(USUAL_COLUMNS[role])
            raise DataInvalid(
                f"{self.name}: there is no column of the {role} ({usual}){why}; name one with --{role}-column; "
                f"the columns are {_listed(self.rows)}"
            )
        return column

    def value(self, index: int, column: str) -> Any:
        """What a row holds, as a plain value; None for what tables put where nothing is."""
        value: Any = self.rows[index].get(column)
        value = value.tolist() if hasattr(value, "tolist") else value
        missing = value is None or (isinstance(value, str) and not value.strip()) or value != value
        return None if missing else value

    def text(self, index: int, role: str) -> str:
        """A statement or an opposite."""
        column = self.needed(role)
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
        column = self.needed("label", ", and without it nothing can be said of truth")
        return self._word(index, column, TRUTHS, f"labels are {LABELS}")

    def polarity(self, index: int, column: str) -> bool:
        return self._word(index, column, POLARITIES, f"a polarity is {POLARITY_WORDS}")

    def _word(self, index: int, column: str, known: dict[str, bool], accepted: str) -> bool:
        value = self.value(index, column)
        if value is None:
            raise DataInvalid(f"{self.where(index)}: there is nothing in column '{column}'; {accepted}")
        found = known.get(_spelled(value))
        if found is None:
            raise DataInvalid(f"{self.where(index)}: {value!r:.40} in column '{column}' is not understood; {accepted}")
        return found

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


def contrast_pairs_from_table(table: Table, columns: StatementColumns, layout: Layout = "auto") -> list[ContrastPair]:
    """All pairs of a table. See ``contrast_pairs_from_rows``."""
    return contrast_pairs_from_rows(table.rows, columns, layout, table.where, table.path)


def contrast_pairs_from_rows(
    rows: Sequence[Row],
    columns: StatementColumns,
    layout: Layout = "auto",
    where: Where = "row {}".format,
    name: str = "the data",
) -> list[ContrastPair]:
    """Rows as statements with their opposites, in the order of the statements' first rows.

    A pair whose two texts an earlier one had, in either order, is left out with a warning: it would count twice.

    Args:
        rows: laid out in one of three ways.
        columns: other names of columns than the usual ones (``USUAL_COLUMNS``).
        layout: "wide": a statement and its opposite in one row, with the label of the statement. "long": one row a
            statement with its own label, a pair column that partners share and a polarity column that tells the
            affirmative one, which becomes the statement. "halves": one row a statement with its own label, where the
            rows of the second half are the partners of those of the first, in the same order; the first ones are the
            statements unless a polarity column says otherwise. "auto": "wide" if there is a column of opposites,
            otherwise "long" if there is a pair column.
        where: names a row for messages, given its index.
        name: of all rows, for messages.

    Returns:
        Pairs, with ids from the id column ("wide", "halves": of the row in the first half) or the pair column ("long"),
        otherwise made from the content.

    Raises:
        DataInvalid: a missing column, a text or label that is none, a pair that is not one statement and one opposite
            of it, a text that is true in one place and false in another, a duplicate id; names the rows.
        UsageError: a column that is not there or that the layout has no use for, or no layout that fits.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"'{layout}' is none of {', '.join(LAYOUTS)}")
    if not rows:
        return []
    found_layout, found_columns = _resolved(rows, columns, layout, name)
    cells = _Cells(rows, found_columns, where, name)
    readers: dict[str, Callable[[_Cells], list[_Found]]] = {"wide": _wide, "long": _long, "halves": _halves}
    found = readers[found_layout](cells)
    _check_truth(found, cells)
    named = "pair" if found_layout == "long" else "id"

    def ids(found: Sequence[_Found]) -> list[str]:
        if named == "pair":
            return [str(cells.words(one.rows[0], "pair")) for one in found]
        owners = [min(one.rows) for one in found]
        texts = [(one.statement, one.opposite) for one in found]
        return row_ids([rows[row] for row in owners], texts, lambda index: where(owners[index]), columns.id)

    ids(found)  # no id may occur twice, not even that of a pair that is left out
    kept = _without_repeats(found, cells)
    return [
        ContrastPair(id, one.statement, one.opposite, one.label, one.category, one.formulation)
        for id, one in zip(ids(kept), kept, strict=True)
    ]


def _resolved(
    rows: Sequence[Row], columns: StatementColumns, layout: Layout, name: str
) -> tuple[Layout, StatementColumns]:
    """The layout that the data have, and the columns as they are called in them."""
    present = {key for row in rows for key in row}
    named = {field.name: getattr(columns, field.name) for field in fields(columns)}
    for column in named.values():
        if column is not None and column not in present:
            raise UsageError(f"{name}: there is no column '{column}'; the columns are {_listed(rows)}")
    found = {
        role: named[role] or next((usual for usual in USUAL_COLUMNS[role] if usual in present), None) for role in named
    }
    if layout == "auto":
        if found["opposite"] is None and found["pair"] is None:
            options = ", ".join(f"--{role}-column" for role in USUAL_COLUMNS)
            raise UsageError(
                f"{name}: there is neither a column of opposites ({', '.join(USUAL_COLUMNS['opposite'])}) nor one that "
                f"tells which rows are a pair ({', '.join(USUAL_COLUMNS['pair'])}); name one ({options}), or say "
                f"--layout halves if the second half of the rows are the opposites of the first; the columns are "
                f"{_listed(rows)}"
            )
        by_pair = found["opposite"] is None or (named["pair"] is not None and named["opposite"] is None)
        layout = "long" if by_pair else "wide"
    for role in UNUSED[layout]:
        if named[role] is not None:
            raise UsageError(
                f"{name}: the layout '{layout}' has no use for --{role}-column; leave it out, or say another --layout"
            )
    return layout, StatementColumns(**found)


def _listed(rows: Sequence[Row]) -> str:
    return ", ".join(dict.fromkeys(str(key) for row in rows for key in row))


def _spelled(value: Any) -> str:
    """One spelling for the values of a label or polarity that mean the same, in whatever way a format holds them."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", str(value).strip().casefold())


def _spaced(text: str) -> str:
    """Text as it is compared: white space makes no difference."""
    return " ".join(text.split())


def _wide(cells: _Cells) -> list[_Found]:
    found = []
    for index in range(len(cells.rows)):
        statement, opposite = cells.text(index, "statement"), cells.text(index, "opposite")
        category, formulation = cells.words(index, "category"), cells.words(index, "formulation")
        found.append(_Found((index, index), statement, opposite, cells.label(index), category, formulation))
    return found


def _long(cells: _Cells) -> list[_Found]:
    cells.needed("pair")
    column = cells.needed("polarity")
    affirmative = _polarities(cells, column)
    members: dict[str, list[int]] = {}
    for index in range(len(cells.rows)):
        pair = cells.words(index, "pair")
        if pair is None:
            raise DataInvalid(f"{cells.where(index)}: there is nothing in column '{cells.columns.pair}'")
        members.setdefault(pair, []).append(index)
    found = []
    for pair, rows in members.items():
        if len(rows) == 1:
            raise DataInvalid(f"{cells.where(rows[0])}: pair '{pair}' has no other row, so no partner")
        if len(rows) > 2:
            places = ", ".join(map(cells.where, rows[:3]))
            raise DataInvalid(f"{places}: pair '{pair}' has {len(rows)} rows, where a pair has two")
        found.append(_partners(cells, rows[0], rows[1], affirmative))
    return found


def _halves(cells: _Cells) -> list[_Found]:
    half, odd = divmod(len(cells.rows), 2)
    if odd:
        raise DataInvalid(
            f"{cells.where(len(cells.rows) - 1)}: {len(cells.rows)} rows cannot be halved, so one has no partner"
        )
    column = cells.columns.polarity
    affirmative = [True] * half + [False] * half if column is None else _polarities(cells, column)
    return [_partners(cells, index, index + half, affirmative) for index in range(half)]


def _polarities(cells: _Cells, column: str) -> list[bool]:
    """Which rows are affirmative: of two words for it, the same two in the whole file."""
    spellings: dict[str, int] = {}
    affirmative = []
    for index in range(len(cells.rows)):
        affirmative.append(cells.polarity(index, column))
        spellings.setdefault(_spelled(cells.value(index, column)), index)
        if len(spellings) > 2:
            words, places = (", ".join(map(str, part)) for part in (spellings, map(cells.where, spellings.values())))
            raise DataInvalid(f"{places}: column '{column}' holds more than two polarities ({words})")
    if len(set(affirmative)) == 1:
        kind = "affirmative" if affirmative[0] else "negative"
        raise DataInvalid(
            f"{cells.name}: one polarity only: every row is {kind} by column '{column}'; a pair needs one of each"
        )
    return affirmative


def _partners(cells: _Cells, left: int, right: int, affirmative: Sequence[bool]) -> _Found:
    """Two rows as one pair."""
    if affirmative[left] == affirmative[right]:
        kind = "affirmative" if affirmative[left] else "negative"
        raise DataInvalid(f"{cells.both(left, right)}: one polarity only: both rows of a pair are {kind}")
    if not affirmative[left]:
        left, right = right, left
    statement, opposite = cells.text(left, "statement"), cells.text(right, "statement")
    label, other = cells.label(left), cells.label(right)
    if label == other:
        raise DataInvalid(
            f"{cells.both(left, right)}: both rows of a pair are labelled {str(label).lower()}, where exactly one of a "
            f"statement and its opposite is true; if these two are no pair, look at --layout and --pair-column"
        )
    shared = []
    for role in ("category", "formulation"):
        mine, theirs = cells.words(left, role), cells.words(right, role)
        if mine != theirs:
            raise DataInvalid(f"{cells.both(left, right)}: the {role} of a pair differs: {mine!r:.40}, {theirs!r:.40}")
        shared.append(mine)
    return _Found((left, right), statement, opposite, label, shared[0], shared[1])


def _check_truth(found: Sequence[_Found], cells: _Cells) -> None:
    """No text may be the opposite of itself, or true in one place and false in another."""
    known: dict[str, tuple[bool, int]] = {}
    for one in found:
        if len(one.texts) == 1:
            raise DataInvalid(
                f"{cells.both(*one.rows)}: a statement and its opposite are the same: {one.statement!r:.60}"
            )
        for text, truth, row in zip((one.statement, one.opposite), (one.label, not one.label), one.rows, strict=True):
            before, first = known.setdefault(_spaced(text), (truth, row))
            if before != truth:
                raise DataInvalid(
                    f"{cells.where(row)}: {text!r:.60} is {str(truth).lower()} by its label here, but "
                    f"{str(before).lower()} at {cells.where(first)}"
                )


def _without_repeats(found: Sequence[_Found], cells: _Cells) -> list[_Found]:
    """The first of all pairs with the same two texts."""
    first: dict[frozenset[str], _Found] = {}
    repeats = [one for one in found if first.setdefault(one.texts, one) is not one]
    if repeats:
        log.warning(
            "%s: pairs whose two texts occurred before are left out: %d, the first at %s (as at %s)",
            cells.name,
            len(repeats),
            cells.both(*repeats[0].rows),
            cells.both(*first[repeats[0].texts].rows),
        )
    return list(first.values())


def text_groups(pairs: Sequence[ContrastPair]) -> list[int]:
    """The group of each pair, numbered from 0 as they appear: pairs that share a text, directly or through others.

    A group must not be split between train and test, or a test text would have been trained on.
    """
    texts = [(row, _spaced(text)) for row, pair in enumerate(pairs) for text in (pair.statement, pair.opposite)]
    groups: list[int] = connected_groups([row for row, _ in texts], [text for _, text in texts])[::2].tolist()
    return groups


@dataclass(frozen=True)
class Template:
    """How a statement is followed by a yes or a no.

    Attributes:
        text: with ``{statement}`` and ``{answer}``, each once; the yes itself may stand in place of ``{answer}``. With
            ``chat`` it is what the assistant says, without the statement: by default the answer alone.
        answers: the yes and the no.
        question: with ``chat``, what the user says, with ``{statement}`` once; by default ``CHAT_QUESTION``.
        chat: whether to make conversations.

    Raises:
        ValueError: a placeholder is missing, unknown or there twice; an answer is empty or both are the same; a
            question without ``chat``.
    """

    text: str = PLAIN_TEXT
    answers: tuple[str, str] = ("Yes", "No")
    question: str | None = None
    chat: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "answers", _checked_answers(self.answers))
        text, question = self.text, self.question
        if self.chat:
            text = CHAT_TEXT if text == PLAIN_TEXT else text
            question = CHAT_QUESTION if question is None else question
            _check_placeholders(question, "question", statement=1, answer=0)
        elif question is not None:
            raise ValueError("a question is asked in a chat only; say chat as well")
        text = _with_answer(text, self.answers[0])
        _check_placeholders(text, "template", statement=0 if self.chat else 1, answer=1)
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "question", question)

    def form(self, pair_id: str, statement: str, answer_index: int, name: str) -> LabelledPrompt:
        """One statement with one answer (0: the yes, 1: the no), as ``PAIR#NAME``."""
        # The statement comes last, since it may hold anything, a placeholder as well.
        said = self.text.replace("{answer}", self.answers[answer_index])
        id = f"{pair_id}{SIDE_MARK}{name}"
        if self.question is None:
            return LabelledPrompt(id, said.replace("{statement}", statement))
        asked = [{"role": "user", "content": self.question.replace("{statement}", statement)}]
        return LabelledPrompt(id, asked, response=[{"role": "assistant", "content": said}])


def _checked_answers(answers: Sequence[str]) -> tuple[str, str]:
    good = not isinstance(answers, str) and len(answers) == 2 and all(isinstance(answer, str) for answer in answers)
    if not good or not all(answer.strip() for answer in answers) or answers[0].strip() == answers[1].strip():
        raise ValueError(f"answers must be two different texts, a yes and a no, not {answers!r:.60}")
    for answer in answers:
        if re.search(r"\{\w+\}", answer):
            raise ValueError(f"an answer is put in as it stands, without a placeholder: {answer!r:.60}")
    return answers[0], answers[1]


def _with_answer(text: str, yes: str) -> str:
    """The template with ``{answer}`` in place of a yes that is written out, if there is exactly one."""
    if "{answer}" in text:
        return text
    found = _whole_words(text.replace("{statement}", " " * len("{statement}")), yes, ignore_case=False)
    if len(found) != 1:
        raise ValueError(f"write {{answer}} where the answer belongs in the template {text!r:.60}, which has none")
    start, stop = found[0]
    return f"{text[:start]}{{answer}}{text[stop:]}"


def _check_placeholders(text: str, name: str, **expected: int) -> None:
    for word in re.findall(r"\{(\w+)\}", text):
        if word not in expected:
            raise ValueError(f"the {name} {text!r:.60} holds {{{word}}}; there are {{statement}} and {{answer}} only")
    for word, times in expected.items():
        if text.count(f"{{{word}}}") != times:
            must = f"must hold {{{word}}} exactly once" if times else f"must not hold {{{word}}}"
            raise ValueError(f"the {name} {text!r:.60} {must}")


def forms(pairs: Sequence[ContrastPair], template: Template, variant: str = "") -> list[LabelledPrompt]:
    """The four forms of every pair, in the order of ``FORMS``, as ``PAIR#VARIANTFORM``. See ``text_forms``."""
    return [form for pair in pairs for form in text_forms(pair.id, (pair.statement, pair.opposite), template, variant)]


def text_forms(pair_id: str, texts: tuple[str, str], template: Template, variant: str = "") -> list[LabelledPrompt]:
    """The four forms of a statement and its opposite, which may have become the same text.

    Args:
        pair_id: the first part of the ids.
        texts: the statement and its opposite.
        template: puts each together with a yes and a no.
        variant: what to write before the name of the form, for instance "marker:", to tell changed texts apart.

    Raises:
        ValueError: the variant holds the sign that ends the id of a pair.
    """
    if SIDE_MARK in variant:
        raise ValueError(f"the name of a variant must not hold '{SIDE_MARK}': {variant!r:.40}")
    return [template.form(pair_id, texts[at // 2], at % 2, variant + form) for at, form in enumerate(FORMS)]


def replace_word(pair: ContrastPair, old: str, new: str) -> tuple[str, str] | None:
    """Both texts with another word for ``old``, or None if neither has it.

    Only whole words count, in any case: letters, digits, marks (accents and vowel signs), underscores, apostrophes and
    hyphens belong to a word, so "nothing", "cannot", "don't" and "not-so" hold no "not", and neither does "not" in
    single quotes. The new word is put in as it is written. The two texts may become the same.

    Raises:
        ValueError: the old word is empty.
    """
    if not old.strip():
        raise ValueError("the word to replace is empty")
    places = (_whole_words(pair.statement, old), _whole_words(pair.opposite, old))
    if not any(places):
        return None
    return _replaced(pair.statement, places[0], new), _replaced(pair.opposite, places[1], new)


def _replaced(text: str, places: Sequence[tuple[int, int]], new: str) -> str:
    for start, stop in reversed(places):
        text = text[:start] + new + text[stop:]
    return text


def _whole_words(text: str, word: str, ignore_case: bool = True) -> list[tuple[int, int]]:
    """Where a word stands alone: the first character of each place, and one past the last."""
    pattern = re.compile(re.escape(word), re.IGNORECASE if ignore_case else 0)
    found, at = [], 0
    while match := pattern.search(text, at):
        start, stop = match.span()
        alone = not _in_word(text[start - 1 : start]) and not _in_word(text[stop : stop + 1])
        found += [(start, stop)] if alone else []
        at = stop if alone else start + 1
    return found


def _in_word(character: str) -> bool:
    """Whether a character (or none, at an end of the text) belongs to a word."""
    if not character:
        return False
    belongs = character.isalnum() or character == "_" or character in APOSTROPHES_AND_HYPHENS
    return belongs or unicodedata.category(character).startswith("M") or character in "\u200c\u200d"


def parse_replacement(text: str) -> tuple[str, str]:
    """The two words of ``OLD=NEW``, as in ``not=ttt``.

    Raises:
        ValueError: it is written otherwise, or the words are the same.
    """
    old, equals, new = (part.strip() for part in text.partition("="))
    if not equals or not old or not new or "=" in new:
        raise ValueError(f"a replacement is written OLD=NEW, as in not=ttt, not {text!r:.60}")
    if old.casefold() == new.casefold():
        raise ValueError(f"'{old}' is to be replaced by itself")
    return old, new


def distracted(statement: str, word: str) -> str:
    """The statement with a word after it that has nothing to do with it.

    Raises:
        ValueError: the word is empty.
    """
    if not word.strip():
        raise ValueError("the word to append is empty")
    return f"{statement.rstrip()} {word.strip()}"
