"""Rows of a preference dataset, in any of the shapes found in practice, as ``PreferencePair``."""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from probing.data.tables import NotJson, Row, Table, canonical
from probing.errors import DataInvalid
from probing.types import Message, PreferencePair, Text, check_message, message_text

DIALOGUE_MARK = "\n\nAssistant:"
JOINERS = "\u200c\u200d"
CONNECTORS = "'’._-"
Where = Callable[[int], str]


def pairs_from_table(table: Table, id_column: str | None = None) -> list[PreferencePair]:
    """All rows of a table as pairs, in order. See ``pairs_from_rows``."""
    return pairs_from_rows(table.rows, table.where, id_column)


def pairs_from_rows(
    rows: Sequence[Row], where: Where = "row {}".format, id_column: str | None = None
) -> list[PreferencePair]:
    """Rows as pairs, in order.

    Understood are ``prompt``/``chosen``/``rejected`` as text or as lists of messages; the same without ``prompt``,
    which is then what the two responses begin with; and whole dialogues in one string
    (``\\n\\nHuman: ... \\n\\nAssistant: ...``).

    Args:
        rows: mappings with at least ``chosen`` and ``rejected``.
        where: names a row for messages, given its index.
        id_column: column of the ids; by default ``id`` if there is one, otherwise ids are made from the content.

    Raises:
        DataInvalid: a missing column, a wrong type, a duplicate id; names the row.
    """
    column = id_column if id_column is not None else "id"

    def named(index: int) -> str:
        identity = rows[index].get(column)
        return where(index) if identity is None else f"{where(index)} (id '{identity}')"

    sides = [_sides(row, named(index), rows) for index, row in enumerate(rows)]
    ids = row_ids(rows, sides, where, id_column)
    pairs = []
    for index, (row, (prompt, chosen, rejected)) in enumerate(zip(rows, sides, strict=True)):
        try:
            tools, options = (without_none(row.get(name)) or None for name in ("tools", "chat_template_kwargs"))
            pairs.append(PreferencePair(ids[index], prompt, chosen, rejected, tools, options))
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


def text_of(row: Row, name: str, where: str, rows: Sequence[Row]) -> Text:
    """Text or messages in one column of a row.

    Raises:
        DataInvalid: there is no such column, or it holds something else.
    """
    if name not in row:
        if not any(name in other for other in rows):
            raise DataInvalid(f"{where}: there is no column '{name}'; the columns are {', '.join(map(str, row))}")
        raise DataInvalid(f"{where}: this row has no '{name}', though others have; it holds {', '.join(map(str, row))}")
    value = row[name].tolist() if hasattr(row[name], "tolist") else row[name]
    if isinstance(value, NotJson):
        raise DataInvalid(f"{where}: '{name}' holds messages in Python's notation; write them as JSON (double quotes)")
    if isinstance(value, str):
        _check_characters(value, name, where)
        return value
    if not isinstance(value, Sequence) or isinstance(value, bytes) or not value:
        shown = (
            "an empty list" if isinstance(value, Sequence) and not value else f"{type(value).__name__} ({value!r:.40})"
        )
        raise DataInvalid(f"{where}: '{name}' must be text or a list of messages, found {shown}")
    found = [_message(message, name, where) for message in value]
    for message in found:
        _check_characters(message["role"] + message_text(message), name, where)
    return found


def _message(message: Any, name: str, where: str) -> Message:
    if isinstance(message, Mapping):
        message = {**without_none(message), "content": message.get("content")}
    try:
        check_message(message, name)
    except (TypeError, ValueError) as error:
        raise DataInvalid(f"{where}: {error}") from error
    return message


def without_none(value: Any) -> Any:
    """The value without the None that tables fill in for keys that only other rows have."""
    if isinstance(value, Mapping):
        return {key: without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_none(inner) for inner in value]
    return value


def _check_characters(text: str, name: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataInvalid(
            f"{where}: '{name}' holds half of a surrogate pair at character {error.start}, which is no text; remove it"
        ) from error


def _text_sides(prompt: Text | None, chosen: str, rejected: str) -> tuple[Text, Text, Text]:
    """Text as it will be tokenised: a prompt, and responses that continue it."""
    if isinstance(prompt, str):
        if DIALOGUE_MARK in prompt:  # whole dialogues may stand beside their prompt
            chosen, rejected = chosen.removeprefix(prompt), rejected.removeprefix(prompt)
        return prompt, chosen, rejected
    if prompt is not None:
        return prompt, _answer(chosen), _answer(rejected)
    cut = _dialogue_cut(chosen, rejected)
    if cut is None:
        cut = _word_cut(chosen, rejected)
    return chosen[:cut], chosen[cut:], rejected[cut:]


def messages(text: Text) -> list[Message]:
    """A conversation as a list.

    Raises:
        TypeError: it is plain text.
    """
    if isinstance(text, str):
        raise TypeError("expected a list of messages, found text")
    return list(text)


def _answer(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def _dialogue_cut(chosen: str, rejected: str) -> int | None:
    """Where the answers of two dialogues begin: after the last shared turn mark; 0 if not even the first is shared."""
    if not (DIALOGUE_MARK in chosen and DIALOGUE_MARK in rejected):
        return None
    mark = chosen[: shared_prefix(chosen, rejected)].rfind(DIALOGUE_MARK)
    return 0 if mark < 0 else mark + len(DIALOGUE_MARK)


def _word_cut(chosen: str, rejected: str) -> int:
    """Where two texts part, moved back to the start of a word and to where both still have something to say.

    Cutting at the first differing character would turn "Is it ok? No" and "Is it ok? Never" into "Is it ok? N".
    """
    cut = shared_prefix(chosen, rejected)
    if chosen == rejected:
        cut = len(chosen.rstrip())
    while cut > 0 and not (_starts_word(chosen, cut) and _starts_word(rejected, cut)):
        cut -= 1
    return len(chosen[:cut].rstrip())


def _starts_word(text: str, cut: int) -> bool:
    """Whether something is left after ``cut``, and no word or sign is cut in two there."""
    if not text[cut:].strip() or _clings(text[cut]) or text[cut - 1] in JOINERS:
        return False
    return not (_in_word(text, cut - 1) and _in_word(text, cut))


def _clings(character: str) -> bool:
    """Combining marks, joiners, variation selectors and skin tones belong to the character before them."""
    return character in JOINERS or unicodedata.category(character) in ("Mn", "Mc", "Me", "Sk")


def _in_word(text: str, index: int) -> bool:
    """Letters and digits of scripts that put spaces between words, what clings to them, and "'" or "." amid them."""
    character = text[index]
    if character in CONNECTORS:
        return 0 < index < len(text) - 1 and text[index - 1].isalnum() and text[index + 1].isalnum()
    if _clings(character):
        return True
    # An ideograph is a word of its own.
    return character.isalnum() and unicodedata.east_asian_width(character) not in "WF"


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


def row_ids(rows: Sequence[Row], sides: Sequence[Sequence[Any]], where: Where, id_column: str | None) -> list[str]:
    """An id a row: from its column, or made from the texts (``sides``) where there is none.

    Raises:
        DataInvalid: an id is missing, empty or used twice; names the row.
    """
    column = id_column if id_column is not None else "id"
    present = [row.get(column) is not None for row in rows]
    if id_column is None and not any(present):
        return _content_ids(rows, sides)
    if not all(present):
        bare = present.index(False)
        raise DataInvalid(
            f"{where(bare)}: there is no id in column '{column}'; the columns are {', '.join(rows[bare])}"
        )
    seen: dict[str, int] = {}
    for index, row in enumerate(rows):
        identity = str(row[column])
        _check_characters(identity, column, where(index))
        if not identity:
            raise DataInvalid(f"{where(index)}: the id in column '{column}' is empty")
        if identity in seen:
            raise DataInvalid(
                f"{where(index)}: id '{identity}' in column '{column}' was already used at {where(seen[identity])}; "
                f"make ids unique, or name another column with --id-column"
            )
        seen[identity] = index
    return list(seen)


def _content_ids(rows: Sequence[Row], sides: Sequence[Sequence[Any]]) -> list[str]:
    """Ids from the texts alone; equal texts are numbered by the rest of their row, so that row order never matters."""
    groups = defaultdict(list)
    for index, parts in enumerate(sides):
        groups[hashlib.sha256(canonical(list(parts))).hexdigest()[:16]].append(index)
    ids = [""] * len(rows)
    for identity, members in groups.items():
        members.sort(key=lambda index: canonical(rows[index]))
        for number, index in enumerate(members):
            ids[index] = identity if number == 0 else f"{identity}-{number + 1}"
    return ids
