"""Tokens that are run and operations that they take, counted by hand rather than by a profiler."""

from collections.abc import Sequence
from dataclasses import dataclass

from card.sizes import Sizes
from probing.tokens.pairs import TokenizedPair


@dataclass(frozen=True)
class Work:
    """What scoring some pairs takes, prompts run once a pair.

    Attributes:
        tokens: that are run.
        body: operations of the layers' products, a multiplication and an addition counted as two.
        attention: operations of attention: the products of queries with keys, and of weights with values.
        head: operations of the product with the output head, of every state that predicts a response token.
        answers: tokens of the responses.
    """

    tokens: int
    body: float
    attention: float
    head: float
    answers: int


def work_of(pairs: Sequence[TokenizedPair], sizes: Sizes) -> Work:
    """Of pairs whose status is "ok". The last token of a sequence predicts nothing, and is not run."""
    tokens, answers = 0, 0
    seen = 0.0
    for pair in pairs:
        prompt = pair.prompt_tokens
        sides = [len(ids) - 1 - prompt for ids in (pair.chosen, pair.rejected)]
        tokens += prompt + sum(sides)
        answers += pair.chosen_tokens + pair.rejected_tokens
        # Half of the square, as published figures count it: the diagonal is left out.
        seen += prompt**2 / 2 + sum(own * prompt + own**2 / 2 for own in sides)
    return Work(
        tokens,
        body=tokens * body_of_a_token(sizes),
        attention=4 * seen * sizes.width * sizes.layers,
        head=2.0 * answers * sizes.width * sizes.vocabulary,
        answers=answers,
    )


def body_of_a_token(sizes: Sizes) -> float:
    """Operations of the products of all layers for one token: two a weight."""
    weights = 2 * sizes.width**2 + 2 * sizes.width * sizes.kv_width + 3 * sizes.width * sizes.inner
    return 2.0 * sizes.layers * weights
