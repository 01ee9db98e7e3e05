"""Passes over all pairs, saved shard by shard: derivatives along a direction, and log-probabilities."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from probing.instruments.columns import TOKEN_COLUMNS
from probing.instruments.influence import renew_head
from probing.instruments.pair_scores import as_frame, count_run_tokens
from probing.instruments.reading import Advance, report_tokens, split_runnable
from probing.runs.common.makers import make_with_next_prepared
from probing.runs.common.parts import Shard, Shards, keep_shard, note_making, to_rows
from probing.runs.influence.models import LIKELIHOODS
from probing.runs.influence.parts.directions import Along
from probing.runs.influence.parts.work import TARGET, Work
from probing.tokens.pairs import TokenizedPair
from probing.types import Problem

PAIR_COLUMNS = ("id", "status", *TOKEN_COLUMNS)
_PAIR = [("id", pa.string()), ("status", pa.string()), *((name, pa.int64()) for name in TOKEN_COLUMNS)]
SLOPES = ("chosen", "rejected")
LIKELIHOOD_SCHEMA = pa.schema([*_PAIR, *((name, pa.float64()) for name in LIKELIHOODS)])
SLOPE_SCHEMA = pa.schema([*LIKELIHOOD_SCHEMA, *((name, pa.float64()) for name in SLOPES)])


def complete_slopes(work: Work, name: str, part: int, along: Along, now: str = "") -> list[Shard]:
    """Derivatives of ln p of both responses of every pair along a direction, and ln p itself.

    Args:
        work: what the run is made from, with the model as it is now.
        name: name of the direction; that of the shards.
        part: number of the part of the parameters.
        along: the direction and its step.
        now: how the model is now, for the progress bar, if it is not the untrained one.
    """
    scorer = along.scorer(work)

    def make(number: int, tokenized: list[TokenizedPair], report: Advance) -> Shard:
        began = time.monotonic()
        runnable, problems = split_runnable(tokenized, report)
        values: dict[str, dict[str, Any]] = {}
        if runnable:
            progress = report_tokens(report, len(runnable), 2 * count_run_tokens(runnable))
            for pair, *numbers in zip(runnable, *scorer.measure(runnable, progress), strict=True):
                if np.isfinite(numbers).all():
                    values[pair.id] = dict(zip((*SLOPES, *LIKELIHOODS), numbers, strict=True))
                else:
                    problems[pair.id] = Problem(pair.id, "not_finite", "ln p, or its derivative, is not finite")
        frame = as_frame(tokenized, problems, dict.fromkeys((*LIKELIHOODS, *SLOPES), "float64"), values)
        listed = [problems[pair.id] for pair in tokenized if pair.id in problems]
        return note_making(
            to_rows(frame, SLOPE_SCHEMA), listed, 2 * count_run_tokens(runnable), began, work.budget.facts()
        )

    parts = len(work.moved.parts)
    doing = (TARGET if now else name) + now + (f", part {part + 1} of {parts}" if parts > 1 else "")
    return _complete_passes(work, SLOPE_SCHEMA, make, f"{name}_{part}_", doing)


def _complete_passes(
    work: Work,
    schema: pa.Schema,
    make: Callable[[int, list[TokenizedPair], Advance], Shard],
    prefix: str,
    doing: str,
) -> list[Shard]:
    """Shards of all pairs under names of their own."""

    shards = Shards(work.folder.shards, work.data, schema, prefix=prefix)

    def prepare(number: int) -> list[TokenizedPair]:
        block = shards.block(number)
        return work.moved.scorer.tokenize(block.rows, block.where)

    return shards.complete(make_with_next_prepared(prepare, make), keep_shard, budget=work.budget, doing=doing)


def complete_likelihoods(work: Work, prefix: str, doing: str) -> list[Shard]:
    """ln p of both responses of every pair, under the model as it is now."""
    scorer = work.moved.scorer
    renew_head(scorer)

    def make(number: int, tokenized: list[TokenizedPair], report: Advance) -> Shard:
        began = time.monotonic()
        scored = scorer.score_tokenized(tokenized, report)
        return note_making(
            to_rows(scored.frame, LIKELIHOOD_SCHEMA), scored.problems, scored.tokens, began, work.budget.facts()
        )

    return _complete_passes(work, LIKELIHOOD_SCHEMA, make, prefix, doing)
