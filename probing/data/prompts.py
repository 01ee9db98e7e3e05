"""Rows of any dataset as texts with labels, and their token ids with the positions that count."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from probing.data.pairs import pairs_from_table, row_ids, shared_prefix, text_of
from probing.data.tables import Row, Table
from probing.data.tokenize import (
    brings_special_tokens,
    check_bos,
    check_template,
    closing_ids,
    encode,
    end_of_turn,
    has_text,
    plain_contents,
    rendered,
)
from probing.errors import DataInvalid, ModelInvalid, UsageError
from probing.types import Capture, LabelledPrompt, Message, Text, message_text

TEXT_COLUMNS = ("text", "prompt", "instruction", "question", "statement", "messages")
RESPONSE_COLUMNS = ("response", "completion")
SIDE_MARK = "#"
"""Between the id of a pair and the name of its side."""
PROBES = ("apple", "What is 7 + 5?")
"""Two instructions that end differently, to see what a chat template writes after one."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what; by default what they are usually called."""

    id: str | None = None
    text: str | None = None
    response: str | None = None
    label: str | None = None
    category: str | None = None
    span: str | None = None


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """Token ids of one row, and the positions that count.

    Attributes:
        id: of the row.
        status: "ok", or why nothing can be read.
        ids: tokens that are run.
        prompt_tokens: how many of them are the prompt.
        start: first position that counts.
        stop: one past the last.
        detail: what is wrong, in words, where the status is not "ok".
    """

    id: str
    status: str
    ids: list[int]
    prompt_tokens: int
    start: int
    stop: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class _Rendered:
    """One row as the strings that get tokenised."""

    prompt: str
    full: str
    conversational: bool
    anchor: str
    """The text within ``full`` that a span's characters are counted in."""


def prompts_from_table(table: Table, columns: Columns, substring: str | None = None) -> list[LabelledPrompt]:
    """All rows of a table, in order; a preference pair becomes two, ``ID#chosen`` and ``ID#rejected``.

    Args:
        table: with a column of texts or conversations (by default the first of ``text``, ``prompt``, ``instruction``,
            ``question``, ``statement``, ``messages``), or with ``chosen`` and ``rejected``.
        columns: other names of columns.
        substring: the span that counts, in every row.

    Raises:
        DataInvalid: a missing column, a wrong type, a duplicate id; names the row.
        UsageError: a column that is not there, a span named twice.
    """
    present = table.columns
    for name in (columns.text, columns.response, columns.label, columns.category, columns.span):
        if name is not None and name not in present:
            raise UsageError(f"{table.path}: there is no column '{name}'; the columns are {', '.join(present)}")
    if substring is not None and columns.span is not None:
        raise UsageError("the span is given twice: as a substring and as a column")
    if columns.text is None and {"chosen", "rejected"} <= set(present):
        return [side for pair in pairs_from_table(table, columns.id) for side in _sides(pair, substring)]
    text = columns.text or next((name for name in TEXT_COLUMNS if name in present), None)
    if text is None:
        raise DataInvalid(
            f"{table.path}: no column of texts ({', '.join(TEXT_COLUMNS)}, or chosen and rejected); name one with "
            f"--text-column; the columns are {', '.join(present)}"
        )
    response = columns.response or next((name for name in RESPONSE_COLUMNS if name in present), None)
    texts = [text_of(row, text, table.where(index), table.rows) for index, row in enumerate(table.rows)]
    responses = [
        None
        if response is None or row.get(response) is None
        else text_of(row, response, table.where(index), table.rows)
        for index, row in enumerate(table.rows)
    ]
    ids = row_ids(table.rows, list(zip(texts, responses, strict=True)), table.where, columns.id)
    return [
        _prompt(ids[index], row, texts[index], responses[index], columns, substring, table.where(index))
        for index, row in enumerate(table.rows)
    ]


def _sides(pair: Any, substring: str | None) -> list[LabelledPrompt]:
    return [
        LabelledPrompt(f"{pair.id}{SIDE_MARK}{name}", pair.prompt, name, None, getattr(pair, name), substring)
        for name in ("chosen", "rejected")
    ]


def _prompt(
    id: str, row: Row, text: Text, response: Text | None, columns: Columns, substring: str | None, where: str
) -> LabelledPrompt:
    try:
        span = substring if columns.span is None else _span(row.get(columns.span))
        label, category = row.get(columns.label or "label"), row.get(columns.category or "category")
        if not isinstance(label, str | int | float | bool | None):
            raise TypeError(f"the label must be text, a number or true/false, not {type(label).__name__}")
        return LabelledPrompt(id, text, label, None if category is None else str(category), response, span)
    except (TypeError, ValueError) as error:
        raise DataInvalid(f"{where} (id '{id}'): {error}") from error


def _span(value: Any) -> tuple[int, int] | str | None:
    """A span as tables hold it: a substring, or two numbers."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Sequence) and len(value) == 2 and all(isinstance(part, int) for part in value):
        return (value[0], value[1])
    raise ValueError(f"a span is a substring or [first character, one past the last], not {value!r:.40}")


def tokenize_prompts(
    tokenizer: Any,
    prompts: Sequence[LabelledPrompt],
    request: Capture,
    *,
    eos: bool = True,
    max_length: int | None = None,
    where: Callable[[int], str] | None = None,
) -> list[TokenizedPrompt]:
    """Token ids of every row and the positions that ``request`` asks for.

    Plain text gets the special tokens that the tokenizer adds, unless it brings its BOS; a conversation those that the
    chat template writes. A response includes its end of turn, as for scoring.

    Args:
        tokenizer: a transformers tokenizer.
        prompts: the rows.
        request: what is to be read.
        eos: whether the end of turn belongs to a response.
        max_length: longest sequence in tokens. Longer ones are not cut but marked.
        where: names a row in messages, given its index; by default its id.

    Returns:
        One result a row, in order; never fewer.

    Raises:
        DataInvalid: the chat template is missing or refuses a conversation, or a sequence would start with two BOS.
        ModelInvalid: a span is asked for and the tokenizer does not tell where its tokens lie.
    """
    name = where if where is not None else (lambda index: f"row '{prompts[index].id}'")
    if request.over == "span" and not getattr(tokenizer, "is_fast", False):
        raise ModelInvalid("the tokenizer does not tell which characters its tokens cover, so no span can be found")
    texts = [_render(tokenizer, prompt, request.chat, name(index)) for index, prompt in enumerate(prompts)]
    flat = [text for row in texts for text in (row.prompt, row.full)]
    chats = [row.conversational for row in texts for _ in range(2)]
    ids = encode(tokenizer, flat, chats)
    check_bos(tokenizer, ids, chats, lambda index: name(index // 2))
    closing = closing_ids(tokenizer)
    results = []
    for index, prompt in enumerate(prompts):
        opening, full = ids[2 * index : 2 * index + 2]
        border = len(opening)
        if prompt.response is not None:
            border = shared_prefix(opening, full)
            if eos or texts[index].conversational:
                full = end_of_turn(tokenizer, full, border, closing, eos and tokenizer.eos_token_id is not None)
        results.append(_located(tokenizer, prompt, texts[index], full, border, request, max_length))
    return results


def _render(tokenizer: Any, prompt: LabelledPrompt, chat: bool, where: str) -> _Rendered:
    text, response = prompt.text, prompt.response
    if isinstance(text, str) and (response is None or isinstance(response, str)) and not chat:
        full = text + (response or "")
        return _Rendered(text, full, False, full)
    check_template(tokenizer, f"{where}: the row is a conversation")
    opening = [{"role": "user", "content": text}] if isinstance(text, str) else plain_contents(text)
    if not opening:
        return _Rendered("", "", True, "")
    answered = response is None and opening[-1]["role"] == "assistant"
    start = rendered(tokenizer, opening, where, add_generation_prompt=not answered)
    if response is None:
        return _Rendered(start, start, True, message_text(opening[-1]))
    if opening[-1]["role"] == "assistant":
        raise DataInvalid(f"{where}: the prompt ends with a message of the assistant; move it into the response")
    answer: list[Message] = (
        [{"role": "assistant", "content": response}] if isinstance(response, str) else list(plain_contents(response))
    )
    full = rendered(tokenizer, [*opening, *answer], where)
    if not full.startswith((start, rendered(tokenizer, opening, where))):
        raise DataInvalid(
            f"{where}: the chat template writes the prompt differently once an answer follows; "
            f"render the conversation to text yourself"
        )
    return _Rendered(start, full, True, message_text(answer[-1]))


def _located(
    tokenizer: Any,
    prompt: LabelledPrompt,
    text: _Rendered,
    ids: list[int],
    border: int,
    request: Capture,
    max_length: int | None,
) -> TokenizedPrompt:
    """The positions that count, or what is wrong with the row."""

    def wrong(status: str, detail: str) -> TokenizedPrompt:
        return TokenizedPrompt(prompt.id, status, ids, border, 0, 0, detail)

    if not has_text(prompt.text) and (prompt.response is None or not has_text(prompt.response)):
        return wrong("empty_text", "the text is empty")
    if not ids:
        return wrong("empty_text", "no token is left of the text")
    if max_length is not None and len(ids) > max_length:
        return wrong("too_long", f"{len(ids)} tokens, the limit is {max_length}")
    if request.over == "span":
        found = _find_span(tokenizer, prompt, text, ids)
    elif request.over == "template":
        found = _find_template(tokenizer, text, ids, border)
    else:
        found = _find_part(tokenizer, prompt, ids, border, request)
    if isinstance(found, str):
        status, detail = found.split(": ", 1)
        return wrong(status, detail)
    start, stop = found
    if start >= stop:
        return wrong("nothing_left", f"no token counts as '{request.over}'")
    return TokenizedPrompt(prompt.id, "ok", ids, border, start, stop)


def _find_part(
    tokenizer: Any, prompt: LabelledPrompt, ids: list[int], border: int, request: Capture
) -> tuple[int, int] | str:
    if request.over == "response":
        if prompt.response is None:
            return "no_response: the row has no response"
        return (border, len(ids)) if has_text(prompt.response) else "empty_response: the response is empty"
    start, stop = 0, border if request.over == "prompt" else len(ids)
    if request.over == "content":
        special = set(tokenizer.all_special_ids)
        while start < stop and ids[start] in special:
            start += 1
        while start < stop and ids[stop - 1] in special:
            stop -= 1
    return start, stop


def _find_span(tokenizer: Any, prompt: LabelledPrompt, text: _Rendered, ids: list[int]) -> tuple[int, int] | str:
    if prompt.span is None:
        return "no_span: the row names no span"
    if isinstance(prompt.span, str):
        first = text.full.find(prompt.span)
        if first < 0:
            return f"span_not_found: {prompt.span!r:.60} is not in the text"
        if text.full.find(prompt.span, first + 1) >= 0:
            return f"span_not_unique: {prompt.span!r:.60} occurs more than once; give its characters instead"
        last = first + len(prompt.span)
    else:
        begin = text.full.rfind(text.anchor)
        first, last = begin + prompt.span[0], begin + prompt.span[1]
        if begin < 0 or prompt.span[1] > len(text.anchor):
            return f"span_not_found: characters {prompt.span[0]} to {prompt.span[1]} are not in the text"
    bare = brings_special_tokens(tokenizer, text.full, text.conversational)
    coded = tokenizer(text.full, add_special_tokens=not bare, return_offsets_mapping=True, verbose=False)
    offsets = coded["offset_mapping"][: len(ids)]  # an end of turn may have been cut off
    inside = [index for index, (low, high) in enumerate(offsets) if low < last and high > first and high > low]
    return (inside[0], inside[-1] + 1) if inside else "span_not_found: no token covers it"


def _find_template(tokenizer: Any, text: _Rendered, ids: list[int], border: int) -> tuple[int, int] | str:
    if not text.conversational:
        return "no_template: a plain text has no chat template around it; ask for chat"
    ending = template_ending(tokenizer)
    if not ending:
        return "no_template: the chat template writes nothing after an instruction"
    if tuple(ids[border - len(ending) : border]) != ending:
        return "no_template: the prompt does not end as the chat template ends an instruction"
    return border - len(ending), border


def template_ending(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that a chat template writes after an instruction: what two rendered instructions end with alike."""
    return _ending(tokenizer, tokenizer.chat_template)


@functools.lru_cache(maxsize=8)
def _ending(tokenizer: Any, template: Any) -> tuple[int, ...]:
    texts = [
        rendered(tokenizer, [{"role": "user", "content": content}], "the chat template", add_generation_prompt=True)
        for content in PROBES
    ]
    left, right = (list(reversed(ids)) for ids in encode(tokenizer, texts, [True, True]))
    return tuple(reversed(left[: shared_prefix(left, right)]))
