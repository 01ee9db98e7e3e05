"""Groups of responses with rewards as token ids, and what is wrong with those that cannot be used."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from probing.data.rollouts import name_response
from probing.tokens.answers import Answers, tokenize_answers
from probing.tokens.tokenized_row import TokenizedRow
from probing.types import Problem, RolloutGroup
from probing.types.status import RolloutStatus


@dataclass(frozen=True, slots=True)
class TokenizedGroup(TokenizedRow):
    """The sequences of one group.

    Attributes:
        id: id of the group.
        prompt_tokens: length of the prefix that all sequences share and that ends with the prompt.
        sequences: ids of the prompt and each response.
        rewards: one a response; NaN where there is none.
        correct: whether the reward of each response says that it is.
        problem: why no number can be trusted; None if one can.
    """

    id: str
    prompt_tokens: int
    sequences: list[list[int]]
    rewards: list[float]
    correct: list[bool]
    problem: Problem | None = None

    @property
    def tokens(self) -> list[int]:
        """Tokens of each response, end of turn included."""
        return [len(ids) - self.prompt_tokens for ids in self.sequences]

    @property
    def response_ids(self) -> list[list[int]]:
        """Ids of the tokens of each response."""
        return [ids[self.prompt_tokens :] for ids in self.sequences]

    @property
    def names(self) -> list[str]:
        """An id of each response: that of the group, and the number of the response from 0."""
        return [name_response(self.id, number) for number in range(len(self.sequences))]


def tokenize_groups(
    tokenizer: Any,
    groups: Sequence[RolloutGroup],
    correct_above: float,
    *,
    eos: bool = True,
    max_length: int | None = None,
    where: Callable[[int], str] | None = None,
) -> list[TokenizedGroup]:
    """Tokenise groups the way a trainer sees them: see ``tokenize_answers``.

    Args:
        tokenizer: a transformers tokenizer.
        groups: text or conversations; conversations are rendered by the tokenizer's chat template.
        correct_above: the reward above which a response is correct.
        eos: whether the end of turn belongs to a response.
        max_length: longest sequence, in tokens. Longer ones are not cut but marked.
        where: names a group in messages, given its index; by default its id.

    Returns:
        One result a group, in order.

    Raises:
        DataInvalid: there are conversations, and no chat template.
        ModelInvalid: an EOS is needed and the tokenizer has none; or the chat template does not end.
    """
    rows = [
        Answers(
            group.id,
            group.prompt,
            {f"response {number}": response for number, response in enumerate(group.responses)},
            group.tools,
            group.chat_template_kwargs,
            noun="group",
        )
        for group in groups
    ]
    coded = tokenize_answers(tokenizer, rows, eos=eos, max_length=max_length, where=where)
    found = []
    for group, row in zip(groups, coded, strict=True):
        rewards = [math.nan if reward is None else float(reward) for reward in group.rewards]
        correct = [reward > correct_above for reward in rewards]
        whole = TokenizedGroup(row.id, row.prompt_tokens, row.sequences, rewards, correct, row.problem)
        found.append(replace(whole, problem=_find_problem(whole, correct_above) or row.problem))
    return found


def _find_problem(group: TokenizedGroup, correct_above: float) -> Problem | None:
    """Why the rewards of a group say nothing; None if they do."""

    def problem(status: RolloutStatus, detail: str) -> Problem:
        return Problem(group.id, status, detail)

    count = len(group.rewards)
    if count == 1:
        return problem("one_response", "the group has one response")
    bad = next((number for number, reward in enumerate(group.rewards) if not math.isfinite(reward)), None)
    if bad is not None:
        known = "missing or NaN" if math.isnan(group.rewards[bad]) else str(group.rewards[bad])
        return problem("no_reward", f"the reward of response {bad} is {known}")
    if not any(group.correct):
        return problem("none_correct", f"no reward of {count} is above {correct_above:g}")
    if all(group.correct):
        return problem("all_correct", f"all {count} rewards are above {correct_above:g}")
    return None
