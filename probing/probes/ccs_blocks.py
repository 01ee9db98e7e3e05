"""Blocks of rows and probes that are trained together: the loss and its gradient are sums over the blocks."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probing.kernels.ccs_step import CCSStep, ccs_step, inverses_of
from probing.probes.ccs_options import CCSOptions

Each = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""``map``, or a function that does the same in several threads."""
LEAST_LOGITS = 1 << 18
"""Least number of logits of a block: in smaller blocks the overhead of each operation dominates the products."""


@dataclass(frozen=True, eq=False)
class Training:
    """States that probes are trained on.

    Attributes:
        states: normalised, of the yes and the no form of each row, [entry 2 row width].
        centers: centres of each split, [entry 2 split width].
        pairings: the row whose no form meets the yes form of each row, [pairing row]: each a permutation of rows that
            the same splits train on. The probes of every pairing are trained; by default of the rows as they are.
        train: training rows of each split, [row split], where that is not the same in all trainings.
    """

    states: Tensor
    centers: Tensor
    pairings: Tensor | None = None
    train: Tensor | None = None

    @property
    def variants(self) -> int:
        """Number of pairings."""
        return 1 if self.pairings is None else len(self.pairings)


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of a training that the same splits train on, with the probes of these splits.

    Attributes:
        states: [entry 2 row width].
        centers: centres of these splits, [entry 2 split width].
        row_weights: weight of each row for each probe of an entry, [row probe].
        probes: places of these probes among all probes, [entry probe].
        targets: [row], or None.
        pairings: [pairing row] by the rows of the block, or None.
        inverses: inverse permutations of the pairings.
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
            for some in _split_entries(training, logits) if logits else ():
                part = replace(training, states=training.states[some], centers=training.centers[some])
                blocks.append(_block(part, rows, shares[rows][:, kept], numbers[some][:, kept], kept, targets))
    # The largest blocks come first, so that the threads that share them end at about the same time.
    return sorted(blocks, key=lambda block: -block.row_weights.numel())


def _split_entries(training: Training, logits: int) -> list[slice]:
    """Entries that are computed together: all of them on a card; on a CPU as many as make a block large enough."""
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
    return Block(
        states=states,
        centers=centers,
        row_weights=weights,
        probes=numbers.flatten(1),
        targets=truth,
        pairings=pairings,
        inverses=inverses,
    )


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
            states=block.states,
            centers=block.centers,
            row_weights=block.row_weights,
            weight=own[0],
            bias=own[1],
            loss=options.loss,
            targets=block.targets,
            supervision=options.supervision,
            pairings=block.pairings,
            inverses=block.inverses,
        )

    given = (weight.detach(), bias.detach())
    total = CCSStep(torch.zeros_like(bias), torch.zeros_like(weight), torch.zeros_like(bias))
    for block, step in zip(blocks, shared(part, blocks), strict=True):
        for whole, of_block in zip(total, step, strict=True):
            whole.index_add_(0, block.probes.flatten(), of_block.flatten(0, 1))
    return total
