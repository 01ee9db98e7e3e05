"""Scores of preference pairs: the states of a model joined to the formulas of ``metrics.similarity``."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa
import torch

from probing.data.pair_columns import PairColumns
from probing.data.pairs import USUAL, pairs_from_rows
from probing.engine.guard import LeaveAsFound
from probing.engine.stream import ONE_AT_A_TIME, Stream
from probing.engine.trees import Segment
from probing.errors import DataInvalid
from probing.instruments.columns import (
    ALL,
    COLUMNS,
    EXACT,
    GROUPS,
    LIKELIHOOD_COLUMNS,
    RATE_COLUMNS,
    REJECTED_SQUARE,
    SCORE_COLUMNS,
    TOKEN_COLUMNS,
    expand_groups,
    known_columns,
)
from probing.instruments.gradient_rates import GradientRates
from probing.instruments.pair_likelihoods import (
    as_columns,
    describe_bad_token,
    likelihood_columns,
    make_token_readout,
)
from probing.instruments.pair_regimes import exact_products, free_products, regime_columns
from probing.instruments.pull_rows import PULLS_SCHEMA, make_pull_rows
from probing.instruments.reading import (
    Advance,
    NonFiniteExplainer,
    Row,
    check_max_length,
    check_unique,
    list_rows,
    open_stream,
    read_blocks,
    report_tokens,
    set_up,
    split_runnable,
)
from probing.instruments.token_texts import TokenTexts
from probing.kernels.output_head import Unembedding
from probing.kernels.token_stats import token_stats
from probing.metrics.entanglement import PairProducts
from probing.metrics.preference_losses import MARGIN, PreferenceLoss
from probing.metrics.similarity import ches, ches_normalized, edit_similarity, last_state_similarity
from probing.models.heads import find_head
from probing.models.in_memory import as_language_model
from probing.models.layers import find_backbone
from probing.models.load import LanguageModel
from probing.models.stack import Stack, output_site
from probing.report.progress import Progress
from probing.tokens.pairs import TokenizedPair, tokenize_pairs
from probing.types import LossName, Pooling, PreferencePair, Problem

BLOCK_PAIRS = 512
"""Pairs that are tokenised, sorted and scored together; bounds the memory whatever the number of rows."""
STATE_BYTES = 1 << 27
"""Bytes of the states that are kept for the rates, which need both responses of a pair at once."""
STATE_SHARE = 64
"""On a card these states take at most the 64th part of its memory, if that is more. It is not a part of the free
memory, so that a continued run forms the same groups."""


FINITE = (*SCORE_COLUMNS, *RATE_COLUMNS, "rejected_rate", f"rejected_rate{EXACT}")
"""Columns without which a pair has no score; others have no value where they are not defined."""


@dataclass(frozen=True)
class ScoredBlock:
    """Scores of some pairs, in their order, with the number of tokens that were run; and pulls, where asked for."""

    frame: pd.DataFrame
    problems: list[Problem]
    tokens: int
    pulls: pa.Table | None = None


@dataclass(frozen=True)
class Measured:
    """Numbers of some pairs, finite or not.

    Attributes:
        columns: scores by name, one value a pair.
        stats: log-probability and rank of the tokens of each pair's chosen and then rejected response, pair after
            pair, [token 2]; None if no likelihood was asked for.
        states: states that predict these tokens, [token width], where they are kept: in the model's dtype, on its
            device.
        pulls: pull of each token of each pair's rejected response, where they are asked for, a tensor a pair.
    """

    columns: dict[str, list[Any]]
    stats: torch.Tensor | None
    states: torch.Tensor | None
    pulls: list[torch.Tensor] | None = None


@dataclass
class PairScorer:
    """Scores block after block with one model.

    Args:
        language_model: the model and its tokenizer.
        eos: whether the end of turn belongs to the response.
        max_length: longest sequence; by default what the model has positions for.
        batch_tokens: padded tokens a batch; found by itself when None.
        columns: columns to compute, besides id, status and tokens.
        rate_parameters: parameters that exact rates cover; see ``GradientRates``.
        loss: the loss whose training rates and regimes are about.
        keep_states: whether ``measure`` hands out the states of the responses.
        compile: whether the blocks are compiled by ``torch.compile``.
        pull: whether the pull of each token of the rejected responses is computed.

    Raises:
        UsageError: a length or a budget out of range, unknown columns or parameters.
        LayerNotFound, ModelInvalid: the model is no causal language model of an understood form.
    """

    language_model: LanguageModel
    eos: bool = True
    max_length: int | None = None
    batch_tokens: int | None = None
    columns: Sequence[str] = COLUMNS
    rate_parameters: str = "all"
    loss: PreferenceLoss = MARGIN
    keep_states: bool = False
    compile: bool = False
    pull: bool = False
    stream: Stream = field(init=False)
    head: Unembedding = field(init=False)

    def __post_init__(self) -> None:
        self.columns = known_columns(self.columns)
        self.limit = check_max_length(self.max_length, self.language_model.max_positions)
        self._rated, exact = (bool(set(group) & set(self.columns)) for group in GROUPS.values())
        self._keeping = self.keep_states or self._rated or self.pull
        self._likely = self._keeping or bool(set(LIKELIHOOD_COLUMNS) & set(self.columns))
        self._likely |= exact and self.loss.needs_likelihoods
        with set_up(self.language_model):
            stack = find_backbone(self.language_model)
            self.stream = self._open_stream(stack)
            self._exact = GradientRates(stack, self.rate_parameters) if exact else None
        self._explainer = NonFiniteExplainer(self.stream)
        self._texts = TokenTexts(self.language_model.tokenizer)

    def _open_stream(self, stack: Stack) -> Stream:
        """A stream that keeps the sum of the last states, the last one, and for every token what likelihoods need."""
        poolings: list[Pooling] = ["sum", "last"]
        kept: dict[str, Any] = {"compiled": self.compile, "keep_on_device": self._keeping}
        if self._likely:
            self.head = find_head(stack)
            poolings.append("tokens")
            kept["per_token"] = None if self._keeping else make_token_readout(self.head)
        return open_stream(stack, [output_site(stack)], poolings, self.batch_tokens, **kept)

    def score(
        self,
        pairs: Sequence[PreferencePair],
        where: Callable[[int], str] | None = None,
        report: Advance | None = None,
    ) -> ScoredBlock:
        """Score some pairs.

        Args:
            pairs: tokenised and sorted together, so not too many at once.
            where: names a pair in messages, given its index.
            report: see ``Advance``.
        """
        return self.score_tokenized(self.tokenize(pairs, where), report)

    def score_tokenized(self, tokenized: list[TokenizedPair], report: Advance | None = None) -> ScoredBlock:
        """Score pairs that ``tokenize`` returned."""
        runnable, problems = split_runnable(tokenized, report)
        pulls = [PULLS_SCHEMA.empty_table()]
        scores = self._score(runnable, problems, report, pulls) if runnable else {}
        frame = as_frame(tokenized, problems, {name: _dtype(name) for name in self.columns}, scores)
        tokens = count_run_tokens(runnable)
        said = [problems[id] for id in frame["id"] if id in problems]
        return ScoredBlock(frame, said, tokens, pa.concat_tables(pulls) if self.pull else None)

    def tokenize(
        self, pairs: Sequence[PreferencePair], where: Callable[[int], str] | None = None
    ) -> list[TokenizedPair]:
        """Pairs as this model sees them."""
        return tokenize_pairs(self.language_model.tokenizer, pairs, eos=self.eos, max_length=self.limit, where=where)

    def _score(
        self,
        pairs: Sequence[TokenizedPair],
        problems: dict[str, Problem],
        report: Advance | None,
        pulls: list[pa.Table],
    ) -> dict[str, dict[str, Any]]:
        progress = report_tokens(report, len(pairs), count_run_tokens(pairs))
        scores: dict[str, dict[str, Any]] = {}
        for group in self.groups(pairs):
            measured = self.measure(group, progress)
            for index, (pair, detail) in enumerate(zip(group, self.find_troubles(group, measured), strict=True)):
                if detail is None:
                    scores[pair.id] = {name: values[index] for name, values in measured.columns.items()}
                else:
                    problems[pair.id] = Problem(pair.id, "not_finite", detail)
            if measured.pulls is not None:
                rows = zip(group, measured.pulls, strict=True)
                good = [(p.id, p.rejected[p.prompt_tokens :], each) for p, each in rows if p.id not in problems]
                pulls.append(make_pull_rows(good, self._texts))
        return scores

    def groups(self, pairs: Sequence[TokenizedPair]) -> Iterable[Sequence[TokenizedPair]]:
        """All pairs together; or, where every state is kept for a while, as many as the memory for them holds."""
        if not self._keeping:
            return [pairs]
        return split_by_states(pairs, [pair.chosen_tokens + pair.rejected_tokens for pair in pairs], self.stream.stack)

    def measure(self, pairs: Sequence[TokenizedPair], report: Callable[[int], None] | None = None) -> Measured:
        """Every number of some pairs that can be run.

        Args:
            pairs: whose status is "ok"; one of the ``groups``.
            report: called with the number of tokens of each batch.
        """
        segments = [
            Segment(ids, pair.prompt_tokens - 1, len(ids) - 1, pair.prompt_tokens)
            for pair in pairs
            for ids in (pair.chosen, pair.rejected)
        ]
        with set_up(self.language_model):
            values = self.stream.read(segments, report).values
            total, last = (values[name][0].unflatten(0, (-1, 2)) for name in ("sum", "last"))
            columns = _similarities(total, last, pairs)
            stats = states = free = None
            if self._keeping:
                states = values["tokens"][0].to(self.head.weight.device)
                following = torch.tensor([id for row in segments for id in row.ids[row.start + 1 :]])
                said = token_stats(states, self.head, following)
                stats = as_columns(said).cpu()
                if self._rated or self.pull:
                    both = bool(set(REJECTED_SQUARE) & set(self.columns))
                    free = free_products(states, following, said.logsumexp, pairs, self.head, both)
            elif self._likely:
                stats = values["tokens"][0]
            if stats is not None:
                columns |= {name: column.tolist() for name, column in likelihood_columns(stats, pairs).items()}
            if free is not None and self._rated:
                columns |= self._judge(free.products, "", pairs, columns)
            if self._exact is not None:
                columns |= self._judge(exact_products(self._exact, pairs), EXACT, pairs, columns)
        return Measured(columns, stats, states, free.pulls if free is not None and self.pull else None)

    def _judge(
        self, products: PairProducts, end: str, pairs: Sequence[TokenizedPair], columns: Mapping[str, list[Any]]
    ) -> dict[str, list[Any]]:
        """The columns of a group that were asked for, and its rate, which tells whether they can be trusted."""
        found = regime_columns(products, self.loss, pairs, columns)
        return {
            f"{name}{end}": values
            for name, values in found.items()
            if name == RATE_COLUMNS[0] or f"{name}{end}" in self.columns
        }

    def find_troubles(self, pairs: Sequence[TokenizedPair], measured: Measured) -> list[str | None]:
        """Why the numbers of a pair cannot be trusted, for each; None where they can."""
        details: list[str | None] = []
        lengths = [pair.chosen_tokens + pair.rejected_tokens for pair in pairs]
        logprobs = [None] * len(pairs) if measured.stats is None else measured.stats[:, 0].split(lengths)
        for index, pair in enumerate(pairs):
            checked = [name for name in FINITE if name in measured.columns]
            bad = [name for name in checked if not math.isfinite(measured.columns[name][index])]
            said = logprobs[index]
            if set(bad) & set(SCORE_COLUMNS):
                details.append(self._explain(pair))
            elif said is not None and not bool(said.isfinite().all()):
                details.append(describe_bad_token(self.language_model.tokenizer, pair, said))
            elif measured.pulls is not None and not bool(measured.pulls[index].isfinite().all()):
                details.append("the pulls of its tokens are not finite: the model's states are too large")
            else:
                details.append(f"{bad[0]} is {measured.columns[bad[0]][index]}" if bad else None)
        return details

    def _explain(self, pair: TokenizedPair) -> str:
        """Why the scores of a pair are not finite."""
        segments = [Segment(ids, 0, len(ids) - 1) for ids in (pair.chosen, pair.rejected)]
        otherwise = "the states are finite, but their products are not: the model's states are too large"
        return self._explainer.explain(segments, otherwise)


def _similarities(total: torch.Tensor, last: torch.Tensor, pairs: Sequence[TokenizedPair]) -> dict[str, list[Any]]:
    """Scores of the similarity of two responses, from their sums of states and last states, [pair 2 width]."""
    counts = (torch.tensor([getattr(pair, name) for pair in pairs]) for name in TOKEN_COLUMNS[1:])
    return {
        "ches": ches(total[:, 0], total[:, 1]).tolist(),
        "ches_normalized": ches_normalized(total[:, 0], total[:, 1], *counts).tolist(),
        "last_state_similarity": last_state_similarity(last[:, 0], last[:, 1]).tolist(),
        "edit_similarity": [
            edit_similarity(pair.chosen[pair.prompt_tokens :], pair.rejected[pair.prompt_tokens :]) for pair in pairs
        ],
    }


def split_by_states(rows: Sequence[Row], tokens: Sequence[int], stack: Stack) -> list[list[Row]]:
    """Rows in order, as many together as the memory for states holds; at least one.

    Args:
        rows: the rows.
        tokens: number of states that are kept of each.
        stack: the model.
    """
    model = stack.language_model
    limit = _state_bytes(model.device) // (model.dtype.itemsize * stack.width)
    groups: list[list[Row]] = [[]]
    kept = 0
    for row, count in zip(rows, tokens, strict=True):
        kept += count
        if groups[-1] and kept > limit:
            groups.append([])
            kept = count
        groups[-1].append(row)
    return groups


def _state_bytes(device: torch.device) -> int:
    """Memory for states that are kept, on this device."""
    if device.type != "cuda":
        return STATE_BYTES
    return max(STATE_BYTES, torch.cuda.get_device_properties(device).total_memory // STATE_SHARE)


def count_run_tokens(pairs: Sequence[TokenizedPair]) -> int:
    """Tokens that are run for some pairs: the last of each response predicts nothing."""
    return sum(len(pair.chosen) + len(pair.rejected) - 2 for pair in pairs)


def _dtype(name: str) -> str | None:
    if name in GROUPS:
        return None
    return "boolean" if name == "ranking_correct" else "float64"


def as_frame(
    pairs: Sequence[TokenizedPair],
    problems: Mapping[str, Problem],
    columns: Mapping[str, Any],
    values: Mapping[str, Mapping[str, Any]],
) -> pd.DataFrame:
    """One row a pair, in order: id, status, tokens, and the columns, without a value where there is a problem.

    Args:
        pairs: all pairs, in order.
        problems: problems of some of the pairs, by id.
        columns: pandas dtypes of the columns, by name, in order, None for words; facts of a pair may be among them.
        values: values of the other pairs, by id and column.
    """
    facts = [
        (pair.id, problems[pair.id].status if pair.id in problems else "ok", *(getattr(pair, n) for n in TOKEN_COLUMNS))
        for pair in pairs
    ]
    frame = pd.DataFrame(facts, columns=["id", "status", *TOKEN_COLUMNS])
    for name, dtype in columns.items():
        if name not in frame.columns:
            column = [values[id][name] if id in values else None for id in frame["id"]]
            frame[name] = column if dtype is None else pd.array(column, dtype=dtype)
    return frame


def score_pairs(
    model: Any,
    pairs: Any,
    columns: Sequence[str] | None = None,
    batch_tokens: int | None = None,
    *,
    eos: bool = True,
    max_length: int | None = None,
    rate_parameters: str = "all",
    loss: PreferenceLoss | LossName = "margin",
    compile: bool = False,
    prompt_column: str | None = None,
    chosen_column: str | None = None,
    rejected_column: str | None = None,
    system_column: str | None = None,
    implicit_prompt: bool = False,
) -> pd.DataFrame:
    """Score preference pairs by CHES and its relatives, by likelihood, and by how training on them would move it.

    Args:
        model: language model from ``load``, or a model in memory with its tokenizer: see ``as_language_model``.
        pairs: ``PreferencePair`` objects, mappings with ``prompt``/``chosen``/``rejected`` in any of TRL's formats, a
            ``datasets.Dataset`` or a ``pandas.DataFrame``.
        columns: columns to return, besides ``id`` and ``status``. By default tokens, CHES and its relatives;
            "all" stands for these and everything about likelihood; rates cost more and are named. "regime" stands for
            all that tells how training moves both responses, "regime_exact" for the same by gradients of the model.
        batch_tokens: padded tokens a batch; found by itself when None. The numbers do not depend on it.
        eos: whether the end of turn belongs to the response, as in training.
        max_length: longest sequence in tokens; longer pairs get the status ``truncated`` and no score.
        rate_parameters: over which the exact columns take gradients: "all", "head" or "last:K".
        loss: the loss whose training rates and regimes are about: a ``PreferenceLoss``, or the name of one.
        compile: compile the model's blocks with ``torch.compile``; worth it for many pairs on a card.
        prompt_column: column of the prompts, where the rows have another one than a known layout.
        chosen_column: column of the chosen responses.
        rejected_column: column of the rejected responses.
        system_column: column of the system prompts, with which every row is a conversation.
        implicit_prompt: whether the prompt of plain responses without one is what both begin with.

    Returns:
        One row a pair, in input order. Scores are NaN wherever ``status`` is not "ok". See ``docs/scores.md`` for the
        meaning and unit of each column.

    Raises:
        DataInvalid: an invalid pair; names the row.
        UsageError: unknown columns, or options out of range.
        TypeError: a model without its tokenizer.
    """
    if isinstance(columns, str):
        raise TypeError(f"columns are a list of names, not the text {columns!r}")
    computed = known_columns(COLUMNS if columns is None else columns)
    named = None if columns is None or ALL in columns else ["id", "status", *expand_groups(columns)]
    reading = PairColumns(prompt_column, chosen_column, rejected_column, system_column, implicit_prompt)
    language_model, listed = as_language_model(model), as_pairs(pairs, reading)
    whole = language_model.model
    with ONE_AT_A_TIME, LeaveAsFound(whole), LeaveAsFound(whole):
        scorer = PairScorer(
            language_model,
            eos=eos,
            max_length=max_length,
            batch_tokens=batch_tokens,
            columns=computed,
            rate_parameters=rate_parameters,
            loss=PreferenceLoss(loss) if isinstance(loss, str) else loss,
            compile=compile,
        )
        blocks = read_blocks(listed, BLOCK_PAIRS, scorer.tokenize, scorer.score_tokenized, Progress(len(listed)))
    frames = [block.frame for block in blocks]
    return pd.concat(frames, ignore_index=True)[list(dict.fromkeys(named or computed))]


def as_pairs(pairs: Any, columns: PairColumns = USUAL) -> Sequence[PreferencePair]:
    """Pairs from whatever a caller holds them in, read by their ``columns``; see ``score_pairs``.

    Raises:
        DataInvalid: no pairs, a duplicate id, or an invalid pair.
    """
    rows = list_rows(pairs)
    if not rows:
        raise DataInvalid("there are no pairs to score")
    if not all(isinstance(row, PreferencePair) for row in rows):
        strange = [row for row in rows if not isinstance(row, Mapping)]
        if strange:
            raise DataInvalid(
                f"pairs must be mappings with 'chosen' and 'rejected', or PreferencePair objects throughout; "
                f"found {type(strange[0]).__name__} ({strange[0]!r:.40})"
            )
        return pairs_from_rows(rows, columns=columns)
    check_unique([pair.id for pair in rows], "pair")
    return rows
