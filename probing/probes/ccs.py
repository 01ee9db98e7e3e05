"""Contrast-consistent search: probes without labels, of all layers, splits and restarts at once.

Burns et al. 2022 (arXiv 2212.03827). The states are those of the yes and the no form of statements; a probe is a
direction whose probabilities of both forms of a statement add up to one and are not both a half.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probing.errors import NotFinite
from probing.kernels.ccs_step import LOSSES, CCSStep, Loss, ccs_step, inverses_of
from probing.probes.optimize import minimize
from probing.probes.threads import single_threads

Normalization = Literal["l2", "none"]
Centering = Literal["median", "mean"]
Optimizer = Literal["adamw", "lbfgs"]
Each = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""``map``, or what does the same in several threads."""
LBFGS_TOLERANCE = 1e-7
LEAST_LOGITS = 1 << 18
"""Of a block: in smaller ones a thread of a CPU is kept from its products by all else that an operation takes."""
WARM_EPOCHS = 3
"""Epochs on a card before one is captured into a graph: by then every library has set itself up."""


@dataclass(frozen=True)
class CCSOptions:
    """How probes are trained.

    Attributes:
        loss: "original" or "symmetric".
        restarts: probes from different starting points; the one of least loss is kept.
        epochs: steps over all rows.
        optimizer: "adamw", or "lbfgs" for at most so many iterations.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        supervision: weight of a cross-entropy with the labels; 0 trains without them.
        seed: of the starting points.

    Raises:
        ValueError: a number out of range, or an unknown word.
    """

    loss: Loss = "original"
    restarts: int = 10
    epochs: int = 1500
    optimizer: Optimizer = "adamw"
    learning_rate: float = 0.015
    weight_decay: float = 0.01
    supervision: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"the loss is one of {', '.join(LOSSES)}, not {self.loss!r}")
        if self.optimizer not in ("adamw", "lbfgs"):
            raise ValueError(f"the optimizer is adamw or lbfgs, not {self.optimizer!r}")
        for name, least in (("restarts", 1), ("epochs", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("learning_rate", "weight_decay", "supervision"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number of at least 0, not {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class TrainedProbes:
    """Every restart of every split.

    Attributes:
        weight: [entry width split restart].
        bias: [entry split restart].
        loss: on the rows of the split, [entry split restart].
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


def normalized(
    states: Float[Tensor, "*axes width"], normalization: Normalization = "l2"
) -> Float[Tensor, "*axes width"]:
    """States in float32 (float64 stays), each divided by its length where ``normalization`` is "l2"."""
    wide = states.to(torch.promote_types(states.dtype, torch.float32))
    return (
        torch.nn.functional.normalize(wide, dim=-1, eps=torch.finfo(wide.dtype).tiny) if normalization == "l2" else wide
    )


def centers_of(
    states: Float[Tensor, "*axes row width"], train: Bool[Tensor, "row split"], centering: Centering = "median"
) -> Float[Tensor, "*axes split width"]:
    """The centre of the training rows of each split: the median of every feature, or the mean.

    Of an even number of rows the median is the mean of the two in the middle. Half of the forms affirm what is true:
    a feature that tells so lies on both sides of that middle, and the lower of the two would be one side.
    """
    found = []
    for split in range(train.shape[1]):
        rows = states[..., train[:, split], :]
        found.append(_median(rows.transpose(-1, -2).contiguous()) if centering == "median" else rows.mean(dim=-2))
    return torch.stack(found, dim=-2)


def _median(values: Float[Tensor, "*axes row"]) -> Float[Tensor, "*axes"]:
    count = values.shape[-1]
    low, high = (values.kthvalue(at, dim=-1).values for at in ((count + 1) // 2, count // 2 + 1))
    return (low + high) / 2


@dataclass(frozen=True, eq=False)
class Training:
    """States that probes are trained on.

    Attributes:
        states: normalised, of the yes and the no form of each row, [entry 2 row width].
        centers: of each split, [entry 2 split width].
        pairings: the row whose no form meets the yes form of each row, [pairing row]: each a permutation of rows that
            the same splits train on. The probes of every pairing are trained; by default of the rows as they are.
        train: which rows a split trains on, [row split], where that is not the same in all trainings.
    """

    states: Tensor
    centers: Tensor
    pairings: Tensor | None = None
    train: Tensor | None = None

    @property
    def variants(self) -> int:
        """How many pairings there are."""
        return 1 if self.pairings is None else len(self.pairings)


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
        train: which rows a split trains on, unless the training says it itself.
        options: loss, optimiser, restarts.
        targets: whether each statement is true; for ``options.supervision``.
        report: told after some epochs how many more are done.
        threads: that share the work on a CPU; by default as many as torch has. No byte depends on it.

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

    with _by_threads(like, threads or torch.get_num_threads(), len(blocks)) as shared:

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
    found = [_unflattened(each, part, options) for each, part in zip(trainings, parts, strict=True)]
    if not all(torch.isfinite(each.loss).any(dim=2).all() for each in found):
        raise NotFinite("the loss became NaN or infinite in every restart; lower the learning rate")
    return found


def _unflattened(training: Training, parts: tuple[Tensor, ...], options: CCSOptions) -> TrainedProbes:
    """From weights, biases and losses in the order entry, split, pairing, restart."""
    shape = (len(training.states), training.centers.shape[2], training.variants, options.restarts)
    bias, loss = (each.view(shape).transpose(1, 2).flatten(0, 1) for each in parts[1:])
    weight = parts[0].view(*shape, -1).permute(0, 2, 4, 1, 3).flatten(0, 1)
    return TrainedProbes(weight, bias, loss)


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of a training that the same splits train on, with the probes of these splits.

    Attributes:
        states: [entry 2 row width].
        centers: of these splits, [entry 2 split width].
        row_weights: of the probes, as those of an entry follow each other, [row probe].
        probes: their places among all probes, [entry probe].
        targets: [row], or None.
        pairings: [pairing row] by the rows of the block, or None.
        inverses: of the pairings.
    """

    states: Tensor
    centers: Tensor
    row_weights: Tensor
    probes: Tensor
    targets: Tensor | None
    pairings: Tensor | None
    inverses: Tensor | None


def blocks_of(
    trainings: Sequence[Training], train: Tensor, restarts: int, targets: Tensor | None = None
) -> list[Block]:
    """The blocks of all trainings; probes are in the order training, entry, split, pairing, restart.

    Where splits leave out folds, a block is a fold: no product has a row with a probe that does not train on it. Where
    rows are left out in more ways than there are splits, each training is one block, with weights of zero. On a CPU
    entries are cut into blocks as well.
    """
    blocks: list[Block] = []
    first = 0
    for training in trainings:
        own = train if training.train is None else training.train
        patterns, kind = torch.unique(own.cpu(), dim=0, return_inverse=True)
        if patterns.any(dim=1).sum() > own.shape[1]:
            patterns, kind = torch.ones_like(patterns[:1]), torch.zeros_like(kind)
        shares = own / own.sum(dim=0)
        entries, variants = len(training.states), training.variants
        numbers = torch.arange(entries * own.shape[1] * variants * restarts, device=own.device) + first
        numbers = numbers.view(entries, own.shape[1], variants * restarts)
        first += numbers.numel()
        for at, pattern in enumerate(patterns):
            rows, kept = (mask.nonzero().flatten().to(own.device) for mask in (kind == at, pattern))
            logits = 2 * len(rows) * len(kept) * variants * restarts
            for some in _entries_at_once(training, logits) if logits else ():
                part = replace(training, states=training.states[some], centers=training.centers[some])
                blocks.append(_block(part, rows, shares[rows][:, kept], numbers[some][:, kept], kept, targets))
    # The largest first, so that threads that share them out end together.
    return sorted(blocks, key=lambda block: -block.row_weights.numel())


def _entries_at_once(training: Training, logits: int) -> list[slice]:
    """Entries that go together: all of them on a card; on a CPU as many as make a block worth a thread's while."""
    entries = len(training.states)
    size = entries if training.states.is_cuda else max(LEAST_LOGITS // logits, 1)
    return [slice(at, min(at + size, entries)) for at in range(0, entries, size)]


def _block(
    training: Training, rows: Tensor, shares: Tensor, numbers: Tensor, kept: Tensor, targets: Tensor | None
) -> Block:
    pairings = None
    if training.pairings is not None:
        place = torch.full((training.states.shape[2],), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        pairings = place[training.pairings[:, rows]]
        if (pairings < 0).any():
            raise ValueError("a pairing takes a no form from a row that other splits train on")
    states = training.states[:, :, rows].contiguous()
    centers = training.centers[:, :, kept].contiguous()
    truth = None if targets is None else targets[rows].to(states)
    inverses = None if pairings is None else inverses_of(pairings)
    weights = shares.to(states).T.repeat_interleave(numbers.shape[2], dim=0).T
    return Block(states, centers, weights, numbers.flatten(1), truth, pairings, inverses)


def step_of_blocks(
    blocks: Sequence[Block],
    weight: Float[Tensor, "probe width"],
    bias: Float[Tensor, " probe"],
    options: CCSOptions,
    shared: Each = map,
) -> CCSStep:
    """Loss of every probe and its gradient: the sums over the blocks that it trains on, added in their order."""

    def part(block: Block) -> CCSStep:
        own = [whole.index_select(0, block.probes.flatten()).unflatten(0, block.probes.shape) for whole in given]
        return ccs_step(
            block.states,
            block.centers,
            block.row_weights,
            own[0],
            own[1],
            options.loss,
            block.targets,
            options.supervision,
            block.pairings,
            block.inverses,
        )

    given = (weight.detach(), bias.detach())
    total = CCSStep(torch.zeros_like(bias), torch.zeros_like(weight), torch.zeros_like(bias))
    for block, found in zip(blocks, shared(part, blocks), strict=True):
        for whole, of_block in zip(total, found, strict=True):
            whole.index_add_(0, block.probes.flatten(), of_block.flatten(0, 1))
    return total


@contextmanager
def _by_threads(like: Tensor, threads: int, blocks: int) -> Iterator[Each]:
    """A ``map`` that shares blocks out to threads; on a card, and where a thread would have none, a plain one."""
    if like.is_cuda or threads == 1 or blocks < threads:
        yield map
        return
    with single_threads(threads) as pool:
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
        with torch.cuda.device(weight.device):  # streams and graphs belong to the current card
            _run_captured(epoch, options.epochs, report)
    else:
        for _ in range(options.epochs):
            epoch()
            report(1)
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None


def _run_captured(epoch: Callable[[], None], epochs: int, report: Callable[[int], None]) -> None:
    """Some epochs as they are, one captured into a graph, and that one replayed: a launch in place of twenty."""
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
        found = step(parameters[:-1].T.contiguous(), parameters[-1])
        return found.loss, flat(found.weight, found.bias)

    found = minimize(evaluate, flat(weight, bias), options.epochs, tolerance=LBFGS_TOLERANCE).parameters
    return found[:-1].T.contiguous(), found[-1].contiguous()


def logits_of(
    states: Float[Tensor, "entry 2 row width"],
    centers: Float[Tensor, "entry 2 split width"],
    weight: Float[Tensor, "entry width split"],
    bias: Float[Tensor, "entry split"],
) -> Float[Tensor, "entry 2 row split"]:
    """Of every form by the probe of every split, with the centre that the split was trained with."""
    shift = torch.einsum("efsw,ews->efs", centers, weight)
    return states @ weight[:, None] + (bias[:, None] - shift)[:, :, None]


def read_states(
    states: Float[Tensor, "row layer width"],
    normalization: Normalization,
    centers: Float[Tensor, "layer width"],
    weight: Float[Tensor, "layer width"],
    bias: Float[Tensor, " layer"],
) -> Float[Tensor, "row layer"]:
    """Probability of every row by the probe of its layer, in the dtype of the weights, from states as they are."""
    centered = normalized(states, normalization).to(weight) - centers
    return torch.sigmoid((centered * weight).sum(dim=-1) + bias)


@dataclass(frozen=True, eq=False)
class CCSProbe:
    """A trained probe a layer, with everything that it needs to read states as it was trained.

    Attributes:
        weight: [layer width].
        bias: [layer].
        centers: of the yes and of the no forms, [layer 2 width].
        normalization: "l2" or "none".
        oriented: whether a high score means true: known only if labels were given.
        loss: on the rows it was trained on, [layer].
    """

    weight: Tensor
    bias: Tensor
    centers: Tensor
    normalization: Normalization
    oriented: bool
    loss: Tensor

    def probabilities(
        self, yes: Float[Tensor, "pair layer width"], no: Float[Tensor, "pair layer width"]
    ) -> tuple[Float[Tensor, "pair layer"], Float[Tensor, "pair layer"]]:
        """Probability of the yes and of the no form.

        Raises:
            ValueError: states of other layers or another width.
        """
        _check_states(yes, no)
        if tuple(yes.shape[1:]) != tuple(self.weight.shape):
            raise ValueError(
                f"the states have {yes.shape[1]} layers of width {yes.shape[2]}; the probe was trained on "
                f"{self.weight.shape[0]} layers of width {self.weight.shape[1]}"
            )
        p, q = (
            read_states(states, self.normalization, self.centers[:, form], self.weight, self.bias)
            for form, states in enumerate((yes, no))
        )
        return p, q

    def score(
        self, yes: Float[Tensor, "pair layer width"], no: Float[Tensor, "pair layer width"]
    ) -> Float[Tensor, "pair layer"]:
        """``(p(yes) + 1 - p(no)) / 2``, in [0, 1]; above a half is "true" if the probe is oriented."""
        p, q = self.probabilities(yes, no)
        return (p + 1 - q) / 2


def fit_ccs(
    yes: Float[Tensor, "pair layer width"],
    no: Float[Tensor, "pair layer width"],
    seed: int = 0,
    *,
    labels: Bool[Tensor, " pair"] | None = None,
    normalization: Normalization = "l2",
    centering: Centering = "median",
    options: CCSOptions | None = None,
) -> CCSProbe:
    """Train a contrast-consistent probe for every layer, all layers and restarts at once.

    Evaluate it on other pairs than those it was trained on, and next to random probes: with many features and few
    pairs almost any direction can be made consistent.

    Args:
        yes: states of the yes forms.
        no: states of the no forms.
        seed: of the starting points.
        labels: whether each statement is true: to orient the probe (or with ``options.supervision``, to train it).
        normalization: "l2" divides every state by its length; "none" takes them as they are.
        centering: what is taken off, of the yes and of the no forms separately.
        options: losses, optimiser, restarts; ``seed`` wins over theirs.

    Raises:
        ValueError: shapes that do not belong together, fewer than two pairs, states that are not finite, the same
            state throughout, or supervision without labels.
        NotFinite: training diverged.
    """
    options = replace(options or CCSOptions(), seed=seed)
    _check_states(yes, no)
    _check_training(yes, no, labels, options)
    states = torch.stack([normalized(side, normalization).transpose(0, 1) for side in (yes, no)], dim=1).contiguous()
    everything = torch.ones(len(yes), 1, dtype=torch.bool, device=yes.device)
    centers = centers_of(states, everything, centering)
    trained = train_probes(states, centers, everything, options, labels)
    weight, bias = trained.best()
    if labels is not None:
        p, q = torch.sigmoid(logits_of(states, centers, weight, bias))[..., 0].unbind(dim=1)
        right = (((p + 1 - q) / 2 - 0.5) * (2.0 * labels - 1)).sign().sum(dim=1)
        sign = torch.where(right < 0, -1.0, 1.0).to(weight)
        weight, bias = weight * sign[:, None, None], bias * sign[:, None]
    loss = trained.loss.nan_to_num(nan=float("inf")).amin(dim=2)[:, 0]
    return CCSProbe(weight[..., 0], bias[..., 0], centers[:, :, 0], normalization, labels is not None, loss)


def _check_states(yes: Tensor, no: Tensor) -> None:
    if yes.shape != no.shape or yes.ndim != 3:
        raise ValueError(
            f"states must be [pair layer width] for both forms; they are {tuple(yes.shape)} and {tuple(no.shape)}"
        )


def _check_training(yes: Tensor, no: Tensor, labels: Tensor | None, options: CCSOptions) -> None:
    if len(yes) < 2:
        raise ValueError(f"a probe needs at least two pairs, not {len(yes)}")
    if not (torch.isfinite(yes).all() and torch.isfinite(no).all()):
        raise ValueError("the states are not all finite")
    constant = ((yes == yes[:1]).all(dim=2) & (no == no[:1]).all(dim=2)).all(dim=0).nonzero()
    if len(constant):
        raise ValueError(f"layer {int(constant[0])}: the states of all pairs are the same")
    if labels is not None and tuple(labels.shape) != (len(yes),):
        raise ValueError(f"{len(labels)} labels for {len(yes)} pairs")
    if options.supervision and labels is None:
        raise ValueError("supervision needs labels")
