"""Deep half-precision models where every shape has its own order of summation, as on a card, emulated on the CPU."""

import contextlib

import pytest
import tiny
import torch
import transformers
from torch import nn

from probing.engine import modes
from probing.engine.modes import Mode, choose_mode, parity
from probing.errors import ModelInvalid
from probing.models import layers
from probing.models.differences import MOST_NOISE, allowed_difference
from probing.models.layers import find_backbone, find_stack
from probing.models.passes import trial_ids

ROUNDING = 3e-7
"""Of a float32 sum of a few thousand products, relative to the mean size of the outputs of a row."""
PACKED = Mode("paths", sharing=True, causal=True)


def noisy_linear(self, x):
    """A product whose float32 sums are off by rounding that depends on the number of rows and on the place."""
    out = x.float() @ self.weight.float().T
    generator = torch.Generator().manual_seed(x.shape[:-1].numel())
    noise = torch.randn(out.flatten(0, -2).shape, generator=generator).view(out.shape)
    return (out + out.abs().mean(-1, keepdim=True) * ROUNDING * noise).to(x.dtype)


@pytest.fixture
def noisy(monkeypatch):
    monkeypatch.setattr(nn.Linear, "forward", noisy_linear)


@pytest.fixture
def differences(monkeypatch):
    """Every difference that a trial looks at."""
    seen, plain = [], layers.channelwise_difference

    def spy(*args):
        seen.append(plain(*args))
        return seen[-1]

    monkeypatch.setattr(layers, "channelwise_difference", spy)
    monkeypatch.setattr(modes, "channelwise_difference", spy)
    return seen


def deep(depth, **changes):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{
            **tiny.SHAPE,
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": depth,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            **changes,
        }
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    return tiny.LanguageModel(model, tiny.make_tokenizer())


@pytest.mark.parametrize("depth", [32, 80])
def test_deep_models_keep_packing(noisy, differences, depth):
    stack = find_backbone(deep(depth))
    assert stack.causal
    assert differences[0] == 0  # other tokens in the same shape change no bit of the states before them
    del differences[:]
    mode = choose_mode(stack)
    assert (mode.packing, mode.sharing, mode.reason) == ("paths", True, "")
    # The limit of shallow models alone would not do for the deepest ones.
    assert (max(differences) > modes.PARITY_HALF) == (depth == 80)


def test_without_noise_nothing_more_is_allowed(differences):
    """On a machine whose sums do not depend on the shape, a difference beyond the limit stays one."""
    assert allowed_difference(5e-2, 0.0) == 5e-2
    assert allowed_difference(5e-2, 7e-2) == pytest.approx(0.21)
    assert allowed_difference(5e-2, 0.5) == MOST_NOISE


def unseen(batch):
    """The last token of each prompt is not seen by what continues it."""
    shorter = [
        modes.replace(path, before=(path.before[0], path.before[1] - 1)) if path.before[1] else path
        for path in batch.paths
    ]
    return modes.replace(batch, paths=tuple(shorter))


def shifted(batch):
    """Positions after each prompt are off by one."""
    positions = batch.positions.clone()
    for path in batch.paths:
        positions[0, path.start : path.stop] += path.before[1] > 0
    return modes.replace(batch, positions=positions)


@pytest.mark.parametrize("error", [unseen, shifted])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_errors_are_found_after_the_first_blocks(error, dtype, monkeypatch):
    """At the end of a deep model they are no larger than what rounding has grown to."""
    language_model = tiny.make_model("llama", num_hidden_layers=12)
    language_model.model.to(dtype)
    stack = find_stack(language_model)
    assert parity(stack, PACKED) is None
    plain = modes.pack_trees
    monkeypatch.setattr(modes, "pack_trees", lambda *args: error(plain(*args)))
    assert "after the first blocks" in parity(stack, PACKED)


def test_rounding_of_the_embeddings_is_measured_and_leaves_nothing_behind():
    language_model = tiny.make_model("llama")
    language_model.model.to(torch.bfloat16)
    embeddings = language_model.model.get_input_embeddings()
    stack, ids = find_stack(language_model), trial_ids(language_model, 1)
    before = embeddings(ids).detach()
    with modes._perturb_embeddings(stack):
        off = (embeddings(ids).detach().float() / before.float() - 1).abs()
    assert 0 < float(off.mean()) < 2**-8
    assert torch.equal(embeddings(ids), before)
    assert not embeddings._forward_hooks


@pytest.mark.parametrize("depth", [32, 80])
def test_planted_leaks_are_found(noisy, monkeypatch, depth):
    """Every path also attends to the one packed token before it."""
    stack = find_stack(deep(depth))
    plain = modes.pack_trees

    def leaking(trees, segments, lengths):
        batch = plain(trees, segments, lengths)
        paths = [
            path
            if path.start == 0 or path.before[1] > path.before[0]
            else modes.replace(path, before=(path.start - 1, path.start))
            for path in batch.paths
        ]
        return modes.replace(batch, paths=tuple(paths))

    monkeypatch.setattr(modes, "pack_trees", leaking)
    problem = parity(stack, modes.replace(PACKED, sharing=False))
    assert "differs from the plain way" in problem or "changes by" in problem


@pytest.mark.parametrize("depth", [32, 80])
def test_the_smallest_leak_is_found(noisy, monkeypatch, depth):
    """One part in a hundred of the row before is added to the first token of each: within the noise, but not alike."""
    stack = find_stack(deep(depth))
    plain = modes.record_taps

    @contextlib.contextmanager
    def leaking(taps):
        with plain(taps) as seen:
            yield seen
        for number, (index, states) in enumerate(seen):
            if states.shape[0] == 1 and states.shape[1] > 40:
                seen[number] = (index, states + 0.01 * states.roll(20, dims=1))

    monkeypatch.setattr(modes, "record_taps", leaking)
    assert "changes by" in parity(stack, modes.replace(PACKED, sharing=False))


@pytest.mark.parametrize("depth", [32, 80])
def test_a_model_that_looks_ahead_is_refused(noisy, depth):
    language_model = deep(depth)
    for block in language_model.model.model.layers:
        block.self_attn.is_causal = False
    with pytest.raises(ModelInvalid, match="is not causal"):
        find_backbone(language_model)


@pytest.mark.parametrize("which", [0, -1])
def test_a_single_layer_that_looks_ahead_is_enough(noisy, which):
    language_model = deep(32)
    block = language_model.model.model.layers[which]
    block.register_forward_hook(lambda _, args, output: output + 0.05 * output.roll(-1, dims=1))
    assert not find_stack(language_model).causal
