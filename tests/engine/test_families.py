"""Every place of every family against transformers itself, and every way of running it against the plain one."""

import functools
from dataclasses import replace
from pathlib import Path

import families
import pytest
import torch

from probing.engine.modes import choose_mode
from probing.engine.stream import Stream, TokenBudget
from probing.engine.trees import Segment
from probing.models.layers import find_stack
from probing.types import Place

DOCS = Path(__file__).parents[2] / "docs" / "capture.md"


@functools.cache
def made(name):
    stack = find_stack(families.make(name))
    return stack, choose_mode(stack)


def rows(seed=0):
    """Rows longer than every window and chunk (16), two of which share a prompt."""
    generator = torch.Generator().manual_seed(seed)
    prompt, *tails = (torch.randint(3, 400, (n,), generator=generator).tolist() for n in (21, 30, 7, 40, 3))
    ids = [prompt + tails[0], prompt + tails[1], tails[2], tails[3]]
    return [Segment(row, len(row) // 3, len(row), 21 if row[:21] == prompt else 0) for row in ids]


def read(stack, mode, places, segments, pooling="tokens", budget=10000):
    stream = Stream(stack, mode, stack.sites(places), (pooling,), TokenBudget(budget, "test"))
    return stream.read(segments).values[pooling]


def close(found, expected, relative):
    scale = expected.abs().max()
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= relative * scale


class Seen:
    """What the library returns for one sequence, and what independent hooks saw pass by."""

    def __init__(self, stack, ids):
        self.passed, handles = {}, []
        for layer, block in enumerate(stack.blocks):
            for name, module in [("", block), *block.named_modules()]:
                handles.append(module.register_forward_hook(functools.partial(self._keep, (layer, name))))
        with torch.no_grad():
            self.output = stack.backbone(torch.tensor([ids]), output_hidden_states=True)
        for handle in handles:
            handle.remove()

    def _keep(self, key, module, args, output):
        output = output[0] if isinstance(output, tuple) else output
        self.passed[key] = output.flatten(0, -2).clone()

    def written(self, layer, names, factor):
        parts = [self.passed[layer, name] for name in names if (layer, name) in self.passed]
        return torch.stack(parts).sum(0) * factor


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_place_is_what_transformers_says(name):
    stack, mode = made(name)
    family, layers = families.FAMILIES[name], len(stack.blocks)
    segment = Segment(rows()[0].ids, 0, len(rows()[0].ids))
    seen = Seen(stack, segment.ids)
    kinds = ["resid_pre", "resid_post", "attn_out", *(["mlp_out"] if family.mlp else [])]
    places = [Place(kind, layer) for kind in kinds for layer in range(layers)]
    places += [Place("final_norm")] if stack.normed else []
    plain = replace(mode, packing="none", sharing=False)
    found = dict(zip(places, read(stack, plain, places, [segment]), strict=True))
    states = dict(enumerate((state[0] for state in seen.output.hidden_states), start=family.listed_from))
    assert set(range(family.listed_from, layers)) <= set(states)
    for layer in range(layers):
        if layer in states:
            close(found[Place("resid_pre", layer)], states[layer], 1e-6)
        if layer < layers - 1:  # the last entry of the library's list is after the final norm
            close(found[Place("resid_post", layer)], states[layer + 1], 1e-6)
        close(found[Place("resid_post", layer)], seen.passed[layer, ""], 1e-6)
        close(found[Place("attn_out", layer)], seen.written(layer, family.attention, family.factor), 1e-6)
        if family.mlp:
            close(found[Place("mlp_out", layer)], seen.written(layer, family.mlp, family.factor), 1e-6)
    final = Place("final_norm") if stack.normed else Place("resid_post", layers - 1)
    close(found[final], seen.output.last_hidden_state[0], 1e-6)
    close(found[final], states[max(states)], 1e-6)


@pytest.mark.parametrize("name", families.FAMILIES)
@pytest.mark.parametrize("budget", [1, 10000])
def test_the_way_it_is_run_changes_nothing(name, budget):
    stack, mode = made(name)
    places = [Place("resid_post", layer) for layer in range(len(stack.blocks))]
    segments = rows()
    expected = [Seen(stack, segment.ids) for segment in segments]
    for pooling in ("mean", "last"):
        found = read(stack, mode, places, segments, pooling, budget)
        for layer, values in enumerate(found):
            for row, segment in enumerate(segments):
                counted = expected[row].passed[layer, ""][segment.start : segment.stop]
                close(values[row], counted.mean(0) if pooling == "mean" else counted[-1], 1e-5)


def test_the_table_of_the_docs_is_true():
    """Which families fall back, and that the docs say so."""
    lines = ["| family | sequences | shared prompts |", "|---|---|---|"]
    for name in families.FAMILIES:
        mode = made(name)[1]
        packing = "packed" if mode.packing != "none" else "stacked by length"
        sharing = "yes" if mode.sharing else "no" if mode.causal else "no: an encoder"
        lines.append(f"| {name} | {packing} | {sharing} |")
    assert "\n".join(lines) in DOCS.read_text(), "docs/capture.md lacks this table:\n" + "\n".join(lines)
