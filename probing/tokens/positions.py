"""Which positions of a row count, by what a capture is asked to read over."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from probing.data.rows import has_text
from probing.errors import DataInvalid
from probing.tokens.encoding import TWO_BOS, begins_with_two_bos, brings_special_tokens
from probing.tokens.rendering import RenderedPrompt, Said
from probing.tokens.templates import template_ending
from probing.types import LabelledPrompt, Over, Problem
from probing.types.status import TextStatus

Positions = tuple[int, int]
"""The first position that counts, and one past the last."""


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A row with its tokens.

    Attributes:
        prompt: the row itself.
        text: the strings that were tokenised.
        ids: tokens of the row.
        border: number of tokens that make the prompt.
    """

    prompt: LabelledPrompt
    text: RenderedPrompt
    ids: list[int]
    border: int

    def problem(self, status: TextStatus, detail: str) -> Problem:
        """A problem of this row."""
        return Problem(self.prompt.id, status, detail)


def find_positions(tokenizer: Any, row: EncodedRow, over: Over, max_length: int | None) -> Positions | Problem:
    """The positions that count, or what is wrong with the row.

    Args:
        tokenizer: tokenizer that made the tokens.
        row: the tokens.
        over: part of the row that counts; see ``Capture``.
        max_length: longest sequence in tokens.
    """
    problem = _find_problem(tokenizer, row, max_length)
    if problem is not None:
        return problem
    positions = FINDERS[over](tokenizer, row)
    if not isinstance(positions, Problem) and positions[0] >= positions[1]:
        return row.problem("nothing_left", f"no token counts as '{over}'")
    return positions


def _find_problem(tokenizer: Any, row: EncodedRow, max_length: int | None) -> Problem | None:
    """Problem of a row, whatever part of it counts."""
    response = row.prompt.response
    if not has_text(row.prompt.text) and (response is None or not has_text(response)):
        return row.problem("empty_text", "the text is empty")
    if not row.ids:
        return row.problem("empty_text", "no token is left of the text")
    if begins_with_two_bos(tokenizer, row.ids):
        return row.problem("two_bos", TWO_BOS)
    if max_length is not None and len(row.ids) > max_length:
        return row.problem("too_long", f"{len(row.ids)} tokens, the limit is {max_length}")
    return None


def _find_text(tokenizer: Any, row: EncodedRow) -> Positions:
    return 0, len(row.ids)


def _find_content(tokenizer: Any, row: EncodedRow) -> Positions:
    """The text without special tokens at its ends; one that stands for an unknown word is content."""
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    start, stop = 0, len(row.ids)
    while start < stop and row.ids[start] in special:
        start += 1
    while start < stop and row.ids[stop - 1] in special:
        stop -= 1
    return start, stop


def _find_prompt(tokenizer: Any, row: EncodedRow) -> Positions:
    return 0, row.border


def _find_response(tokenizer: Any, row: EncodedRow) -> Positions | Problem:
    if row.prompt.response is None:
        return row.problem("no_response", "the row has no response")
    if not has_text(row.prompt.response):
        return row.problem("empty_response", "the response is empty")
    return row.border, len(row.ids)


def _find_template(tokenizer: Any, row: EncodedRow) -> Positions | Problem:
    if not row.text.conversational:
        return row.problem("no_template", "a plain text has no chat template around it; ask for chat")
    try:
        ending = template_ending(tokenizer, row.prompt.chat_template_kwargs)
    except DataInvalid as error:
        return row.problem("no_template", f"what stands after an instruction is not known: {error}")
    if not ending:
        return row.problem("no_template", "the chat template writes nothing after an instruction")
    start = row.border - len(ending)
    if tuple(row.ids[start : row.border]) != ending:
        return row.problem("no_template", "the prompt does not end as the chat template ends an instruction")
    return start, row.border


def _find_instruction_end(tokenizer: Any, row: EncodedRow) -> Positions | Problem:
    """What the template writes after the instruction, and the token before it."""
    positions = _find_template(tokenizer, row)
    if isinstance(positions, Problem):
        return positions
    # The first token is BOS in most models, whose state is a thousand times larger than others.
    if positions[0] < 2:
        return row.problem("nothing_left", "no token of an instruction stands before what the template writes after it")
    return positions[0] - 1, positions[1]


def _find_span(tokenizer: Any, row: EncodedRow) -> Positions | Problem:
    span = row.prompt.span
    if span is None:
        return row.problem("no_span", "the row names no span")
    held = _find_characters(row, span) if isinstance(span, str) else _check_characters(row, span)
    if isinstance(held, Problem):
        return held
    said, bounds = held
    if said.start is None:
        return row.problem("span_not_found", "the chat template changes the text that it is in")
    return _find_tokens(tokenizer, row, said.start + bounds[0], said.start + bounds[1])


def _find_characters(row: EncodedRow, span: str) -> tuple[Said, Positions] | Problem:
    """The piece that holds a substring, and its characters there."""
    held = [said for said in row.text.said if span in said.text]
    if not held:
        return row.problem("span_not_found", f"{span!r:.60} is not in the text")
    begin = held[0].text.find(span)
    if len(held) > 1 or held[0].text.find(span, begin + 1) >= 0:
        return row.problem("span_not_unique", f"{span!r:.60} occurs more than once; give its characters instead")
    return held[0], (begin, begin + len(span))


def _check_characters(row: EncodedRow, span: Positions) -> tuple[Said, Positions] | Problem:
    """The last piece, if it has these characters."""
    said = (row.text.said or (Said("", None),))[-1]
    if span[1] > len(said.text):
        return row.problem("span_not_found", f"characters {span[0]} to {span[1]} are not in the text")
    return said, span


def _find_tokens(tokenizer: Any, row: EncodedRow, first: int, last: int) -> Positions | Problem:
    """The tokens that touch some characters of the rendered text."""
    bare = brings_special_tokens(tokenizer, row.text.full, row.text.conversational)
    coded = tokenizer(row.text.full, add_special_tokens=not bare, return_offsets_mapping=True, verbose=False)
    # An end of turn may have been cut off.
    offsets = coded["offset_mapping"][: len(row.ids)]
    inside = [index for index, (low, high) in enumerate(offsets) if low < last and high > first and high > low]
    return (inside[0], inside[-1] + 1) if inside else row.problem("span_not_found", "no token covers it")


FINDERS: Mapping[Over, Callable[[Any, EncodedRow], Positions | Problem]] = {
    "text": _find_text,
    "content": _find_content,
    "prompt": _find_prompt,
    "response": _find_response,
    "template": _find_template,
    "instruction_end": _find_instruction_end,
    "span": _find_span,
}
