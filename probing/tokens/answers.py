"""A prompt with several answers as token ids, cut where the answers begin, ended as a trainer would end them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from probing.data.pairs import shared_prefix
from probing.data.rows import has_text
from probing.errors import DataInvalid, ModelInvalid
from probing.tokens.encoding import (
    TWO_BOS,
    begins_with_two_bos,
    closing_ids,
    encode,
    holds_bos,
    set_end_of_turn,
    warn_without_bos,
)
from probing.tokens.limits import render_in_time
from probing.tokens.templates import ConversationRenderer, check_template, plain_contents
from probing.tokens.tokenized_row import TokenizedRow
from probing.types import Problem, Text
from probing.types.status import PairStatus


@dataclass(frozen=True, slots=True)
class Answers:
    """A prompt and its answers: all plain text, or all lists of messages.

    Attributes:
        id: id of the row.
        prompt: what the answers answer.
        sides: the answers, by the words that name each in messages ("chosen response").
        tools: tool schemas for the chat template, if any.
        chat_template_kwargs: further arguments of the chat template, if any.
        distinct: whether answers that are all the same are a problem.
        noun: word for the row in messages.
    """

    id: str
    prompt: Text
    sides: Mapping[str, Text]
    tools: Sequence[Any] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    distinct: bool = False
    noun: str = "row"

    @property
    def conversational(self) -> bool:
        """Whether it is made of messages, to be rendered by a chat template."""
        return not isinstance(self.prompt, str)


@dataclass(frozen=True, slots=True)
class TokenizedAnswers(TokenizedRow):
    """The sequences of one row.

    Attributes:
        id: id of the row.
        prompt_tokens: length of the prefix that all sequences share and that ends with the prompt.
        sequences: ids of the prompt and each answer.
        problem: why no number can be trusted; None if one can.
    """

    id: str
    prompt_tokens: int
    sequences: list[list[int]]
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class _Texts:
    """One row as the strings that get tokenised: the prompt, and the prompt with each answer."""

    prompt: str
    full: list[str]


def tokenize_answers(
    tokenizer: Any,
    rows: Sequence[Answers],
    *,
    eos: bool = True,
    max_length: int | None = None,
    where: Callable[[int], str] | None = None,
) -> list[TokenizedAnswers]:
    """Tokenise prompts with their answers the way a trainer sees them.

    The prompt ends where its own ids stop agreeing with those of *all* full sequences: tokenising the prompt alone
    gives a wrong length wherever a token spans the border. An answer includes its end of turn; where text or template
    brought none, the tokenizer's EOS is appended, once.

    Args:
        tokenizer: a transformers tokenizer.
        rows: text or conversations; conversations are rendered by the tokenizer's chat template.
        eos: whether the end of turn belongs to an answer; if not, it is cut off where the template wrote it.
        max_length: longest sequence, in tokens. Longer ones are not cut but marked.
        where: names a row in messages, given its index; by default its id.

    Returns:
        One result a row, in order; never fewer.

    Raises:
        DataInvalid: there are conversations, and no chat template.
        ModelInvalid: an EOS is needed and the tokenizer has none; or the chat template does not end.
    """
    if eos and tokenizer.eos_token_id is None:
        raise ModelInvalid("the tokenizer has no EOS token to end a response with; set one, or score with --no-eos")
    name = where if where is not None else (lambda index: f"{rows[index].noun} '{rows[index].id}'")
    texts = _render_all(tokenizer, rows, name)
    good = [(row, text) for row, text in zip(rows, texts, strict=True) if isinstance(text, _Texts)]
    flat = [text for _, found in good for text in (found.prompt, *found.full)]
    rendered = [row.conversational for row, found in good for _ in range(1 + len(found.full))]
    coded = iter(encode(tokenizer, flat, rendered))
    warn_without_bos(tokenizer, [text for text, chat in zip(flat, rendered, strict=True) if chat])
    closing = closing_ids(tokenizer)
    results = []
    for row, text in zip(rows, texts, strict=True):
        if isinstance(text, Problem):
            results.append(TokenizedAnswers(row.id, 0, [[] for _ in row.sides], text))
            continue
        prompt, *full = [next(coded) for _ in range(1 + len(text.full))]
        border = shared_prefix(prompt, *full)
        found = TokenizedAnswers(row.id, border, [set_end_of_turn(tokenizer, s, border, closing, eos) for s in full])
        results.append(replace(found, problem=_find_problem(tokenizer, row, found, max_length)))
    return results


def _render_all(tokenizer: Any, rows: Sequence[Answers], name: Callable[[int], str]) -> list[_Texts | Problem]:
    chats = [index for index, row in enumerate(rows) if row.conversational]
    if chats:
        check_template(tokenizer, f"{name(chats[0])}: the {rows[chats[0]].noun} is made of messages")
    tasks = [functools.partial(_render, tokenizer, row) for row in rows]
    return render_in_time(tasks, name) if chats else [task() for task in tasks]


def _render(tokenizer: Any, row: Answers) -> _Texts | Problem:
    sides = [side for side in row.sides.values() if isinstance(side, str)]
    if isinstance(row.prompt, str) and len(sides) == len(row.sides):
        return _Texts(row.prompt, [row.prompt + side for side in sides])
    try:
        return _render_conversations(tokenizer, row)
    except DataInvalid as error:
        return Problem(row.id, "refused", str(error))


def _render_conversations(tokenizer: Any, row: Answers) -> _Texts:
    prompt, *sides = (plain_contents(side) for side in (row.prompt, *row.sides.values()))
    if prompt[-1]["role"] == "assistant":
        raise DataInvalid(
            "the prompt ends with a message of the assistant, and a chat template would close that turn "
            f"before the response; move that message into {'both' if len(sides) == 2 else 'all'} responses"
        )
    renderer = ConversationRenderer(tokenizer, row.tools, row.chat_template_kwargs)
    texts = renderer.render_answers(prompt, sides)
    if texts is None:
        raise DataInvalid(
            "the chat template writes the prompt differently once an answer follows, so that prompt and "
            "response cannot be told apart; render the conversation to text yourself"
        )
    return _Texts(texts[0], list(texts[1]))


def _find_problem(tokenizer: Any, row: Answers, found: TokenizedAnswers, max_length: int | None) -> Problem | None:
    """Why the sequences cannot be used; None if they can."""

    def problem(status: PairStatus, detail: str) -> Problem:
        return Problem(row.id, status, detail)

    border = found.prompt_tokens
    for (name, side), ids in zip(row.sides.items(), found.sequences, strict=True):
        if not has_text(side) or len(ids) == border:
            return problem("empty_response", f"{'the ' if row.distinct else ''}{name} is empty")
    extra = _find_extra_bos(tokenizer, row, found)
    if extra is not None:
        return problem("extra_bos", extra)
    if row.distinct and all(ids == found.sequences[0] for ids in found.sequences):
        return problem("identical", "chosen and rejected are the same")
    if not row.prompt:
        return problem("empty_prompt", "there is no prompt: none is given, or the responses begin differently")
    if border == 0:
        return problem(
            "empty_prompt",
            "no token of the prompt is left before the responses, so nothing predicts their first token",
        )
    if max_length is not None and border >= max_length:
        return problem("prompt_too_long", f"the prompt alone has {border} tokens, the limit is {max_length}")
    longest = max(map(len, found.sequences))
    if max_length is not None and longest > max_length:
        return problem("truncated", f"{longest} tokens, the limit is {max_length}")
    return None


def _find_extra_bos(tokenizer: Any, row: Answers, found: TokenizedAnswers) -> str | None:
    """What is wrong with a BOS of the row, in words; None if nothing is.

    Many templates begin every turn with the BOS, or every exchange. So inside a rendered conversation only a BOS that
    stands in the data's own text is one too many; in plain text, which nothing but the data has written, any is.
    """
    if any(begins_with_two_bos(tokenizer, ids) for ids in found.sequences):
        return TWO_BOS
    bos = tokenizer.bos_token_id
    if bos is None or bos == tokenizer.eos_token_id:
        return None
    if row.conversational:
        return _find_own_bos(tokenizer, row) if any(bos in ids[1:] for ids in found.sequences) else None
    for name, ids in zip(row.sides, found.sequences, strict=True):
        if ids.count(bos) > 1:
            return f"the BOS token occurs {ids.count(bos)} times in prompt and {name}"
    return None


def _find_own_bos(tokenizer: Any, row: Answers) -> str | None:
    """Which part of a conversation holds a BOS in its own text, in words; None if none does."""
    sides = {name.removesuffix(" response"): side for name, side in row.sides.items()}
    parts: dict[str, Any] = {name: plain_contents(side) for name, side in {"prompt": row.prompt, **sides}.items()}
    parts |= {"tools": row.tools or [], "chat_template_kwargs": row.chat_template_kwargs or {}}
    if not holds_bos(tokenizer, list(parts.values())):
        return None
    named = next((name for name, part in parts.items() if holds_bos(tokenizer, part)), "row")
    return f"the BOS token {tokenizer.bos_token!r} stands in the text of '{named}' itself; remove it there"
