"""Null draws of a run: derivatives of a few pairs along random directions, and along permuted targets."""

import random
from collections.abc import Sequence

import pyarrow as pa
import torch

from probing.instruments.influence import DirectionalScorer
from probing.instruments.pair_scores import count_run_tokens
from probing.instruments.parameter_directions import ParameterDirection, draw_direction
from probing.instruments.reading import Advance
from probing.report.progress import Progress
from probing.runs.common.makers import make_one_after_another
from probing.runs.common.parts import Shard, Spread, complete_parts, find_shard
from probing.runs.influence.parts.directions import Along, Trained, go_through_optimizer
from probing.runs.influence.parts.passes import SLOPES
from probing.runs.influence.parts.work import Work
from probing.store.shards import shard_path, write_shard
from probing.tokens.pairs import TokenizedPair

NULL_PAIRS = 64
"""Pairs on which null draws are measured."""
NULL_KINDS = ("random direction", "permuted target")
NULL_SCHEMA = pa.schema(
    [("kind", pa.string()), ("draw", pa.int64()), ("id", pa.string()), *((name, pa.float64()) for name in SLOPES)]
)


def complete_null(work: Work, part: int, along: Along, trained: Trained | None) -> list[Shard]:
    """Derivatives of a few pairs along random directions, and along the gradients of targets that are permuted."""
    pairs = work.draw(NULL_PAIRS)
    tokens = count_run_tokens(pairs) * 2
    draws = [(kind, draw) for kind in NULL_KINDS for draw in range(work.config.null_draws)]

    def make(number: int, report: Advance) -> Shard:
        kind, draw = draws[number]
        direction = _draw_null(work, kind, draw, part, along, trained)
        rows = [] if direction is None else _measure_null(work, direction, along, pairs)
        report(1, tokens)
        named = [(kind, draw, *row) for row in rows]
        columns = dict(zip(NULL_SCHEMA.names, zip(*named, strict=True) if named else [()] * 5, strict=True))
        return Shard(pa.table({name: list(values) for name, values in columns.items()}, schema=NULL_SCHEMA), {})

    def write(number: int, shard: Shard) -> Shard:
        write_shard(shard_path(work.folder.shards, number, f"null_{part}_"), shard.rows, shard.facts)
        return shard

    def find(number: int) -> Shard | None:
        return find_shard(shard_path(work.folder.shards, number, f"null_{part}_"), NULL_SCHEMA, {})

    known = [find(number) for number in range(len(draws))]
    done = sum(shard is not None for shard in known)
    bar = Progress(len(draws), done, unit="draws", doing="null draws")
    spread = Spread(find, lambda: [1.0] * len(draws))
    return complete_parts(known, make_one_after_another(make), write, bar, spread=spread)


def _draw_null(
    work: Work, kind: str, draw: int, part: int, along: Along, trained: Trained | None
) -> ParameterDirection | None:
    """A random direction, or that of a permuted target; None where permuting changes nothing."""
    seed = f"{work.config.seed} {draw}"
    if kind == NULL_KINDS[0]:
        generator = torch.Generator().manual_seed(random.Random(f"{seed} {part}").getrandbits(62))
        return draw_direction(along.direction, generator)
    assert work.target is not None
    # The same for all parts of the parameters.
    target = work.target.permuted(random.Random(seed))
    if target is None:
        return None
    gradients = work.gradients(part)
    found = gradients.zeros()
    target.add_gradient(gradients, found)
    # As long as the target's own, so that the spreads differ by where the directions point.
    return go_through_optimizer(ParameterDirection(gradients.parameters, found), trained)[0].scaled_to(along.direction)


def _measure_null(
    work: Work, direction: ParameterDirection, along: Along, pairs: Sequence[TokenizedPair]
) -> list[tuple[str, float, float]]:
    """Id and both derivatives of each pair along a direction, with the step of the target's.

    Where random signs cancel the direction, nothing is added to the sum over the parts of the parameters.
    """
    if direction.norm == 0:
        return [(pair.id, 0.0, 0.0) for pair in pairs]
    found = DirectionalScorer(work.moved.scorer, direction, along.facts["step"]).measure(pairs)
    ids = [pair.id for pair in pairs]
    return list(zip(ids, found.chosen.tolist(), found.rejected.tolist(), strict=True))
