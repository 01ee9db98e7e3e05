"""Preference pairs as token ids, cut where the response begins, ended as a trainer would end them."""

import functools
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jinja2

from probing.data.pairs import messages, shared_prefix
from probing.errors import DataInvalid, ModelInvalid
from probing.types import Message, PreferencePair, Text, message_text

log = logging.getLogger(__name__)

Status = Literal[
    "ok",
    "identical",
    "empty_prompt",
    "empty_response",
    "extra_bos",
    "prompt_too_long",
    "truncated",
    "not_finite",
]


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """Both sequences of one pair.

    Attributes:
        id: of the pair.
        status: "ok", or why no score can be trusted.
        prompt_tokens: length of the prefix that both sequences share and that ends with the prompt.
        chosen: ids of prompt and chosen response.
        rejected: ids of prompt and rejected response.
        detail: what is wrong, in words, where the status is not "ok".
    """

    id: str
    status: Status
    prompt_tokens: int
    chosen: list[int]
    rejected: list[int]
    detail: str = ""

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
    gives its length wrongly wherever a token spans the border. The response includes its end of turn; where text or
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
        chosen, rejected = (end_of_turn(tokenizer, side, border, closing, eos) for side in (chosen, rejected))
        status, detail = _status(pair, border, chosen, rejected, max_length, bos)
        results.append(TokenizedPair(pair.id, status, border, chosen, rejected, detail))
    return results


def template_sha256(tokenizer: Any) -> str | None:
    """A hash of the chat template, or None where there is none."""
    template = getattr(tokenizer, "chat_template", None)
    return hashlib.sha256(repr(template).encode()).hexdigest() if template else None


def _render(tokenizer: Any, pair: PreferencePair, where: str) -> _Texts:
    if isinstance(pair.prompt, str) and isinstance(pair.chosen, str) and isinstance(pair.rejected, str):
        return _Texts(pair.prompt, pair.prompt + pair.chosen, pair.prompt + pair.rejected)
    check_template(tokenizer, f"{where}: the pair is made of messages")
    prompt, chosen, rejected = (plain_contents(side) for side in (pair.prompt, pair.chosen, pair.rejected))
    if prompt[-1]["role"] == "assistant":
        raise DataInvalid(
            f"{where}: the prompt ends with a message of the assistant, and a chat template would close that turn "
            f"before the response; move that message into both responses"
        )

    def render(conversation: Sequence[Message], **options: Any) -> str:
        return rendered(
            tokenizer, conversation, where, tools=pair.tools, **options, **(pair.chat_template_kwargs or {})
        )

    texts = _Texts(render(prompt, add_generation_prompt=True), render([*prompt, *chosen]), render([*prompt, *rejected]))
    opening = render(prompt)
    if not all(full.startswith((texts.prompt, opening)) for full in (texts.chosen, texts.rejected)):
        raise DataInvalid(
            f"{where}: the chat template writes the prompt differently once an answer follows, so that prompt and "
            f"response cannot be told apart; render the conversation to text yourself"
        )
    return texts


def check_template(tokenizer: Any, why: str) -> None:
    """Raise unless the tokenizer has a chat template; ``why`` says what needs one."""
    if not getattr(tokenizer, "chat_template", None):
        raise DataInvalid(
            f"{why}, but the tokenizer has no chat template; "
            f"use a chat model, give the tokenizer a template, or turn the messages into text"
        )


def rendered(tokenizer: Any, conversation: Sequence[Message], where: str, **options: Any) -> str:
    """A conversation as the text that the chat template makes of it.

    Raises:
        DataInvalid: the template refuses it.
    """
    try:
        text: str = tokenizer.apply_chat_template(conversation, tokenize=False, **options)
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataInvalid(f"{where}: the chat template refuses this conversation: {error}") from error
    return text


def plain_contents(side: Text) -> list[Message]:
    """Messages whose content is one text: most templates would write a list of parts as Python does."""
    return [
        message if isinstance(message.get("content"), str | None) else {**message, "content": message_text(message)}
        for message in messages(side)
    ]


def encode(tokenizer: Any, texts: Sequence[str], rendered: Sequence[bool]) -> list[list[int]]:
    """Ids of each text; special tokens are added only where the text does not bring them."""
    bare = [brings_special_tokens(tokenizer, text, chat) for text, chat in zip(texts, rendered, strict=True)]
    ids: list[list[int]] = [[] for _ in texts]
    for without in (True, False):
        chosen = [index for index, flag in enumerate(bare) if flag == without]
        if chosen:
            batch = tokenizer([texts[index] for index in chosen], add_special_tokens=not without, verbose=False)
            for index, sequence in zip(chosen, batch["input_ids"], strict=True):
                ids[index] = list(sequence)
    return ids


def brings_special_tokens(tokenizer: Any, text: str, rendered: bool) -> bool:
    """Whether a text has its special tokens already: from a chat template, or because it begins with BOS."""
    bos = tokenizer.bos_token
    return rendered or (bos is not None and text.startswith(bos))


def check_bos(tokenizer: Any, ids: Sequence[Sequence[int]], where: Callable[[int], str]) -> None:
    """Refuse two BOS at the start; a BOS further inside is a row's own fault."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return
    for index, sequence in enumerate(ids):
        if list(sequence[:2]) == [bos, bos]:
            raise DataInvalid(
                f"{where(index)}: the sequence begins with two BOS tokens; remove one from text or template"
            )


def warn_without_bos(tokenizer: Any, rendered: Sequence[str]) -> None:
    """A word, once, if a chat template leaves out the BOS that the tokenizer adds to plain text."""
    bos = tokenizer.bos_token_id
    if bos is None or tokenizer("a")["input_ids"][:1] != [bos]:
        return
    if any(text and not text.startswith(tokenizer.bos_token) for text in rendered):
        warn_once("the chat template writes no BOS, though the tokenizer adds one to plain text: run without it")


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning the first time that it is said in this process."""
    log.warning(message)


def closing_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that can end a turn: EOS and every special token but BOS."""
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special -= {tokenizer.bos_token_id, tokenizer.unk_token_id}
    return frozenset({*special, tokenizer.eos_token_id})


def end_of_turn(tokenizer: Any, ids: list[int], border: int, closing: frozenset[int], eos: bool) -> list[int]:
    """The sequence with its end of turn exactly once, or without it."""
    last = len(ids)
    while last > border and ids[last - 1] not in closing and not tokenizer.decode([ids[last - 1]]).strip():
        last -= 1  # some templates put a line break after the end of turn
    closed = last > border and ids[last - 1] in closing
    if eos:
        return ids if closed else [*ids, tokenizer.eos_token_id]
    while closed and last > border and ids[last - 1] in closing:
        last -= 1
    return ids[:last] if closed else ids


def _status(
    pair: PreferencePair, border: int, chosen: list[int], rejected: list[int], max_length: int | None, bos: int | None
) -> tuple[Status, str]:
    """Whether the sequences can be scored, and if not, why."""
    for name, side, ids in (("chosen", pair.chosen, chosen), ("rejected", pair.rejected, rejected)):
        if not has_text(side) or len(ids) == border:
            return "empty_response", f"the {name} response is empty"
        if bos is not None and ids.count(bos) > 1:
            return "extra_bos", f"the BOS token occurs {ids.count(bos)} times in prompt and {name} response"
    if chosen == rejected:
        return "identical", "chosen and rejected are the same"
    if not pair.prompt:
        return "empty_prompt", "there is no prompt: none is given, or the responses begin differently"
    if border == 0:
        return (
            "empty_prompt",
            "no token of the prompt is left before the responses, so nothing predicts their first token",
        )
    if max_length is not None and border >= max_length:
        return "prompt_too_long", f"the prompt alone has {border} tokens, the limit is {max_length}"
    longest = max(len(chosen), len(rejected))
    if max_length is not None and longest > max_length:
        return "truncated", f"{longest} tokens, the limit is {max_length}"
    return "ok", ""


def has_text(side: Any) -> bool:
    """Whether a text or a conversation holds more than white space."""
    if isinstance(side, str):
        return bool(side.strip())
    return any(message_text(message).strip() or message.get("tool_calls") for message in side)
