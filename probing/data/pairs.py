"""Rows of a preference dataset, in any of the shapes found in practice, as ``PreferencePair``."""

import hashlib
from collections.abc import Sequence
from typing import Any

from probing.data.rows import Where, messages, row_ids, template_arguments, text_of
from probing.data.tables import Row, Table, canonical
from probing.data.words import starts_word
from probing.errors import DataInvalid
from probing.types import Message, PreferencePair, Text, message_text

DIALOGUE_MARK = "\n\nAssistant:"


def pairs_from_table(table: Table, id_column: str | None = None) -> list[PreferencePair]:
    """All rows of a table as pairs, in order. See ``pairs_from_rows``."""
    return pairs_from_rows(table.rows, table.where, id_column)


def pairs_from_rows(
    rows: Sequence[Row], where: Where = "row {}".format, id_column: str | None = None
) -> list[PreferencePair]:
    """Rows as pairs, in order.

    The accepted forms are ``prompt``/``chosen``/``rejected`` as text or as lists of messages; the same without
    ``prompt``, which is then what the two responses begin with; and whole dialogues in one string
    (``\\n\\nHuman: ... \\n\\nAssistant: ...``).

    Args:
        rows: mappings with at least ``chosen`` and ``rejected``.
        where: names a row for messages, given its index.
        id_column: column of the ids; by default ``id`` if there is one, otherwise ids are made from the content.

    Raises:
        DataInvalid: a missing column, a wrong type, a duplicate id; names the row.
    """
    column = id_column if id_column is not None else "id"

    def describe_row(index: int) -> str:
        identity = rows[index].get(column)
        return where(index) if identity is None else f"{where(index)} (id '{identity}')"

    sides = [_sides(row, describe_row(index), rows) for index, row in enumerate(rows)]
    ids = row_ids(rows, sides, where, id_column)
    pairs = []
    for index, (row, (prompt, chosen, rejected)) in enumerate(zip(rows, sides, strict=True)):
        try:
            pairs.append(PreferencePair(ids[index], prompt, chosen, rejected, *template_arguments(row)))
        except (TypeError, ValueError) as error:
            raise DataInvalid(f"{where(index)} (id '{ids[index]}'): {error}") from error
    return pairs


def content_sha256(pairs: Sequence[PreferencePair]) -> str:
    """A hash of ids and texts that does not depend on the order of the rows, nor on further columns."""
    return hashlib.sha256(b"".join(sorted(map(_content, pairs)))).hexdigest()


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


def _sides(row: Row, where: str, rows: Sequence[Row]) -> tuple[Text, Text, Text]:
    chosen, rejected = (text_of(row, name, where, rows) for name in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataInvalid(f"{where}: one of 'chosen' and 'rejected' is text, the other a list of messages")
    prompt = row.get("prompt")
    if prompt is not None:
        prompt = text_of(row, "prompt", where, rows)
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _text_sides(prompt, chosen, rejected)
    return _message_sides(prompt, messages(chosen), messages(rejected), where)


def _text_sides(prompt: Text | None, chosen: str, rejected: str) -> tuple[Text, Text, Text]:
    """Text as it will be tokenised: a prompt, and responses that continue it."""
    if isinstance(prompt, str):
        # Some datasets give whole dialogues beside their prompt.
        if DIALOGUE_MARK in prompt:
            chosen, rejected = chosen.removeprefix(prompt), rejected.removeprefix(prompt)
        return prompt, chosen, rejected
    if prompt is not None:
        return prompt, _answer(chosen), _answer(rejected)
    cut = _find_dialogue_cut(chosen, rejected)
    if cut is None:
        cut = _find_word_cut(chosen, rejected)
    return chosen[:cut], chosen[cut:], rejected[cut:]


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


def _split_messages(chosen: list[Message], rejected: list[Message], where: str) -> tuple[Text, Text, Text]:
    """The messages that both share are the prompt; the last message of each always belongs to the response."""
    shared = shared_prefix(chosen[:-1], rejected[:-1])
    while shared > 0 and chosen[shared]["role"] != "assistant":
        shared -= 1
    if shared == 0:
        raise DataInvalid(f"{where}: 'chosen' and 'rejected' share no message that could be the prompt")
    return chosen[:shared], chosen[shared:], rejected[shared:]
