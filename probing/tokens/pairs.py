"""Preference pairs as token ids, cut where the response begins, ended as a trainer would end them."""

import functools
from collections.abc import Callable, Sequence
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
from probing.types import PreferencePair, Problem
from probing.types.status import PairStatus


@dataclass(frozen=True, slots=True)
class TokenizedPair(TokenizedRow):
    """Both sequences of one pair.

    Attributes:
        id: id of the pair.
        prompt_tokens: length of the prefix that both sequences share and that ends with the prompt.
        chosen: ids of prompt and chosen response.
        rejected: ids of prompt and rejected response.
        problem: why no score can be trusted; None if one can.
    """

    id: str
    prompt_tokens: int
    chosen: list[int]
    rejected: list[int]
    problem: Problem | None = None

    @property
    def chosen_tokens(self) -> int:
        """Tokens of the chosen response, end of turn included."""
        return len(self.chosen) - self.prompt_tokens

    @property
    def rejected_tokens(self) -> int:
        """Tokens of the rejected response, end of turn included."""
        return len(self.rejected) - self.prompt_tokens


@dataclass(frozen=True, slots=True)
class _Texts:
    """One pair as the strings that get tokenised."""

    prompt: str
    chosen: str
    rejected: str


def tokenize_pairs(
    tokenizer: Any,
    pairs: Sequence[PreferencePair],
    *,
    eos: bool = True,
    max_length: int | None = None,
    where: Callable[[int], str] | None = None,
) -> list[TokenizedPair]:
    """Tokenise pairs the way a DPO trainer sees them.

    The prompt ends where its own ids stop agreeing with those of *both* full sequences: tokenising the prompt alone
    gives a wrong length wherever a token spans the border. The response includes its end of turn; where text or
    template brought none, the tokenizer's EOS is appended, once.

    Args:
        tokenizer: a transformers tokenizer.
        pairs: text or conversations; conversations are rendered by the tokenizer's chat template.
        eos: whether the end of turn belongs to the response; if not, it is cut off where the template wrote it.
        max_length: longest sequence, in tokens. Longer ones are not cut but marked.
        where: names a pair in messages, given its index; by default its id.

    Returns:
        One result a pair, in order; never fewer.

    Raises:
        DataInvalid: there are conversations, and no chat template.
        ModelInvalid: an EOS is needed and the tokenizer has none; or the chat template does not end.
    """
    if eos and tokenizer.eos_token_id is None:
        raise ModelInvalid("the tokenizer has no EOS token to end a response with; set one, or score with --no-eos")
    name = where if where is not None else (lambda index: f"pair '{pairs[index].id}'")
    texts = _render_all(tokenizer, pairs, name)
    good = [(pair, text) for pair, text in zip(pairs, texts, strict=True) if isinstance(text, _Texts)]
    flat = [text for _, triple in good for text in (triple.prompt, triple.chosen, triple.rejected)]
    rendered = [pair.conversational for pair, _ in good for _ in range(3)]
    coded = iter(encode(tokenizer, flat, rendered))
    warn_without_bos(tokenizer, [text for text, chat in zip(flat, rendered, strict=True) if chat])
    closing = closing_ids(tokenizer)
    results = []
    for pair, text in zip(pairs, texts, strict=True):
        if isinstance(text, Problem):
            results.append(TokenizedPair(pair.id, 0, [], [], text))
            continue
        prompt, chosen, rejected = next(coded), next(coded), next(coded)
        border = shared_prefix(prompt, chosen, rejected)
        chosen, rejected = (set_end_of_turn(tokenizer, side, border, closing, eos) for side in (chosen, rejected))
        found = TokenizedPair(pair.id, border, chosen, rejected)
        results.append(replace(found, problem=_find_problem(tokenizer, pair, found, max_length)))
    return results


def _render_all(tokenizer: Any, pairs: Sequence[PreferencePair], name: Callable[[int], str]) -> list[_Texts | Problem]:
    chats = [index for index, pair in enumerate(pairs) if pair.conversational]
    if chats:
        check_template(tokenizer, f"{name(chats[0])}: the pair is made of messages")
    tasks = [functools.partial(_render, tokenizer, pair) for pair in pairs]
    return render_in_time(tasks, name) if chats else [task() for task in tasks]


def _render(tokenizer: Any, pair: PreferencePair) -> _Texts | Problem:
    if isinstance(pair.prompt, str) and isinstance(pair.chosen, str) and isinstance(pair.rejected, str):
        return _Texts(pair.prompt, pair.prompt + pair.chosen, pair.prompt + pair.rejected)
    try:
        return _render_conversations(tokenizer, pair)
    except DataInvalid as error:
        return Problem(pair.id, "refused", str(error))


def _render_conversations(tokenizer: Any, pair: PreferencePair) -> _Texts:
    prompt, chosen, rejected = (plain_contents(side) for side in (pair.prompt, pair.chosen, pair.rejected))
    if prompt[-1]["role"] == "assistant":
        raise DataInvalid(
            "the prompt ends with a message of the assistant, and a chat template would close that turn "
            "before the response; move that message into both responses"
        )
    renderer = ConversationRenderer(tokenizer, pair.tools, pair.chat_template_kwargs)
    texts = renderer.render_answers(prompt, [chosen, rejected])
    if texts is None:
        raise DataInvalid(
            "the chat template writes the prompt differently once an answer follows, so that prompt and "
            "response cannot be told apart; render the conversation to text yourself"
        )
    return _Texts(texts[0], *texts[1])


def _find_problem(tokenizer: Any, pair: PreferencePair, found: TokenizedPair, max_length: int | None) -> Problem | None:
    """Why the sequences cannot be scored; None if they can."""

    def problem(status: PairStatus, detail: str) -> Problem:
        return Problem(pair.id, status, detail)

    border = found.prompt_tokens
    for name, side, count in (
        ("chosen", pair.chosen, found.chosen_tokens),
        ("rejected", pair.rejected, found.rejected_tokens),
    ):
        if not has_text(side) or not count:
            return problem("empty_response", f"the {name} response is empty")
    extra = _find_extra_bos(tokenizer, pair, found)
    if extra is not None:
        return problem("extra_bos", extra)
    if found.chosen == found.rejected:
        return problem("identical", "chosen and rejected are the same")
    if not pair.prompt:
        return problem("empty_prompt", "there is no prompt: none is given, or the responses begin differently")
    if border == 0:
        return problem(
            "empty_prompt",
            "no token of the prompt is left before the responses, so nothing predicts their first token",
        )
    if max_length is not None and border >= max_length:
        return problem("prompt_too_long", f"the prompt alone has {border} tokens, the limit is {max_length}")
    longest = max(len(found.chosen), len(found.rejected))
    if max_length is not None and longest > max_length:
        return problem("truncated", f"{longest} tokens, the limit is {max_length}")
    return None


def _find_extra_bos(tokenizer: Any, pair: PreferencePair, found: TokenizedPair) -> str | None:
    """What is wrong with a BOS of the pair, in words; None if nothing is.

    Many templates begin every turn with the BOS, or every exchange. So inside a rendered conversation only a BOS that
    stands in the data's own text is one too many; in plain text, which nothing but the data has written, any is.
    """
    sides = {"chosen": found.chosen, "rejected": found.rejected}
    if any(begins_with_two_bos(tokenizer, ids) for ids in sides.values()):
        return TWO_BOS
    bos = tokenizer.bos_token_id
    if bos is None or bos == tokenizer.eos_token_id:
        return None
    if pair.conversational:
        return _find_own_bos(tokenizer, pair) if any(bos in ids[1:] for ids in sides.values()) else None
    for name, ids in sides.items():
        if ids.count(bos) > 1:
            return f"the BOS token occurs {ids.count(bos)} times in prompt and {name} response"
    return None


def _find_own_bos(tokenizer: Any, pair: PreferencePair) -> str | None:
    """Which part of a conversation holds a BOS in its own text, in words; None if none does."""
    parts: dict[str, Any] = {name: plain_contents(getattr(pair, name)) for name in ("prompt", "chosen", "rejected")}
    parts |= {"tools": pair.tools or [], "chat_template_kwargs": pair.chat_template_kwargs or {}}
    if not holds_bos(tokenizer, list(parts.values())):
        return None
    named = next((name for name, part in parts.items() if holds_bos(tokenizer, part)), "row")
    return f"the BOS token {tokenizer.bos_token!r} stands in the text of '{named}' itself; remove it there"
