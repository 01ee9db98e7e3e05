import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from probing.errors import KernelUnavailable
from probing.kernels.ccs_step import LOSSES, ccs_gradient, ccs_gradient_in_place, ccs_gradient_reference, ccs_step

SHAPES = [(1, 1, 2, 1), (2, 3, 7, 1), (3, 4, 5, 2), (1, 6, 33, 3), (2, 5, 1, 5)]  # entries, probes, rows, splits
IN_TORCH = [ccs_gradient_reference, ccs_gradient_in_place, ccs_gradient]


def row_loss(yes, no, loss, truth, supervision):
    """The loss of each row, from torch's own functions."""
    p, q = torch.sigmoid(yes), torch.sigmoid(no)
    least = torch.minimum(p, q) if loss == "original" else torch.stack([p, q, 1 - p, 1 - q]).amin(dim=0)
    value = (p - (1 - q)) ** 2 + least**2
    for logits, target in ((yes, truth), (no, 1 - truth)):
        value = value + supervision * binary_cross_entropy_with_logits(logits, target, reduction="none")
    return value


def oracle(logits, row_weights, loss, targets, supervision):
    """One probe of one entry after the other, by autograd in float64: losses and gradients."""
    entries, probes, _, rows = logits.shape
    truth = torch.zeros(rows).double() if targets is None else targets.double()
    losses, gradients = torch.empty(entries, probes).double(), torch.empty(logits.shape).double()
    for entry in range(entries):
        for probe in range(probes):
            share = row_weights.double()[:, probe * row_weights.shape[1] // probes]
            leaf = logits[entry, probe].double().requires_grad_()
            value = (row_loss(*leaf, loss, truth, 0.0 if targets is None else supervision) * share).sum()
            value.backward()
            losses[entry, probe], gradients[entry, probe] = value.detach(), leaf.grad
    return losses, gradients


def oracle_step(states, centers, row_weights, weight, bias, loss, targets, supervision):
    """The same for whole probes: every split trained on states of its own, centred beforehand."""
    entries, probes, _ = weight.shape
    truth = torch.zeros(states.shape[2]).double() if targets is None else targets.double()
    found = torch.empty(entries, probes), torch.empty(weight.shape), torch.empty(entries, probes)
    value, by_weight, by_bias = (values.double() for values in found)
    for entry in range(entries):
        for probe in range(probes):
            split = probe * row_weights.shape[1] // probes
            centered = states[entry].double() - centers[entry, :, split, None].double()
            w = weight[entry, probe].double().requires_grad_()
            b = bias[entry, probe].double().requires_grad_()
            rows = row_loss(*(centered @ w + b), loss, truth, 0.0 if targets is None else supervision)
            total = (rows * row_weights[:, split].double()).sum()
            total.backward()
            value[entry, probe], by_weight[entry, probe], by_bias[entry, probe] = total.detach(), w.grad, b.grad
    return value, by_weight, by_bias


def shares_of(rows, splits, generator):
    """Weights of rows that add up to one in each split; one in three is left out, but never all."""
    weights = torch.rand(rows, splits, generator=generator) + 0.1
    weights[1::3] = 0
    return weights / weights.sum(dim=0)


def inputs(shape, generator, scale=2.0):
    entries, probes, rows, splits = shape
    logits = torch.randn(entries, probes, 2, rows, generator=generator) * scale
    return logits, shares_of(rows, splits, generator), (torch.rand(rows, generator=generator) < 0.5).float()


@pytest.mark.parametrize("supervision", [None, 0.0, 0.7])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gradient", IN_TORCH)
def test_equals_autograd(generator, gradient, shape, loss, supervision):
    logits, row_weights, targets = inputs(shape, generator)
    targets, weight = (None, 0.7) if supervision is None else (targets, supervision)
    exact = oracle(logits, row_weights, loss, targets, weight)
    value = gradient(logits, row_weights, loss, targets, weight)
    torch.testing.assert_close(value.double(), exact[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(logits.double(), exact[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("gradient", IN_TORCH)
def test_float64_is_computed_in_float64(generator, gradient, loss):
    logits, row_weights, targets = (values.double() for values in inputs((2, 4, 9, 2), generator))
    exact = oracle(logits, row_weights, loss, targets, 0.3)
    value = gradient(logits, row_weights, loss, targets, 0.3)
    torch.testing.assert_close(value, exact[0], rtol=0, atol=1e-13)
    torch.testing.assert_close(logits, exact[1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("gradient", IN_TORCH)
def test_huge_logits(generator, gradient, loss):
    """Probabilities of 0 and 1, and cross-entropies of up to 200, without a NaN or an infinity."""
    sides = torch.tensor([-100.0, -30.0, -1.0, 1.0, 30.0, 100.0])
    logits = torch.cartesian_prod(sides, sides + 0.5).T.contiguous()[None, None]
    row_weights, targets = torch.full((36, 1), 1 / 36), (torch.arange(36) % 2).float()
    for supervision in (0.0, 1.0):
        exact, found = oracle(logits, row_weights, loss, targets, supervision), logits.clone()
        value = gradient(found, row_weights, loss, targets, supervision)
        torch.testing.assert_close(value.double(), exact[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.double(), exact[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("gradient", IN_TORCH)
def test_forms_that_are_both_least_share_the_gradient(gradient):
    """Equal logits: autograd halves as well. Opposite ones: autograd does as its rounding falls, we always halve."""
    equal = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0]).expand(1, 1, 2, 5).contiguous()
    row_weights = torch.ones(5, 1)
    for loss in LOSSES:
        exact, found = oracle(equal, row_weights, loss, None, 0.0), equal.clone()
        value = gradient(found, row_weights, loss)
        torch.testing.assert_close(value.double(), exact[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(found.double(), exact[1], rtol=0, atol=1e-6)
    opposite = equal * torch.tensor([1.0, -1.0])[:, None]
    gradient(opposite, row_weights, "symmetric")
    torch.testing.assert_close(opposite[:, :, 0], -opposite[:, :, 1])
    p = torch.sigmoid(torch.tensor([-3.0, -0.5]))
    torch.testing.assert_close(opposite[0, 0, 0, :2], p.square() * (1 - p))


@pytest.mark.parametrize("gradient", IN_TORCH)
def test_logits_whose_probabilities_round_to_the_same(gradient):
    """The smaller logit is the least, though float32 has one probability for both."""
    yes = torch.tensor([8.0])
    no = torch.nextafter(yes, torch.tensor([9.0]))
    assert torch.sigmoid(yes) == torch.sigmoid(no)
    logits = torch.stack((yes, no))[None, None]
    exact = oracle(logits, torch.ones(1, 1), "original", None, 0.0)[1]
    gradient(logits, torch.ones(1, 1))
    torch.testing.assert_close(logits.double(), exact, rtol=0, atol=1e-6)
    assert float(exact[0, 0, 0] - exact[0, 0, 1]) > 1e-4


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("gradient", IN_TORCH)
def test_nan_makes_the_loss_of_its_probe_nan_and_no_other(generator, gradient, loss):
    logits, row_weights, targets = inputs((2, 3, 9, 1), generator)
    logits[0, 1, 0, 3] = logits[1, 2, 1, 8] = float("nan")
    value = gradient(logits, row_weights, loss, targets, 0.5)
    assert value.isnan().tolist() == [[False, True, False], [False, False, True]]
    assert logits.isnan().nonzero()[:, [0, 1, 3]].unique(dim=0).tolist() == [[0, 1, 3], [1, 2, 8]]


def test_a_split_without_rows(generator):
    logits, row_weights, targets = inputs((2, 4, 9, 2), generator)
    row_weights[:, 1] = 0
    exact = oracle(logits, row_weights, "original", targets, 0.5)
    for gradient in IN_TORCH:
        found = logits.clone()
        value = gradient(found, row_weights, "original", targets, 0.5)
        assert (value[:, 2:] == 0).all()
        assert (found[:, 2:] == 0).all()
        torch.testing.assert_close(value.double(), exact[0], rtol=0, atol=1e-6)


def step_inputs(generator, entries=2, rows=11, width=6, probes=6, splits=3):
    return (
        torch.randn(entries, 2, rows, width, generator=generator),
        torch.randn(entries, 2, splits, width, generator=generator),
        shares_of(rows, splits, generator),
        torch.randn(entries, probes, width, generator=generator),
        torch.randn(entries, probes, generator=generator),
    )


@pytest.mark.parametrize("supervision", [None, 0.0, 0.7])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "sizes",
    [{}, {"probes": 3}, {"splits": 1}, {"entries": 1, "probes": 1, "splits": 1}, {"rows": 1, "width": 1}],
    ids=str,
)
def test_a_step_equals_autograd_on_states_centred_beforehand(generator, sizes, loss, supervision):
    tensors = step_inputs(generator, **sizes)
    targets = None if supervision is None else (torch.rand(tensors[0].shape[2], generator=generator) < 0.5).float()
    exact = oracle_step(*tensors, loss, targets, supervision or 0.0)
    before = [values.clone() for values in tensors]
    found = ccs_step(*tensors, loss, targets, supervision or 0.0)
    for value, expected in zip(found, exact, strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=2e-6)
        assert value.is_contiguous()
    assert all(torch.equal(values, others) for values, others in zip(tensors, before, strict=True))


def test_tensors_laid_out_otherwise(generator):
    tensors = step_inputs(generator)
    found = ccs_step(*tensors)
    strided = [values.transpose(0, -1).contiguous().transpose(0, -1) for values in tensors]
    assert not any(values.is_contiguous() for values in strided)
    for value, expected in zip(ccs_step(*strided), found, strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
        assert value.is_contiguous()


def test_a_probe_feels_no_other(generator):
    states, centers, row_weights, weight, bias = step_inputs(generator)
    together = ccs_step(states, centers, row_weights, weight, bias)
    for split in range(3):
        own = slice(2 * split, 2 * split + 2)
        alone = ccs_step(
            states[1:],
            centers[1:, :, split : split + 1],
            row_weights[:, split : split + 1],
            weight[1:, own],
            bias[1:, own],
        )
        for value, every in zip(alone, together, strict=True):
            torch.testing.assert_close(value, every[1:, own], rtol=0, atol=1e-6)


def test_errors(generator):
    tensors = step_inputs(generator)
    logits, row_weights, _ = inputs((2, 4, 9, 2), generator)
    with pytest.raises(ValueError, match="the loss is one of original, symmetric, not 'other'"):
        ccs_gradient.__wrapped__(logits, row_weights, "other")
    with pytest.raises(ValueError, match="4 probes cannot be shared out to 3 splits"):
        ccs_gradient(logits, torch.ones(9, 3))
    with pytest.raises(ValueError, match="5 probes cannot be shared out to 3 splits"):
        ccs_step(*tensors[:3], tensors[3][:, :5], tensors[4][:, :5])
    with pytest.raises(ValueError, match="have to be contiguous"):
        ccs_gradient(torch.zeros(2, 4, 9, 2).transpose(2, 3), row_weights)
    with pytest.raises(ValueError, match="impl is one of"):
        ccs_gradient(logits, row_weights, impl="cuda")
    with pytest.raises(
        KernelUnavailable, match="the Triton form of ccs_gradient cannot run: the tensors are on the cp"
    ):
        ccs_step(*tensors, impl="triton")
