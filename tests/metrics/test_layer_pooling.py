import inspect

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probing.metrics import layer_pooling
from probing.metrics.layer_pooling import (
    difference_grams,
    fit_layer_weights,
    pool_layers,
    sample_pairs,
    separation_loss,
    sparsemax,
)

scores = st.lists(st.floats(-20, 20), min_size=1, max_size=8)
ROWS, WIDTH = 200, 8


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(scores)
def test_sparsemax_is_the_nearest_point_of_the_simplex(values):
    """Karush, Kuhn and Tucker: what is not 0 is the score less a number that no other score is above."""
    found = sparsemax(torch.tensor(values, dtype=torch.float64))
    assert float(found.sum()) == pytest.approx(1, abs=1e-12)
    assert bool((found >= 0).all())
    less = torch.tensor(values, dtype=torch.float64) - found
    taken = found > 0
    assert float(less[taken].max() - less[taken].min()) < 1e-12
    assert bool((less[~taken] <= less[taken].min() + 1e-12).all())


def test_sparsemax_against_every_point_of_a_grid():
    grid = torch.tensor(oracles.simplex_grid(3, 100), dtype=torch.float64)
    for seed in range(20):
        values = 0.7 * normal(seed, 3)
        nearest = grid[(grid - values).square().sum(dim=1).argmin()]
        torch.testing.assert_close(sparsemax(values), nearest, rtol=0, atol=0.0101)


def test_sparsemax_by_hand():
    assert sparsemax(torch.tensor([3.0, 1.0, 0.0])).tolist() == [1.0, 0.0, 0.0]
    assert sparsemax(torch.tensor([0.5, 0.1, -2.0])).tolist() == pytest.approx([0.7, 0.3, 0.0])
    assert sparsemax(torch.zeros(4)).tolist() == [0.25] * 4
    both = torch.stack([normal(0, 5), normal(1, 5)])[:, None]
    torch.testing.assert_close(sparsemax(both)[1, 0], sparsemax(both[1, 0]), rtol=0, atol=0)
    far = sparsemax(torch.tensor([1e9, 1e9 + 64.0, 0.0]))
    assert far.tolist() == [0.0, 1.0, 0.0]
    near = sparsemax(torch.tensor([1e7, 1e7, 0.0], dtype=torch.float32))
    assert near.tolist() == [0.5, 0.5, 0.0]


def test_sparsemax_has_the_gradient_of_its_pieces():
    values = (0.3 * normal(3, 2, 6)).requires_grad_()
    assert torch.autograd.gradcheck(sparsemax, (values,))
    jacobian = torch.autograd.functional.jacobian(sparsemax, torch.tensor([0.5, 0.1, -2.0]))
    torch.testing.assert_close(jacobian, torch.tensor([[0.5, -0.5, 0], [-0.5, 0.5, 0], [0, 0, 0]]))


@pytest.mark.parametrize("bad", [[float("nan"), 0.0], [float("inf"), 0.0], []])
def test_sparsemax_of_what_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="every one must be finite"):
        sparsemax(torch.tensor(bad))


def test_pairs_are_what_they_are_said_to_be():
    labels = torch.tensor([5] * 300 + [-1] * 20 + [2] * 3 + [9])
    pairs, same = sample_pairs(labels, 4001, 0)
    assert (len(pairs), len(same), int(same.sum())) == (4001, 4001, 2000)
    assert pairs.dtype == torch.int64
    assert bool((pairs[:, 0] != pairs[:, 1]).all())
    assert torch.equal(labels[pairs[:, 0]] == labels[pairs[:, 1]], same)
    own = labels[pairs[same, 0]]
    assert [int((own == label).sum()) for label in (5, -1, 2, 9)] == [666, 667, 667, 0]
    apart = labels[pairs[~same]]
    assert [int((apart[:, 0] == label).sum()) for label in (5, -1, 2, 9)] == [500, 501, 500, 500]
    for label in (5, -1, 2, 9):  # the other is any of three with the same chance: 167 and a deviation of 11 or so
        others = apart[apart[:, 0] == label, 1]
        assert all(abs(int((others == other).sum()) - 167) < 60 for other in {5, -1, 2, 9} - {label})
    twenty = pairs[same & (labels[pairs[:, 0]] == -1)].sort(dim=1).values
    assert len(twenty.unique(dim=0)) > 160  # of 190 that there are, drawn 667 times
    for number in range(320, 324):  # of a label with three rows each is as often either one of its pairs
        drawn = (pairs[same] == number).sum(dim=0).tolist()
        assert all(abs(count - (667 / 3 if number < 323 else 0)) < 50 for count in drawn)
    big = pairs[same & (labels[pairs[:, 0]] == 5)]
    assert len(big.unique()) > 280  # 1332 draws of 300 rows: four in five thousand stay away


def test_pairs_are_drawn_anew_by_the_seed_alone():
    labels = torch.arange(50) % 3
    first, again, other = (sample_pairs(labels, 40, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("labels", "count"), [([1, 1, 1], 4), ([1, 2, 3], 4), ([], 4), ([1, 1, 2], 1)])
def test_pairs_that_cannot_be_had_are_refused(labels, count):
    with pytest.raises(ValueError, match="ask for at least 2 pairs, with two labels"):
        sample_pairs(torch.tensor(labels, dtype=torch.long), count, 0)


@pytest.mark.parametrize("chunk", [1, 50, 1 << 22])
def test_grams_equal_the_double_sums(chunk, monkeypatch):
    monkeypatch.setattr(layer_pooling, "CHUNK_NUMBERS", chunk)
    layers = [(10**k * normal(k, 9, 4) + 5).to(dtype) for k, dtype in enumerate([torch.bfloat16, *[torch.float32] * 2])]
    pairs, _ = sample_pairs(torch.arange(9) % 2, 10, 0)
    grams, scales = difference_grams(layers, pairs)
    expected, expected_scales = oracles.difference_grams(layers, pairs.tolist())
    torch.testing.assert_close(grams, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(scales, torch.tensor(expected_scales, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(grams.diagonal(dim1=1, dim2=2).mean(dim=0), torch.ones(3).double())


def test_layers_that_say_nothing_are_refused_by_number():
    layers = [normal(k, 6, 4) for k in range(3)]
    pairs = torch.tensor([[0, 1], [4, 2]])
    flat = torch.ones(6, 4)
    flat[3] = 2  # no pair has that row
    with pytest.raises(ValueError, match="layer 1: the rows of every pair are the same"):
        difference_grams([layers[0], flat.double(), layers[2]], pairs)
    bad = layers[2].clone()
    bad[3], bad[4, 0] = float("nan"), float("inf")
    with pytest.raises(ValueError, match="layer 2, row 4 is not finite"):
        difference_grams([*layers[:2], bad], pairs)
    grams, _ = difference_grams([*layers[:2], bad], pairs[:1])
    assert bool(torch.isfinite(grams).all())


def test_shapes_of_layers_and_pairs():
    layers, pairs = [normal(k, 6, 4) for k in range(2)], torch.tensor([[0, 1], [4, 2]])
    grams_of = inspect.unwrap(difference_grams)
    with pytest.raises(ValueError, match="0 layers and 2 pairs"):
        grams_of([], pairs)
    with pytest.raises(ValueError, match="2 layers and 0 pairs"):
        grams_of(layers, pairs[:0])
    with pytest.raises(ValueError, match=r"layer 1 is \[6, 3\], layer 0 \[6, 4\]"):
        grams_of([layers[0], layers[1][:, :3]], pairs)
    for bad, told in (([[0, 6]], "0 to 6"), ([[-1, 2]], "-1 to 2")):
        with pytest.raises(ValueError, match=f"rows {told}; there are rows 0 to 5"):
            grams_of(layers, torch.tensor(bad))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 5), st.floats(0.2, 4))
def test_the_loss_equals_the_definition(seed, layers, margin):
    changes = normal(seed, 6, layers, 3)
    grams, same = changes @ changes.mT, torch.arange(6) % 3 == 0
    weights = sparsemax(normal(seed + 1, 2, 4, layers))
    found = separation_loss(weights, grams, same, margin)
    assert found.shape == (2, 4)
    expected = [[oracles.separation_loss(one, grams, same.tolist(), margin) for one in row] for row in weights]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def test_the_slope_is_right_and_finite_where_rows_meet():
    changes = normal(0, 5, 3, 4)
    same = torch.tensor([True, False, False, True, False])
    grams = changes @ changes.mT
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: separation_loss(w, grams, same, 6.0), (weights,))
    grams[1] = 0
    loss = separation_loss(weights, grams, same, 6.0)
    (slope,) = torch.autograd.grad(loss, weights)
    assert bool(torch.isfinite(slope).all())
    assert float(loss.detach()) == pytest.approx(
        oracles.separation_loss(weights.detach(), grams, same.tolist(), 6.0), rel=1e-10
    )


def planted(kinds, seed=0, labels=None):
    """Layers of noise, or with the label's first or second bit in a dimension of the layer's own."""
    labels = torch.arange(ROWS) % 2 if labels is None else labels
    layers = []
    for k, kind in enumerate(kinds):
        states = normal(seed + k, ROWS, WIDTH) * (1.0 if kind == "noise" else 0.05)
        if kind != "noise":
            states[:, k % WIDTH] += 3.0 * ((labels >> ("first", "second").index(kind)) & 1)
        layers.append(states)
    return layers, labels


def fitted(layers, labels, count=600):
    pairs, same = sample_pairs(labels, count, 0)
    grams, scales = difference_grams(layers, pairs)
    return fit_layer_weights(grams, same), scales


def test_the_layer_that_separates_gets_all_the_weight():
    layers, labels = planted(["noise", "noise", "first", "noise", "noise"])
    found, _ = fitted(layers, labels)
    assert found.weights.tolist() == [0, 0, 1, 0, 0]
    assert found.weights.dtype == torch.float64
    assert found.loss < 0.2 < 0.5 < found.uniform_loss


def test_layers_that_complement_one_another_share():
    """Four labels, two bits, a layer for each: either alone takes labels for one another."""
    layers, labels = planted(["noise", "first", "noise", "second"], labels=torch.arange(ROWS) % 4)
    found, _ = fitted(layers, labels)
    assert found.weights[[0, 2]].tolist() == [0, 0]
    assert 0.4 < float(found.weights[1]) < 0.6
    assert float(found.weights.sum()) == pytest.approx(1, abs=1e-12)


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(5)), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_order_norm_and_place_of_layers_do_not_matter(order, scale, move):
    layers, labels = planted(["noise", "first", "noise", "second", "noise"], labels=torch.arange(ROWS) % 4)
    found, scales = fitted(layers, labels, 200)
    changed = [scale * layers[order[0]] + move, *(layers[k] for k in order[1:])]
    again, other_scales = fitted(changed, labels, 200)
    torch.testing.assert_close(again.weights, found.weights[list(order)], rtol=0, atol=1e-5)
    assert again.loss == pytest.approx(found.loss, rel=1e-7)
    pooled = pool_layers(layers, found.weights, scales)
    torch.testing.assert_close(pool_layers(changed, again.weights, other_scales), pooled, rtol=0, atol=1e-3)


def hard_problem(seed, layers=3):
    """Few pairs, few dimensions, layers that cancel one another: what makes the loss least convex."""
    count, width = ((4, 1), (10, 2), (40, 5), (200, 30))[seed % 4]
    generator = torch.Generator().manual_seed(seed)
    changes = normal(seed, count, layers, width)
    changes *= torch.rand(count, layers, 1, generator=generator, dtype=torch.float64) ** 2
    if seed % 3 == 0:
        changes[:, 1] = -changes[:, 0] + 0.3 * changes[:, 1]
    same = torch.arange(count) < count // 2
    changes[same] *= (1.0, 0.3)[seed % 2]
    scales = changes.square().sum(dim=2).mean(dim=0).sqrt()
    changes /= scales[:, None]
    return changes @ changes.mT, same, (0.5, 1.0, 2.0, 5.0)[seed // 4 % 4]


def test_three_layers_get_the_weights_of_the_best_point_of_a_grid():
    grid = torch.tensor(oracles.simplex_grid(3, 60), dtype=torch.float64)
    for seed in range(96):
        grams, same, margin = hard_problem(seed)
        losses = separation_loss(grid, grams, same, margin)
        found = fit_layer_weights(grams, same, margin)
        assert found.loss <= float(losses.min()) + 1e-9
        # Between the points of the grid, 1/60 apart, the optimum is hardly lower.
        assert found.loss >= float(losses.min()) - 0.02 * float(losses.max())


@pytest.mark.parametrize("steps", [1, 3, 100])
def test_never_worse_than_uniform_or_any_layer_alone(steps):
    for seed in range(40):
        grams, same, margin = hard_problem(seed, layers=12)
        found = fit_layer_weights(grams, same, margin, steps)
        plain = torch.cat([torch.full((1, 12), 1 / 12, dtype=torch.float64), torch.eye(12, dtype=torch.float64)])
        losses = separation_loss(plain, grams, same, margin)
        assert found.uniform_loss == pytest.approx(float(losses[0]), rel=1e-12)
        assert found.loss <= float(losses.min()) + 1e-14
        assert found.loss == pytest.approx(float(separation_loss(found.weights, grams, same, margin)), rel=1e-12)
        assert float(found.weights.sum()) == pytest.approx(1, abs=1e-12)
        assert bool((found.weights >= 0).all())


def test_the_search_stands_still_at_an_optimum():
    """At the end no shift of weight from one layer to another lowers the loss."""
    for seed in range(16, 32):
        grams, same, margin = hard_problem(seed, layers=6)
        point = fit_layer_weights(grams, same, margin, steps=500).weights.requires_grad_()
        (slope,) = torch.autograd.grad(separation_loss(point, grams, same, margin), point)
        taken = point > 0
        lowest = slope[taken].min()
        assert float(slope[taken].max() - lowest) < 1e-4
        assert float(slope.min()) > float(lowest) - 1e-4


def test_the_fit_is_the_same_twice_and_in_half_the_digits():
    grams, same, margin = hard_problem(7, layers=5)
    first, again = (fit_layer_weights(grams, same, margin) for _ in range(2))
    assert torch.equal(first.weights, again.weights)
    assert fit_layer_weights(grams.float(), same, margin).loss == pytest.approx(first.loss, rel=1e-5)
    with torch.no_grad():
        assert torch.equal(fit_layer_weights(grams, same, margin).weights, first.weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"same": torch.ones(4, dtype=torch.bool)}, "pairs of one label and pairs of two"),
        ({"same": torch.zeros(4, dtype=torch.bool)}, "pairs of one label and pairs of two"),
        ({"same": torch.tensor([True, False])}, r"grams \[4, 2, 2\] for 2 pairs"),
        ({"grams": torch.ones(4, 2, 3)}, r"grams \[4, 2, 3\] for 4 pairs"),
        ({"grams": torch.full((4, 2, 2), float("nan"))}, "grams must be finite"),
        ({"margin": 0.0}, r"margin 0\.0 and 100 steps"),
        ({"margin": float("nan")}, "margin nan"),
        ({"margin": float("inf")}, "margin inf"),
        ({"steps": 0}, "0 steps"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    given_ = {
        "grams": torch.ones(4, 2, 2),
        "same": torch.tensor([True, True, False, False]),
        "margin": 2.0,
        "steps": 100,
    }
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(fit_layer_weights)(**(given_ | change))


def test_pooled_states_lie_as_far_apart_as_the_grams_say():
    layers, labels = [10.0**k * (normal(k, 30, 5) + 3) for k in range(4)], torch.arange(30) % 3
    pairs, _ = sample_pairs(labels, 50, 0)
    grams, scales = difference_grams(layers, pairs)
    weights = torch.tensor([0.5, 0.0, 0.2, 0.3], dtype=torch.float64)
    pooled = pool_layers(iter(layers), weights, scales)
    found = (pooled[pairs[:, 0]] - pooled[pairs[:, 1]]).square().sum(dim=1)
    expected = torch.einsum("l,plm,m->p", weights, grams, weights)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(pooled.mean(dim=0), torch.zeros(5).double(), rtol=0, atol=1e-12)


def test_a_far_offset_costs_pooled_states_no_digits():
    states = normal(0, 30, 5)
    halves = torch.tensor([0.5, 0.5], dtype=torch.float64)
    far = [states + 2.0**30, states]
    expected = states - states.mean(dim=0)
    torch.testing.assert_close(pool_layers(far, halves, torch.ones(2).double()), expected, rtol=0, atol=1e-6)
    coarse = (256 + states).bfloat16()
    found = pool_layers([coarse], torch.ones(1), torch.full((1,), 2.0))
    torch.testing.assert_close(found, (coarse.double() - coarse.double().mean(dim=0)) / 2, rtol=0, atol=0)


def test_layers_without_weight_are_not_looked_at():
    bad = torch.full((4, 2), float("nan"))
    good = normal(0, 4, 2)
    found = pool_layers([bad, good.float()], torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(found, good.float().double() - good.float().double().mean(dim=0), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("layers", "weights", "scales", "message"),
    [
        ([1.0, 1.0], [0.5, 0.5, 0.0], [1.0, 1.0, 1.0], "2 layers and 3 weights"),
        ([1.0, 1.0, 1.0], [0.5, 0.5], [1.0, 1.0], "3 layers and 2 weights"),
        ([1.0, 1.0], [0.5, 0.5], [1.0], "2 weights and 1 scales"),
        ([1.0, 1.0], [1.5, -0.5], [1.0, 1.0], "weights must be at least 0"),
        ([1.0, 1.0], [0.0, 0.0], [1.0, 1.0], "not all of them 0"),
        ([1.0, 1.0], [0.5, 0.5], [1.0, 0.0], "the scales where they are not 0 positive"),
        ([1.0, float("nan")], [0.5, 0.5], [1.0, 1.0], "layer 1, row 1 is not finite"),
        ([], [1.0], [1.0], "0 layers and 1 weights"),
    ],
)
def test_layers_that_cannot_be_pooled_are_refused(layers, weights, scales, message):
    states = [torch.tensor([[0.0, 1.0], [value, 2.0], [value, 3.0]]) for value in layers]
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(pool_layers)(states, torch.tensor(weights), torch.tensor(scales))


def test_layers_of_other_shapes_are_not_pooled():
    with pytest.raises(ValueError, match=r"layer 1 is \[4, 3\], others \[4, 2\]"):
        pool_layers([torch.ones(4, 2), torch.ones(4, 3)], torch.tensor([0.5, 0.5]), torch.ones(2))


def test_one_short_step_is_not_worse_than_a_layer_alone():
    """Distances of a thousandth: a step along so small a slope does not even come back to the layer itself."""
    layers, labels = planted(["noise", "noise", "first", "noise"])
    pairs, same = sample_pairs(labels, 100, 0)
    grams = 1e-6 * difference_grams(layers, pairs)[0]
    found = fit_layer_weights(grams, same, margin=2e-3, steps=1)
    assert found.weights.tolist() == [0, 0, 1, 0]
