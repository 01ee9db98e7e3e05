"""Rows of any dataset as texts with labels, and their token ids with the positions that count."""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from probing.data.pairs import Where, pairs_from_rows, row_ids, shared_prefix, text_of, without_none
from probing.data.tables import Row, Table
from probing.data.tokenize import (
    brings_special_tokens,
    check_template,
    closing_ids,
    encode,
    end_of_turn,
    has_text,
    plain_contents,
    rendered,
    warn_without_bos,
)
from probing.errors import DataInvalid, ModelInvalid, UsageError
from probing.types import Capture, LabelledPrompt, Message, PreferencePair, Text, message_text

TEXT_COLUMNS = ("text", "prompt", "instruction", "question", "statement", "messages")
RESPONSE_COLUMNS = ("response", "completion")
SIDE_MARK = "#"
"""Between the id of a pair and the name of its side."""
STAND_IN = "\u2603stand-in\u2603"
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
class _Said:
    """A piece of what was said, and where in the rendered text it begins (None: the template changed it)."""

    text: str
    start: int | None


@dataclass(frozen=True, slots=True)
class _Rendered:
    """One row as the strings that get tokenised, with the pieces that spans are looked for in, the last one last."""

    prompt: str
    full: str
    conversational: bool
    said: tuple[_Said, ...]


def prompts_from_table(table: Table, columns: Columns, substring: str | None = None) -> list[LabelledPrompt]:
    """All rows of a table, in order. See ``prompts_from_rows``."""
    return prompts_from_rows(table.rows, columns, substring, table.where, table.path)


def prompts_from_rows(
    rows: Sequence[Row],
    columns: Columns,
    substring: str | None = None,
    where: Where = "row {}".format,
    name: str = "the data",
) -> list[LabelledPrompt]:
    """Rows as texts, in order; a preference pair becomes two, ``ID#chosen`` and ``ID#rejected``.

    Args:
        rows: with a column of texts or conversations (by default the first of ``text``, ``prompt``, ``instruction``,
            ``question``, ``statement``, ``messages``), or with ``chosen`` and ``rejected``.
        columns: other names of columns.
        substring: the span that counts, in every row.
        where: names a row for messages, given its index.
        name: of all rows, for messages.

    Raises:
        DataInvalid: a missing column, a wrong type, a duplicate id; names the row.
        UsageError: a column that is not there, or that pairs have no use for; a span named twice.
    """
    present = list(dict.fromkeys(key for row in rows for key in row))
    named = [columns.text, columns.response, columns.label, columns.category, columns.span]
    for column in named:
        if column is not None and column not in present:
            raise UsageError(f"{name}: there is no column '{column}'; the columns are {', '.join(map(str, present))}")
    if substring is not None and columns.span is not None:
        raise UsageError("the span is given twice: as a substring and as a column")
    if columns.text is None and {"chosen", "rejected"} <= set(present):
        if any(column is not None for column in named):
            raise UsageError(f"{name}: preference pairs are read by their own columns; leave out the names of others")
        return [side for pair in pairs_from_rows(rows, where, columns.id) for side in _sides(pair, substring)]
    text = columns.text or next((column for column in TEXT_COLUMNS if column in present), None)
    if text is None:
        raise DataInvalid(
            f"{name}: no column of texts ({', '.join(TEXT_COLUMNS)}, or chosen and rejected); name one with "
            f"--text-column; the columns are {', '.join(map(str, present))}"
        )
    response = columns.response or next((column for column in RESPONSE_COLUMNS if column in present), None)
    texts = [text_of(row, text, where(index), rows) for index, row in enumerate(rows)]
    responses = [
        None if response is None or row.get(response) is None else text_of(row, response, where(index), rows)
        for index, row in enumerate(rows)
    ]
    spans = [substring if columns.span is None else _span(row.get(columns.span)) for row in rows]
    ids = row_ids(rows, list(zip(texts, responses, spans, strict=True)), where, columns.id)
    return [
        _prompt(ids[index], row, texts[index], responses[index], spans[index], columns, where(index))
        for index, row in enumerate(rows)
    ]


def _sides(pair: PreferencePair, substring: str | None) -> list[LabelledPrompt]:
    return [
        LabelledPrompt(
            f"{pair.id}{SIDE_MARK}{name}",
            pair.prompt,
            name,
            None,
            getattr(pair, name),
            substring,
            pair.tools,
            pair.chat_template_kwargs,
        )
        for name in ("chosen", "rejected")
    ]


def label_name(prompt: LabelledPrompt) -> str:
    """A label as it is shown and named in options."""
    return str(prompt.label).lower() if isinstance(prompt.label, bool) else str(prompt.label)


def _prompt(
    id: str, row: Row, text: Text, response: Text | None, span: Any, columns: Columns, where: str
) -> LabelledPrompt:
    try:
        label, category = row.get(columns.label or "label"), row.get(columns.category or "category")
        if not isinstance(label, str | int | float | bool | None):
            raise TypeError(f"the label must be text, a number or true/false, not {type(label).__name__}")
        if label == "" or label != label:  # an empty cell of CSV, and NaN
            label = None
        category = None if category is None or category == "" or category != category else str(category)
        for value in (label, category):
            if isinstance(value, str):
                value.encode()
        tools, options = (without_none(row.get(name)) or None for name in ("tools", "chat_template_kwargs"))
        return LabelledPrompt(id, text, label, category, response, span, tools, options)
    except (TypeError, ValueError) as error:
        raise DataInvalid(f"{where} (id '{id}'): {error}") from error


def _span(value: Any) -> Any:
    """A span as tables hold it: a substring, or two numbers, which CSV can only hold as text."""
    if isinstance(value, str) and re.fullmatch(r"\s*\[\s*\d+\s*,\s*\d+\s*\]\s*", value):
        return [int(number) for number in re.findall(r"\d+", value)]
    return value


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
        DataInvalid: the chat template is missing.
        ModelInvalid: a span is asked for and the tokenizer does not tell where its tokens lie.
    """
    name = where if where is not None else (lambda index: f"row '{prompts[index].id}'")
    if request.over == "span" and not getattr(tokenizer, "is_fast", False):
        raise ModelInvalid("the tokenizer does not tell which characters its tokens cover, so no span can be found")
    texts: list[_Rendered | str] = [
        _render(tokenizer, prompt, request, name(index)) for index, prompt in enumerate(prompts)
    ]
    good = [text for text in texts if isinstance(text, _Rendered)]
    flat = [text for row in good for text in (row.prompt, row.full)]
    coded = iter(encode(tokenizer, flat, [row.conversational for row in good for _ in range(2)]))
    warn_without_bos(tokenizer, [row.full for row in good if row.conversational])
    closing = closing_ids(tokenizer)
    results = []
    for prompt, text in zip(prompts, texts, strict=True):
        if isinstance(text, str):
            results.append(TokenizedPrompt(prompt.id, "refused", [], 0, 0, 0, text))
            continue
        opening, full = next(coded), next(coded)
        border = len(opening)
        if prompt.response is not None:
            border = shared_prefix(opening, full)
            if eos or text.conversational:
                full = end_of_turn(tokenizer, full, border, closing, eos and tokenizer.eos_token_id is not None)
        results.append(_located(tokenizer, prompt, text, full, border, request, max_length))
    return results


def _render(tokenizer: Any, prompt: LabelledPrompt, request: Capture, where: str) -> _Rendered | str:
    """The strings of one row, or why the chat template does not take it."""
    text, response = prompt.text, prompt.response
    if isinstance(text, str) and (response is None or isinstance(response, str)) and not request.chat:
        full = text + (response or "")
        return _Rendered(text, full, False, (_Said(full, 0),))
    check_template(tokenizer, f"{where}: the row is a conversation")
    try:
        return _render_conversation(tokenizer, prompt, request, where)
    except DataInvalid as error:
        return str(error).removeprefix(f"{where}: ")


def _render_conversation(tokenizer: Any, prompt: LabelledPrompt, request: Capture, where: str) -> _Rendered:
    text, response = prompt.text, prompt.response
    opening: list[Message] = [{"role": "user", "content": text}] if isinstance(text, str) else plain_contents(text)
    if not opening:
        return _Rendered("", "", True, ())

    def render(conversation: Sequence[Message], **options: Any) -> str:
        return rendered(
            tokenizer, conversation, where, tools=prompt.tools, **options, **(prompt.chat_template_kwargs or {})
        )

    def render_with(at: int, content: str) -> str:
        return render(
            [*conversation[:at], {**conversation[at], "content": content}, *conversation[at + 1 :]], **options
        )

    conversation: list[Message]
    options: dict[str, Any]
    answered, options = opening[-1]["role"] == "assistant", {}
    if response is None:
        conversation, options = opening, {"add_generation_prompt": not answered}
        start = full = render(conversation, **options)
    else:
        if answered:
            raise DataInvalid("the prompt ends with a message of the assistant; move it into the response")
        answer: list[Message] = (
            [{"role": "assistant", "content": response}] if isinstance(response, str) else plain_contents(response)
        )
        conversation = [*opening, *answer]
        start, full = render(opening, add_generation_prompt=True), render(conversation)
        if not full.startswith((start, render(opening))):
            raise DataInvalid(
                "the chat template writes the prompt differently once an answer follows; render it yourself"
            )
    said: list[_Said] = []
    for at, message in enumerate(conversation if request.over == "span" else ()):
        said.append(_found(message_text(message), full, functools.partial(render_with, at)))
    return _Rendered(start, full, True, tuple(said))


def _found(text: str, full: str, render: Callable[[str], str]) -> _Said:
    """Where a message's text begins in the rendered conversation: where another text in its place does.

    Looking for the text itself would find it in the template as well ("user").
    """
    try:
        start = render(STAND_IN).find(STAND_IN)
    except DataInvalid:
        return _Said(text, None)
    lead = len(text) - len(text.lstrip())
    for offset in (0, lead):  # many templates strip white space off
        if start >= 0 and text.strip() and full.startswith(text[offset:].rstrip(), start):
            return _Said(text, start - offset)
    return _Said(text, None)


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
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        return wrong("two_bos", "the sequence begins with two BOS tokens; remove one from text or template")
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
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        while start < stop and ids[start] in special:
            start += 1
        while start < stop and ids[stop - 1] in special:
            stop -= 1
    return start, stop


def _find_span(tokenizer: Any, prompt: LabelledPrompt, text: _Rendered, ids: list[int]) -> tuple[int, int] | str:
    if prompt.span is None:
        return "no_span: the row names no span"
    if isinstance(prompt.span, str):
        held = [piece for piece in text.said if prompt.span in piece.text]
        if not held:
            return f"span_not_found: {prompt.span!r:.60} is not in the text"
        begin = held[0].text.find(prompt.span)
        if len(held) > 1 or held[0].text.find(prompt.span, begin + 1) >= 0:
            return f"span_not_unique: {prompt.span!r:.60} occurs more than once; give its characters instead"
        piece, bounds = held[0], (begin, begin + len(prompt.span))
    else:
        piece, bounds = (text.said or (_Said("", None),))[-1], prompt.span
        if bounds[1] > len(piece.text):
            return f"span_not_found: characters {bounds[0]} to {bounds[1]} are not in the text"
    if piece.start is None:
        return "span_not_found: the chat template changes the text that it is in"
    first, last = piece.start + bounds[0], piece.start + bounds[1]
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
    return _ending(tokenizer, repr(tokenizer.chat_template))


@functools.lru_cache(maxsize=8)
def _ending(tokenizer: Any, template: str) -> tuple[int, ...]:
    texts = [
        rendered(tokenizer, [{"role": "user", "content": content}], "the chat template", add_generation_prompt=True)
        for content in PROBES
    ]
    left, right = (list(reversed(ids)) for ids in encode(tokenizer, texts, [True, True]))
    return tuple(reversed(left[: shared_prefix(left, right)]))
