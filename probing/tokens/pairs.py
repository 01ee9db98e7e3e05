"""Preference pairs as token ids, cut where the response begins, ended as a trainer would end them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from probing.data.pairs import shared_prefix
from probing.data.rows import has_text
from probing.errors import DataInvalid, ModelInvalid
from probing.tokens.encoding import check_bos, closing_ids, encode, set_end_of_turn, warn_without_bos
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
        DataInvalid: the chat template is missing or refuses a conversation, or a sequence would start with two BOS.
        ModelInvalid: an EOS is needed and the tokenizer has none.
    """
    if eos and tokenizer.eos_token_id is None:
        raise ModelInvalid("the tokenizer has no EOS token to end a response with; set one, or score with --no-eos")
    name = where if where is not None else (lambda index: f"pair '{pairs[index].id}'")
    texts = [_render(tokenizer, pair, name(index)) for index, pair in enumerate(pairs)]
    flat = [text for triple in texts for text in (triple.prompt, triple.chosen, triple.rejected)]
    rendered = [pair.conversational for pair in pairs for _ in range(3)]
    ids = encode(tokenizer, flat, rendered)
    check_bos(tokenizer, ids, lambda index: name(index // 3))
    warn_without_bos(tokenizer, [text for text, chat in zip(flat, rendered, strict=True) if chat])
    closing = closing_ids(tokenizer)
    bos = None if tokenizer.bos_token_id == tokenizer.eos_token_id else tokenizer.bos_token_id
    results = []
    for index, pair in enumerate(pairs):
        prompt, chosen, rejected = ids[3 * index : 3 * index + 3]
        border = shared_prefix(prompt, chosen, rejected)
        chosen, rejected = (set_end_of_turn(tokenizer, side, border, closing, eos) for side in (chosen, rejected))
        problem = _find_problem(pair, border, chosen, rejected, max_length, bos)
        results.append(TokenizedPair(pair.id, border, chosen, rejected, problem))
    return results


def _render(tokenizer: Any, pair: PreferencePair, where: str) -> _Texts:
    if isinstance(pair.prompt, str) and isinstance(pair.chosen, str) and isinstance(pair.rejected, str):
        return _Texts(pair.prompt, pair.prompt + pair.chosen, pair.prompt + pair.rejected)
    check_template(tokenizer, f"{where}: the pair is made of messages")
    try:
        return _render_conversations(tokenizer, pair)
    except DataInvalid as error:
        raise DataInvalid(f"{where}: {error}") from error


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


def _find_problem(
    pair: PreferencePair, border: int, chosen: list[int], rejected: list[int], max_length: int | None, bos: int | None
) -> Problem | None:
    """Why the sequences cannot be scored; None if they can."""

    def problem(status: PairStatus, detail: str) -> Problem:
        return Problem(pair.id, status, detail)

    for name, side, ids in (("chosen", pair.chosen, chosen), ("rejected", pair.rejected, rejected)):
        if not has_text(side) or len(ids) == border:
            return problem("empty_response", f"the {name} response is empty")
        if bos is not None and ids.count(bos) > 1:
            return problem("extra_bos", f"the BOS token occurs {ids.count(bos)} times in prompt and {name} response")
    if chosen == rejected:
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
    longest = max(len(chosen), len(rejected))
    if max_length is not None and longest > max_length:
        return problem("truncated", f"{longest} tokens, the limit is {max_length}")
    return None
