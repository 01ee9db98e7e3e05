"""Gradients of the responses of a group against autograd where states and head are free, and weights by rewards."""

import pytest
import torch
from free_model import PAIRS, FreeModel

from probing.kernels.output_head import Unembedding
from probing.metrics import displacement
from probing.metrics.displacement import (
    free_feature_group,
    free_feature_products,
    free_feature_rate,
    group_products,
)
from probing.metrics.group_advantages import ADVANTAGES, rates_under, response_weights

GROUP = [[1, 2, 3], [1, 2, 4, 5], [6], [1, 2, 3], [7, 8, 9, 9, 9, 2], [1, 5]]
WANTED = [True, False, False, True, False, True]


def gradients(model, values):
    """The gradient of each value by head and states, as one row of numbers each."""
    parameters = [model.weight, *model.contexts.values()]
    rows = []
    for value in values:
        found = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
        rows.append(
            torch.cat(
                [
                    torch.zeros_like(p).flatten() if g is None else g.flatten()
                    for p, g in zip(parameters, found, strict=True)
                ]
            )
        )
    return torch.stack(rows)


def of_free(model, group, head=None):
    states = [model.states(ids).detach() for ids in group]
    return states, [torch.tensor(ids) for ids in group], head or Unembedding(model.weight.detach())


def dense_pulls(model, wanted, other):
    """For each token of a response, the products with every token of another one by explicit loops."""
    weight = model.weight.detach()

    def sides(ids):
        states = model.states(ids).detach()
        residuals = -(states @ weight.T).softmax(dim=1)
        residuals[torch.arange(len(ids)), torch.tensor(ids)] += 1
        return states, residuals

    (h, r), (g, q) = sides(wanted), sides(other)
    return [sum(float(r[k] @ q[t]) * float(h[k] @ g[t]) for k in range(len(h))) for t in range(len(g))]


@pytest.mark.parametrize("columns", [4, 4096])
def test_the_gram_is_that_of_autograd(generator, columns, monkeypatch):
    monkeypatch.setattr(displacement, "VOCABULARY_SLICE", columns)
    model = FreeModel(generator)
    values = [model.logprob(ids) for ids in GROUP]
    rows = gradients(model, values)
    given = of_free(model, GROUP)
    for found in (free_feature_group(*given, WANTED), free_feature_products(*given), group_products(*given, WANTED)):
        assert torch.allclose(found.gram, rows @ rows.T, rtol=1e-10, atol=1e-10)


def test_some_columns_of_a_gram(generator):
    model = FreeModel(generator)
    whole, part = (free_feature_products(*of_free(model, GROUP), against=against) for against in (None, 2))
    assert torch.allclose(part.gram, whole.gram[:2], rtol=1e-12)
    assert torch.allclose(part.pulls, whole.pulls[:2], rtol=1e-12)


@pytest.mark.parametrize("columns", [4, 4096])
def test_pulls_are_the_sums_over_the_tokens_that_are_wanted(generator, columns, monkeypatch):
    monkeypatch.setattr(displacement, "VOCABULARY_SLICE", columns)
    model = FreeModel(generator)
    wanted = [ids for ids, good in zip(GROUP, WANTED, strict=True) if good]
    expected = [
        sum(parts)
        for ids, good in zip(GROUP, WANTED, strict=True)
        if not good
        for parts in zip(*(dense_pulls(model, each, ids) for each in wanted), strict=True)
    ]
    for ours in (free_feature_group, group_products):
        found = ours(*of_free(model, GROUP), WANTED).pulls
        assert found.tolist() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    of_pair = free_feature_products(*of_free(model, GROUP[:2]), against=1).pulls[0]
    assert of_pair.tolist() == pytest.approx(
        [*dense_pulls(model, GROUP[0], GROUP[0]), *dense_pulls(model, GROUP[0], GROUP[1])], rel=1e-10, abs=1e-12
    )


@pytest.mark.parametrize(("chosen", "rejected"), PAIRS)
def test_pulls_and_shared_states_make_the_product_of_the_gradients(generator, chosen, rejected):
    """By autograd: the part that goes through the head alone is the sum of the pulls."""
    model = FreeModel(generator)
    values = [model.logprob(chosen), model.logprob(rejected)]
    by_head = [torch.autograd.grad(value, model.weight, retain_graph=True)[0] for value in values]
    found = free_feature_products(*of_free(model, [chosen, rejected]), against=1)
    through_head = float((by_head[0] * by_head[1]).sum())
    assert float(found.pulls[0, len(chosen) :].sum()) == pytest.approx(through_head, rel=1e-10)
    rows = gradients(model, values)
    assert float(found.gram[0, 1]) == pytest.approx(float(rows[0] @ rows[1]), rel=1e-10)


@pytest.mark.parametrize(("scale", "cap"), [(0.3, None), (1.0, 2.0)])
def test_scaled_and_capped_heads(generator, scale, cap):
    def logits(states):
        raw = states @ model.weight.T * scale
        return raw if cap is None else cap * torch.tanh(raw / cap)

    model = FreeModel(generator, logits)
    head = Unembedding(model.weight.detach(), scale=scale, soft_cap=cap)
    rows = gradients(model, [model.logprob(ids) for ids in GROUP])
    found = free_feature_group(*of_free(model, GROUP, head), WANTED)
    assert torch.allclose(found.gram, rows @ rows.T, rtol=1e-10, atol=1e-10)


def test_a_pair_is_a_group_of_two(generator):
    model = FreeModel(generator)
    gram = free_feature_group(*of_free(model, GROUP[:2]), [True, False]).gram
    states, ids, head = of_free(model, GROUP[:2])
    assert float(gram[0, 0] - gram[0, 1]) == pytest.approx(float(free_feature_rate(*states, *ids, head)), rel=1e-12)


def test_float32_states_in_a_larger_vocabulary(generator):
    """Rounding of float32 sums: 1e-5 of the lengths of the gradients, as for the products of all pairs of tokens."""
    head = Unembedding(torch.randn(5000, 48, generator=generator))
    ids = [torch.randint(5000, (n,), generator=generator) for n in (40, 3, 70, 25)]
    states = [torch.randn(len(own), 48, generator=generator) for own in ids]
    wanted = [True, False, True, False]
    double = [own.double() for own in states], ids, Unembedding(head.weight.double())
    exact = free_feature_products(*double)
    expected = exact.pulls[[0, 2]].sum(dim=0).split([40, 3, 70, 25])
    found = free_feature_group(states, ids, head, wanted)
    length = exact.gram.diagonal().sqrt()
    assert ((found.gram - exact.gram).abs() <= 1e-5 * length[:, None] * length).all()
    pulls = torch.cat([expected[1], expected[3]])
    assert float((found.pulls - pulls).abs().max()) <= 1e-5 * float(pulls.abs().max())


def test_a_group_of_many_tokens_is_computed_without_the_products_of_all_pairs(generator, monkeypatch):
    calls = []
    plain = displacement.free_feature_group
    monkeypatch.setattr(displacement, "free_feature_group", lambda *given: calls.append(1) or plain(*given))
    given = of_free(FreeModel(generator), GROUP)
    for most, count in ((sum(map(len, GROUP)), 0), (sum(map(len, GROUP)) - 1, 1)):
        monkeypatch.setattr(displacement, "PAIRED_TOKENS", most)
        group_products(*given, WANTED)
        assert len(calls) == count


@pytest.mark.parametrize("ours", [free_feature_group, group_products])
def test_a_group_in_which_all_are_wanted_has_no_pulls(generator, ours):
    assert ours(*of_free(FreeModel(generator), GROUP[:2]), [True, True]).pulls.shape == (0,)


REWARDS = [1.0, 0.0, 0.25, 1.0, 0.0, 0.75]


@pytest.mark.parametrize("name", ADVANTAGES)
def test_rates_are_those_of_one_step_on_the_surrogate(generator, name):
    """The surrogate as trainers write it, with ratios of 1: by autograd, in the free model."""
    model = FreeModel(generator)
    rewards, tokens = torch.tensor(REWARDS), torch.tensor([len(ids) for ids in GROUP])
    values = [model.logprob(ids) for ids in GROUP]
    old = [value.detach() for value in values]
    centred = [reward - sum(REWARDS) / 6 for reward in REWARDS]
    std = (sum(value**2 for value in centred) / 5) ** 0.5
    surrogate = 0.0
    for value, before, centre, ids in zip(values, old, centred, GROUP, strict=True):
        # Tokens have a ratio each; at equal models their gradients add up to that of the sum.
        scaled = {"grpo": centre / (std + 1e-4) / len(ids), "dapo": centre / (std + 1e-4) / int(tokens.sum())}
        surrogate = surrogate + scaled.get(name, centre) * (value - before).exp()
    step = gradients(model, [surrogate])[0]
    expected = gradients(model, values) @ step
    found = response_weights(rewards, tokens, name)
    scale = 1 if name == "dr_grpo" else std + 1e-4
    assert torch.allclose(found.advantages, torch.tensor(centred).double() / scale, rtol=1e-6)
    gram = free_feature_group(*of_free(model, GROUP), WANTED).gram
    # The rewards are exact in float32, so that only sums in another order differ.
    assert torch.allclose(rates_under(gram, found.weights), expected, rtol=1e-9, atol=1e-10)


def test_one_small_step_moves_as_foretold(generator):
    model, step = FreeModel(generator), 1e-7
    weights = response_weights(torch.tensor(REWARDS), torch.tensor([len(ids) for ids in GROUP])).weights
    rates = rates_under(free_feature_group(*of_free(model, GROUP), WANTED).gram, weights)
    values = [model.logprob(ids) for ids in GROUP]
    along = sum(weight * value for weight, value in zip(weights, values, strict=True))
    parameters = [model.weight, *model.contexts.values()]
    moves = torch.autograd.grad(along, parameters)
    for parameter, move in zip(parameters, moves, strict=True):
        parameter.data += step * move
    after = [model.logprob(ids).item() - value.item() for ids, value in zip(GROUP, values, strict=True)]
    assert [change / step for change in after] == pytest.approx(rates.tolist(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("rewards", [[1.0], [float("nan"), 1.0], [float("inf"), 0.0]])
def test_rewards_without_advantages(rewards):
    with pytest.raises(ValueError, match="at least two rewards, all of them finite"):
        response_weights(torch.tensor(rewards), torch.ones(len(rewards), dtype=torch.long))


def test_equal_rewards_pull_at_nothing():
    found = response_weights(torch.ones(4), torch.arange(1, 5))
    assert found.weights.tolist() == [0.0] * 4
