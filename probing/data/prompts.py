"""Rows of any dataset as texts with labels."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from probing.data.aside import is_in_memory
from probing.data.cells import plain_value
from probing.data.columns import ColumnResolver
from probing.data.formats import Row
from probing.data.lazy import LazySequence
from probing.data.pair_columns import PairColumns
from probing.data.pairs import USUAL, pairs_from_rows
from probing.data.rows import Where, row_ids, template_arguments, text_of
from probing.data.tables import Table
from probing.errors import DataInvalid, UsageError
from probing.types import LabelledPrompt, PreferencePair, Text

TEXT_COLUMNS = ("text", "prompt", "instruction", "question", "statement", "messages")
RESPONSE_COLUMNS = ("response", "completion")
SIDE_MARK = "#"
"""Mark between the id of a pair and the name of its side."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what; by default what they are usually called.

    ``pairs`` says how rows with two responses are read.
    """

    id: str | None = None
    text: str | None = None
    response: str | None = None
    label: str | None = None
    category: str | None = None
    span: str | None = None
    pairs: PairColumns = USUAL


def prompts_from_table(table: Table, columns: Columns, substring: str | None = None) -> list[LabelledPrompt]:
    """All rows of a table, in order. See ``prompts_from_rows``."""
    return list(read_prompts(table, columns, substring))


def read_prompts(table: Table, columns: Columns, substring: str | None = None) -> Sequence[LabelledPrompt]:
    """The same, made when they are asked for where the rows of the table are."""
    return _read_rows(table.rows, columns, substring, table.where, table.path)


def prompts_from_rows(
    rows: Sequence[Row],
    columns: Columns,
    substring: str | None = None,
    where: Where = "row {}".format,
    name: str = "the data",
) -> list[LabelledPrompt]:
    """Rows as texts, in order; a preference pair becomes two, ``ID#chosen`` and ``ID#rejected``.

    Args:
        rows: rows with a column of texts or conversations (by default the first of ``text``, ``prompt``,
            ``instruction``, ``question``, ``statement``, ``messages``), or with ``chosen`` and ``rejected``.
        columns: other names of columns.
        substring: the span that counts, in every row.
        where: names a row for messages, given its index.
        name: name of all rows, for messages.

    Raises:
        DataInvalid: a missing column, a wrong type, a duplicate id; names the row.
        UsageError: a column that does not exist, or that pairs do not use; a span named twice.
    """
    return list(_read_rows(rows, columns, substring, where, name))


def _read_rows(
    rows: Sequence[Row], columns: Columns, substring: str | None, where: Where, name: str
) -> Sequence[LabelledPrompt]:
    resolver = ColumnResolver.of(rows, name)
    named = [columns.text, columns.response, columns.label, columns.category, columns.span]
    for column in named:
        resolver.find(column)
    if substring is not None and columns.span is not None:
        raise UsageError("the span is given twice: as a substring and as a column")
    if columns.text is None and ({"chosen", "rejected"} <= set(resolver.present) or columns.pairs.named):
        if any(column is not None for column in named):
            raise UsageError(f"{name}: preference pairs are read by their own columns; leave out the names of others")
        pairs = pairs_from_rows(rows, where, columns.id, columns.pairs)
        sides = LazySequence(2 * len(pairs), lambda at: _sides(pairs[at // 2], substring)[at % 2])
        return list(sides) if is_in_memory(rows) else sides
    if columns.pairs != USUAL:
        raise UsageError(f"{name}: the texts are in a column of their own; leave out what is said of pairs")
    text = resolver.find(columns.text, TEXT_COLUMNS)
    if text is None:
        raise resolver.explain_missing(
            f"no column of texts ({', '.join(TEXT_COLUMNS)}, or chosen and rejected)", "--text-column"
        )
    return _read_texts(rows, columns, (text, resolver.find(columns.response, RESPONSE_COLUMNS)), substring, where)


def _read_texts(
    rows: Sequence[Row], columns: Columns, found: tuple[str, str | None], substring: str | None, where: Where
) -> Sequence[LabelledPrompt]:
    """Rows whose texts and responses are in these columns."""
    text, response = found

    def read(index: int, row: Row) -> tuple[Text, Text | None, Any]:
        answer = None if response is None or row.get(response) is None else response
        return (
            text_of(row, text, where(index), rows),
            None if answer is None else text_of(row, answer, where(index), rows),
            substring if columns.span is None else _span(row.get(columns.span)),
        )

    ids = row_ids(rows, LazySequence(len(rows), lambda index: read(index, rows[index])), where, columns.id)

    def make(index: int) -> LabelledPrompt:
        row = rows[index]
        said, answered, span = read(index, row)
        return _make_prompt(ids[index], row, columns, text=said, response=answered, span=span, where=where(index))

    prompts = LazySequence(len(rows), make)
    if is_in_memory(rows):
        return list(prompts)
    # Every row is read once before anything is done with the first one.
    for _ in prompts:
        pass
    return prompts


def _sides(pair: PreferencePair, substring: str | None) -> list[LabelledPrompt]:
    return [
        LabelledPrompt(
            f"{pair.id}{SIDE_MARK}{name}",
            pair.prompt,
            label=name,
            response=getattr(pair, name),
            span=substring,
            tools=pair.tools,
            chat_template_kwargs=pair.chat_template_kwargs,
        )
        for name in ("chosen", "rejected")
    ]


def label_name(prompt: LabelledPrompt) -> str:
    """A label as it is shown and named in options."""
    return str(prompt.label).lower() if isinstance(prompt.label, bool) else str(prompt.label)


def _make_prompt(
    id: str, row: Row, columns: Columns, *, text: Text, response: Text | None, span: Any, where: str
) -> LabelledPrompt:
    try:
        label = plain_value(row.get(columns.label or "label"))
        if not isinstance(label, str | int | float | bool | None):
            raise TypeError(f"the label must be text, a number or true/false, not {type(label).__name__}")
        category = plain_value(row.get(columns.category or "category"))
        category = None if category is None else str(category)
        for value in (label, category):
            if isinstance(value, str):
                value.encode()
        tools, options = template_arguments(row)
        return LabelledPrompt(
            id,
            text,
            label=label,
            category=category,
            response=response,
            span=span,
            tools=tools,
            chat_template_kwargs=options,
        )
    except (TypeError, ValueError) as error:
        raise DataInvalid(f"{where} (id '{id}'): {error}") from error


def _span(value: Any) -> Any:
    """A span as tables hold it: a substring, or two numbers, which CSV can only hold as text."""
    if isinstance(value, str) and re.fullmatch(r"\s*\[\s*\d+\s*,\s*\d+\s*\]\s*", value):
        return [int(number) for number in re.findall(r"\d+", value)]
    return value
