"""The pilot of a run: some steps of training in memory, and what is measured on the way and afterwards."""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from probing.errors import NotFinite
from probing.instruments.parameter_directions import ParameterDirection, move_along
from probing.instruments.parameter_gradients import ParameterGradients
from probing.instruments.pilot import Training, train_in_memory
from probing.report.progress import Progress
from probing.runs.common.parts import Shard
from probing.runs.influence.parts.directions import Trained, complete_direction
from probing.runs.influence.parts.passes import complete_likelihoods, complete_slopes
from probing.runs.influence.parts.work import POINT, TARGET, Work, describe_direction
from probing.runs.influence.states import Kept, are_finite, complete_tensors


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
    known = complete_tensors(work.folder.shards, "trained", parameters, lambda: _train(work))
    assert known is not None
    tensors = known.tensors
    with move_along(ParameterDirection(parameters, tensors)), torch.no_grad():
        for parameter, tensor in zip(parameters, tensors, strict=True):
            parameter.data.copy_(tensor)
        yield


def _train(work: Work) -> Kept:
    """The parameters after the steps of the pilot."""
    steps = work.config.pilot_steps
    gradients = ParameterGradients(work.moved.stack, work.moved.parameters)
    with (
        Progress(steps * min(work.config.batch_pairs, len(work.data.pairs)), doing="training the pilot") as bar,
        contextlib.closing(walk_pilot(work, gradients, lambda done: bar.advance(done, 0))) as walk,
    ):
        for done in walk:
            if done == steps:
                tensors = [parameter.detach().clone() for parameter in gradients.parameters]
    return Kept(tensors, {"how": gradients.how})


def walk_pilot(
    work: Work, gradients: ParameterGradients, report: Callable[[int], None] | None = None
) -> Generator[int, None, None]:
    """Train the pilot in memory; the parameters come back to the bit when the iterator is closed or at its end.

    Args:
        work: what the run is made from.
        gradients: of all parameters that move.
        report: called with the number of pairs that were done, after each part of a batch.

    Yields:
        The number of steps that are done, from 0 to all, with the model as it is after them.

    Raises:
        NotFinite: the training diverges.
    """
    config = work.config
    assert config.learning_rate is not None
    # A few long steps in place of many go as far as these.
    length = config.learning_rate * (config.training_steps or config.pilot_steps) / config.pilot_steps
    training = Training(config.pilot_steps, length, config.batch_pairs, config.optimizer, seed=config.seed)
    # Drawn here, so that no more pairs are in memory than are trained on.
    pairs = work.draw(config.pilot_steps * config.batch_pairs)
    with train_in_memory(gradients, pairs, work.loss, training, report) as steps:
        yield 0
        for done, step in enumerate(steps, 1):
            step()
            if not are_finite(gradients.parameters):
                raise NotFinite("the pilot's training diverges; choose a lower --learning-rate")
            yield done


@dataclass(frozen=True)
class Point:
    """The target at a point of the pilot, over a part of the parameters.

    Attributes:
        shards: derivatives of every pair along the target's gradient there, and ln p.
        facts: of the direction; see ``Along``.
    """

    shards: Sequence[Shard]
    facts: dict[str, Any]


def complete_points(work: Work, part: int, trained: Trained | None) -> list[Point | None]:
    """Derivatives along the gradient of the target as it is before every step of the pilot but the first.

    The preconditioner stays that of the start. None at points where the gradient is zero over this part.

    Raises:
        NotFinite: the training diverges, or a direction is of no use; see ``complete_direction``.
    """
    gradients = ParameterGradients(work.moved.stack, work.moved.parameters)
    steps, points = work.config.pilot_steps, list[Point | None]()
    with contextlib.closing(walk_pilot(work, gradients)) as walk:
        for done in walk:
            if done == steps:
                break
            if done == 0:
                # Before the first step the model is the untrained one, which was looked at already.
                continue
            name = f"{POINT}{done}"
            now = describe_direction(name).removeprefix(TARGET)
            along = complete_direction(work, name, part, trained, now)
            points.append(None if along is None else Point(complete_slopes(work, name, part, along, now), along.facts))
    return points
