"""Rows of a preference dataset, in any of the shapes found in practice, as ``PreferencePair``."""

import hashlib
import logging
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from probing.data.aside import is_in_memory, sort_aside
from probing.data.cells import is_empty
from probing.data.formats import Row
from probing.data.lazy import LazySequence, pick
from probing.data.pair_columns import (
    PROMPT,
    FoundColumns,
    PairColumns,
    find_columns,
    find_ties,
    is_missing,
    tell_columns,
)
from probing.data.rows import Where, messages, row_ids, template_arguments, text_of
from probing.data.tables import Table, canonical
from probing.data.words import starts_word
from probing.errors import DataInvalid
from probing.types import Message, PreferencePair, Text, message_text

log = logging.getLogger(__name__)

USUAL = PairColumns()
DIALOGUE_MARK = "\n\nAssistant:"


def pairs_from_table(
    table: Table, id_column: str | None = None, columns: PairColumns = USUAL
) -> Sequence[PreferencePair]:
    """All rows of a table as pairs, in order. See ``pairs_from_rows``."""
    return pairs_from_rows(table.rows, table.where, id_column, columns)


def pairs_from_rows(
    rows: Sequence[Row],
    where: Where = "row {}".format,
    id_column: str | None = None,
    columns: PairColumns = USUAL,
) -> Sequence[PreferencePair]:
    """Rows as pairs, in order. Where rows are made when they are asked for, so are the pairs.

    The accepted forms are ``prompt``/``chosen``/``rejected`` as text or as lists of messages; the same without
    ``prompt`` where the responses are whole conversations, as lists of messages or in one string
    (``\\n\\nHuman: ... \\n\\nAssistant: ...``), of which the prompt is what both share; and the layouts of
    ``docs/data.md``, whose columns have other names. Which columns were read there is said in the log.

    Args:
        rows: mappings with at least two responses.
        where: names a row for messages, given its index.
        id_column: column of the ids; by default ``id`` if there is one, otherwise ids are made from the content.
        columns: other names of columns, and whether plain responses may lack a prompt.

    Raises:
        DataInvalid: a missing column, a wrong type, a duplicate id, responses in plain text without a prompt, neither
            response preferred; names the row.
        UsageError: a column that is named does not exist.
    """
    reader = _Reader.of(rows, where, id_column, columns)
    sides: Sequence[tuple[Text, Text, Text]] = LazySequence(len(rows), lambda index: reader.sides(index, rows[index]))
    sides = list(sides) if is_in_memory(rows) else sides
    ids = row_ids(rows, sides, where, id_column)

    def make(index: int) -> PreferencePair:
        row = rows[index]
        return reader.pair(index, row, ids[index], reader.sides(index, row))

    if is_in_memory(rows):
        pairs: Sequence[PreferencePair] = [reader.pair(at, row, ids[at], sides[at]) for at, row in enumerate(rows)]
    else:
        pairs = lazy = LazyPairs(ids, make)
        # Every row is read once before anything is done with the first one.
        _ = lazy.facts
    tell_columns(reader.found, rows, reader.mapped)
    return pairs


class LazyPairs(LazySequence[PreferencePair]):
    """Pairs of which each is made anew whenever it is asked for.

    Args:
        ids: their ids.
        make: makes the pair with this number.
    """

    def __init__(self, ids: Sequence[str], make: Callable[[int], PreferencePair]) -> None:
        super().__init__(len(ids), make)
        self.ids = ids

    def take(self, indices: Sequence[int]) -> "LazyPairs":
        """The pairs with these numbers, in the order given."""
        return LazyPairs(pick(self.ids, indices), lambda number: self[indices[number]])

    @cached_property
    def facts(self) -> "PairFacts":
        """What is known of all pairs together."""
        return PairFacts.of(self)


@dataclass(frozen=True)
class PairFacts:
    """What is known of all pairs together, after one look at each.

    Attributes:
        content_sha256: a hash of ids and texts that does not depend on the order of the rows, nor on further columns.
        first_conversation: number of the first pair that is made of messages; None where there is none.
        arguments: arguments that conversations give the chat template, each once, in the order of the pairs.
    """

    content_sha256: str
    first_conversation: int | None
    arguments: Sequence[Any]

    @classmethod
    def of(cls, pairs: Sequence[PreferencePair]) -> "PairFacts":
        """The facts of some pairs."""
        arguments: dict[bytes, Any] = {}
        conversations = array("q")

        def look(at: int, pair: PreferencePair) -> tuple[bytes, bytes]:
            if pair.conversational:
                conversations.extend([at] if not conversations else [])
                arguments.setdefault(canonical(pair.chat_template_kwargs or {}), pair.chat_template_kwargs)
            # What is hashed begins with the id, and no id as JSON begins with another one: ids alone are sorted.
            return canonical(pair.id), _content(pair)

        digest = hashlib.sha256()
        for _, content in sort_aside(look(at, pair) for at, pair in enumerate(pairs)):
            digest.update(content)
        return cls(digest.hexdigest(), conversations[0] if conversations else None, list(arguments.values()))


def list_pair_ids(pairs: Sequence[PreferencePair]) -> Sequence[str]:
    """The ids of pairs, which are not made for it where they are made when they are asked for."""
    return pairs.ids if isinstance(pairs, LazyPairs) else [pair.id for pair in pairs]


def find_pairs(pairs: Sequence[PreferencePair], ids: Sequence[str]) -> dict[str, PreferencePair]:
    """The pairs with some ids, by id."""
    wanted = set(ids)
    return {id: pairs[at] for at, id in enumerate(list_pair_ids(pairs)) if id in wanted}


def leave_out_ties(table: Table, columns: PairColumns = USUAL) -> Table:
    """The table without the rows in which neither response was preferred, whose number is said in the log."""
    ties = find_ties(table.rows, columns, table.where)
    if not ties:
        return table
    log.warning(
        "%s: %d of %d rows are ties, in which neither response was preferred; they are left out, the first at %s",
        table.path,
        len(ties),
        len(table.rows),
        table.lines[ties[0]],
    )
    if len(ties) == len(table.rows):
        raise DataInvalid(f"{table.path}: every row is a tie, in which neither response was preferred")
    return table.take(array("q", np.delete(np.arange(len(table.rows)), ties).tobytes()))


def content_sha256(pairs: Sequence[PreferencePair]) -> str:
    """A hash of ids and texts that does not depend on the order of the rows, nor on further columns."""
    facts = pairs.facts if isinstance(pairs, LazyPairs) else PairFacts.of(pairs)
    return facts.content_sha256


def shared_prefix(*sequences: Sequence[Any]) -> int:
    """Number of leading items that all sequences have in common."""
    length = 0
    for items in zip(*sequences, strict=False):
        if any(item != items[0] for item in items):
            break
        length += 1
    return length


def _content(pair: PreferencePair) -> bytes:
    return canonical([pair.id, pair.prompt, pair.chosen, pair.rejected, pair.tools, pair.chat_template_kwargs])


@dataclass
class _Reader:
    """Reads the prompt and the two responses of a row.

    Attributes:
        found: columns that hold them.
        rows: all rows, which say whether a column is missing in one row or in all.
        where: names a row for messages, given its index.
        id_column: column of the ids.
        mapped: number of rows so far whose prompt came from a column.
    """

    found: FoundColumns
    rows: Sequence[Row]
    where: Where
    id_column: str
    mapped: int = 0

    @classmethod
    def of(cls, rows: Sequence[Row], where: Where, id_column: str | None, columns: PairColumns) -> "_Reader":
        """A reader of these rows; the arguments are those of ``pairs_from_rows``."""
        column = id_column if id_column is not None else "id"
        found = find_columns(rows, columns, lambda index: _describe_row(where, index, rows[index], column))
        return cls(found, rows, where, column)

    def pair(self, index: int, row: Row, identity: str, sides: tuple[Text, Text, Text]) -> PreferencePair:
        """The pair that a row is."""
        try:
            return PreferencePair(identity, *sides, *template_arguments(row))
        except (TypeError, ValueError) as error:
            raise DataInvalid(f"{self.where(index)} (id '{identity}'): {error}") from error

    def sides(self, index: int, row: Row) -> tuple[Text, Text, Text]:
        """Prompt, chosen and rejected response of a row."""
        where = _describe_row(self.where, index, row, self.id_column)
        names = self.found.order(row, where)
        chosen, rejected = (text_of(row, name, where, self.rows) for name in names)
        if isinstance(chosen, str) != isinstance(rejected, str):
            raise DataInvalid(f"{where}: one of '{names[0]}' and '{names[1]}' is text, the other a list of messages")
        prompt = self._prompt(row, where, is_whole(chosen) and is_whole(rejected))
        self.mapped += prompt is not None
        if isinstance(chosen, str) and isinstance(rejected, str):
            sides = self._text_sides(prompt, chosen, rejected, row, where)
        else:
            sides = _message_sides(prompt, messages(chosen), messages(rejected), where)
        if self.found.system is None or (prompt is None and self.found.given.system is None):
            return sides
        return _add_system(self._system(row, where), sides, prompt is not None, where)

    def _prompt(self, row: Row, where: str, whole: bool) -> Text | None:
        """The prompt of a row; None where it has none, or has whole conversations that hold their own."""
        name = self.found.prompt
        if name is None or is_missing(row.get(name)) or (whole and self.found.recognised and name != PROMPT):
            return None
        return text_of(row, name, where, self.rows)

    def _text_sides(
        self, prompt: Text | None, chosen: str, rejected: str, row: Row, where: str
    ) -> tuple[Text, Text, Text]:
        """Text as it will be tokenised: a prompt, and responses that continue it."""
        if isinstance(prompt, str):
            # Some datasets give whole dialogues beside their prompt.
            if DIALOGUE_MARK in prompt:
                chosen, rejected = chosen.removeprefix(prompt), rejected.removeprefix(prompt)
            return prompt, chosen, rejected
        if prompt is not None:
            return prompt, _answer(chosen), _answer(rejected)
        cut = _find_dialogue_cut(chosen, rejected)
        if cut is None and not self.found.given.implicit_prompt:
            raise self.found.explain_no_prompt(row, where)
        if cut is None:
            cut = _find_word_cut(chosen, rejected)
        return chosen[:cut], chosen[cut:], rejected[cut:]

    def _system(self, row: Row, where: str) -> str:
        """The system prompt of a row; "" where there is none."""
        name = str(self.found.system)
        if is_empty(row.get(name)):
            return ""
        text = text_of(row, name, where, self.rows)
        if not isinstance(text, str):
            raise DataInvalid(f"{where}: '{name}' must hold system prompts as text, found a list of messages")
        return text


def _describe_row(where: Where, index: int, row: Row, id_column: str) -> str:
    identity = row.get(id_column)
    return where(index) if identity is None else f"{where(index)} (id '{identity}')"


def is_whole(side: Text) -> bool:
    """Whether a response is a whole conversation, which begins with what was asked."""
    return DIALOGUE_MARK in side if isinstance(side, str) else side[0]["role"] in ("user", "system")


def _add_system(system: str, sides: tuple[Text, Text, Text], has_question: bool, where: str) -> tuple[Text, Text, Text]:
    """A conversation with its system prompt; text becomes one."""
    prompt, chosen, rejected = sides
    if isinstance(prompt, str):
        if has_question and not prompt.strip():
            return sides
        if not has_question or DIALOGUE_MARK in prompt:
            raise DataInvalid(
                f"{where}: a system prompt stands before a question, and this row has none in a column of its own; "
                f"name that with --prompt-column, or leave out --system-column"
            )
        prompt = [{"role": "user", "content": prompt}]
        chosen, rejected = (_answer(side) if isinstance(side, str) else side for side in (chosen, rejected))
    opening = messages(prompt)
    if not system:
        return opening, chosen, rejected
    if opening[0]["role"] != "system":
        return [{"role": "system", "content": system}, *opening], chosen, rejected
    if message_text(opening[0]).strip() != system.strip():
        raise DataInvalid(f"{where}: the system prompt in its own column is not the one that the conversation has")
    return opening, chosen, rejected


def _answer(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def _find_dialogue_cut(chosen: str, rejected: str) -> int | None:
    """Where the answers of two dialogues begin: after the last shared turn mark; 0 if not even the first is shared."""
    if not (DIALOGUE_MARK in chosen and DIALOGUE_MARK in rejected):
        return None
    mark = chosen[: shared_prefix(chosen, rejected)].rfind(DIALOGUE_MARK)
    return 0 if mark < 0 else mark + len(DIALOGUE_MARK)


def _find_word_cut(chosen: str, rejected: str) -> int:
    """Position at which two texts differ, moved back to the start of a word and so that neither remainder is empty.

    Cutting at the first differing character would turn "Is it ok? No" and "Is it ok? Never" into "Is it ok? N".
    """
    cut = shared_prefix(chosen, rejected)
    if chosen == rejected:
        cut = len(chosen.rstrip())
    while cut > 0 and not (starts_word(chosen, cut) and starts_word(rejected, cut)):
        cut -= 1
    return len(chosen[:cut].rstrip())


def _message_sides(
    prompt: Text | None, chosen: list[Message], rejected: list[Message], where: str
) -> tuple[Text, Text, Text]:
    if prompt is None:
        return _split_messages(chosen, rejected, where)
    if isinstance(prompt, str):
        shared = _find_turns_around(prompt, chosen, rejected)
        if shared > 1:
            return chosen[:shared], chosen[shared:], rejected[shared:]
    opening = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else messages(prompt)
    sides = []
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if _same_texts(side[: len(opening)], opening):
            side = side[len(opening) :]
        if not side or side[0]["role"] in ("user", "system"):
            raise DataInvalid(
                f"{where}: '{name}' neither begins with the messages of 'prompt' nor with an answer to them"
            )
        sides.append(side)
    return opening, sides[0], sides[1]


def _same_texts(left: Sequence[Message], right: Sequence[Message]) -> bool:
    return [(m["role"], message_text(m).strip()) for m in left] == [(m["role"], message_text(m).strip()) for m in right]


def _find_turns_around(prompt: str, chosen: list[Message], rejected: list[Message]) -> int:
    """Number of messages that two whole conversations share, the text of the prompt among them; otherwise 0.

    In some datasets the prompt is only the first (or the last) of the user's turns that precede the answers.
    """
    shared = _count_shared_messages(chosen, rejected)
    asked = [message_text(message).strip() for message in chosen[:shared] if message["role"] == "user"]
    return shared if prompt.strip() in asked else 0


def _split_messages(chosen: list[Message], rejected: list[Message], where: str) -> tuple[Text, Text, Text]:
    """The messages that both share are the prompt; the last message of each always belongs to the response."""
    shared = _count_shared_messages(chosen, rejected)
    if shared == 0:
        raise DataInvalid(f"{where}: 'chosen' and 'rejected' share no message that could be the prompt")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _count_shared_messages(chosen: list[Message], rejected: list[Message]) -> int:
    """Number of messages before the first answer in which two conversations differ, or before their last ones."""
    shared = shared_prefix(chosen[:-1], rejected[:-1])
    while shared > 0 and chosen[shared]["role"] != "assistant":
        shared -= 1
    return shared
