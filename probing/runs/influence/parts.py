"""The parts of a run, each saved when it is made: gradients, the steps along them, the passes over the pairs."""

import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from probing.errors import DataInvalid, NotFinite
from probing.instruments.columns import TOKEN_COLUMNS
from probing.instruments.influence import DirectionalScorer, choose_step, measure_step, renew_head
from probing.instruments.pair_scores import as_frame, count_run_tokens
from probing.instruments.parameter_directions import ParameterDirection, draw_direction, move_along, precondition
from probing.instruments.parameter_gradients import ParameterGradients
from probing.instruments.pilot import Training, train_in_memory
from probing.instruments.reading import Advance, report_tokens, split_runnable
from probing.metrics.preference_losses import PreferenceLoss
from probing.report.progress import Progress
from probing.runs.common.budget import KeptBudget
from probing.runs.common.losses import make_loss
from probing.runs.common.parts import (
    Dataset,
    Shard,
    complete_parts,
    complete_shards,
    find_shard,
    make_one_after_another,
    to_rows,
)
from probing.runs.influence.config import InfluenceConfig
from probing.runs.influence.models import LIKELIHOODS, MovedModel
from probing.runs.influence.rows import Target, draw_order, draw_runnable
from probing.runs.influence.states import TrainingSums, are_finite, drop_tensors, find_tensors, keep_tensors
from probing.store.manifest import RunFolder
from probing.store.shards import shard_path, write_shard
from probing.tokens.pairs import TokenizedPair
from probing.types import Problem

log = logging.getLogger(__name__)

TARGET, JOINT = "target", "joint"
STEP_PAIRS, NULL_PAIRS = 16, 64
"""Pairs on which the length of a step is chosen, and on which null draws are measured."""
SAVED_SECONDS = 30.0
"""A gradient over the whole training set is saved at most so often while it is made."""
WARNED_LOST = 0.1
"""Share of a direction, in entries that no batch moved, above which a warning is given."""
PAIR_COLUMNS = ("id", "status", *TOKEN_COLUMNS)
_PAIR = [("id", pa.string()), ("status", pa.string()), *((name, pa.int64()) for name in TOKEN_COLUMNS)]
SLOPES = ("chosen", "rejected")
LIKELIHOOD_SCHEMA = pa.schema([*_PAIR, *((name, pa.float64()) for name in LIKELIHOODS)])
SLOPE_SCHEMA = pa.schema([*LIKELIHOOD_SCHEMA, *((name, pa.float64()) for name in SLOPES)])
NO_ROWS = pa.table({"id": pa.array([], pa.string())})
NULL_KINDS = ("random direction", "permuted target")
NULL_SCHEMA = pa.schema(
    [("kind", pa.string()), ("draw", pa.int64()), ("id", pa.string()), *((name, pa.float64()) for name in SLOPES)]
)


@dataclass(frozen=True, eq=False)
class Work:
    """What all parts of a run are made from.

    Attributes:
        folder: folder of the run.
        config: the options.
        data: pairs of the training.
        moved: the model and its parameters.
        target: the target; None where there is none.
        budget: token budget, which goes on as it was after each shard.
    """

    folder: RunFolder
    config: InfluenceConfig
    data: Dataset
    moved: MovedModel
    target: Target | None
    budget: KeptBudget

    @property
    def loss(self) -> PreferenceLoss:
        """The loss of the training."""
        return make_loss(self.config)

    def gradients(self, part: int) -> ParameterGradients:
        """Gradients over the parameters of a part."""
        return ParameterGradients(self.moved.stack, self.moved.parts[part])

    def tokenize(self, numbers: Sequence[int]) -> list[TokenizedPair]:
        """Pairs by their numbers, as the model sees them."""
        pairs, where = [self.data.pairs[at] for at in numbers], self.data.table.where
        return self.moved.scorer.tokenize(pairs, lambda row: where(numbers[row]))

    def draw(self, count: int) -> list[TokenizedPair]:
        """So many pairs at random that can be run, or as many as there are."""
        return draw_runnable(self.tokenize, draw_order(len(self.data.pairs), self.config.seed), count)


@dataclass(frozen=True, eq=False)
class Along:
    """A direction in some of the parameters, and how long a step along it is.

    Attributes:
        direction: the direction.
        facts: its norm, the length of the step and its error, the share of it that was lost, for the record.
    """

    direction: ParameterDirection
    facts: dict[str, Any]

    def scorer(self, work: Work) -> DirectionalScorer:
        """A scorer of derivatives along it."""
        return DirectionalScorer(work.moved.scorer, self.direction, self.facts["step"])


@dataclass(frozen=True, eq=False)
class Trained:
    """Gradient of the training's loss over some of the parameters.

    Attributes:
        mean: direction of plain gradient descent on the mean loss of all pairs; empty unless it was asked for.
        mean_square: mean square of the gradients of batches; None without AdamW.
    """

    mean: Sequence[Tensor]
    mean_square: Sequence[Tensor] | None


def complete_training(work: Work, part: int) -> Trained | None:
    """The gradients of the training that are needed, from the disk or made now; None where none are.

    Raises:
        NotFinite: they are not finite, or no pair can be run.
    """
    config, name = work.config, f"training_{part}"
    if not config.needs_training:
        return None
    adamw = config.optimizer == "adamw"
    sums = TrainingSums(work.gradients(part), work.loss, config.joint, config.batch_pairs if adamw else None)
    known = find_tensors(work.folder.shards, name, sums.like)
    tensors = _sum_training(work, sums, name) if known is None else known.tensors
    if not are_finite(tensors):
        raise NotFinite("the gradients of the training's loss are not finite; look for NaN in the model's weights")
    count = len(work.moved.parts[part]) if config.joint else 0
    return Trained(tensors[:count], tensors[count:] if adamw else None)


def _sum_training(work: Work, sums: TrainingSums, name: str) -> list[Tensor]:
    """Mean gradient and mean square over pairs in a random order, which are kept; sums are kept on the way."""
    config, folder, unfinished = work.config, work.folder.shards, f"{name}_sum"
    order = draw_order(len(work.data.pairs), config.seed)
    wanted = len(order) if config.joint else min(len(order), config.optimizer_batches * config.batch_pairs)
    block = -(-config.shard_pairs // config.batch_pairs) * config.batch_pairs
    sums.go_on(folder, unfinished)
    saved = time.monotonic()
    with Progress(wanted, sums.counts["pairs"], doing="gradient of the training") as bar:
        while sums.counts["rows"] < len(order) and sums.counts["pairs"] < wanted:
            numbers = order[sums.counts["rows"] : sums.counts["rows"] + block]
            pairs = [pair for pair in work.tokenize(numbers) if pair.problem is None]
            sums.counts["rows"] += len(numbers)
            if pairs:
                sums.add(pairs[: wanted - sums.counts["pairs"]], lambda done: bar.advance(done, 0))
            if time.monotonic() - saved >= SAVED_SECONDS:
                sums.keep(folder, unfinished)
                saved = time.monotonic()
    if not sums.counts["pairs"]:
        raise DataInvalid("no pair of the training data can be run, so that its loss has no gradient")
    means = sums.means()
    keep_tensors(folder, name, means, {**sums.counts, "how": sums.gradients.how})
    drop_tensors(folder, unfinished)
    return means


def complete_direction(work: Work, name: str, part: int, trained: Trained | None) -> Along | None:
    """The direction of the target or of the training with its length of step, from the disk or made now.

    None where it is zero in this part of the parameters, and the parameters have several parts.

    Raises:
        NotFinite: the direction is not finite, or zero; or no length of step is good.
    """
    parameters, kept = work.moved.parts[part], f"{name}_{part}"
    known = find_tensors(work.folder.shards, kept, parameters)
    if known is None:
        direction, facts = _make_direction(work, name, part, trained)
        if direction.norm == 0 and len(work.moved.parts) > 1:
            return None
        direction.check("the target" if name == TARGET else "the mean loss of the training data")
        facts["norm"] = direction.norm
        keep_tensors(work.folder.shards, kept, direction.tensors, facts)
    else:
        direction, facts = ParameterDirection(parameters, known.tensors), known.facts
    return Along(direction, facts | _complete_step(work, kept, direction))


def _complete_step(work: Work, name: str, direction: ParameterDirection) -> dict[str, Any]:
    """Length and error of the step along a direction, from the disk or found now."""
    path = shard_path(work.folder.shards, 0, f"{name}_step_")
    known = find_shard(path, NO_ROWS.schema, {})
    if known is None:
        try:
            known = Shard(NO_ROWS, _choose_step(work, direction))
        except NotFinite as error:
            what = name.partition("_")[0]
            raise NotFinite(
                f"along the gradient of the {what}: {error}. Where pairs cancel one another, that gradient is nearly "
                f"zero, and only rounding is left of it"
            ) from error
        write_shard(path, known.rows, known.facts)
    return known.facts


def _make_direction(
    work: Work, name: str, part: int, trained: Trained | None
) -> tuple[ParameterDirection, dict[str, Any]]:
    """A direction, through the preconditioner of AdamW if that is the optimizer, and facts of it."""
    gradients, facts = work.gradients(part), dict[str, Any]()
    if name == JOINT:
        assert trained is not None
        found = list(trained.mean)
    else:
        assert work.target is not None
        found = gradients.zeros()
        with Progress(len(work.target.groups), unit="rows", doing="gradient of the target") as bar:
            facts["mean"] = work.target.add_gradient(gradients, found, lambda done: bar.advance(done, 0))
    direction, lost = _go_through_optimizer(ParameterDirection(gradients.parameters, found), trained)
    if lost > WARNED_LOST:
        log.warning(
            "%.0f %% of the gradient of the %s lie where no batch of the training moved anything, and are left out; "
            "take more with --optimizer-batches",
            100 * lost,
            name,
        )
    return direction, {**facts, "lost": lost, "how": gradients.how}


def _go_through_optimizer(direction: ParameterDirection, trained: Trained | None) -> tuple[ParameterDirection, float]:
    """The direction in which the optimizer goes, and the share of the gradient that lies where no batch moved."""
    if trained is None or trained.mean_square is None:
        return direction, 0.0
    tensors, lost = precondition(direction.tensors, trained.mean_square)
    return ParameterDirection(direction.parameters, tensors), lost


def _choose_step(work: Work, direction: ParameterDirection) -> dict[str, float]:
    """The length of the step that was asked for, or the best one, and its error.

    Raises:
        NotFinite: see ``choose_step``.
        DataInvalid: no pair can be run.
    """
    pairs, length, scorer = work.draw(STEP_PAIRS), work.config.step, work.moved.scorer
    if not pairs:
        raise DataInvalid(f"{work.data.table.path}: no pair can be run; probing score says why of each")
    step = choose_step(scorer, direction, pairs) if length is None else measure_step(scorer, direction, pairs, length)
    return {"step": step.length, "step_error": step.error}


def complete_slopes(work: Work, name: str, part: int, along: Along) -> list[Shard]:
    """Derivatives of ln p of both responses of every pair along a direction, and ln p itself."""
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
        return _as_shard(work, to_rows(frame, SLOPE_SCHEMA), listed, 2 * count_run_tokens(runnable), began)

    parts = len(work.moved.parts)
    doing = f"{name}, part {part + 1} of {parts}" if parts > 1 else name
    return _complete_passes(work, SLOPE_SCHEMA, make, f"{name}_{part}_", doing)


def _as_shard(work: Work, rows: pa.Table, problems: Sequence[Problem], tokens: int, began: float) -> Shard:
    facts = {
        "tokens": tokens,
        "seconds": time.monotonic() - began,
        "batch_tokens": work.budget.facts(),
        "problems": [asdict(problem) for problem in problems],
    }
    return Shard(rows, facts)


def _complete_passes(
    work: Work,
    schema: pa.Schema,
    make: Callable[[int, list[TokenizedPair], Advance], Shard],
    prefix: str,
    doing: str,
) -> list[Shard]:
    """Shards of all pairs under names of their own."""

    def prepare(block: range) -> list[TokenizedPair]:
        return work.moved.scorer.tokenize(work.data.of(block), work.data.where(block))

    return complete_shards(
        work.folder.shards, work.data, schema, prepare, make, budget=work.budget, prefix=prefix, doing=doing
    )


def complete_likelihoods(work: Work, prefix: str, doing: str) -> list[Shard]:
    """ln p of both responses of every pair, under the model as it is now."""
    scorer = work.moved.scorer
    renew_head(scorer)

    def make(number: int, tokenized: list[TokenizedPair], report: Advance) -> Shard:
        began = time.monotonic()
        scored = scorer.score_tokenized(tokenized, report)
        return _as_shard(work, to_rows(scored.frame, LIKELIHOOD_SCHEMA), scored.problems, scored.tokens, began)

    return _complete_passes(work, LIKELIHOOD_SCHEMA, make, prefix, doing)


def complete_pilot(work: Work) -> tuple[list[Shard], list[Shard]]:
    """ln p of every pair before and after some steps of training in memory.

    Raises:
        NotFinite: the training diverges.
    """
    before = complete_likelihoods(work, "before_", "before the pilot")
    with _hold_trained(work):
        after = complete_likelihoods(work, "pilot_", "after the pilot")
    return before, after


@contextlib.contextmanager
def _hold_trained(work: Work) -> Iterator[None]:
    """Have the parameters as the pilot leaves them inside the block; they come back to the bit."""
    parameters = work.moved.parameters
    known = find_tensors(work.folder.shards, "trained", parameters)
    tensors = _train(work) if known is None else known.tensors
    with move_along(ParameterDirection(parameters, tensors)), torch.no_grad():
        for parameter, tensor in zip(parameters, tensors, strict=True):
            parameter.data.copy_(tensor)
        yield


def _train(work: Work) -> list[Tensor]:
    """The parameters after the steps of the pilot, which are kept."""
    config = work.config
    assert config.learning_rate is not None
    # A few long steps in place of many go as far as these.
    length = config.learning_rate * (config.training_steps or config.pilot_steps) / config.pilot_steps
    training = Training(config.pilot_steps, length, config.batch_pairs, config.optimizer, seed=config.seed)
    # Drawn here, so that no more pairs are in memory than are trained on.
    pairs = work.draw(config.pilot_steps * config.batch_pairs)
    gradients = ParameterGradients(work.moved.stack, work.moved.parameters)
    steps = config.pilot_steps * min(config.batch_pairs, len(pairs))
    with (
        Progress(steps, doing="training the pilot") as bar,
        train_in_memory(gradients, pairs, work.loss, training, lambda done: bar.advance(done, 0)) as made,
    ):
        for step in made:
            step()
        tensors = [parameter.detach().clone() for parameter in gradients.parameters]
    if not are_finite(tensors):
        raise NotFinite("the pilot's training diverges; choose a lower --learning-rate")
    keep_tensors(work.folder.shards, "trained", tensors, {"how": gradients.how})
    return tensors


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

    paths = [shard_path(work.folder.shards, number, f"null_{part}_") for number in range(len(draws))]
    known = [find_shard(path, NULL_SCHEMA, {}) for path in paths]
    done = sum(shard is not None for shard in known)
    bar = Progress(len(draws), done, unit="draws", doing="null draws")
    return complete_parts(known, make_one_after_another(make), write, bar)


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
    return _go_through_optimizer(ParameterDirection(gradients.parameters, found), trained)[0]


def _measure_null(
    work: Work, direction: ParameterDirection, along: Along, pairs: Sequence[TokenizedPair]
) -> list[tuple[str, float, float]]:
    """Id and both derivatives of each pair along a direction, with the step of the target's."""
    found = DirectionalScorer(work.moved.scorer, direction, along.facts["step"]).measure(pairs)
    ids = [pair.id for pair in pairs]
    return list(zip(ids, found.chosen.tolist(), found.rejected.tolist(), strict=True))
