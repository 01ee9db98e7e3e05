"""Contrast-consistent probes: the graph of a card against the same steps one after the other."""

import bench_ccs
import pytest
import torch

from probing import CCSOptions
from probing.probes.ccs_training import starting_points, train_probes

SIZES = bench_ccs.Sizes(layers=3, restarts=4, pairs=60, width=32, epochs=80)


def logits_of(states, centers, weight, bias):
    """Of weights [entry width probe] and biases [entry probe]: [entry 2 row probe]."""
    return (states - centers) @ weight[:, None] + bias[:, None, None]


def loss_of(logits, loss):
    """By the definition, the mean over rows, summed over probes: each gets the gradient of its own."""
    p, q = torch.sigmoid(logits).unbind(1)
    sides = [p, q] if loss == "original" else [p, q, 1 - p, 1 - q]
    return ((p + q - 1).square() + torch.stack(sides).amin(dim=0).square()).mean(dim=1).sum()


def step_by_step(states, centers, options):
    """Gradients by autograd and plain AdamW, one operation at a time, on the device of the states."""
    weight, bias = (start.to(states) for start in starting_points(states.shape[3], options))
    weight = weight.expand(len(states), -1, -1).contiguous().requires_grad_()
    bias = bias.expand(len(states), -1).contiguous().requires_grad_()
    optimizer = torch.optim.AdamW(
        [weight, bias], lr=options.learning_rate, weight_decay=options.weight_decay, foreach=False
    )
    for _ in range(options.epochs):
        optimizer.zero_grad()
        loss_of(logits_of(states, centers, weight, bias), options.loss).backward()
        optimizer.step()
    return weight.detach(), bias.detach()


@pytest.mark.parametrize("loss", ["original", "symmetric"])
@pytest.mark.parametrize("epochs", [2, 80])  # fewer than are run before one is captured, and many more
def test_the_graph_does_what_its_steps_do(device, loss, epochs):
    """As probabilities, to 1e-4: the planted states stay away from the kink, where rounding could take another turn."""
    states, centers = bench_ccs.inputs(SIZES, device)
    options = CCSOptions(loss=loss, restarts=SIZES.restarts, epochs=epochs)
    trained = bench_ccs.train_ours(states, centers, options)
    weight, bias = step_by_step(states, centers, options)
    starts = starting_points(SIZES.width, options)

    def probabilities(weight, bias):
        return torch.sigmoid(logits_of(states, centers, weight, bias))

    found = probabilities(trained.weight[:, :, 0], trained.bias[:, 0])
    torch.testing.assert_close(found, probabilities(weight, bias), rtol=0, atol=1e-4)
    start = probabilities(*(entry.to(states).expand(SIZES.layers, *entry.shape) for entry in starts))
    assert (found - start).abs().max() > 1e-3 * epochs  # it did move


def test_trained_twice_to_the_bit(device):
    states, centers = bench_ccs.inputs(SIZES, device)
    options = CCSOptions(restarts=SIZES.restarts, epochs=30)
    everything = torch.ones(SIZES.pairs, 1, dtype=torch.bool, device=device)
    first, second = (train_probes(states, centers, everything, options) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
