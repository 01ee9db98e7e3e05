"""A few real steps of preference training in memory, after which the model is what it was, to the bit."""

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn

from probing.errors import NotFinite
from probing.instruments.influence import rows_of, weigh_pairs
from probing.instruments.parameter_directions import ParameterDirection, move_along
from probing.instruments.parameter_gradients import ParameterGradients
from probing.metrics.preference_losses import PreferenceLoss
from probing.tokens.pairs import TokenizedPair

Optimizer = Literal["adamw", "sgd"]


@dataclass(frozen=True)
class Training:
    """A training at a constant learning rate, without weight decay and dropout.

    Attributes:
        steps: number of steps.
        learning_rate: learning rate of every step.
        batch_pairs: pairs of a batch.
        optimizer: "adamw" with the coefficients that torch has by default, or "sgd", plain gradient descent.
        largest_norm: gradients are scaled down to this norm; None leaves them as they are.
        seed: seed of the order of the pairs.
    """

    steps: int
    learning_rate: float
    batch_pairs: int = 16
    optimizer: Optimizer = "adamw"
    largest_norm: float | None = 1.0
    seed: int = 0


def draw_batches(pairs: int, training: Training) -> Iterator[list[int]]:
    """Numbers of the pairs of every step; each epoch has an order of its own, and a last batch that is not full is
    left out."""
    shuffle = random.Random(training.seed)
    order: list[int] = []
    size = min(training.batch_pairs, pairs)
    for _ in range(training.steps):
        if len(order) < size:
            order = list(range(pairs))
            shuffle.shuffle(order)
        yield order[:size]
        order = order[size:]


@contextlib.contextmanager
def train_in_memory(
    gradients: ParameterGradients,
    pairs: Sequence[TokenizedPair],
    loss: PreferenceLoss,
    training: Training,
    report: Callable[[int], None] | None = None,
) -> Iterator[Iterator[Callable[[], None]]]:
    """Train a model on pairs inside the block; it comes back to the bit.

    Args:
        gradients: the model and the parameters that are trained.
        pairs: pairs that can be run.
        loss: the loss; its reference is the model as it is before the block.
        training: how to train.
        report: called with the number of pairs that were done, after each part of a batch.

    Yields:
        For each step in turn a function that makes it.

    Raises:
        NotFinite: the gradient of a batch is not finite.
    """
    parameters = list(gradients.parameters)
    rows, batches = [rows_of(pair) for pair in pairs], list(draw_batches(len(pairs), training))
    seen = sorted({at for batch in batches for at in batch})
    reference = dict(zip(seen, gradients.read([rows[at] for at in seen]), strict=True))
    before = [parameter.grad for parameter in parameters]
    with move_along(ParameterDirection(parameters, parameters)):
        optimizer = _make_optimizer(parameters, training)

        def step(batch: Sequence[int]) -> None:
            total = gradients.zeros()
            weigh = weigh_pairs(loss, [pairs[at] for at in batch], torch.stack([reference[at] for at in batch]))
            gradients.add([rows[at] for at in batch], weigh, total, report)
            for parameter, gradient in zip(parameters, total, strict=True):
                # The optimizer goes down, the gradient that was added goes towards a lower loss.
                parameter.grad = gradient / -len(batch)
            _clip(parameters, training.largest_norm)
            optimizer.step()

        try:
            yield (partial(step, batch) for batch in batches)
        finally:
            for parameter, gradient in zip(parameters, before, strict=True):
                parameter.grad = gradient


def _make_optimizer(parameters: list[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=training.learning_rate)
    return torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=0.0)


def _clip(parameters: list[nn.Parameter], largest: float | None) -> None:
    """Scale gradients down to a norm.

    Raises:
        NotFinite: the norm is NaN or infinite.
    """
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, math.inf if largest is None else largest))
    if not math.isfinite(norm):
        raise NotFinite(
            f"a step of the pilot has a gradient of norm {norm}; choose a lower learning rate or fewer steps"
        )
