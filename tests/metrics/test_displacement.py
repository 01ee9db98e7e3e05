"""The rate against autograd in the free-feature model, and against the theorems as the paper states them."""

import logging

import pytest
import torch
from free_model import PAIRS, VOCABULARY, FreeModel

from probing.kernels import output_head as file
from probing.kernels.output_head import Unembedding
from probing.kernels.token_stats import token_stats
from probing.metrics import displacement
from probing.metrics.displacement import (
    bf16_terms,
    count_shared_states,
    find_moved_tokens,
    free_feature_rate,
    product_by_terms,
)
from probing.metrics.similarity import ches


@pytest.mark.parametrize(("chosen", "rejected"), PAIRS)
@pytest.mark.parametrize("columns", [4, 4096])
def test_exact_where_states_are_free(generator, chosen, rejected, columns, monkeypatch):
    monkeypatch.setattr(displacement, "VOCABULARY_SLICE", columns)
    model = FreeModel(generator)
    assert model.ours(chosen, rejected) == pytest.approx(model.rate(chosen, rejected), rel=1e-10)


def test_theorem_4_for_single_tokens(generator):
    """The closed form for responses of one token, written down as printed."""
    model = FreeModel(generator)
    plus, minus = 3, 7
    found = model.ours([plus], [minus])
    weight, state = model.weight.detach(), model.states([plus])[0].detach()
    p = (weight @ state).softmax(dim=0)
    gain = 1 - p[plus] + p[minus]
    own = (1 - p[plus]) * weight[plus] @ weight[plus] + p[minus] * weight[minus] @ weight[minus] + gain * state @ state
    others = sum(p[z] * weight[z] @ (weight[plus] - weight[minus]) for z in range(VOCABULARY) if z not in (plus, minus))
    assert found == pytest.approx(float(own - gain * weight[plus] @ weight[minus] - others), rel=1e-10)


def test_theorem_5_tells_where_the_mass_goes(generator):
    """A small step moves ln p(z), z neither response, by <W_z, W_+ - W_-> and a constant that all share."""
    model = FreeModel(generator)
    plus, minus, step = 3, 7, 1e-6
    loss = model.logprob([plus]) - model.logprob([minus])
    state = model.contexts[()]
    before = (model.weight @ state).log_softmax(dim=0).detach()
    by_weight, by_state = torch.autograd.grad(loss, [model.weight, state])
    after = ((model.weight + step * by_weight) @ (state + step * by_state)).log_softmax(dim=0).detach()
    weight = model.weight.detach()
    rest = ((after - before) / step - weight @ (weight[plus] - weight[minus]))[
        [z for z in range(VOCABULARY) if z not in (plus, minus)]
    ]
    assert float(rest.max() - rest.min()) < 1e-3 * float(rest.abs().max())


def test_theorem_6_with_all_coefficients_one_is_ches(generator):
    """The double sums as printed, and what is left of them when every coefficient is 1."""
    model = FreeModel(generator)
    chosen, rejected = [1, 2, 3], [4, 5]
    weight = model.weight.detach()
    sides = []
    for ids in (chosen, rejected):
        states = model.states(ids).detach()
        residuals = -(states @ weight.T).softmax(dim=1)
        residuals[torch.arange(len(ids)), torch.tensor(ids)] += 1
        sides.append((states, residuals))
    (h, r), (g, q) = sides
    products = {"own": (r @ r.T, h @ h.T), "other": (r @ q.T, h @ g.T)}
    sums = {
        name: sum(float(a[i, j]) * float(b[i, j]) for i in range(len(a)) for j in range(a.shape[1]))
        for name, (a, b) in products.items()
    }
    squares = sum(float((weight.T @ row) @ (weight.T @ row)) for row in r)
    first = -float((weight.T @ r[0]) @ (weight.T @ q[0]))
    assert model.ours(chosen, rejected) == pytest.approx(squares + first + sums["own"] - sums["other"], rel=1e-10)
    ones = float((g @ h.T).sum() - (h @ h.T).sum())
    assert ones == pytest.approx(float(ches(h.sum(0), g.sum(0))), rel=1e-10)


@pytest.mark.parametrize(("scale", "cap"), [(0.3, None), (1.0, 2.0), (2.0, 1.5)])
def test_scaled_and_capped_heads(generator, scale, cap):
    def logits(states):
        raw = states @ model.weight.T * scale
        return raw if cap is None else cap * torch.tanh(raw / cap)

    model = FreeModel(generator, logits)
    head = Unembedding(model.weight.detach(), scale=scale, soft_cap=cap)
    for chosen, rejected in PAIRS:
        assert model.ours(chosen, rejected, head) == pytest.approx(model.rate(chosen, rejected), rel=1e-10)


def test_one_small_step_of_training_moves_as_foretold(generator):
    model = FreeModel(generator)
    chosen, rejected, step = [1, 2, 3], [1, 4], 1e-6
    rate = model.ours(chosen, rejected)
    loss = model.logprob(chosen) - model.logprob(rejected)
    before = model.logprob(chosen).item()
    parameters = [model.weight, *model.contexts.values()]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.data += step * gradient
    assert (model.logprob(chosen).item() - before) / step == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.5, 3.0)])
def test_a_sum_of_exponentials_that_is_handed_over(generator, scale, cap):
    """The one of ``token_stats``: the same rate, to the bit in one thread, without a product with the head."""
    head = Unembedding(torch.randn(500, 8, generator=generator), None, scale, cap)
    sides = [torch.randn(count, 8, generator=generator) for count in (20, 17)]
    ids = [torch.randint(0, 500, (len(side),), generator=generator) for side in sides]
    handed = token_stats(torch.cat(sides), head, torch.cat(ids)).logsumexp
    assert torch.equal(free_feature_rate(*sides, *ids, head, handed), free_feature_rate(*sides, *ids, head))
    assert not torch.equal(free_feature_rate(*sides, *ids, head, handed + 1), free_feature_rate(*sides, *ids, head))


def half_precision_case(generator):
    """States and weights that are bf16 numbers, of a vocabulary of several slices."""
    weight = (torch.randn(9000, 64, generator=generator) / 4).bfloat16()
    sides = [torch.randn(count, 64, generator=generator).bfloat16() for count in (30, 25)]
    return weight, sides, [torch.randint(0, 9000, (len(side),), generator=generator) for side in sides]


@pytest.mark.parametrize("by_terms", [False, True])
def test_states_in_half_precision_against_float64(generator, monkeypatch, by_terms):
    """As accurate as float32 states: products of bf16 numbers are exact in float32. Also with three-term residuals."""
    weight, sides, ids = half_precision_case(generator)
    exact = float(free_feature_rate(*(side.double() for side in sides), *ids, Unembedding(weight.double())))
    if by_terms:
        monkeypatch.setattr(displacement, "_multiply_by_head", displacement.product_by_terms)
    assert float(free_feature_rate(*sides, *ids, Unembedding(weight))) == pytest.approx(exact, rel=1e-6)
    wide = float(free_feature_rate(*(side.float() for side in sides), *ids, Unembedding(weight)))
    assert wide == pytest.approx(exact, rel=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
def test_rates_and_moved_tokens_on_a_card(generator):
    """By half-precision products with float32 sums, which the tensor cores may cut off: against float64."""
    weight, sides, ids = half_precision_case(generator)
    exact = float(free_feature_rate(*(side.double() for side in sides), *ids, Unembedding(weight.double())))
    head = Unembedding(weight.cuda())
    found = free_feature_rate(*(side.cuda() for side in sides), *ids, head)
    assert found.is_cuda
    assert float(found) == pytest.approx(exact, rel=1e-4)
    states, others = (torch.cat(parts).cuda() for parts in (sides, sides[::-1]))
    moved = find_moved_tokens(states, head, others, head, 5)
    old, new = ((values.double().cpu() @ weight.double().T).softmax(1) for values in (states, others))
    for way, sign in (("gained", 1), ("lost", -1)):
        change = sign * (new - old)
        torch.testing.assert_close(
            change.gather(1, getattr(moved, f"{way}_ids")), change.topk(5).values, rtol=0, atol=1e-5
        )


def test_three_terms_are_the_number(generator):
    """Over all of the exponents that a residual can have, and both signs."""
    values = torch.randn(20000, generator=generator) * 2.0 ** -torch.randint(0, 100, (20000,), generator=generator)
    assert torch.equal(sum(term.double() for term in bf16_terms(values)), values.double())
    assert not torch.equal(sum(term.double() for term in bf16_terms(values)[:2]), values.double())


def test_a_product_by_terms_rounds_its_sums_only(generator):
    """Residuals of a softmax as they are: one near 1, the rest tiny. An error of two terms would be seen."""
    values = -torch.randn(20, 4096, generator=generator).mul(4).softmax(dim=1)
    values[torch.arange(20), torch.arange(20)] += 1
    weight = torch.randn(4096, 32, generator=generator).bfloat16()
    exact, size = values.double() @ weight.double(), values.double().abs() @ weight.double().abs()
    found = (product_by_terms(values, weight) - exact).abs() / size
    plain = (values @ weight.float() - exact).abs() / size
    assert float(found.mean()) < 1.2 * float(plain.mean())
    assert float(found.max()) < 2e-6
    two = sum(term.double() for term in bf16_terms(values)[:2]) @ weight.double()
    assert float(((two - exact).abs() / size).mean()) > 3 * float(found.mean())


def test_shared_states():
    for chosen, rejected, count in [([1], [2], 1), ([1, 2], [1, 3], 2), ([1, 2], [1, 2, 3], 2), ([5, 1], [4, 1], 1)]:
        assert count_shared_states(torch.tensor(chosen), torch.tensor(rejected)) == count


def test_moved_tokens_by_brute_force(generator, monkeypatch):
    monkeypatch.setattr(file, "CPU_LOGIT_BYTES", 4 * 30 * 16)
    heads = [Unembedding(torch.randn(30, width, generator=generator)) for width in (6, 9)]
    states = [torch.randn(40, len(head.weight[0]), generator=generator) for head in heads]
    found = find_moved_tokens(states[0], heads[0], states[1], heads[1], 4)
    old, new = ((h.double() @ head.weight.double().T).softmax(1) for h, head in zip(states, heads, strict=True))
    for row in range(40):
        order = sorted(range(30), key=lambda z: float(old[row, z] - new[row, z]))
        assert found.gained_ids[row].tolist() == order[:4]
        assert found.lost_ids[row].tolist() == order[::-1][:4]
    for name, values in (("before", old), ("after", new)):
        for way in ("gained", "lost"):
            expected = values.gather(1, getattr(found, f"{way}_ids"))
            torch.testing.assert_close(getattr(found, f"{way}_{name}").double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moved_tokens_of_a_large_vocabulary(generator, dtype):
    """So large that only some tiles are searched; half-precision states and weights against float64."""
    heads = [Unembedding(torch.randn(2000, 12, generator=generator).to(dtype)) for _ in range(2)]
    states = [torch.randn(50, 12, generator=generator).to(dtype) for _ in range(2)]
    found = find_moved_tokens(states[0], heads[0], states[1], heads[1], 5)
    old, new = ((h.double() @ head.weight.double().T).softmax(1) for h, head in zip(states, heads, strict=True))
    change = new - old
    for way, sign in (("gained", 1), ("lost", -1)):
        ids, best = getattr(found, f"{way}_ids"), (sign * change).topk(5)
        torch.testing.assert_close(sign * change.gather(1, ids), best.values, rtol=0, atol=1e-6)
        assert float((ids == best.indices).double().mean()) > 0.99
        for name, values in (("before", old), ("after", new)):
            numbers = getattr(found, f"{way}_{name}").double()
            torch.testing.assert_close(numbers, values.gather(1, ids), rtol=0, atol=1e-6)


def test_moved_tokens_go_on_with_fewer_rows_when_memory_runs_out(generator, monkeypatch, caplog):
    head, other = (Unembedding(torch.randn(300, 6, generator=generator)) for _ in range(2))
    states, others = (torch.randn(900, 6, generator=generator) for _ in range(2))
    plain = find_moved_tokens(states, head, others, other, 4)
    chunks, asked = displacement.logit_chunks, []

    def some(hidden, head, rows):
        asked.append(rows)
        if rows > 300:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return chunks(hidden, head, rows)

    monkeypatch.setattr(displacement, "logit_chunks", some)
    with caplog.at_level(logging.WARNING):
        found = find_moved_tokens(states, head, others, other, 4)
    assert asked == [2048, 1024, 512, 256, 256]
    assert all(torch.equal(left, right) for left, right in zip(found, plain, strict=True))
    assert "logits of fewer rows at a time: memory ran out with 512 rows" in caplog.text
