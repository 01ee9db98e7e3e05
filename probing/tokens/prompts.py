"""Labelled prompts as token ids, with the positions that count."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from probing.data.pairs import shared_prefix
from probing.errors import ModelInvalid
from probing.tokens.encoding import closing_ids, encode, set_end_of_turn, warn_without_bos
from probing.tokens.positions import EncodedRow, find_positions
from probing.tokens.rendering import RenderedPrompt, render_prompts
from probing.tokens.tokenized_row import TokenizedRow
from probing.types import Capture, LabelledPrompt, Problem


@dataclass(frozen=True, slots=True)
class TokenizedPrompt(TokenizedRow):
    """Token ids of one row, and the positions that count.

    Attributes:
        id: id of the row.
        ids: tokens that are run.
        prompt_tokens: number of tokens that make the prompt.
        start: first position that counts.
        stop: one past the last position that counts.
        problem: why nothing can be read; None if it can.
    """

    id: str
    ids: list[int]
    prompt_tokens: int
    start: int
    stop: int
    problem: Problem | None = None


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
        request: positions and pooling to read.
        eos: whether the end of turn belongs to a response.
        max_length: longest sequence in tokens. Longer ones are not cut but marked.
        where: names a row in messages, given its index; by default its id.

    Returns:
        One result a row, in order; never fewer.

    Raises:
        DataInvalid: the chat template is missing.
        ModelInvalid: a span is asked for and the tokenizer does not tell where its tokens lie; or the chat template
            does not end.
    """
    name = where if where is not None else (lambda index: f"row '{prompts[index].id}'")
    if request.over == "span" and not getattr(tokenizer, "is_fast", False):
        raise ModelInvalid("the tokenizer does not tell which characters its tokens cover, so no span can be found")
    texts = render_prompts(tokenizer, prompts, request, name)
    good = [text for text in texts if isinstance(text, RenderedPrompt)]
    flat = [text for row in good for text in (row.prompt, row.full)]
    coded = iter(encode(tokenizer, flat, [row.conversational for row in good for _ in range(2)]))
    warn_without_bos(tokenizer, [row.full for row in good if row.conversational])
    closing = closing_ids(tokenizer)
    results = []
    for prompt, text in zip(prompts, texts, strict=True):
        if isinstance(text, Problem):
            results.append(TokenizedPrompt(prompt.id, [], 0, 0, 0, text))
            continue
        opening, full = next(coded), next(coded)
        border = len(opening)
        if prompt.response is not None:
            border = shared_prefix(opening, full)
            if eos or text.conversational:
                full = set_end_of_turn(tokenizer, full, border, closing, eos and tokenizer.eos_token_id is not None)
        positions = find_positions(tokenizer, EncodedRow(prompt, text, full, border), request.over, max_length)
        start, stop, problem = (0, 0, positions) if isinstance(positions, Problem) else (*positions, None)
        results.append(TokenizedPrompt(prompt.id, full, border, start, stop, problem))
    return results
