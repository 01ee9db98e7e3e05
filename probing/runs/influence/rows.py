"""Rows of the target as tokens with their weights, and pairs that are drawn."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probing.errors import DataInvalid
from probing.instruments.influence import Report, rows_of
from probing.instruments.parameter_gradients import Group, ParameterGradients, PromptedRow
from probing.instruments.problems import warn_of
from probing.models.stack import output_site
from probing.runs.influence.config import InfluenceConfig
from probing.runs.influence.data import OF_PAIRS, TargetRows
from probing.runs.influence.models import MovedModel
from probing.tokens.pairs import TokenizedPair
from probing.tokens.prompts import TokenizedPrompt, tokenize_prompts
from probing.types import Capture, Problem


@dataclass(frozen=True, eq=False)
class Target:
    """What is to be kept: a mean over groups of rows of sums of ``ln p`` with weights.

    Attributes:
        groups: rows that are run together: one response, or both of a pair.
        weights: weight of each row of a group: 1, and -1 for the rejected response of a margin.
        longest: most tokens that the model takes; None where it does not say.
    """

    groups: Sequence[Group]
    weights: Sequence[Sequence[float]]
    longest: int | None = None

    def add_gradient(
        self, gradients: ParameterGradients, into: Sequence[Tensor], report: Report | None = None
    ) -> float:
        """Add the gradient of the target to tensors; returns the target itself, in nats."""

        def weigh(some: Sequence[int], logprobs: Tensor) -> Tensor:
            own = [weight / len(self.groups) for at in some for weight in self.weights[at]]
            return torch.tensor(own, dtype=logprobs.dtype, device=logprobs.device)

        found = gradients.add(self.groups, weigh, into, report)
        products = (
            float(torch.dot(said, torch.tensor(own, dtype=said.dtype)))
            for said, own in zip(found, self.weights, strict=True)
        )
        return sum(products) / len(self.groups)

    def permuted(self, generator: random.Random) -> "Target | None":
        """The same with every response after the prompt of another row; of margins, with random signs.

        None where that is the target itself, since all responses are the same, or there is one row alone.
        """
        if len(self.weights[0]) == 2:
            signs = [generator.choice((1.0, -1.0)) for _ in self.weights]
            return replace(
                self, weights=[[sign * weight for weight in own] for sign, own in zip(signs, self.weights, strict=True)]
            )
        rows = [group[0] for group in self.groups]
        if len({tuple(row.ids[row.prompt_tokens :]) for row in rows}) < 2:
            return None
        order = list(range(len(rows)))
        generator.shuffle(order)
        exchanged = [_exchange(rows[at], rows[other]) for at, other in zip(order, order[1:] + order[:1], strict=True)]
        fitting = [[row] for row in exchanged if self.longest is None or len(row.ids) <= self.longest]
        return replace(self, groups=fitting, weights=[[1.0]] * len(fitting)) if fitting else None


def _exchange(row: PromptedRow, other: PromptedRow) -> PromptedRow:
    """The prompt of one row with the response of another."""
    ids = [*row.ids[: row.prompt_tokens], *other.ids[other.prompt_tokens :]]
    return PromptedRow(ids, row.prompt_tokens)


def tokenize_target(config: InfluenceConfig, rows: TargetRows, moved: MovedModel) -> Target:
    """The target as the model sees it; rows that cannot be run are left out, which a warning says.

    Raises:
        DataInvalid: no row can be run.
    """
    if config.quantity in OF_PAIRS:
        tokenized = moved.scorer.tokenize(rows.pairs, rows.table.where)
        problems = [pair.problem for pair in tokenized if pair.problem is not None]
        good: list[list[PromptedRow]] = [rows_of(pair) for pair in tokenized if pair.problem is None]
        groups = good if config.quantity == "margin" else [group[:1] for group in good]
    else:
        prompts = _tokenize_prompts(config, rows, moved)
        problems = [prompt.problem for prompt in prompts if prompt.problem is not None]
        groups = [[PromptedRow(prompt.ids, prompt.start)] for prompt in prompts if prompt.problem is None]
    warn_of(problems, len(rows.texts))
    if not groups:
        first = problems[0]
        raise DataInvalid(
            f"{rows.table.path}: no row of the target can be run; the first: '{first.id}' ({first.status}, "
            f"{first.detail})"
        )
    weights = [[1.0, -1.0] if config.quantity == "margin" else [1.0]] * len(groups)
    return Target(groups, weights, moved.scorer.limit)


def _tokenize_prompts(config: InfluenceConfig, rows: TargetRows, moved: MovedModel) -> list[TokenizedPrompt]:
    """Prompts with responses; what a refusal begins with has no end of turn."""
    refusal = config.quantity == "refusal"
    request = Capture(places=[output_site(moved.stack).place], over="response", chat=refusal)
    tokenized = tokenize_prompts(
        moved.language_model.tokenizer,
        rows.prompts,
        request,
        eos=config.eos and not refusal,
        max_length=moved.scorer.limit,
    )
    return [_check_start(prompt) for prompt in tokenized]


def _check_start(prompt: TokenizedPrompt) -> TokenizedPrompt:
    """The same, with a problem where nothing predicts the first token of the response."""
    if prompt.problem is not None or prompt.start > 0:
        return prompt
    detail = "no token of the prompt is left before the response, so nothing predicts its first token"
    return replace(prompt, problem=Problem(prompt.id, "nothing_left", detail))


def draw_order(pairs: int, seed: int) -> list[int]:
    """Numbers of pairs in the order in which batches are made of them."""
    order = list(range(pairs))
    random.Random(seed).shuffle(order)
    return order


def draw_runnable(
    tokenize: Callable[[Sequence[int]], list[TokenizedPair]], order: Sequence[int], count: int
) -> list[TokenizedPair]:
    """The first so many pairs, in an order, that can be run.

    Args:
        tokenize: pairs by their numbers, as the model sees them.
        order: numbers of pairs.
        count: number of pairs that are wanted.
    """
    found: list[TokenizedPair] = []
    for start in range(0, len(order), count):
        if len(found) >= count:
            break
        found += [pair for pair in tokenize(order[start : start + count]) if pair.problem is None]
    return found[:count]
