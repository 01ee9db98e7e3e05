"""Stages ``ccs`` and ``clusters``: all layers of an 8B model at once."""

import time

import torch
from torch import Tensor

from card import engine_points as engine
from card.run import Run
from card.timing import sync
from probing import CCSOptions, cluster_indices
from probing.probes.ccs_states import centers_of, normalize
from probing.probes.ccs_training import train_probes

WARM_EPOCHS = 4


def contrast_probes(run: Run) -> None:
    """Milliseconds an epoch: in a captured graph, and launched one operation at a time."""
    size = run.sizes
    states = contrast_states(run)
    everything = torch.ones(size.probe_pairs, 1, dtype=torch.bool, device=run.device)
    centers = centers_of(states, everything, "mean")
    # States are read for the logits and again for the gradient.
    moved = 2 * states.nbytes
    case = {"layers": size.probe_layers, "probes": size.probes, "pairs": size.probe_pairs, "width": size.width}
    if not run.card:
        run.say(figure="epoch", way="captured", **case, not_run="there is no card")
    for way in ("captured", "eager") if run.card else ("eager",):
        with run.part(way=way):
            own = seconds_an_epoch(run, states, centers, everything, captured=way == "captured")
            run.say(
                figure="epoch",
                way=way,
                **case,
                ms=own * 1e3,
                share_of_copy=run.share(moved / own, "copy"),
            )


def contrast_states(run: Run) -> Tensor:
    """Random states of length one, [layer 2 pair width] in float32; a layer at a time, so that memory suffices."""
    size = run.sizes
    generator = torch.Generator(run.device).manual_seed(0)
    states = torch.empty(size.probe_layers, 2, size.probe_pairs, size.width, device=run.device)
    for layer in states:
        layer.copy_(normalize(torch.randn(layer.shape, generator=generator, device=run.device)))
    return states


def seconds_an_epoch(run: Run, states: Tensor, centers: Tensor, train: Tensor, captured: bool) -> float:
    """From the difference of a long and a short training, which leaves out what both do once."""

    def spent(epochs: int) -> float:
        options = CCSOptions(restarts=run.sizes.probes, epochs=epochs)
        sync(run.device)
        began = time.perf_counter()
        if captured:
            train_probes(states, centers, train, options)
        else:
            with engine.uncaptured():
                train_probes(states, centers, train, options)
        sync(run.device)
        return time.perf_counter() - began

    spent(WARM_EPOCHS)
    # The least of a few: a pause of the machine during the short one would be taken off the long one.
    short = min(spent(WARM_EPOCHS) for _ in range(3))
    return (spent(WARM_EPOCHS + run.sizes.epochs) - short) / run.sizes.epochs


def clusters(run: Run) -> None:
    """Five indices of two clusters, layer after layer for as long as the allowance holds; scaled to all of them."""
    size = run.sizes
    times: list[float] = []
    labels = torch.arange(size.points) % 2
    cluster_indices(layer_of(run, -1)[: size.points // 10], labels[: size.points // 10])
    for layer in range(size.point_layers):
        if times and run.left() < 2 * max(times):
            break
        points = layer_of(run, layer)
        sync(run.device)
        began = time.perf_counter()
        cluster_indices(points, labels)
        sync(run.device)
        times.append(time.perf_counter() - began)
    whole = sum(times) / len(times) * size.point_layers
    run.say(
        figure="cluster indices",
        points=size.points,
        width=size.width,
        dtype="bfloat16",
        seconds_a_layer=times,
        layers_run=len(times),
        seconds_of_all_layers=whole,
        layers=size.point_layers,
        scaled=len(times) < size.point_layers,
    )


def layer_of(run: Run, layer: int) -> Tensor:
    """Points of two classes that overlap, in bf16, about a common offset."""
    size = run.sizes
    generator = torch.Generator(run.device).manual_seed(layer + 1)
    points = torch.randn(size.points, size.width, generator=generator, device=run.device) + 3
    points[1::2] += 0.1
    return points.bfloat16()
