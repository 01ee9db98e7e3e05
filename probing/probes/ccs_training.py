"""The training of contrast-consistent probes: of all layers, splits and restarts at once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probing.errors import NotFinite
from probing.kernels.ccs_step import CCSStep
from probing.probes.ccs_blocks import Each, Training, blocks_of, step_of_blocks
from probing.probes.ccs_options import CCSOptions
from probing.probes.optimize import minimize
from probing.probes.threads import open_single_threads

LBFGS_TOLERANCE = 1e-7
WARM_EPOCHS = 3
"""Epochs on a card before one is captured into a CUDA graph: by then every library is initialised."""


@dataclass(frozen=True, eq=False)
class TrainedProbes:
    """Every restart of every split.

    Attributes:
        weight: [entry width split restart].
        bias: [entry split restart].
        loss: loss on the rows of the split, [entry split restart].
    """

    weight: Tensor
    bias: Tensor
    loss: Tensor

    def best(self) -> tuple[Tensor, Tensor]:
        """Weights [entry width split] and biases [entry split] of the restart with the least loss."""
        kept = self.loss.nan_to_num(nan=float("inf")).argmin(dim=2, keepdim=True)
        index = kept[:, None].expand(-1, self.weight.shape[1], -1, -1)
        return self.weight.gather(3, index)[..., 0], self.bias.gather(2, kept)[..., 0]

    def entry(self, number: int) -> "TrainedProbes":
        """The probes of one entry."""
        kept = slice(number, number + 1)
        return TrainedProbes(self.weight[kept], self.bias[kept], self.loss[kept])


def train_probes(
    states: Float[Tensor, "entry 2 row width"],
    centers: Float[Tensor, "entry 2 split width"],
    train: Bool[Tensor, "row split"],
    options: CCSOptions,
    targets: Bool[Tensor, " row"] | None = None,
    report: Callable[[int], None] = lambda epochs: None,
) -> TrainedProbes:
    """Train the probes of all entries, splits and restarts together: ``train_together`` of one training."""
    return train_together([Training(states, centers)], train, options, targets, report)[0]


def train_together(
    trainings: Sequence[Training],
    train: Bool[Tensor, "row split"],
    options: CCSOptions,
    targets: Bool[Tensor, " row"] | None = None,
    report: Callable[[int], None] = lambda epochs: None,
    threads: int | None = None,
) -> list[TrainedProbes]:
    """Train the probes of all entries, pairings, splits and restarts together; each as if it were alone.

    A restart begins at the same point in every entry and split, so that it does not matter what else is trained.

    Args:
        trainings: states, centres and pairings of the same rows.
        train: training rows of each split, unless the training brings its own.
        options: loss, optimiser, restarts.
        targets: whether each statement is true, for ``options.supervision``.
        report: told after some epochs how many more are done.
        threads: number of threads that share the work on a CPU; by default as many as torch has. No byte depends on it.

    Returns:
        The probes of each training; its entries are those of the states, and within these the pairings.

    Raises:
        ValueError: a pairing takes a no form from a row that other splits train on.
        NotFinite: the loss of every restart of some split became NaN.
    """
    groups = [each.centers.shape[2] * each.variants * len(each.states) for each in trainings]
    like = trainings[0].states
    starts, biases = (start.to(like) for start in starting_points(like.shape[-1], options))
    weight, bias = starts.T.repeat(sum(groups), 1), biases.repeat(sum(groups))
    blocks = blocks_of(trainings, train, options.restarts, targets)

    with _map_in_threads(like, threads or torch.get_num_threads(), len(blocks)) as shared:

        def step(weight: Tensor, bias: Tensor) -> CCSStep:
            return step_of_blocks(blocks, weight, bias, options, shared)

        if options.optimizer == "adamw":
            _adamw(step, weight, bias, options, report)
        else:
            weight, bias = _lbfgs(step, weight, bias, options)
            report(options.epochs)
        loss = step(weight, bias).loss
    parts = zip(
        *(each.split([count * options.restarts for count in groups]) for each in (weight, bias, loss)), strict=True
    )
    trained = [_unflatten(each, part, options) for each, part in zip(trainings, parts, strict=True)]
    if not all(torch.isfinite(each.loss).any(dim=2).all() for each in trained):
        raise NotFinite("the loss became NaN or infinite in every restart; lower the learning rate")
    return trained


def _unflatten(training: Training, parts: tuple[Tensor, ...], options: CCSOptions) -> TrainedProbes:
    """Probes from weights, biases and losses in the order entry, split, pairing, restart."""
    shape = (len(training.states), training.centers.shape[2], training.variants, options.restarts)
    bias, loss = (each.view(shape).transpose(1, 2).flatten(0, 1) for each in parts[1:])
    weight = parts[0].view(*shape, -1).permute(0, 2, 4, 1, 3).flatten(0, 1)
    return TrainedProbes(weight, bias, loss)


@contextmanager
def _map_in_threads(like: Tensor, threads: int, blocks: int) -> Iterator[Each]:
    """A ``map`` that distributes blocks over threads; on a card, and for fewer blocks than threads, a plain one."""
    if like.is_cuda or threads == 1 or blocks < threads:
        yield map
        return
    with open_single_threads(threads) as pool:
        yield pool.map


def starting_points(width: int, options: CCSOptions) -> tuple[Tensor, Tensor]:
    """Weights [width restart] and biases [restart], uniform as torch draws a linear layer; a restart has its own."""
    weights, biases = [], []
    for restart in range(options.restarts):
        drawn = np.random.default_rng([options.seed, restart]).uniform(-1, 1, width + 1) / width**0.5
        weights.append(torch.from_numpy(drawn[:-1]))
        biases.append(torch.from_numpy(drawn[-1:]))
    return torch.stack(weights, dim=1), torch.cat(biases)


def _adamw(
    step: Callable[[Tensor, Tensor], CCSStep],
    weight: Tensor,
    bias: Tensor,
    options: CCSOptions,
    report: Callable[[int], None],
) -> None:
    """Move ``weight`` and ``bias`` in place; AdamW works on each number by itself, so probes stay apart."""
    card = weight.is_cuda
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.AdamW(
        parameters, lr=options.learning_rate, weight_decay=options.weight_decay, fused=True, capturable=card
    )

    @torch.no_grad()
    def epoch() -> None:
        _, weight.grad, bias.grad = step(weight, bias)
        optimizer.step()

    if card:
        # Streams and graphs belong to the current card.
        with torch.cuda.device(weight.device):
            _replay_as_graph(epoch, options.epochs, report)
    else:
        for _ in range(options.epochs):
            epoch()
            report(1)
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None


def _replay_as_graph(epoch: Callable[[], None], epochs: int, report: Callable[[int], None]) -> None:
    """Run some epochs, capture one into a CUDA graph and replay it: one launch in place of twenty."""
    warm = min(WARM_EPOCHS, epochs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm):
            epoch()
    torch.cuda.current_stream().wait_stream(stream)
    report(warm)
    if epochs == warm:
        return
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        epoch()
    for done in range(warm, epochs):
        graph.replay()
        if done % 100 == 0:
            torch.cuda.synchronize()
        report(1)


@torch.no_grad()
def _lbfgs(
    step: Callable[[Tensor, Tensor], CCSStep], weight: Tensor, bias: Tensor, options: CCSOptions
) -> tuple[Tensor, Tensor]:
    def flat(weight: Tensor, bias: Tensor) -> Tensor:
        return torch.cat([weight.T, bias[None]])

    def evaluate(parameters: Tensor) -> tuple[Tensor, Tensor]:
        loss, *gradient = step(parameters[:-1].T.contiguous(), parameters[-1])
        return loss, flat(*gradient)

    best = minimize(evaluate, flat(weight, bias), options.epochs, tolerance=LBFGS_TOLERANCE).parameters
    return best[:-1].T.contiguous(), best[-1].contiguous()
