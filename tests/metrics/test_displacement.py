"""The rate against autograd in the free-feature model, and against the theorems as the paper states them."""

import pytest
import torch

from probing.kernels import output_head as file
from probing.kernels.output_head import Unembedding
from probing.metrics import displacement
from probing.metrics.displacement import free_feature_rate, moved_tokens, shared_states
from probing.metrics.similarity import ches

WIDTH, VOCABULARY = 5, 13


class FreeModel:
    """Every context has a state of its own, and all states and the unembedding are parameters."""

    def __init__(self, generator, head=None):
        self.weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
        self.generator, self.contexts = generator, {}
        self.head = head or (lambda states: states @ self.weight.T)

    def states(self, ids):
        for k in range(len(ids)):
            fresh = torch.randn(WIDTH, generator=self.generator, dtype=torch.float64, requires_grad=True)
            self.contexts.setdefault(tuple(ids[:k]), fresh)
        return torch.stack([self.contexts[tuple(ids[:k])] for k in range(len(ids))])

    def logprob(self, ids):
        return self.head(self.states(ids)).log_softmax(dim=1)[torch.arange(len(ids)), torch.tensor(ids)].sum()

    def rate(self, chosen, rejected):
        """<grad ln p(y+), grad (ln p(y+) - ln p(y-))> by autograd."""
        plus, minus = self.logprob(chosen), self.logprob(rejected)
        parameters = [self.weight, *self.contexts.values()]
        gradients = [torch.autograd.grad(value, parameters, allow_unused=True) for value in (plus, minus)]
        total = 0.0
        for a, b in zip(*gradients, strict=True):
            if a is not None:
                total += float((a * (a if b is None else a - b)).sum())
        return total

    def ours(self, chosen, rejected, head=None):
        states = [self.states(ids).detach() for ids in (chosen, rejected)]
        ids = [torch.tensor(ids) for ids in (chosen, rejected)]
        return float(free_feature_rate(*states, *ids, head or Unembedding(self.weight.detach())))


PAIRS = [([3], [7]), ([1, 2, 3], [4, 5]), ([1, 2, 3], [1, 2, 4, 5]), ([1, 2], [1, 2, 3])]
PAIRS += [([6, 6, 6], [6, 1]), ([0], [2, 2])]


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


def test_shared_states():
    for chosen, rejected, count in [([1], [2], 1), ([1, 2], [1, 3], 2), ([1, 2], [1, 2, 3], 2), ([5, 1], [4, 1], 1)]:
        assert shared_states(torch.tensor(chosen), torch.tensor(rejected)) == count


def test_moved_tokens_by_brute_force(generator, monkeypatch):
    monkeypatch.setattr(file, "CPU_LOGIT_BYTES", 4 * 30 * 16)
    heads = [Unembedding(torch.randn(30, width, generator=generator)) for width in (6, 9)]
    states = [torch.randn(40, len(head.weight[0]), generator=generator) for head in heads]
    found = moved_tokens(states[0], heads[0], states[1], heads[1], 4)
    old, new = ((h.double() @ head.weight.double().T).softmax(1) for h, head in zip(states, heads, strict=True))
    for row in range(40):
        order = sorted(range(30), key=lambda z: float(old[row, z] - new[row, z]))
        assert found.gained_ids[row].tolist() == order[:4]
        assert found.lost_ids[row].tolist() == order[::-1][:4]
    for name, values in (("before", old), ("after", new)):
        for way in ("gained", "lost"):
            expected = values.gather(1, getattr(found, f"{way}_ids"))
            torch.testing.assert_close(getattr(found, f"{way}_{name}").double(), expected, rtol=0, atol=1e-6)
