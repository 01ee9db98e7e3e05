import contextlib
import logging
from dataclasses import replace

import accelerate
import families
import pytest
import tiny
import torch
import transformers

from probing import LanguageModel
from probing.engine import compiled, modes
from probing.engine.attention import NAME, Pattern, configs_of
from probing.engine.modes import Mode, channelwise_difference, choose_mode, parity
from probing.engine.stream import Stream, TokenBudget
from probing.engine.trees import Segment
from probing.models.layers import find_stack
from probing.models.passes import run_backbone
from probing.models.stack import output_site
from probing.types import Place

PACKED = Mode("paths", sharing=True, causal=True)
BUDGET = TokenBudget(64, "test")


@pytest.fixture(scope="module")
def stack():
    return find_stack(tiny.make_model("llama"))


def test_the_fast_way_is_used_where_it_is_right(stack):
    mode = choose_mode(stack)
    assert (mode.packing, mode.sharing, mode.reason) == ("paths", True, "")
    assert parity(stack, PACKED) is None


@pytest.fixture
def stock_attention(monkeypatch):
    """Packed sequences run with the library's own attention."""
    monkeypatch.setattr(modes, "use_packed_attention", lambda configs, layout: contextlib.nullcontext())


def test_packed_sequences_that_see_each_other_through_an_all_ones_mask_are_found_out(stack, stock_attention, caplog):
    with caplog.at_level(logging.WARNING):
        mode = choose_mode(stack)
    assert (mode.packing, mode.sharing) == ("none", False)
    assert "differs from the plain way by" in mode.reason
    assert "LlamaForCausalLM runs stacked by length" in caplog.text


def test_packed_sequences_that_see_each_other_through_the_default_cache_are_found_out(
    stack, stock_attention, monkeypatch
):
    def with_cache(backbone, ids, **options):
        options.pop("attention_mask", None)  # so that the library would look for packed sequences, were it not for ...
        return backbone(input_ids=ids, use_cache=True, return_dict=True, **options)

    monkeypatch.setattr(modes, "run_backbone", with_cache)
    assert "differs" in parity(stack, replace(PACKED, sharing=False))


def test_a_prompt_that_is_not_seen_is_found_out(stack, monkeypatch):
    """Sharing is switched off by itself where only it is wrong."""
    plain = modes.pack_trees

    def forgetful(trees, segments, lengths):
        batch = plain(trees, segments, lengths)
        return replace(batch, paths=tuple(replace(path, before=(0, 0)) for path in batch.paths))

    monkeypatch.setattr(modes, "pack_trees", forgetful)
    mode = choose_mode(stack)
    assert (mode.packing, mode.sharing) == ("paths", False)
    assert "paths with shared prompts: differs" in mode.reason


def test_an_attention_that_fails_is_no_reason_to_fail(stack, monkeypatch):
    def fail(*_):
        raise ValueError("no such head")

    monkeypatch.setattr(modes, "configs_of", fail)
    assert "fails with ValueError: no such head" in choose_mode(stack).reason


def test_a_family_without_positions_is_stacked():
    mode = choose_mode(find_stack(families.make("mamba2")))
    assert mode.packing == "none"


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gemma2", "bert", "lfm2", "falcon_h1", "granitemoehybrid"])
@pytest.mark.parametrize("scale", [1, 50])
def test_half_precision_hides_no_leak(name, scale):
    """What a recurrent layer carries over from one packed sequence to the next is as small as rounding there."""
    exact, coarse = families.make(name), families.make(name)
    with torch.no_grad():
        for model in (exact, coarse):
            model.model.get_input_embeddings().weight.mul_(scale)
    coarse.model.to(torch.bfloat16)
    fast, found = choose_mode(find_stack(exact)), choose_mode(find_stack(coarse))
    if fast.packing == "none":
        assert found.packing == "none", found.reason
    else:
        assert found.packing == "paths", found.reason


def test_a_trial_without_finite_states_proves_nothing():
    language_model = tiny.make_model("llama")
    with torch.no_grad():
        language_model.model.model.layers[0].mlp.up_proj.weight[0] = float("nan")
    assert "nothing can be compared" in choose_mode(find_stack(language_model)).reason


def test_shared_prompts_whose_rows_together_are_long_do_not_stretch():
    """Each row is within the limit of 32; the tree of all is not."""
    stack = find_stack(longrope())
    mode = choose_mode(stack)
    assert (mode.packing, mode.sharing) == ("paths", True)
    generator = torch.Generator().manual_seed(1)
    prompt, *tails = (torch.randint(3, 400, (n,), generator=generator).tolist() for n in (20, 8, 8, 8))
    segments = [Segment(prompt + tail, 19, 28, 20) for tail in tails]
    found = Stream(stack, mode, [output_site(stack)], ("mean",), TokenBudget(1000, "test")).read(segments)
    for row, segment in enumerate(segments):
        with torch.no_grad():
            plain = run_backbone(stack.backbone, torch.tensor([segment.ids])).last_hidden_state[0, 19:].mean(0)
        torch.testing.assert_close(found.values["mean"][0][row], plain, rtol=1e-5, atol=1e-5)


def test_a_difference_in_a_small_channel_is_not_hidden_by_a_massive_one():
    states = torch.ones(5, 2)
    states[:, 0] = 1e4
    others = states.clone()
    others[3, 1] += 0.1
    assert channelwise_difference(states, others) == pytest.approx(0.1 / 2**0.5, rel=1e-3)
    assert channelwise_difference(states, others * float("nan")) == float("inf")


def brute(kind, size):
    seen = {
        "causal": lambda row, column: column <= row,
        "window": lambda row, column: row - 5 < column <= row,
        "chunk": lambda row, column: column <= row and row // 5 == column // 5,
        "all": lambda row, column: True,
    }[kind]
    return torch.tensor([[seen(row, column) for column in range(size)] for row in range(size)])


FUNCTIONS = {
    "causal": transformers.masking_utils.causal_mask_function,
    "window": transformers.masking_utils.sliding_window_causal_mask_function(5),
    "chunk": transformers.masking_utils.chunked_causal_mask_function(5, torch.zeros(1, dtype=torch.long)),
    "all": transformers.masking_utils.bidirectional_mask_function,
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_patterns_are_those_of_the_library(kind):
    pattern = Pattern(FUNCTIONS[kind])
    positions = torch.arange(12)
    assert torch.equal(pattern.mask(positions, positions), brute(kind, 12))
    assert torch.equal(pattern.mask(positions[7:], positions), brute(kind, 12)[7:])
    assert pattern.seen(12) == {"causal": "causal", "all": "all"}.get(kind, "other")
    assert pattern.seen(4) == ("all" if kind == "all" else "causal")
    assert pattern.seen(1) == "causal"


def test_a_config_is_as_it_was_after_a_packed_pass():
    language_model = families.make("llava")
    before = [config._attn_implementation for config in configs_of(language_model.model)]
    stack = find_stack(language_model)
    seen = []
    handle = stack.blocks[0].register_forward_hook(
        lambda *_: seen.append(language_model.model.config.get_text_config()._attn_implementation)
    )
    stream = Stream(stack, choose_mode(stack), [output_site(stack)], ("last",), TokenBudget(100, "test"))
    stream.read([Segment([5, 6, 7], 0, 3)])
    handle.remove()
    assert seen[-1] == NAME
    assert [config._attn_implementation for config in configs_of(language_model.model)] == before


def longrope():
    """A model whose rotary positions stretch for a whole batch once one of its sequences is longer than 32."""
    shape = {**families.SHAPE, "original_max_position_embeddings": 32}
    parameters = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32}
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    torch.manual_seed(0)
    config = transformers.Phi3Config(**shape, rope_parameters={**parameters, **factors})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return LanguageModel(model, tiny.make_tokenizer())


@pytest.mark.parametrize("packing", ["paths", "none"])
def test_long_sequences_do_not_stretch_the_positions_of_short_ones(packing):
    stack = find_stack(longrope())
    mode = replace(choose_mode(stack), packing=packing, sharing=packing == "paths")
    assert mode.stretched == 32
    generator = torch.Generator().manual_seed(0)
    lengths = (10, 30, 31, 33, 40, 40, 60)
    segments = [
        Segment(torch.randint(3, 400, (n,), generator=generator).tolist(), 0, n, 9 if n == 40 else 0) for n in lengths
    ]
    found = Stream(stack, mode, [output_site(stack)], ("mean",), TokenBudget(1000, "test")).read(segments)
    for row, segment in enumerate(segments):
        with torch.no_grad():
            plain = run_backbone(stack.backbone, torch.tensor([segment.ids])).last_hidden_state[0].mean(0)
        torch.testing.assert_close(found.values["mean"][0][row], plain, rtol=1e-5, atol=1e-5)


def test_offloaded_weights_are_fetched_when_they_are_needed():
    language_model = tiny.make_model("llama")
    segments = [Segment([5, 6, 7, 8] * 5, 3, 20, 10), Segment([5, 6, 7, 8] * 4, 3, 16, 10)]

    def read():
        stack = find_stack(language_model)
        sites = stack.sites([Place("resid_post", 1), Place("attn_out", 0)])
        return (
            Stream(stack, choose_mode(stack), sites, ("mean",), TokenBudget(100, "test")).read(segments).values["mean"]
        )

    expected = read()
    accelerate.cpu_offload(language_model.model, execution_device=torch.device("cpu"))
    assert language_model.model.get_input_embeddings().weight.device.type == "meta"
    assert language_model.device.type == "cpu"
    for found, plain in zip(read(), expected, strict=True):
        assert torch.equal(found, plain)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_hooks_fire_in_compiled_blocks(backend, monkeypatch):
    stack = find_stack(tiny.make_model("llama", seed=3))
    stream = Stream(
        stack, choose_mode(stack), [output_site(stack), *stack.sites([Place("resid_post", 1)])], ("mean",), BUDGET
    )
    segments = [Segment(list(range(5, 5 + n)), 0, n) for n in (9, 20, 33, 33, 50)]
    expected = stream.read(segments).values["mean"]
    monkeypatch.setattr(compiled, "BACKEND", backend)
    torch._dynamo.reset()
    with compiled.use_compiled_blocks(stack):
        assert all("forward" in block.__dict__ for block in stack.blocks)
        found = stream.read(segments).values["mean"]
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        stream.read(segments[:2])
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs  # other batches, the same code
    assert not any("forward" in block.__dict__ for block in stack.blocks)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
