"""Scores of preference pairs: the states of a model joined to the formulas of ``metrics.similarity``."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from probing.data.pairs import pairs_from_rows
from probing.data.tokenize import TokenizedPair, tokenize_pairs
from probing.engine.modes import choose_mode
from probing.engine.stream import ONE_AT_A_TIME, Stream, find_budget, first_nonfinite_place
from probing.engine.trees import Segment
from probing.errors import DataInvalid, UsageError
from probing.metrics.similarity import ches, ches_normalized, edit_similarity, last_state_similarity
from probing.models.layers import find_backbone, output_site
from probing.models.load import LanguageModel
from probing.report.progress import Progress
from probing.types import PreferencePair, Problem

TOKEN_COLUMNS = ("prompt_tokens", "chosen_tokens", "rejected_tokens")
SCORE_COLUMNS = ("ches", "ches_normalized", "last_state_similarity", "edit_similarity")
COLUMNS = ("id", "status", *TOKEN_COLUMNS, *SCORE_COLUMNS)
BLOCK_PAIRS = 512
"""Pairs that are tokenised, sorted and scored together; bounds the memory whatever the number of rows."""


@dataclass(frozen=True)
class ScoredBlock:
    """Scores of some pairs, in their order, with the number of tokens that were run."""

    frame: pd.DataFrame
    problems: list[Problem]
    tokens: int


@dataclass
class PairScorer:
    """Scores block after block with one model.

    Args:
        language_model: the model and its tokenizer.
        eos: whether the end of turn belongs to the response.
        max_length: longest sequence; by default what the model has positions for.
        batch_tokens: padded tokens a batch; found by itself when None.

    Raises:
        UsageError: a length or a budget out of range.
        LayerNotFound, ModelInvalid: the model is no causal language model of an understood form.
    """

    language_model: LanguageModel
    eos: bool = True
    max_length: int | None = None
    batch_tokens: int | None = None
    stream: Stream = field(init=False)

    def __post_init__(self) -> None:
        self._limit = check_max_length(self.max_length, self.language_model.max_positions)
        self._located = False
        with ONE_AT_A_TIME:
            stack = find_backbone(self.language_model)
            budget = find_budget(stack, self.batch_tokens)
            self.stream = Stream(stack, choose_mode(stack), [output_site(stack)], ("sum", "last"), budget)

    def score(
        self,
        pairs: Sequence[PreferencePair],
        where: Callable[[int], str] | None = None,
        progress: Callable[[float, int], None] | None = None,
    ) -> ScoredBlock:
        """Score some pairs.

        Args:
            pairs: tokenised and sorted together, so not too many at once.
            where: names a pair in messages, given its index.
            progress: called with the number of pairs (fractions, as tokens finish) and of tokens done.
        """
        report = progress if progress is not None else (lambda pairs, tokens: None)
        tokenized = tokenize_pairs(
            self.language_model.tokenizer, pairs, eos=self.eos, max_length=self._limit, where=where
        )
        problems = {pair.id: Problem(pair.id, pair.status, pair.detail) for pair in tokenized if pair.status != "ok"}
        report(len(problems), 0)
        runnable = [pair for pair in tokenized if pair.status == "ok"]
        scores = self._score(runnable, problems, report) if runnable else {}
        frame = pd.DataFrame([_row(pair, problems, scores) for pair in tokenized], columns=list(COLUMNS))
        tokens = sum(len(pair.chosen) + len(pair.rejected) - 2 for pair in runnable)
        return ScoredBlock(frame.astype(_DTYPES), [problems[id] for id in frame["id"] if id in problems], tokens)

    def _score(
        self, pairs: Sequence[TokenizedPair], problems: dict[str, Problem], report: Callable[[float, int], None]
    ) -> dict[str, tuple[float, ...]]:
        segments = [
            Segment(ids, pair.prompt_tokens - 1, len(ids) - 1, pair.prompt_tokens)
            for pair in pairs
            for ids in (pair.chosen, pair.rejected)
        ]
        share = len(pairs) / sum(segment.stop for segment in segments)  # so that the time left follows the tokens
        values = self.stream.read(segments, lambda done: report(done * share, done)).values
        total, last = (values[name][0].unflatten(0, (-1, 2)) for name in ("sum", "last"))
        counts = [torch.tensor([getattr(pair, name) for pair in pairs]) for name in TOKEN_COLUMNS[1:]]
        columns = [
            ches(total[:, 0], total[:, 1]),
            ches_normalized(total[:, 0], total[:, 1], *counts),
            last_state_similarity(last[:, 0], last[:, 1]),
        ]
        finite = torch.stack(columns).isfinite().all(dim=0).tolist()
        scores = {}
        for pair, good, *row in zip(pairs, finite, *(column.tolist() for column in columns), strict=True):
            if good:
                edit = edit_similarity(pair.chosen[pair.prompt_tokens :], pair.rejected[pair.prompt_tokens :])
                scores[pair.id] = (*row, edit)
            else:
                problems[pair.id] = Problem(pair.id, "not_finite", self._locate(pair))
        return scores

    def _locate(self, pair: TokenizedPair) -> str:
        """Where the states of a pair stop being finite; looked up once, for the first such pair: it costs a pass."""
        if self._located:
            return "states are NaN or infinite"
        self._located = True
        for ids in (pair.chosen, pair.rejected):
            row = Segment(ids, 0, len(ids) - 1)
            place = first_nonfinite_place(self.stream.stack, self.stream.mode, row, self.stream.budget)
            if place:
                return f"states are NaN or infinite from {place} on"
        return "the states are finite, but their products are not: the model's states are too large"


_DTYPES: dict[Any, str] = {name: "int64" for name in TOKEN_COLUMNS} | {name: "float64" for name in SCORE_COLUMNS}


def _row(pair: TokenizedPair, problems: dict[str, Problem], scores: dict[str, tuple[float, ...]]) -> tuple[Any, ...]:
    status = problems[pair.id].status if pair.id in problems else "ok"
    values = scores.get(pair.id, (float("nan"),) * len(SCORE_COLUMNS))
    return (pair.id, status, pair.prompt_tokens, pair.chosen_tokens, pair.rejected_tokens, *values)


def check_max_length(max_length: int | None, positions: int | None) -> int | None:
    """The longest sequence to run: as asked for, but never more than the model has positions for."""
    if max_length is None:
        return positions
    if max_length < 2:
        raise UsageError(f"max_length must be at least 2 tokens, not {max_length}")
    if positions is not None and max_length > positions:
        raise UsageError(f"max_length is {max_length}, but the model only has positions for {positions} tokens")
    return max_length


def score_pairs(
    model: LanguageModel,
    pairs: Any,
    columns: Sequence[str] | None = None,
    batch_tokens: int | None = None,
    *,
    eos: bool = True,
    max_length: int | None = None,
) -> pd.DataFrame:
    """Score preference pairs by CHES and its relatives.

    Args:
        model: from ``load``, or ``LanguageModel(model, tokenizer)``.
        pairs: ``PreferencePair`` objects, mappings with ``prompt``/``chosen``/``rejected`` in any of TRL's formats, a
            ``datasets.Dataset`` or a ``pandas.DataFrame``.
        columns: which columns to return, besides ``id`` and ``status``; all by default.
        batch_tokens: padded tokens a batch; found by itself when None. The numbers do not depend on it.
        eos: whether the end of turn belongs to the response, as in training.
        max_length: longest sequence in tokens; longer pairs get the status ``truncated`` and no score.

    Returns:
        One row a pair, in input order. Scores are NaN wherever ``status`` is not "ok". See ``docs/scores.md`` for the
        meaning and unit of each column.

    Raises:
        DataInvalid: a pair is not what it must be; names the row.
        UsageError: unknown columns, or options out of range.
    """
    wanted = _columns(columns)
    listed = as_pairs(pairs)
    scorer = PairScorer(model, eos=eos, max_length=max_length, batch_tokens=batch_tokens)
    frames = []
    with Progress(len(listed)) as bar:
        for block in _blocks(listed):
            frames.append(scorer.score(block, progress=bar.advance).frame)
    return pd.concat(frames, ignore_index=True)[wanted]


def _blocks(pairs: Sequence[PreferencePair]) -> Iterable[Sequence[PreferencePair]]:
    return (pairs[start : start + BLOCK_PAIRS] for start in range(0, len(pairs), BLOCK_PAIRS))


def _columns(columns: Sequence[str] | None) -> list[str]:
    if columns is None:
        return list(COLUMNS)
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        raise UsageError(f"unknown columns {', '.join(unknown)}; there are {', '.join(COLUMNS)}")
    return list(dict.fromkeys(["id", "status", *columns]))


def as_pairs(pairs: Any) -> list[PreferencePair]:
    """Pairs from whatever a caller holds them in; see ``score_pairs``.

    Raises:
        DataInvalid: no pairs, a duplicate id, or a row that is no pair.
    """
    if isinstance(pairs, pd.DataFrame):
        pairs = pairs.astype(object).where(pairs.notna(), None).to_dict("records")
    rows = list(pairs)
    if not rows:
        raise DataInvalid("there are no pairs to score")
    if not all(isinstance(row, PreferencePair) for row in rows):
        strange = [row for row in rows if not isinstance(row, Mapping)]
        if strange:
            raise DataInvalid(
                f"pairs must be mappings with 'chosen' and 'rejected', or PreferencePair objects throughout; "
                f"found {type(strange[0]).__name__} ({strange[0]!r:.40})"
            )
        return pairs_from_rows(rows)
    ids = pd.Series([pair.id for pair in rows])
    if ids.duplicated().any():
        raise DataInvalid(
            f"pair {ids.duplicated().argmax()}: the id '{ids[ids.duplicated()].iloc[0]}' was already used"
        )
    return rows
