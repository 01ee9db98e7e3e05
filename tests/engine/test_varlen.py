"""Torch's attention over sequences of varying length, as each version of torch has it, emulated on the CPU."""

import logging
from dataclasses import replace

import families
import pytest
import tiny
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
import transformers
from torch.nn.attention import varlen

from probing.engine import attention, modes
from probing.engine.attention import Pattern, find_varlen_obstacle
from probing.engine.modes import Mode, choose_mode, parity
from probing.engine.stream import Stream, TokenBudget
from probing.engine.trees import Segment
from probing.models.layers import find_stack
from probing.models.passes import run_backbone
from probing.models.stack import output_site

VARLEN = Mode("varlen", sharing=True, causal=True)


def attend(query, key, value, query_bounds, key_bounds, scale=None, window=(-1, -1)):
    """What the kernel computes: masks aligned at the end of each sequence, fewer key heads as they are."""
    out = torch.empty_like(query)
    bounds = zip(*(b.unfold(0, 2, 1).tolist() for b in (query_bounds, key_bounds)), strict=True)
    for (a, b), (c, d) in bounds:
        ahead = torch.arange(d - c)[None, :] - (torch.arange(b - a)[:, None] + (d - c) - (b - a))
        mask = torch.ones_like(ahead, dtype=torch.bool)
        if window[1] >= 0:
            mask &= ahead <= window[1]
        if window[0] >= 0:
            mask &= ahead >= -window[0]
        q, k, v = (part.transpose(0, 1)[None] for part in (query[a:b], key[c:d], value[c:d]))
        states = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
        out[a:b] = states[0].transpose(0, 1)
    return out


def torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    return attend(query, key, value, cu_seq_q, cu_seq_k, window=(-1, 0) if is_causal else (-1, -1))


def torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    return attend(query, key, value, cu_seq_q, cu_seq_k, scale, window_size)


def torch_2_12(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
):
    assert enable_gqa == (query.shape[1] != key.shape[1])  # the library raises
    return attend(query, key, value, cu_seq_q, cu_seq_k, scale, window_size)


def torch_2_13(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert num_splits == 1  # or the bits of a sequence depend on what else is in the batch
    return attend(query, key, value, cu_seq_q, cu_seq_k, scale, window_size)


VERSIONS = {"2.10": torch_2_10, "2.11": torch_2_11, "2.12": torch_2_12, "2.13": torch_2_13}


@pytest.fixture(params=VERSIONS)
def version(request, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", VERSIONS[request.param])
    return request.param


@pytest.fixture
def calls(monkeypatch):
    """Layers that took the fast way."""
    counted, plain = [], attention._varlen
    monkeypatch.setattr(attention, "_varlen", lambda *args: counted.append(1) or plain(*args))
    return counted


@pytest.fixture
def on_a_card(monkeypatch):
    """``choose_mode`` believes that the model is on a card, whose attention is emulated."""
    monkeypatch.setattr(modes, "is_on_card", lambda language_model: True)


def half(model):
    model.model.to(torch.bfloat16)
    return find_stack(model)


def test_every_version_takes_the_fast_way(version, calls, on_a_card, caplog):
    stack = half(tiny.make_model("llama"))
    with caplog.at_level(logging.WARNING):
        mode = choose_mode(stack)
    assert (mode.packing, mode.sharing, mode.reason) == ("varlen", True, "")
    assert calls
    assert not caplog.text


def test_a_signature_that_fails_is_said_aloud(on_a_card, monkeypatch, caplog):
    def broken(*args, **options):
        raise TypeError("unexpected keyword")

    monkeypatch.setattr(varlen, "varlen_attn", broken)
    with caplog.at_level(logging.WARNING):
        mode = choose_mode(half(tiny.make_model("llama")))
    assert mode.packing == "paths"
    assert "varlen with shared prompts: fails with TypeError: unexpected keyword" in mode.describe()
    assert mode.describe() in caplog.text


def test_full_precision_on_a_card_says_why_it_is_slower(on_a_card, caplog):
    with caplog.at_level(logging.WARNING):
        mode = choose_mode(find_stack(tiny.make_model("llama")))
    assert mode.packing == "paths"
    assert "varlen: takes half precision only, not torch.float32" in mode.describe()
    assert mode.describe() in caplog.text


def test_an_attention_that_forgets_where_a_sequence_ends_is_refused(monkeypatch):
    def leaking(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        bounds = [torch.tensor([0, len(part)]) for part in (query, key)]
        return attend(query, key, value, *bounds, scale, window_size)

    monkeypatch.setattr(varlen, "varlen_attn", leaking)
    assert "differs from the plain way" in parity(half(tiny.make_model("llama")), replace(VARLEN, sharing=False))


def windowed(window):
    """A model whose layers see so many tokens, themselves included."""
    shape = {**families.SHAPE, "num_hidden_layers": 2, "sliding_window": window}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.MistralConfig(**shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return tiny.LanguageModel(model, tiny.make_tokenizer())


def segments_of(lengths, prompt):
    generator = torch.Generator().manual_seed(0)
    opening = torch.randint(3, 60, (prompt,), generator=generator).tolist()
    rows = [opening + torch.randint(3, 60, (length,), generator=generator).tolist() for length in lengths]
    return [Segment(ids, prompt - 1, len(ids), prompt) for ids in rows]


@pytest.mark.parametrize("window", [1, 2, 12, 40, 500])
def test_sliding_windows_take_the_fast_way_and_equal_the_plain_one(version, calls, window):
    stack = find_stack(windowed(window))
    segments = segments_of((9, 30, 44), 20)
    stream = Stream(stack, VARLEN, [output_site(stack)], ("tokens",), TokenBudget(1000, "test"))
    found = stream.read(segments).values["tokens"][0].split([10, 31, 45])
    for segment, states in zip(segments, found, strict=True):
        with torch.no_grad():
            plain = run_backbone(stack.backbone, torch.tensor([segment.ids])).last_hidden_state[0, segment.start :]
        torch.testing.assert_close(states, plain, rtol=1e-4, atol=1e-4)
    slow = version == "2.10" and window < 64
    assert bool(calls) != slow
    assert ("has no sliding windows" in stream.how) == slow


def test_a_scale_that_is_not_known_runs_a_sequence_at_a_time(monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", torch_2_10)
    pattern = Pattern(transformers.masking_utils.causal_mask_function)
    assert find_varlen_obstacle(pattern, 9, 0.125, 64) is None
    assert "no scale of its own" in find_varlen_obstacle(pattern, 9, 0.3, 64)
    monkeypatch.setattr(varlen, "varlen_attn", torch_2_11)
    assert find_varlen_obstacle(pattern, 9, 0.3, 64) is None


def test_capped_logits_are_named_as_what_is_slow(on_a_card, monkeypatch, caplog):
    monkeypatch.setattr(varlen, "varlen_attn", torch_2_13)
    with caplog.at_level(logging.WARNING):
        mode = choose_mode(half(tiny.make_model("gemma")))
    assert "attention logits are capped" in mode.describe()
    assert mode.describe() in caplog.text


def chunked(size):
    return transformers.masking_utils.chunked_causal_mask_function(size, torch.zeros(1, dtype=torch.long))


def test_only_sliding_windows_are_taken_for_windows():
    for window in (1, 2, 5, 11):
        pattern = Pattern(transformers.masking_utils.sliding_window_causal_mask_function(window))
        for length in range(1, 14):
            assert pattern.window(length) == (window - 1 if length > window else None)
            assert pattern.seen(length) == ("causal" if length <= window else "other")
    for size in (3, 4, 5):
        assert all(Pattern(chunked(size)).window(length) is None for length in range(1, 14))
    both = Pattern(lambda batch, head, row, column: (row - column).abs() < 3)
    assert all(both.window(length) is None for length in range(1, 14))
