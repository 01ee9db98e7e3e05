"""Parts of a row that every reader needs: text or messages, id, arguments of the chat template."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.data.aside import find_repeated, is_in_memory, keep_aside, sort_aside
from probing.data.cells import drop_none, is_empty, plain_value
from probing.data.formats import MOST_CHARACTERS, NotJson, Row, explain_too_long, is_message, parse_cell
from probing.data.lazy import LazySequence
from probing.data.tables import canonical
from probing.errors import DataInvalid
from probing.store.plain_json import parse_json
from probing.types import Message, Text, check_message, message_text

Where = Callable[[int], str]
"""Names a row for messages, given its index."""
RESERVED_ARGUMENTS = frozenset(
    # What rendering is asked for, what tokenising would be, what a template finds under its own names, special tokens.
    "self where conversation conversations messages tools tokenizer add_generation_prompt continue_final_message "
    "tokenize sanitize_control_tokens padding truncation max_length return_tensors return_dict "
    "return_assistant_tokens_mask tokenizer_kwargs raise_exception strftime_now namespace dict range "
    "bos_token eos_token unk_token sep_token pad_token cls_token mask_token additional_special_tokens".split()
)
"""Names that a row's ``chat_template_kwargs`` cannot have."""
SENDERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
"""The role of each sender of a message that is written as ``{"from": ..., "value": ...}``."""


def text_of(row: Row, name: str, where: str, rows: Sequence[Row]) -> Text:
    """Text or messages in one column of a row.

    Raises:
        DataInvalid: there is no such column, or it holds neither text nor messages.
    """
    if name not in row:
        if not any(name in other for other in rows):
            raise DataInvalid(f"{where}: there is no column '{name}'; the columns are {', '.join(map(str, row))}")
        raise DataInvalid(f"{where}: this row has no '{name}', though others have; it holds {', '.join(map(str, row))}")
    value = row[name].tolist() if hasattr(row[name], "tolist") else row[name]
    if isinstance(value, str):
        # CSV has no other way to hold messages, and files of other formats hold them as text, too.
        value = parse_cell(value)
    if isinstance(value, NotJson):
        raise DataInvalid(
            f"{where}: '{name}' holds messages that are no JSON; in Python's notation, for instance, write them with "
            f"double quotes"
        )
    if is_message(value):
        value = [value]
    if isinstance(value, str):
        check_characters(value, name, where)
        return value
    if not isinstance(value, Sequence) or isinstance(value, bytes) or not value:
        shown = (
            "an empty list" if isinstance(value, Sequence) and not value else f"{type(value).__name__} ({value!r:.40})"
        )
        raise DataInvalid(f"{where}: '{name}' must be text or a list of messages, found {shown}")
    conversation = [_message(message, name, where) for message in value]
    for message in conversation:
        check_characters(message["role"] + message_text(message), name, where)
    if sum(len(message_text(message)) for message in conversation) > MOST_CHARACTERS:
        raise explain_too_long(f"{where}: '{name}'")
    return conversation


def _message(message: Any, name: str, where: str) -> Message:
    if isinstance(message, Mapping):
        kept = drop_none(message)
        foreign = "role" not in kept and is_message(kept)
        message = _respell(kept, name, where) if foreign else {**kept, "content": message.get("content")}
    try:
        check_message(message, name)
    except (TypeError, ValueError) as error:
        raise DataInvalid(f"{where}: {error}") from error
    return message


def _respell(message: Mapping[str, Any], name: str, where: str) -> Message:
    """A message as ShareGPT writes it, in the words of chat templates."""
    sender = message["from"]
    role = SENDERS.get(sender) if isinstance(sender, str) else None
    if role is None:
        raise DataInvalid(f"{where}: '{name}' has a message from {sender!r:.40}; senders are {', '.join(SENDERS)}")
    return {"role": role, "content": message["value"]}


def messages(text: Text) -> list[Message]:
    """A conversation as a list.

    Raises:
        TypeError: the value is plain text.
    """
    if isinstance(text, str):
        raise TypeError("expected a list of messages, found text")
    return list(text)


def has_text(side: Text) -> bool:
    """Whether a text or a conversation holds more than white space."""
    if isinstance(side, str):
        return bool(side.strip())
    return any(message_text(message).strip() or message.get("tool_calls") for message in side)


def check_characters(text: str, name: str, where: str) -> None:
    """Raise ``DataInvalid`` if a text is too long or cannot be written as UTF-8; names the column and the row."""
    if len(text) > MOST_CHARACTERS:
        raise explain_too_long(f"{where}: '{name}'")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataInvalid(
            f"{where}: '{name}' holds half of a surrogate pair at character {error.start}, which is no text; remove it"
        ) from error


def template_arguments(row: Row) -> tuple[Any, Any]:
    """Tool schemas, and further arguments of the chat template; None where a row has none.

    Raises:
        TypeError: the tools are no list of objects (nor one as JSON text), or the arguments no object of plain values.
        ValueError: an argument has a reserved name.
    """
    try:
        arguments = drop_none(row.get("chat_template_kwargs")) or None
        check_template_arguments(arguments)
        return _tools(row.get("tools")), arguments
    except RecursionError as error:
        raise ValueError("'tools' or 'chat_template_kwargs' is nested too deeply") from error


def _tools(value: Any) -> list[Any] | None:
    """Tool schemas as a list; datasets that have other columns of lists often hold them as JSON text."""
    tools = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(tools, str) and tools.strip():
        try:
            tools = parse_json(tools)
        except ValueError as error:
            raise TypeError(f"'tools' is text that is no JSON ({error}); give a list of objects") from error
    if not tools or (isinstance(tools, str) and not tools.strip()):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise TypeError(f"'tools' must be a list of objects, or one as JSON text, not {tools!r:.60}")
    return [drop_none(tool) for tool in tools]


def check_template_arguments(arguments: Any) -> None:
    """Raise unless these are arguments that a row may give the chat template.

    Raises:
        TypeError: no mapping with text as keys, or a value that JSON does not have.
        ValueError: a reserved name.
    """
    if arguments is None:
        return
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise TypeError(f"'chat_template_kwargs' must be an object like {{'name': value}}, not {arguments!r:.60}")
    if "chat_template" in arguments:
        raise ValueError(
            "'chat_template_kwargs' brings a chat template of its own, which would replace the model's; no template "
            "is taken from data: set it on the tokenizer"
        )
    reserved = [name for name in arguments if name in RESERVED_ARGUMENTS]
    if reserved:
        raise ValueError(f"'chat_template_kwargs' holds '{reserved[0]}', which is set for every row alike; remove it")
    for name, value in arguments.items():
        if not _is_plain(value):
            raise TypeError(f"'chat_template_kwargs': '{name}' must be a plain JSON value, not {value!r:.60}")


def _is_plain(value: Any) -> bool:
    """Whether JSON could hold a value."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def row_ids(rows: Sequence[Row], sides: Sequence[Sequence[Any]], where: Where, id_column: str | None) -> Sequence[str]:
    """An id a row: from its column, or made from the texts (``sides``) where there is none.

    Where rows are not in memory, their ids are not either.

    Raises:
        DataInvalid: an id is missing, empty, used twice, or neither text nor a finite number; names the row.
    """
    column = id_column if id_column is not None else "id"
    if id_column is None and all(row.get(column) is None for row in rows):
        return _content_ids(rows, sides)
    read = (_read_id(row, column, where(index)) for index, row in enumerate(rows))
    ids: Sequence[str] = list(read) if is_in_memory(rows) else keep_aside(read)
    repeated = find_repeated(ids)
    if repeated is not None:
        earlier, index = repeated
        raise DataInvalid(
            f"{where(index)}: id '{ids[index]}' in column '{column}' was already used at {where(earlier)}; make ids "
            f"unique, or name another column with --id-column"
        )
    return ids


def _read_id(row: Row, column: str, where: str) -> str:
    value = row.get(column)
    if is_empty(value) and isinstance(value, str):
        raise DataInvalid(f"{where}: the id in column '{column}' is empty")
    if is_empty(value):
        raise DataInvalid(f"{where}: there is no id in column '{column}'; the columns are {', '.join(row)}")
    _check_id(value, f"{where}: the id in column '{column}'")
    check_characters(str(value), column, where)
    return str(value)


def _check_id(value: Any, name: str) -> None:
    """Raise unless a value can tell rows apart: 1 and true, or two infinities, would be the same or no id at all."""
    value = plain_value(value)
    if isinstance(value, bool | Mapping | list | tuple | set | bytes):
        raise DataInvalid(f"{name} must be text or a number, not {type(value).__name__} ({value!r:.40})")
    if isinstance(value, float) and not math.isfinite(value):
        raise DataInvalid(f"{name} must be finite, not {value} (a number such as 1e400 is too large)")


def _content_ids(rows: Sequence[Row], sides: Sequence[Sequence[Any]]) -> Sequence[str]:
    """Ids from the texts alone; equal texts are numbered by the rest of their row, so that row order never matters."""
    digests = (hashlib.sha256(canonical(list(parts))).digest()[:8] for parts in sides)
    keys = np.fromiter((int.from_bytes(digest) for digest in digests), np.uint64, len(rows))
    ordered = np.sort(keys)
    several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    numbers = _number_equal(rows, keys, np.flatnonzero(np.isin(keys, several))) if len(several) else None

    def make(index: int) -> str:
        identity = f"{keys[index]:016x}"
        return f"{identity}-{numbers[index] + 1}" if numbers is not None and numbers[index] else identity

    ids = LazySequence(len(rows), make)
    return list(ids) if is_in_memory(rows) else ids


def _number_equal(rows: Sequence[Row], keys: NDArray[np.uint64], among: NDArray[np.int64]) -> NDArray[np.int32]:
    """A number for every row, from 0 among those with the same key, in the order of the whole rows.

    Args:
        rows: all rows.
        keys: key of each row.
        among: rows whose key others have, too.
    """
    numbers = np.zeros(len(rows), np.int32)
    items = ((int(keys[at]).to_bytes(8) + canonical(rows[at]), at.to_bytes(8)) for at in among.tolist())
    latest, count = b"", 0
    for key, content in sort_aside(items):
        latest, count = key[:8], count + 1 if key[:8] == latest else 0
        numbers[int.from_bytes(content)] = count
    return numbers
