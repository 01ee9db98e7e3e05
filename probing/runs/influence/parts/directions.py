"""The directions of a run, each saved when it is made: of the training's loss and of the target, with their steps."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from torch import Tensor

from probing.errors import NotFinite
from probing.instruments.influence import DirectionalScorer, choose_step, measure_step
from probing.instruments.parameter_directions import ParameterDirection, precondition
from probing.ranks import current_ranks
from probing.report.progress import Progress
from probing.runs.common.parts import Shard, find_shard
from probing.runs.influence.parts.work import JOINT, TARGET, Work
from probing.runs.influence.rows import draw_order
from probing.runs.influence.states import Kept, TrainingSums, are_finite, complete_tensors, drop_tensors
from probing.store.shards import shard_path, write_shard

log = logging.getLogger(__name__)

STEP_PAIRS = 16
"""Pairs on which the length of a step is chosen."""
SAVED_SECONDS = 30.0
"""A gradient over the whole training set is saved at most so often while it is made."""
WARNED_LOST = 0.1
"""Share of a direction, in entries that no batch moved, above which a warning is given."""
WARNED_ERROR = 0.01
"""Relative error of the derivatives above which a warning is given."""
NO_ROWS = pa.table({"id": pa.array([], pa.string())})


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
        NotFinite: they are not finite.
        DataInvalid: no pair can be run.
    """
    config, name = work.config, f"training_{part}"
    if not config.needs_training:
        return None
    adamw = config.optimizer == "adamw"
    sums = TrainingSums(work.gradients(part), work.loss, config.joint, config.batch_pairs if adamw else None)
    known = complete_tensors(work.folder.shards, name, sums.like, lambda: _sum_training(work, sums, f"{name}_sum"))
    assert known is not None
    tensors = known.tensors
    if current_ranks().leads:
        drop_tensors(work.folder.shards, f"{name}_sum")
    if not are_finite(tensors):
        raise NotFinite(
            "the gradients of the training's loss are not finite; look for NaN in the model's weights, and with orpo "
            "for responses of probability 1"
        )
    count = len(work.moved.parts[part]) if config.joint else 0
    return Trained(tensors[:count], tensors[count:] if adamw else None)


def _sum_training(work: Work, sums: TrainingSums, unfinished: str) -> Kept:
    """Mean gradient and mean square over pairs in a random order; sums are kept on the way, under a name."""
    config, folder = work.config, work.folder.shards
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
        raise work.explain_none()
    return Kept(sums.means(), {**sums.counts, "how": sums.gradients.how})


def complete_direction(work: Work, name: str, part: int, trained: Trained | None, now: str = "") -> Along | None:
    """The direction of the target or of the training with its length of step, from the disk or made now.

    None where it is zero in this part of the parameters, and the parameters have several parts.

    Args:
        work: what the run is made from, with the model as it is now.
        name: "joint" for that of the training; any other is one of the target.
        part: number of the part of the parameters.
        trained: gradient of the training's loss.
        now: how the model is now, for messages, if it is not the untrained one.

    Raises:
        NotFinite: the direction is not finite, or zero; or no length of step is good.
    """
    parameters, kept = work.moved.parts[part], f"{name}_{part}"

    def make() -> Kept | None:
        direction, facts = _make_direction(work, name, part, trained, now)
        if direction.norm == 0 and len(work.moved.parts) > 1:
            return None
        direction.check(f"{'the mean loss of the training data' if name == JOINT else 'the target'}{now}")
        return Kept(list(direction.tensors), {**facts, "norm": direction.norm})

    known = complete_tensors(work.folder.shards, kept, parameters, make)
    if known is None:
        return None
    direction = ParameterDirection(parameters, known.tensors)
    step = current_ranks().share(lambda: _complete_step(work, kept, direction, _say(name) + now))
    return Along(direction, known.facts | step)


def _say(name: str) -> str:
    """Whose gradient a direction is, for messages."""
    return JOINT if name == JOINT else TARGET


def _complete_step(work: Work, name: str, direction: ParameterDirection, what: str) -> dict[str, Any]:
    """Length and error of the step along a direction, from the disk or found now."""
    path = shard_path(work.folder.shards, 0, f"{name}_step_")
    known = find_shard(path, NO_ROWS.schema, {})
    if known is None:
        try:
            known = Shard(NO_ROWS, _choose_step(work, direction))
        except NotFinite as error:
            raise NotFinite(
                f"along the gradient of the {what}: {error}. Where pairs cancel one another, that gradient is nearly "
                f"zero, and only rounding is left of it"
            ) from error
        if known.facts["step_error"] > WARNED_ERROR:
            log.warning(
                "the derivatives along the gradient of the %s are known to about %.1f %% of their size only",
                what,
                100 * known.facts["step_error"],
            )
        write_shard(path, known.rows, known.facts)
    return known.facts


def _make_direction(
    work: Work, name: str, part: int, trained: Trained | None, now: str
) -> tuple[ParameterDirection, dict[str, Any]]:
    """A direction, through the preconditioner of AdamW if that is the optimizer, and facts of it."""
    gradients, facts = work.gradients(part), dict[str, Any]()
    if name == JOINT:
        assert trained is not None
        found = list(trained.mean)
    else:
        assert work.target is not None
        found = gradients.zeros()
        with Progress(len(work.target.groups), unit="rows", doing=f"gradient of the target{now}") as bar:
            facts["mean"] = work.target.add_gradient(gradients, found, lambda done: bar.advance(done, 0))
    direction, lost = go_through_optimizer(ParameterDirection(gradients.parameters, found), trained)
    if lost > WARNED_LOST:
        config = work.config
        whole = config.joint or config.optimizer_batches * config.batch_pairs >= len(work.data.pairs)
        log.warning(
            "%.0f %% of the gradient of the %s lie where no batch of the training moved anything, and are left out; %s",
            100 * lost,
            _say(name) + now,
            "there are no more batches" if whole else "take more with --optimizer-batches",
        )
    return direction, {**facts, "lost": lost, "how": gradients.how}


def go_through_optimizer(direction: ParameterDirection, trained: Trained | None) -> tuple[ParameterDirection, float]:
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
        raise work.explain_none()
    step = choose_step(scorer, direction, pairs) if length is None else measure_step(scorer, direction, pairs, length)
    return {"step": step.length, "step_error": step.error}
