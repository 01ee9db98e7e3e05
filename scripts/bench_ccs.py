"""The job ``ccs`` of ``bench.py``: contrast-consistent probes trained together against each trained alone."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bench_ccs_layer import bench_layer
from measuring import spread_of, timed
from torch import Tensor

from probing.probes.ccs_options import CCSOptions
from probing.probes.ccs_states import centers_of, normalize
from probing.probes.ccs_training import TrainedProbes, starting_points, train_probes

AGREE = 1e-4
STRENGTH = 8.0
LAYERS, RESTARTS, PAIRS, WIDTH, EPOCHS = 12, 10, 500, 768, 1000
SMALL = {"layers": 2, "restarts": 2, "pairs": 40, "width": 16, "epochs": 20, "sample": 3}
BLOCKS = 4
WARM_EPOCHS = 5


@dataclass(frozen=True)
class Sizes:
    """What is trained, and how many of the probes are trained alone: all of them take minutes."""

    layers: int = LAYERS
    restarts: int = RESTARTS
    pairs: int = PAIRS
    width: int = WIDTH
    epochs: int = EPOCHS
    sample: int = 24

    def told(self) -> dict[str, int]:
        """For the output."""
        names = ("layers", "restarts", "pairs", "width", "epochs")
        return {name: getattr(self, name) for name in names}


def inputs(sizes: Sizes, device: str) -> tuple[Tensor, Tensor]:
    """States of yes and no forms of length one, [layer 2 pair width], that a planted direction tells apart; centres.

    It is planted so strongly that few rows ever stand with both forms equally likely. There the loss has a kink: where
    rounding takes a row across it one epoch sooner, float32 differs by up to .003 from itself in another order.
    """
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 2, (sizes.pairs, 1), generator=generator) * 2.0 - 1
    direction = normalize(torch.randn(sizes.layers, 1, sizes.width, generator=generator))
    about = torch.randn(sizes.layers, sizes.pairs, sizes.width, generator=generator)
    sides = [
        about + side * STRENGTH * truth * direction + torch.randn(about.shape, generator=generator) / 2
        for side in (1, -1)
    ]
    states = normalize(torch.stack(sides, dim=1)).to(device)
    return states, centers_of(states, torch.ones(sizes.pairs, 1, dtype=torch.bool, device=device))


def train_ours(states: Tensor, centers: Tensor, options: CCSOptions) -> TrainedProbes:
    """All layers and restarts at once."""
    everything = torch.ones(states.shape[2], 1, dtype=torch.bool, device=states.device)
    return train_probes(states, centers, everything, options)


def train_alone(yes: Tensor, no: Tensor, weight: Tensor, bias: Tensor, options: CCSOptions) -> tuple[Tensor, Tensor]:
    """One probe as a plain script trains it, from ``weight`` [width] and ``bias`` [1]."""
    weight, bias = torch.nn.Parameter(weight.clone()), torch.nn.Parameter(bias.clone())
    optimizer = torch.optim.AdamW([weight, bias], lr=options.learning_rate, weight_decay=options.weight_decay)
    for _ in range(options.epochs):
        optimizer.zero_grad()
        p, q = torch.sigmoid(yes @ weight + bias), torch.sigmoid(no @ weight + bias)
        loss = ((p - (1 - q)) ** 2 + torch.minimum(p, q) ** 2).mean()
        loss.backward()
        optimizer.step()
    return weight.detach(), bias.detach()


def check(ours: Sequence[Tensor], plain: Sequence[Tensor]) -> float:
    """The largest difference of probabilities of the same probe; stops if there is a large one."""
    worst = float((torch.stack([*ours]) - torch.stack([*plain])).abs().max())  # NaN if there is one
    if not worst <= AGREE:
        sys.exit(f"probabilities of the two ways differ by {worst:.1e}; no times are shown")
    return worst


def compare(sizes: Sizes, device: str) -> dict[str, Any]:
    """Both ways in turn from the same starts, the probes that are trained alone shared out to the blocks."""
    states, centers = inputs(sizes, device)
    centered = states - centers
    options = CCSOptions(restarts=sizes.restarts, epochs=sizes.epochs)
    warm = CCSOptions(restarts=sizes.restarts, epochs=WARM_EPOCHS)
    weights, biases = (start.to(states) for start in starting_points(sizes.width, options))
    probes = [(layer, restart) for restart in range(sizes.restarts) for layer in range(sizes.layers)]
    count = min(sizes.sample, len(probes))
    sample = [probes[index * len(probes) // count] for index in range(count)]

    def alone(layer: int, restart: int, options: CCSOptions) -> tuple[Tensor, Tensor]:
        start = weights[:, restart], biases[restart : restart + 1]
        return train_alone(*centered[layer], *start, options)

    def probabilities(layer: int, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.sigmoid(centered[layer] @ weight + bias)

    train_ours(states, centers, warm)
    alone(*sample[0], warm)
    ratios, seconds, worst = [], {"ours": 0.0, "plain": 0.0}, 0.0
    for block in (sample[start::BLOCKS] for start in range(min(BLOCKS, count))):
        trained, ours = timed(lambda: train_ours(states, centers, options), device)
        found, plain = timed(lambda block=block: [alone(*probe, options) for probe in block], device)
        mine = [
            probabilities(layer, trained.weight[layer, :, 0, restart], trained.bias[layer, 0, restart])
            for layer, restart in block
        ]
        others = [probabilities(layer, *probe) for (layer, _), probe in zip(block, found, strict=True)]
        worst = max(worst, check(mine, others))
        ratios.append(plain * len(probes) / len(block) / ours)
        seconds["ours"] += ours
        seconds["plain"] += plain
        print(f"  all {len(probes)} probes {ours:.2f} s, {len(block)} of them alone {plain:.2f} s", file=sys.stderr)
    return {
        "figure": "time of probes trained alone over that of all together",
        **sizes.told(),
        "alone": f"timed {count} of {len(probes)} probes, scaled",
        "worst_difference": float(f"{worst:.1e}"),
        **spread_of(ratios, digits=2),
        "seconds_ours": round(seconds["ours"] / len(ratios), 3),
        "seconds_plain": round(seconds["plain"] / count * len(probes), 3),
    }


def bench_ccs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All together against each alone, and a layer of ``probing ccs`` against its plain form."""
    together = compare(Sizes(**SMALL) if options.small else Sizes(), options.device)
    return [together, *bench_layer(options.small, options.device)]
