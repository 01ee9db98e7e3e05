import logging
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from probing.engine.budget import choose_batch_tokens
from probing.engine.launched_batches import LaunchedBatch
from probing.engine.modes import choose_mode
from probing.engine.stream import Stream, TokenBudget, first_nonfinite_place
from probing.engine.trees import Segment
from probing.errors import LayerNotFound, OutOfMemory
from probing.models.hooks import Tap
from probing.models.layers import find_backbone, find_stack
from probing.models.stack import Site, output_site
from probing.types import Place

MODEL = tiny.make_model("llama")
STACK = find_backbone(MODEL)
PACKED = choose_mode(STACK)
SHARED = PACKED
ALONE = replace(PACKED, sharing=False)
STACKED = replace(PACKED, packing="none", sharing=False)
WAYS = {"packed with shared prompts": SHARED, "packed": ALONE, "stacked": STACKED}


def segments_of(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        Segment(torch.randint(3, 400, (length,), generator=generator).tolist(), length // 3, length)
        for length in lengths
    ]


def pairs_of(shapes, seed=0):
    """Rows that share prompts: (prompt, response, response, ...) lengths."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for prompt, *responses in shapes:
        opening = torch.randint(3, 400, (prompt,), generator=generator).tolist()
        for length in responses:
            ids = opening + torch.randint(3, 400, (length,), generator=generator).tolist()
            rows.append(Segment(ids, max(prompt - 1, 0), len(ids), prompt))
    return rows


def stream(mode=PACKED, tokens=64, stack=STACK, poolings=("sum", "last"), sites=None, **options):
    sites = [output_site(stack)] if sites is None else sites
    return Stream(stack, mode, sites, poolings, TokenBudget(tokens, "test"), **options)


def read(segments, *args, **options):
    return {name: values[0] for name, values in stream(*args, **options).read(segments).values.items()}


def plain_states(segment, model=MODEL):
    """What transformers itself returns for this sequence alone."""
    with torch.no_grad():
        return model.model(input_ids=torch.tensor([segment.ids]), output_hidden_states=True).hidden_states[-1][0]


@pytest.mark.parametrize("way", WAYS)
@settings(deadline=None, max_examples=20)
@given(
    shapes=st.lists(st.lists(st.integers(1, 50), min_size=2, max_size=4), min_size=1, max_size=5),
    tokens=st.sampled_from([1, 64, 10000]),
)
def test_states_do_not_depend_on_how_they_are_computed(way, shapes, tokens):
    segments = pairs_of(shapes)
    found = read(segments, WAYS[way], tokens, poolings=("sum", "last", "first", "mean", "tokens"))
    at = 0
    for row, segment in enumerate(segments):
        counted = plain_states(segment)[segment.start : segment.stop]
        for name, expected in {
            "sum": counted.sum(0),
            "mean": counted.mean(0),
            "last": counted[-1],
            "first": counted[0],
        }.items():
            torch.testing.assert_close(found[name][row], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found["tokens"][at : at + len(counted)], counted, rtol=1e-5, atol=1e-5)
        at += len(counted)
    assert at == len(found["tokens"])


@pytest.mark.parametrize("way", WAYS)
@settings(deadline=None, max_examples=20)
@given(lengths=st.lists(st.integers(2, 60), min_size=1, max_size=12), tokens=st.sampled_from([1, 64, 10000]))
def test_even_the_bits_do_not_depend_on_the_batch(way, lengths, tokens):
    """Rows 0 and 1 share a prompt; alone they are computed in the same steps."""
    segments = [*pairs_of([(20, 5, 7)]), *segments_of(lengths)]
    states = read(segments, WAYS[way], tokens)
    for row, segment in enumerate(segments):
        alone = read([segment], WAYS[way])
        assert torch.equal(states["sum"][row], alone["sum"][0])
        assert torch.equal(states["last"][row], alone["last"][0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", [0, 399])
def test_a_token_that_breaks_the_model_spoils_only_the_rows_that_hold_it(way, bad):
    """Padding must not bring it in: attention multiplies a masked NaN by zero, which is NaN."""
    language_model = tiny.make_model("llama")
    segments = segments_of([20, 20, 30])
    segments[1].ids[4] = bad
    with torch.no_grad():
        language_model.model.model.embed_tokens.weight[bad] = float("nan")
    states = read(segments, WAYS[way], 1000, stack=find_backbone(language_model))
    assert torch.isfinite(states["sum"]).all(1).tolist() == [True, False, True]


@pytest.mark.parametrize("way", WAYS)
def test_tokens_after_the_stop_are_not_run(way):
    short, long = Segment([5, 6, 7], 0, 3), Segment([5, 6, 7, 8, 9], 0, 3)
    assert torch.equal(read([short], WAYS[way])["sum"], read([long], WAYS[way])["sum"])


def test_progress_counts_every_token_once():
    seen = []
    stream().read(segments_of([40, 7, 23, 23]), seen.append)
    assert sum(seen) == 93
    assert len(seen) > 1


def calls_of(module):
    calls = []
    return calls, module.register_forward_hook(lambda *_: calls.append(1))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_layers_above_the_last_place_and_the_head_are_not_run(layer):
    modules = [*STACK.blocks, MODEL.model.get_output_embeddings()]
    counted = [calls_of(module) for module in modules]
    stream(sites=STACK.sites([Place("resid_post", layer)]), tokens=1000).read(segments_of([20, 9]))
    for _, handle in counted:
        handle.remove()
    assert [len(calls) for calls, _ in counted] == [1] * (layer + 1) + [0] * (len(modules) - layer - 1)


def test_shared_tokens_are_run_once(monkeypatch):
    sizes = []
    handle = STACK.blocks[0].register_forward_hook(lambda _, args, output: sizes.append(output.shape[1]))
    stream(SHARED, 1000).read(pairs_of([(20, 5, 7), (3, 4, 4)]))
    handle.remove()
    assert sizes == [20 + 5 + 7 + 2 * 7]  # a prompt of three tokens is not worth sharing


def test_a_batch_is_launched_before_the_last_one_is_fetched(monkeypatch):
    """As on a card; rows come out the same, to the bit, also where memory runs out on the way."""
    segments = segments_of([40, 30, 20, 20, 9])
    events, launch, store = [], Stream._run, LaunchedBatch.store
    failing = iter([False, False, True, False, False, False, False])

    def run(self, batch, segments):
        if next(failing):
            raise torch.OutOfMemoryError("CUDA out of memory")
        events.append(("run", batch.rows))
        return launch(self, batch, segments)

    def keep(self, readings, offsets):
        events.append(("store", tuple(self.spots.rows.tolist())))
        store(self, readings, offsets)

    expected = read(segments, tokens=40)
    monkeypatch.setattr(Stream, "_run", run)
    monkeypatch.setattr(LaunchedBatch, "store", keep)
    done = []
    found = stream(tokens=40, overlap=True).read(segments, done.append).values
    assert events == [
        ("run", (0,)),
        ("run", (1,)),
        ("store", (0,)),
        ("store", (1,)),  # before a smaller batch is tried
        ("run", (2,)),
        ("run", (3,)),
        ("store", (2,)),
        ("run", (4,)),
        ("store", (3,)),
        ("store", (4,)),
    ]
    assert sum(done) == 119
    assert all(torch.equal(found[name][0], expected[name]) for name in ("sum", "last"))


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_a_model_leaves_as_it_came_whatever_happens():
    language_model = tiny.make_model()
    stack, model = find_stack(language_model), language_model.model
    model.train()
    model.model.layers[1].eval()
    before = hooks(model), model.config.to_dict(), [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    whole = stream(choose_mode(stack), 1000, stack)
    whole.read(pairs_of([(20, 5, 7)]))
    broken = model.model.layers[2].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        whole.read(pairs_of([(20, 5, 7)]))
    broken.remove()
    assert (hooks(model), model.config.to_dict(), [module.training for module in model.modules()]) == before
    assert model.config._attn_implementation == "sdpa"
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


class Small(nn.Module):
    """A backbone whose memory ends at a number of tokens."""

    def __init__(self, most, error):
        super().__init__()
        self.most, self.error, self.sizes = most, error, []

    def forward(self, input_ids, **options):
        self.sizes.append(input_ids.numel())
        if input_ids.numel() > self.most:
            raise self.error
        return STACK.backbone(input_ids=input_ids, **options)


def small_stack(most, error):
    return replace(STACK, backbone=Small(most, error))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_halves_the_budget_for_good_and_loses_nothing(error, caplog):
    stack, segments = small_stack(48, error), segments_of([16] * 12)
    small = stream(STACKED, 1000, stack)
    with caplog.at_level(logging.WARNING):
        states = small.read(segments).values
    assert torch.equal(states["sum"][0], read(segments, STACKED)["sum"])
    assert stack.backbone.sizes == [192, 96, 48, 48, 48, 48]
    assert small.budget.tokens == 48
    assert "going on with 48 tokens a batch" in caplog.text


def test_a_tree_that_does_not_fit_is_run_in_parts():
    stack, segments = small_stack(60, torch.OutOfMemoryError()), pairs_of([(20, 16, 16, 16, 16)])
    # Packed attention is switched on where the config is; the stand-in has none of its own.
    stack.backbone.inner = STACK.backbone
    states = stream(SHARED, 1000, stack).read(segments).values
    torch.testing.assert_close(states["sum"][0], read(segments, ALONE)["sum"], rtol=1e-5, atol=1e-5)
    assert stack.backbone.sizes == [84, 36, 36, 36, 36]  # half of 84 tokens holds one row with its prompt
    stack.backbone.sizes.clear()
    stream(SHARED, 60, stack).read(segments)
    assert stack.backbone.sizes == [52, 52]  # too large for the budget from the start


def test_a_sequence_that_never_fits_is_an_error():
    with pytest.raises(OutOfMemory, match="single sequence of 16 tokens does not fit"):
        read(segments_of([16, 16]), STACKED, stack=small_stack(3, torch.OutOfMemoryError()))


def test_processes_that_share_a_model_cut_no_smaller_batches(monkeypatch):
    monkeypatch.setattr(type(MODEL.model), "tp_size", 2)
    with pytest.raises(OutOfMemory, match=r"192 tokens does not fit .* give --batch-tokens 96 or less"):
        stream(STACKED, 1000, small_stack(48, torch.OutOfMemoryError())).read(segments_of([16] * 12))


def test_other_errors_are_not_swallowed():
    with pytest.raises(RuntimeError, match="something else"):
        read(segments_of([16]), STACKED, stack=small_stack(0, RuntimeError("something else")))


def test_a_module_that_does_not_run_is_named():
    odd = tiny.make_model("qwen")
    with pytest.raises(LayerNotFound, match=r"of LlamaForCausalLM did not run in this pass"):
        stream(sites=find_stack(odd).sites([Place("resid_post", 0)])).read(segments_of([9]))


def test_a_module_that_runs_twice_is_named():
    language_model = tiny.make_model()
    stack = find_stack(language_model)
    layer, plain = language_model.model.model.layers[1], language_model.model.model.layers[1].mlp.forward
    layer.mlp.forward = lambda states: plain(states) + layer.mlp.gate_proj(states).sum() * 0
    sites = [Site(Place("mlp_out", 1), (Tap(layer.mlp.gate_proj), Tap(layer.mlp)), (1.0, 1.0))]
    with pytest.raises(LayerNotFound, match="Linear of LlamaForCausalLM ran twice in one pass"):
        stream(choose_mode(stack), stack=stack, sites=sites).read(segments_of([9]))


def test_freed_memory_is_given_back_now_and_then(monkeypatch):
    calls = []
    monkeypatch.setattr("probing.engine.stream.trim_memory", lambda: calls.append(1))
    monkeypatch.setattr("probing.engine.stream.TRIM_SECONDS", 3600.0)
    read(segments_of([16] * 8), tokens=16)
    assert not calls
    monkeypatch.setattr("probing.engine.stream.TRIM_SECONDS", -1.0)
    read(segments_of([16] * 8), tokens=16)
    assert len(calls) == 8


def test_stacked_sequences_are_padded_to_their_own_length_and_not_to_their_neighbours():
    """On a model this small the bits agree in either case, so the shapes are what is looked at."""
    shapes = []
    handle = STACK.blocks[0].register_forward_hook(lambda _, args, output: shapes.append(tuple(output.shape[:2])))
    stream(replace(STACKED, limit=43), 1000).read(segments_of([40, 7, 23, 16, 17]))
    handle.remove()
    assert shapes == [(1, 43), (2, 32), (2, 16)]


def poisoned(place):
    language_model = tiny.make_model()
    with torch.no_grad():
        place(language_model.model)[0] = float("nan")
    return find_backbone(language_model)


IDS = Segment([5, 6, 7, 8, 9, 10], 0, 6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("place", "name"),
    [
        (lambda model: model.model.layers[0].mlp.down_proj.weight, "layer 0"),
        (lambda model: model.model.layers[1].self_attn.o_proj.weight, "layer 1"),
        (lambda model: model.model.layers[1].self_attn.q_proj.weight, "layer 1"),
        (lambda model: model.model.layers[1].self_attn.v_proj.weight, "layer 1"),
        (lambda model: model.model.layers[2].mlp.up_proj.weight, "layer 2"),
        (lambda model: model.model.norm.weight, "the final norm"),
        (lambda model: model.model.embed_tokens.weight[5:], "the embedding"),
    ],
)
def test_the_first_bad_place_is_named(way, place, name):
    assert first_nonfinite_place(poisoned(place), WAYS[way], IDS, TokenBudget(64, "test")) == name


def test_finite_states_have_no_bad_place():
    assert first_nonfinite_place(STACK, PACKED, IDS, TokenBudget(64, "test")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_on_a_card_equal_those_on_the_cpu(dtype):
    language_model = tiny.make_model("llama")
    language_model.model.to("cuda", dtype)
    stack = find_backbone(language_model)
    mode = choose_mode(stack)
    assert mode.packing == ("varlen" if dtype == torch.bfloat16 else "paths"), mode.reason
    segments = pairs_of([(20, 5, 7), (30, 300, 2)])
    whole = Stream(stack, mode, [output_site(stack)], ("mean",), TokenBudget(1, "test"))
    whole.budget = choose_batch_tokens(stack, whole.run_trial)
    states = whole.read(segments).values["mean"][0]
    near = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(states, read(segments, poolings=("mean",))["mean"], rtol=near, atol=near)
