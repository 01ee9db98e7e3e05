"""Texts as token ids, with the special tokens of a text exactly once: its BOS, and the end of its last turn."""

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

log = logging.getLogger(__name__)

TWO_BOS = "the sequence begins with two BOS tokens; remove one from text or template"


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


def begins_with_two_bos(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Whether text and template, or text and tokenizer, have both written a BOS at the start."""
    bos = tokenizer.bos_token_id
    return bos is not None and list(ids[:2]) == [bos, bos]


def holds_bos(tokenizer: Any, value: Any) -> bool:
    """Whether the tokenizer makes a BOS of something that stands in a text, or in texts within lists and mappings.

    The texts are encoded, not searched: only the tokenizer knows what it makes of a BOS that is a part of a word, or
    that a normaliser brings about.
    """
    # All in one text, which is much faster; no token reaches over a line break.
    text = "\n".join(dict.fromkeys(texts_within(value)))
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return tokenizer.bos_token_id in ids


def texts_within(value: Any) -> Iterator[str]:
    """Every text within nested lists and mappings, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from texts_within(key)
            yield from texts_within(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from texts_within(inner)


def warn_without_bos(tokenizer: Any, rendered: Sequence[str]) -> None:
    """Warn once if a chat template leaves out the BOS that the tokenizer adds to plain text."""
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


def set_end_of_turn(tokenizer: Any, ids: list[int], border: int, closing: frozenset[int], eos: bool) -> list[int]:
    """The sequence with its end of turn exactly once, or without it."""
    last = len(ids)
    while last > border and ids[last - 1] not in closing and not tokenizer.decode([ids[last - 1]]).strip():
        # Some templates write a line break after the end of turn.
        last -= 1
    closed = last > border and ids[last - 1] in closing
    if eos:
        return ids if closed else [*ids, tokenizer.eos_token_id]
    while closed and last > border and ids[last - 1] in closing:
        last -= 1
    return ids[:last] if closed else ids
