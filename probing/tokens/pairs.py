"""Preference pairs as token ids, cut where the response begins, ended as a trainer would end them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from probing.tokens.answers import Answers, tokenize_answers
from probing.tokens.tokenized_row import TokenizedRow
from probing.types import PreferencePair, Problem


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


def tokenize_pairs(
    tokenizer: Any,
    pairs: Sequence[PreferencePair],
    *,
    eos: bool = True,
    max_length: int | None = None,
    where: Callable[[int], str] | None = None,
) -> list[TokenizedPair]:
    """Tokenise pairs the way a DPO trainer sees them: see ``tokenize_answers``.

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
    rows = [
        Answers(
            pair.id,
            pair.prompt,
            {"chosen response": pair.chosen, "rejected response": pair.rejected},
            pair.tools,
            pair.chat_template_kwargs,
            distinct=True,
            noun="pair",
        )
        for pair in pairs
    ]
    found = tokenize_answers(tokenizer, rows, eos=eos, max_length=max_length, where=where)
    return [TokenizedPair(row.id, row.prompt_tokens, *_both(row.sequences), row.problem) for row in found]


def _both(sequences: Sequence[list[int]]) -> tuple[list[int], list[int]]:
    chosen, rejected = sequences
    return chosen, rejected
