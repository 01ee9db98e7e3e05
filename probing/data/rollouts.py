"""Rows of prompts with several responses and their rewards, as ``RolloutGroup``."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from probing.data.cells import plain_value
from probing.data.columns import ColumnResolver
from probing.data.formats import Row
from probing.data.rows import Where, check_characters, messages, row_ids, template_arguments, text_of
from probing.data.tables import Table, canonical
from probing.errors import DataInvalid
from probing.store.plain_json import parse_json
from probing.types import RolloutGroup, Text

PROMPT_COLUMNS = ("prompt", "question", "problem", "instruction", "messages")
RESPONSES_COLUMNS = ("responses", "completions", "generations")
REWARDS_COLUMNS = ("rewards", "scores")
RESPONSE_MARK = "#"
"""Mark between the id of a group and the number of its response."""


@dataclass(frozen=True)
class RolloutColumns:
    """Which columns of a table hold the groups; by default what they are usually called."""

    prompt: str | None = None
    responses: str | None = None
    rewards: str | None = None


def rollouts_from_table(
    table: Table, id_column: str | None = None, columns: RolloutColumns = RolloutColumns()
) -> list[RolloutGroup]:
    """All rows of a table as groups, in order. See ``rollouts_from_rows``."""
    return rollouts_from_rows(table.rows, table.where, id_column, columns, table.path)


def rollouts_from_rows(
    rows: Sequence[Row],
    where: Where = "row {}".format,
    id_column: str | None = None,
    columns: RolloutColumns = RolloutColumns(),
    name: str = "the data",
) -> list[RolloutGroup]:
    """Rows as groups, in order.

    Args:
        rows: each with a prompt (text or messages), a list of responses (texts, or lists of messages), and a list of as
            many rewards (numbers, true or false, or null). Where messages and text meet, text becomes a message: the
            prompt one of the user, a response one of the assistant.
        where: names a row for messages, given its index.
        id_column: column of the ids; by default ``id`` if there is one, otherwise ids are made from the content.
        columns: other names of columns.
        name: name of all rows, for messages.

    Raises:
        DataInvalid: a missing column, a wrong type, a duplicate id, no responses, as many rewards as there are not
            responses; names the row.
        UsageError: a column that is named does not exist.
    """
    found = _find_columns(rows, columns, name)
    sides = [_read_sides(row, found, where(index), rows) for index, row in enumerate(rows)]
    ids = row_ids(rows, sides, where, id_column)
    return [_make_group(ids[index], row, sides[index], where(index)) for index, row in enumerate(rows)]


def name_response(group: str, number: int) -> str:
    """The id of a response of a group."""
    return f"{group}{RESPONSE_MARK}{number}"


def content_sha256(groups: Iterable[RolloutGroup]) -> str:
    """A hash of ids, texts and rewards that does not depend on the order of the rows, nor on further columns."""
    parts = sorted(
        canonical([g.id, g.prompt, list(g.responses), list(g.rewards), g.tools, g.chat_template_kwargs]) for g in groups
    )
    return hashlib.sha256(b"\n".join(parts)).hexdigest()


def _find_columns(rows: Sequence[Row], columns: RolloutColumns, name: str) -> tuple[str, str, str]:
    """The columns of prompts, responses and rewards."""
    resolver = ColumnResolver.of(rows, name)
    found = []
    for role, named, usual in (
        ("prompt", columns.prompt, PROMPT_COLUMNS),
        ("responses", columns.responses, RESPONSES_COLUMNS),
        ("rewards", columns.rewards, REWARDS_COLUMNS),
    ):
        column = resolver.find(named, usual)
        if column is None:
            raise resolver.explain_missing(f"there is no column of the {role} ({', '.join(usual)})", f"--{role}-column")
        found.append(column)
    return found[0], found[1], found[2]


def _read_sides(
    row: Row, columns: tuple[str, str, str], where: str, rows: Sequence[Row]
) -> tuple[Text, list[Text], list[float | None]]:
    """Prompt, responses and rewards of a row."""
    prompt = text_of(row, columns[0], where, rows)
    listed = _read_list(row, columns[1], where)
    responses = [
        text_of({columns[1]: each}, columns[1], f"{where}, response {n}", rows) for n, each in enumerate(listed)
    ]
    rewards = [
        _read_reward(each, columns[2], f"{where}, reward {n}")
        for n, each in enumerate(_read_list(row, columns[2], where))
    ]
    if isinstance(prompt, str) and all(isinstance(response, str) for response in responses):
        return prompt, responses, rewards
    opening = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else messages(prompt)
    return opening, [_to_answer(response, where) for response in responses], rewards


def _to_answer(response: Text, where: str) -> Text:
    """A response as messages, which follow the prompt."""
    if isinstance(response, str):
        return [{"role": "assistant", "content": response}]
    if response[0]["role"] in ("user", "system"):
        raise DataInvalid(
            f"{where}: a response begins with a message of the {response[0]['role']}; give responses without the prompt"
        )
    return response


def _read_list(row: Row, name: str, where: str) -> list[Any]:
    """A list in one column of a row, also where CSV holds it as text."""
    value: Any = row.get(name)
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, str):
        check_characters(value, name, where)
        try:
            value = parse_json(value)
        except ValueError as error:
            raise DataInvalid(f"{where}: '{name}' must be a list, found text that is none ({value!r:.40})") from error
    if not isinstance(value, list | tuple):
        raise DataInvalid(f"{where}: '{name}' must be a list, found {type(value).__name__} ({value!r:.40})")
    if not value:
        raise DataInvalid(f"{where}: '{name}' is an empty list")
    return list(value)


def _read_reward(value: Any, name: str, where: str) -> float | None:
    reward = plain_value(value)
    if reward is not None and not isinstance(reward, int | float):
        raise DataInvalid(f"{where}: '{name}' must hold numbers, or true and false, found {value!r:.40}")
    return None if reward is None else float(reward)


def _make_group(id: str, row: Row, sides: tuple[Text, list[Text], list[float | None]], where: str) -> RolloutGroup:
    try:
        return RolloutGroup(id, *sides, *template_arguments(row))
    except (TypeError, ValueError) as error:
        raise DataInvalid(f"{where} (id '{id}'): {error}") from error
