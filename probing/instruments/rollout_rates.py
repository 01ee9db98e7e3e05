"""What one step on a group of responses with rewards does to the correct ones, and which tokens pull them down."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from probing.engine.stream import Stream
from probing.engine.trees import Segment
from probing.instruments.pair_scores import split_by_states
from probing.instruments.pull_rows import PULLS_SCHEMA, make_pull_rows
from probing.instruments.reading import (
    Advance,
    NonFiniteExplainer,
    check_max_length,
    open_stream,
    report_tokens,
    set_up,
    split_runnable,
)
from probing.instruments.token_texts import TokenTexts
from probing.kernels.output_head import Unembedding
from probing.kernels.token_stats import TokenStats, token_stats
from probing.metrics.displacement import group_products
from probing.metrics.group_advantages import rates_under, response_weights
from probing.models.heads import find_head
from probing.models.layers import find_backbone
from probing.models.load import LanguageModel
from probing.models.stack import output_site
from probing.tokens.rollouts import TokenizedGroup, tokenize_groups
from probing.types import AdvantageName, Problem, RolloutGroup

ROLLOUTS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("group", pa.string()),
        ("status", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("response_tokens", pa.int64()),
        ("reward", pa.float64()),
        ("correct", pa.bool_()),
        ("logprob", pa.float64()),
        ("advantage", pa.float64()),
        ("rate", pa.float64()),
        ("rate_per_token", pa.float64()),
    ]
)
"""One row a response. Where the status of its group is not "ok" there is no advantage and no rate."""
NUMBERS = ("logprob", "advantage", "rate", "rate_per_token")


@dataclass(frozen=True)
class ScoredGroups:
    """Rates of some groups, a row a response in their order; pulls, a row a token; and the tokens that were run."""

    frame: pd.DataFrame
    pulls: pa.Table
    problems: list[Problem]
    tokens: int


@dataclass
class RolloutScorer:
    """Computes rates and pulls of group after group with one model.

    Args:
        language_model: the model and its tokenizer.
        advantage: how rewards become weights; see ``response_weights``.
        correct_above: the reward above which a response is correct.
        eos: whether the end of turn belongs to a response.
        max_length: longest sequence; by default what the model has positions for.
        batch_tokens: tokens a batch; found by itself when None.
        compile: whether the blocks are compiled by ``torch.compile``.

    Raises:
        UsageError: a length or a budget out of range.
        LayerNotFound, ModelInvalid: the model is no causal language model of an understood form.
    """

    language_model: LanguageModel
    advantage: AdvantageName = "grpo"
    correct_above: float = 0.5
    eos: bool = True
    max_length: int | None = None
    batch_tokens: int | None = None
    compile: bool = False
    stream: Stream = field(init=False)
    head: Unembedding = field(init=False)

    def __post_init__(self) -> None:
        self.limit = check_max_length(self.max_length, self.language_model.max_positions)
        with set_up(self.language_model):
            stack = find_backbone(self.language_model)
            self.head = find_head(stack)
            kept = {"compiled": self.compile, "keep_on_device": True}
            self.stream = open_stream(stack, [output_site(stack)], ["tokens"], self.batch_tokens, **kept)
        self._explainer = NonFiniteExplainer(self.stream)
        self._texts = TokenTexts(self.language_model.tokenizer)

    def tokenize(
        self, groups: Sequence[RolloutGroup], where: Callable[[int], str] | None = None
    ) -> list[TokenizedGroup]:
        """Groups as this model sees them."""
        return tokenize_groups(
            self.language_model.tokenizer,
            groups,
            self.correct_above,
            eos=self.eos,
            max_length=self.limit,
            where=where,
        )

    def score(self, tokenized: list[TokenizedGroup], report: Advance | None = None) -> ScoredGroups:
        """Compute the numbers of some groups.

        Args:
            tokenized: the groups as ``tokenize`` returned them.
            report: see ``Advance``.
        """
        runnable, problems = split_runnable(tokenized, report)
        run = sum(len(ids) - 1 for group in runnable for ids in group.sequences)
        progress = report_tokens(report, len(runnable), run)
        numbers: dict[str, list[dict[str, float]]] = {}
        pulls = [PULLS_SCHEMA.empty_table()]
        tokens = [sum(group.tokens) for group in runnable]
        for some in split_by_states(runnable, tokens, self.stream.stack) if runnable else []:
            for group, states, stats in self._read(some, progress):
                detail, found, pulled = self._measure(group, states, stats)
                if detail is not None:
                    problems[group.id] = Problem(group.id, "not_finite", detail)
                    continue
                numbers[group.id] = found
                pulls.append(pulled)
        frame = _as_frame(tokenized, problems, numbers)
        said = [problems[group.id] for group in tokenized if group.id in problems]
        return ScoredGroups(frame, pa.concat_tables(pulls), said, run)

    def _read(
        self, groups: Sequence[TokenizedGroup], progress: Callable[[int], None] | None
    ) -> list[tuple[TokenizedGroup, Tensor, TokenStats]]:
        """The states that predict the responses of each group, and what the head says of them, where the head is."""
        segments = [
            Segment(ids, group.prompt_tokens - 1, len(ids) - 1, group.prompt_tokens)
            for group in groups
            for ids in group.sequences
        ]
        with set_up(self.language_model):
            states = self.stream.read(segments, progress).values["tokens"][0].to(self.head.weight.device)
            following = torch.tensor([id for group in groups for ids in group.response_ids for id in ids])
            counts = [sum(group.tokens) for group in groups]
            stats = token_stats(states, self.head, following)
            each = zip(*(values.split(counts) for values in stats), strict=True)
            return [
                (group, own, TokenStats(*said))
                for group, own, said in zip(groups, states.split(counts), each, strict=True)
            ]

    def _measure(
        self, group: TokenizedGroup, states: Tensor, stats: TokenStats
    ) -> tuple[str | None, list[dict[str, float]], pa.Table]:
        """Why the numbers of a group cannot be trusted, or those of its responses, and the pulls of its tokens."""
        ids = [torch.tensor(own) for own in group.response_ids]
        with torch.inference_mode():
            products = group_products(states.split(group.tokens), ids, self.head, group.correct, stats.logsumexp)
        lengths = torch.tensor(group.tokens)
        logprobs = torch.stack([own.double().sum() for own in stats.logprob.split(group.tokens)]).cpu()
        given = response_weights(torch.tensor(group.rewards, dtype=torch.float64), lengths, self.advantage)
        rates = rates_under(products.gram.cpu(), given.weights)
        if not all(bool(values.isfinite().all()) for values in (logprobs, rates, products.pulls)):
            return self._explain(group), [], PULLS_SCHEMA.empty_table()
        columns = (logprobs, given.advantages, rates, rates / lengths)
        rows = [dict(zip(NUMBERS, values, strict=True)) for values in zip(*map(Tensor.tolist, columns), strict=True)]
        wrong = [at for at, good in enumerate(group.correct) if not good]
        pulls = products.pulls.cpu().split([group.tokens[at] for at in wrong])
        responses = [(group.names[at], group.response_ids[at], own) for at, own in zip(wrong, pulls, strict=True)]
        return None, rows, make_pull_rows(responses, self._texts)

    def _explain(self, group: TokenizedGroup) -> str:
        segments = [Segment(ids, 0, len(ids) - 1) for ids in group.sequences]
        otherwise = "the states are finite, but what the head makes of them is not: they are too large"
        return self._explainer.explain(segments, otherwise)


def _as_frame(
    groups: Sequence[TokenizedGroup],
    problems: dict[str, Problem],
    numbers: dict[str, list[dict[str, float]]],
) -> pd.DataFrame:
    """One row a response, in order."""
    rows: list[dict[str, Any]] = []
    for group in groups:
        status = problems[group.id].status if group.id in problems else "ok"
        found = numbers.get(group.id, [{} for _ in group.sequences])
        known = zip(group.names, group.tokens, group.rewards, group.correct, found, strict=True)
        for name, tokens, reward, correct, own in known:
            facts = {"id": name, "group": group.id, "status": status, "prompt_tokens": group.prompt_tokens}
            # Of a reward that is not there nothing can be said.
            judged = correct if reward == reward else None
            rows.append({**facts, "response_tokens": tokens, "reward": reward, "correct": judged, **own})
    frame = pd.DataFrame(rows, columns=ROLLOUTS_SCHEMA.names)
    return frame.astype({"correct": "boolean", **dict.fromkeys(NUMBERS, "float64")})
