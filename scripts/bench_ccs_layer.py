"""Figures of the job ``ccs`` of ``bench.py``: one layer of ``probing ccs`` as it is computed and in the plain form."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from measuring import spread_of, timed
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from probing.kernels.ccs_step import ccs_step
from probing.probes.ccs_blocks import Training
from probing.probes.ccs_options import CCSOptions
from probing.probes.ccs_states import centers_of, logits_of, normalize
from probing.probes.ccs_training import starting_points, train_together
from probing.probes.closed_form import crc_directions, vinc_directions
from probing.probes.controls import shuffle_pairings
from probing.statistics.folds import Splits, make_folds

AGREE = 1e-9
"""Largest difference of probabilities of the same probe trained in two ways in float64, over ``CHECKED`` epochs."""
CHECKED = 20
"""In float32 probes of permuted pairings, which stand near the kink of the loss, take other ways, .01 apart or so."""
SAME_DIRECTION = 1e-3
"""Largest distance of directions of length one: the iteration of the plain form ends at that."""
FOLDS, PAIRINGS, STRENGTH = 5, 3, 8.0
ARPACK_TOLERANCE = 1e-7


@dataclass(frozen=True)
class LayerSizes:
    """One layer: pairs of statements, restarts, epochs that are timed, and how often."""

    pairs: int = 600
    width: int = 576
    restarts: int = 10
    epochs: int = 60
    rounds: int = 5

    def told(self) -> dict[str, int]:
        """For the output."""
        return {name: getattr(self, name) for name in ("pairs", "width", "restarts", "epochs", "rounds")}


SIZES = (LayerSizes(), LayerSizes(pairs=160, epochs=100))
SMALL = (LayerSizes(pairs=30, width=16, restarts=2, epochs=5, rounds=2),)


@dataclass(frozen=True, eq=False)
class Layer:
    """States of the pairs, and of the pairs with a distractor; the rows of every split; permuted pairings."""

    states: Tensor
    centers: Tensor
    train: Tensor
    pairings: Tensor

    @classmethod
    def of(cls, sizes: LayerSizes, device: str) -> "Layer":
        """States of length one with a planted direction, [2 2 row width]; a row is a statement or an opposite."""
        generator = torch.Generator().manual_seed(0)
        truth = torch.randint(0, 2, (sizes.pairs,), generator=generator) * 2.0 - 1
        truth = torch.cat([truth, -truth])[:, None]
        direction = normalize(torch.randn(2, 1, 1, sizes.width, generator=generator))
        about = torch.randn(2, 1, 2 * sizes.pairs, sizes.width, generator=generator)
        noise = torch.randn(2, 2, 2 * sizes.pairs, sizes.width, generator=generator) / 2
        sides = torch.tensor([1.0, -1.0])[:, None, None] * STRENGTH * truth * direction
        states = normalize(about + sides + noise).to(device)
        splits = Splits.of(make_folds(np.arange(sizes.pairs), FOLDS))
        train = torch.from_numpy(np.concatenate([splits.train] * 2)).to(device)
        partners = shuffle_pairings(np.concatenate([splits.folds] * 2), PAIRINGS)
        pairings = torch.from_numpy(np.concatenate([np.arange(2 * sizes.pairs)[None], partners])).to(device)
        return cls(states, centers_of(states, train), train, pairings)

    def mixed(self) -> list[tuple[Tensor, Tensor]]:
        """States and centres of every training, those of pairings with the no forms really exchanged."""
        found = []
        for partners in self.pairings:
            states = self.states[:1].clone()
            states[0, 1] = states[0, 1, partners]
            found.append((states, self.centers[:1]))
        return [*found, (self.states[1:], self.centers[1:])]

    def labels(self) -> Tensor:
        """The direction from no forms to yes forms in every split, [split width]."""
        kept = (self.train / self.train.sum(dim=0)).T.to(self.states)
        return kept @ (self.states[0, 0] - self.states[0, 1])


Probes = list[tuple[Tensor, Tensor]]
"""Weights [width split restart] and biases [split restart] of every training."""


def train_ours(layer: Layer, options: CCSOptions) -> Probes:
    """The pairs, the permuted pairings and the distractor at once, by folds."""
    trainings = [
        Training(layer.states[:1], layer.centers[:1], layer.pairings),
        Training(layer.states[1:], layer.centers[1:]),
    ]
    found = train_together(trainings, layer.train, options)
    return [(weight, bias) for each in found for weight, bias in zip(each.weight, each.bias, strict=True)]


def train_plainly(layer: Layer, options: CCSOptions) -> Probes:
    """One training after the other, on all rows: those that a split leaves out have a weight of zero."""
    splits = layer.train.shape[1]
    shares = (layer.train / layer.train.sum(dim=0)).to(layer.states)
    found = []
    for states, centers in layer.mixed():
        weight, bias = (start.to(states) for start in starting_points(states.shape[-1], options))
        weight, bias = weight.T.repeat(splits, 1)[None].contiguous(), bias.repeat(splits)[None].contiguous()
        optimizer = torch.optim.AdamW(
            [weight, bias], lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
        )
        for _ in range(options.epochs):
            _, weight.grad, bias.grad = ccs_step(states, centers, shares, weight, bias)
            optimizer.step()
        by_split = weight[0].view(splits, options.restarts, -1).permute(2, 0, 1)
        found.append((by_split, bias[0].view(splits, options.restarts)))
    return found


def probabilities(layer: Layer, probes: Probes, restart: int) -> Tensor:
    """Of all rows by the probes of one restart, [training 2 row split]."""
    read = [
        logits_of(states, centers, weight[None, ..., restart], bias[None, ..., restart])
        for (states, centers), (weight, bias) in zip(layer.mixed(), probes, strict=True)
    ]
    return torch.sigmoid(torch.cat(read))


def closed_ours(layer: Layer) -> tuple[Tensor, Tensor]:
    """CRC-TPC and VINC of all splits, [width split] each."""
    return (
        crc_directions(layer.states[0], layer.train),
        vinc_directions(layer.states[0], layer.centers[0], layer.train, layer.labels()),
    )


def closed_plainly(layer: Layer) -> tuple[Tensor, Tensor]:
    """The same by ARPACK, split by split."""
    crc, vinc = [], []
    for split, label in enumerate(layer.labels()):
        kept = layer.train[:, split]
        yes, no = (
            (layer.states[0, form, kept] - layer.centers[0, form, split]).double().cpu().numpy() for form in (0, 1)
        )
        contrast = yes - no
        contrast -= contrast.mean(axis=0)
        crc.append(arpack(lambda v, c=contrast: c.T @ (c @ v), np.square(contrast).sum(), contrast.shape[1]))
        vinc.append(_vinc(yes, no, label.double().cpu().numpy()))
    return torch.stack(crc, dim=1), torch.stack(vinc, dim=1)


def _vinc(yes: Any, no: Any, label: Any) -> Tensor:
    half, away = len(yes) // 2, label / np.linalg.norm(label)
    a1, n1, a0, n0 = (part - np.outer(part @ away, away) for part in (yes[:half], yes[half:], no[:half], no[half:]))
    claims = [claim - claim.mean(axis=0) for claim in ((a1 + n0) / 2, (n1 + a0) / 2)]
    within = np.concatenate([(a1 - n0) / 2, (n1 - a0) / 2])

    def product(vectors: Any) -> Any:
        crossed = claims[0].T @ (claims[1] @ vectors) + claims[1].T @ (claims[0] @ vectors)
        return -(within.T @ (within @ vectors) + crossed) / (4 * half)

    return arpack(product, sum(np.square(part).sum() for part in (a1, n1, a0, n0)) / (2 * half), yes.shape[1])


def arpack(product: Callable[[Any], Any], size: float, width: int) -> Tensor:
    """The leading eigenvector, its largest entry positive."""

    def shifted(vectors: Any) -> Any:
        return product(vectors) + size * vectors

    operator = LinearOperator((width, width), matvec=shifted, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(width)
    vector = eigsh(operator, k=1, which="LA", v0=start, tol=ARPACK_TOLERANCE)[1][:, 0]
    return torch.from_numpy(vector * np.sign(vector[np.abs(vector).argmax()])).float()


def compare_training(sizes: LayerSizes, device: str) -> dict[str, Any]:
    """Epochs of all trainings of a layer, in turn; in float64 both ways end at the same probabilities."""
    layer = Layer.of(sizes, device)
    exact = replace(layer, states=layer.states.double(), centers=layer.centers.double())
    options = CCSOptions(restarts=sizes.restarts, epochs=sizes.epochs)
    few = replace(options, epochs=min(CHECKED, sizes.epochs))
    both = [train(exact, few) for train in (train_ours, train_plainly)]
    worst = max(
        float((probabilities(exact, both[0], at) - probabilities(exact, both[1], at)).abs().max())
        for at in range(sizes.restarts)
    )
    check(worst, AGREE)
    found = in_turn(lambda: train_ours(layer, options), lambda: train_plainly(layer, options), sizes, device)
    figure = "time of a layer's trainings one by one over all rows, over that of all at once by folds"
    return {"figure": figure, "worst_difference": float(f"{worst:.1e}"), **found}


def compare_closed_forms(sizes: LayerSizes, device: str) -> dict[str, Any]:
    """CRC-TPC and VINC of all splits, in turn."""
    layer = Layer.of(sizes, device)
    pairs = zip(closed_ours(layer), closed_plainly(layer), strict=True)
    worst = max(float((ours.cpu() - plain).norm(dim=0).max()) for ours, plain in pairs)
    check(worst, SAME_DIRECTION)
    found = in_turn(lambda: closed_ours(layer), lambda: closed_plainly(layer), sizes, device)
    figure = "time of closed forms by ARPACK, split by split, over that of all splits at once"
    return {"figure": figure, "worst_difference": float(f"{worst:.1e}"), **found}


def check(worst: float, most: float) -> None:
    """Stop if the two ways are further apart than that, or one of them is NaN."""
    if not worst <= most:
        sys.exit(f"the two ways differ by {worst:.1e}; no times are shown")


def in_turn(ours: Callable[[], Any], plain: Callable[[], Any], sizes: LayerSizes, device: str) -> dict[str, Any]:
    """Ratios of the two ways, a round after the other."""
    seconds = []
    for _ in range(sizes.rounds):
        times = timed(ours, device)[1], timed(plain, device)[1]
        print(f"  {sizes.pairs} pairs: {times[0]:.2f} s, plainly {times[1]:.2f} s", file=sys.stderr)
        seconds.append(times)
    ratios = [theirs / own for own, theirs in seconds]
    means = [round(sum(each) / len(seconds), 3) for each in zip(*seconds, strict=True)]
    return {
        **sizes.told(),
        **spread_of(ratios, digits=2),
        "seconds_ours": means[0],
        "seconds_plain": means[1],
    }


def bench_layer(small: bool, device: str) -> list[dict[str, Any]]:
    """Trainings and closed forms of a layer with many pairs and with few."""
    chosen = SMALL if small else SIZES
    return [compare(sizes, device) for sizes in chosen for compare in (compare_training, compare_closed_forms)]
