"""Changes between two models for each pair: likelihoods, and where the probability of each token went."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa

from probing.engine.stream import Stream
from probing.errors import SourceMismatch
from probing.instruments.columns import LIKELIHOOD_COLUMNS
from probing.instruments.pair_scores import Measured, PairScorer, as_frame, count_run_tokens
from probing.instruments.reading import Advance, report_tokens, split_runnable
from probing.instruments.token_texts import TokenTexts
from probing.metrics.displacement import find_moved_tokens
from probing.models.load import LanguageModel
from probing.tokens.pairs import TokenizedPair
from probing.types import PreferencePair, Problem

SIDES = ("chosen", "rejected")
FLOAT_COLUMNS = (
    "chosen_logprob_before",
    "chosen_logprob_after",
    "rejected_logprob_before",
    "rejected_logprob_after",
    "chosen_change",
    "rejected_change",
    "chosen_change_per_token",
    "rejected_change_per_token",
    "margin_before",
    "margin_after",
    "margin_change",
)


WORDS, IDS, NUMBERS = (pa.list_(kind) for kind in (pa.string(), pa.int64(), pa.float64()))


TOKENS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("side", pa.string()),
        ("position", pa.int64()),
        ("token_id", pa.int64()),
        ("token", pa.string()),
        ("logprob_before", pa.float64()),
        ("logprob_after", pa.float64()),
        ("gained", WORDS),
        ("gained_ids", IDS),
        ("gained_before", NUMBERS),
        ("gained_after", NUMBERS),
        ("lost", WORDS),
        ("lost_ids", IDS),
        ("lost_before", NUMBERS),
        ("lost_after", NUMBERS),
    ]
)
TRUTH_COLUMNS = ("displaced", "ranking_correct_before", "ranking_correct_after")


@dataclass(frozen=True)
class ComparedBlock:
    """Changes of some pairs, in their order; of their tokens; and the number of tokens that were run for each model."""

    frame: pd.DataFrame
    tokens: pa.Table
    problems: list[Problem]
    run: int


def change_columns(predictors: Sequence[str]) -> dict[str, str]:
    """Pandas dtypes of what is computed for each pair, by column.

    Args:
        predictors: columns of the reference's scores that are put beside the changes.
    """
    kinds = dict.fromkeys(FLOAT_COLUMNS, "float64") | dict.fromkeys(TRUTH_COLUMNS, "boolean")
    return kinds | dict.fromkeys(predictors, "float64")


@dataclass
class PairComparer:
    """Compares two models on pairs, block after block.

    Args:
        reference: the model before.
        policy: the model after; it may share its weights with the reference, under an adapter.
        predictors: columns of the reference's scores to put beside the changes.
        top: number of tokens that gained and lost most to name at each position of a response.
        eos: whether the end of turn belongs to the response.
        max_length: longest sequence.
        batch_tokens: tokens a batch.
        rate_parameters: parameters that ``displacement_rate_exact`` covers.
        compile: whether the blocks are compiled by ``torch.compile``.

    Raises:
        SourceMismatch: vocabularies of different size.
        UsageError, LayerNotFound, ModelInvalid: see ``PairScorer``.
    """

    reference: LanguageModel
    policy: LanguageModel
    predictors: Sequence[str]
    top: int = 0
    eos: bool = True
    max_length: int | None = None
    batch_tokens: int | None = None
    rate_parameters: str = "all"
    compile: bool = False
    before: PairScorer = field(init=False)
    after: PairScorer = field(init=False)
    _texts: TokenTexts = field(init=False)

    def __post_init__(self) -> None:
        common: dict[str, Any] = {"eos": self.eos, "max_length": self.max_length, "batch_tokens": self.batch_tokens}
        common |= {"compile": self.compile, "keep_states": self.top > 0}
        columns = (*LIKELIHOOD_COLUMNS, *self.predictors)
        self.before = PairScorer(self.reference, columns=columns, rate_parameters=self.rate_parameters, **common)
        self.after = PairScorer(self.policy, columns=LIKELIHOOD_COLUMNS, **common)
        limits = [scorer.limit for scorer in (self.before, self.after) if scorer.limit is not None]
        self._texts = TokenTexts(self.reference.tokenizer)
        self.before.limit = self.after.limit = min(limits, default=None)
        check_same_head(self.before, self.after)

    @property
    def columns(self) -> dict[str, str]:
        """Pandas dtypes of what is computed for each pair."""
        return change_columns(self.predictors)

    @property
    def streams(self) -> list[Stream]:
        """Streams of both models."""
        return [self.before.stream, self.after.stream]

    def tokenize(
        self, pairs: Sequence[PreferencePair], where: Callable[[int], str] | None = None
    ) -> list[TokenizedPair]:
        """Pairs as both models see them; one that either chat template refuses is refused.

        Raises:
            SourceMismatch: the tokenizers or the chat templates of the models do not agree on a pair.
        """
        reference, policy = self.before.tokenize(pairs, where), self.after.tokenize(pairs, where)
        check_same_tokens(reference, policy, self.policy, where)
        return [second if is_refused(second) else first for first, second in zip(reference, policy, strict=True)]

    def compare(self, tokenized: list[TokenizedPair], report: Advance | None = None) -> ComparedBlock:
        """Compare the models on some pairs.

        Args:
            tokenized: the pairs as ``tokenize`` returned them.
            report: see ``Advance``.
        """
        runnable, problems = split_runnable(tokenized, report)
        changes: dict[str, dict[str, Any]] = {}
        tokens = [TOKENS_SCHEMA.empty_table()]
        run = count_run_tokens(runnable)
        progress = report_tokens(report, len(runnable), 2 * run)
        for group in self.before.groups(runnable) if runnable else []:
            before, after = self.before.measure(group, progress), self.after.measure(group, progress)
            for pair, detail in zip(group, self._find_troubles(group, before, after), strict=True):
                if detail is not None:
                    problems[pair.id] = Problem(pair.id, "not_finite", detail)
            for index, pair in enumerate(group):
                if pair.id not in problems:
                    changes[pair.id] = self._changes(pair, index, before, after)
            tokens.append(self._tokens(group, before, after, problems))
            # The states of this block are freed before those of the next one are kept.
            del before, after
        frame = as_frame(tokenized, problems, self.columns, changes)
        said = [problems[id] for id in frame["id"] if id in problems]
        return ComparedBlock(frame, pa.concat_tables(tokens), said, run)

    def _find_troubles(self, pairs: Sequence[TokenizedPair], before: Measured, after: Measured) -> list[str | None]:
        of_reference, of_policy = self.before.find_troubles(pairs, before), self.after.find_troubles(pairs, after)
        return [
            f"reference: {first}" if first else f"policy: {second}" if second else None
            for first, second in zip(of_reference, of_policy, strict=True)
        ]

    def _changes(self, pair: TokenizedPair, index: int, before: Measured, after: Measured) -> dict[str, Any]:
        row: dict[str, Any] = {name: before.columns[name][index] for name in self.predictors}
        for side, count in zip(SIDES, (pair.chosen_tokens, pair.rejected_tokens), strict=True):
            old, new = (measured.columns[f"{side}_logprob"][index] for measured in (before, after))
            row |= {f"{side}_logprob_before": old, f"{side}_logprob_after": new, f"{side}_change": new - old}
            row[f"{side}_change_per_token"] = (new - old) / count
        for time in ("before", "after"):
            row[f"margin_{time}"] = row[f"chosen_logprob_{time}"] - row[f"rejected_logprob_{time}"]
            row[f"ranking_correct_{time}"] = row[f"margin_{time}"] >= 0
        row["margin_change"] = row["margin_after"] - row["margin_before"]
        row["displaced"] = row["chosen_change"] < 0 < row["margin_change"]
        return row

    def _tokens(
        self, pairs: Sequence[TokenizedPair], before: Measured, after: Measured, problems: dict[str, Problem]
    ) -> pa.Table:
        """One row a position of a response; none for pairs with problems."""
        if not self.top or before.states is None or after.states is None:
            return TOKENS_SCHEMA.empty_table()
        assert before.stats is not None and after.stats is not None  # noqa: PT018 (for the type checker)
        count = min(self.top, len(self.before.head.weight))
        moved = find_moved_tokens(before.states, self.before.head, after.states, self.after.head, count)
        sides = [(pair, side, getattr(pair, side)[pair.prompt_tokens :]) for pair in pairs for side in SIDES]
        ids = [id for _, _, response in sides for id in response]
        columns = {
            "id": [pair.id for pair, _, response in sides for _ in response],
            "side": [side for _, side, response in sides for _ in response],
            "position": [position for _, _, response in sides for position in range(len(response))],
            "token_id": ids,
            "token": self._texts.of(ids),
            "logprob_before": before.stats[:, 0].double().numpy(),
            "logprob_after": after.stats[:, 0].double().numpy(),
        }
        for way in ("gained", "lost"):
            known = getattr(moved, f"{way}_ids")
            columns[way] = as_lists(self._texts.of(known.flatten().tolist()), count)
            columns[f"{way}_ids"] = as_lists(known.flatten().numpy(), count)
            for time in ("before", "after"):
                columns[f"{way}_{time}"] = as_lists(getattr(moved, f"{way}_{time}").flatten().double().numpy(), count)
        good = [pair.id not in problems for pair, _, response in sides for _ in response]
        return pa.table(columns, schema=TOKENS_SCHEMA).filter(pa.array(good))


def as_lists(values: Any, count: int) -> pa.Array:
    """Values as lists of so many each."""
    return pa.ListArray.from_arrays(pa.array(range(0, len(values) + 1, count), pa.int32()), pa.array(values))


def is_refused(pair: TokenizedPair) -> bool:
    """Whether a chat template does not take a pair, which then has no tokens."""
    return pair.status == "refused"


def check_same_tokens(
    reference: Sequence[TokenizedPair],
    policy: Sequence[TokenizedPair],
    model: LanguageModel,
    where: Callable[[int], str] | None,
) -> None:
    """Raise ``SourceMismatch`` unless both models see the same tokens, where no chat template refuses a pair."""
    for index, (first, second) in enumerate(zip(reference, policy, strict=True)):
        if is_refused(first) or is_refused(second):
            continue
        if (first.prompt_tokens, first.chosen, first.rejected) != (
            second.prompt_tokens,
            second.chosen,
            second.rejected,
        ):
            name = where(index) if where is not None else f"pair '{first.id}'"
            raise SourceMismatch(
                f"{name}: the tokenizer or chat template of {model.source.model} makes other tokens of it than the "
                f"reference's; likelihoods of different tokens cannot be compared"
            )


def check_same_head(before: PairScorer, after: PairScorer) -> None:
    """Raise ``SourceMismatch`` unless both output heads know as many tokens."""
    sizes = [len(scorer.head.weight) for scorer in (before, after)]
    if sizes[0] != sizes[1]:
        raise SourceMismatch(
            f"{after.language_model.source.model}: its output head knows {sizes[1]} tokens, that of the reference "
            f"{before.language_model.source.model} {sizes[0]}; probabilities over different vocabularies cannot be "
            f"compared"
        )


def check_same_vocabulary(reference: LanguageModel, policy: LanguageModel) -> None:
    """Raise ``SourceMismatch`` unless both tokenizers give every token the same id."""
    known, other = reference.tokenizer.get_vocab(), policy.tokenizer.get_vocab()
    if known != other:
        different = sorted(name for name in known.keys() | other.keys() if known.get(name) != other.get(name))
        shown = ", ".join(f"{name!r} ({known.get(name)} and {other.get(name)})" for name in different[:3])
        raise SourceMismatch(
            f"{policy.source.model} has another vocabulary than the reference {reference.source.model}: "
            f"{len(different)} tokens differ, such as {shown}. Two models can be compared only if they share the "
            f"tokenizer"
        )


def measure_likelihoods(scorer: PairScorer, pairs: Sequence[TokenizedPair]) -> dict[str, tuple[float, float]]:
    """Log-probabilities of both responses under one model, by id; without the pairs that it gives no finite one."""
    finite: dict[str, tuple[float, float]] = {}
    for group in scorer.groups(pairs) if pairs else []:
        measured = scorer.measure(group)
        values = zip(measured.columns["chosen_logprob"], measured.columns["rejected_logprob"], strict=True)
        for pair, both, detail in zip(group, values, scorer.find_troubles(group, measured), strict=True):
            if detail is None:
                finite[pair.id] = both
    return finite
