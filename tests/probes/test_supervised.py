import math

import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from probing.probes import supervised
from probing.probes.supervised import LinearProbe, fit_lda, fit_logistic, fit_mass_mean

FITS = [fit_logistic, fit_mass_mean, fit_lda]


def planted(generator, rows, width, columns=3, gap=2.0, dtype=torch.float64):
    """States with uneven features about an uneven mean; the first labeling is planted, the others permute it."""
    truth = (torch.rand(rows, generator=generator) < 0.4).to(dtype)
    truth[:2] = torch.tensor([0.0, 1.0])
    states = torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype)
    states = states * torch.linspace(0.2, 3, width, dtype=dtype) + torch.linspace(-5, 20, width, dtype=dtype)
    states[:, 0] += gap * truth
    shuffled = [truth[torch.randperm(rows, generator=generator)] for _ in range(columns - 1)]
    return states, torch.stack([truth, *shuffled], dim=1)


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def oracle_along(states, target, direction):
    """The log-odds of two Gaussians of one variance, as they are written."""
    projected = states @ direction
    means = [projected[target == value].mean() for value in (0, 1)]
    variance = sum(((projected[target == value] - means[value]) ** 2).sum() for value in (0, 1)) / len(states)
    variance = max(variance, 1e-6 * (means[1] - means[0]) ** 2)
    return ((projected - means[0]) ** 2 - (projected - means[1]) ** 2) / (2 * variance)


def oracle_lda_direction(states, target, shrinkage):
    width = states.shape[1]
    centred = states - states.mean(0)
    total = sum(torch.outer(row, row) for row in centred) / len(states)
    sigma = (1 - shrinkage) * total + shrinkage * total.diagonal().mean() * torch.eye(width, dtype=states.dtype)
    return torch.linalg.solve(sigma, states[target == 1].mean(0) - states[target == 0].mean(0))


@pytest.mark.parametrize("inverse_penalty", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(("rows", "width", "gap"), [(150, 8, 0.5), (60, 20, 30.0), (30, 80, 2.0)])
def test_logistic_regression_equals_scikit_learn(generator, rows, width, gap, inverse_penalty):
    """Overlapping, separable by one feature, and separable because there are more features than rows."""
    states, targets = planted(generator, rows, width, gap=gap)
    found = fit_logistic(states, targets, inverse_penalty).logits(states)
    centred = states - states.mean(0)
    scaled = (centred / math.sqrt(sum(column.square().mean() for column in centred.T) / width)).numpy()
    for column in range(targets.shape[1]):
        theirs = LogisticRegression(C=inverse_penalty, tol=1e-10, max_iter=100_000)
        expected = theirs.fit(scaled, targets[:, column].numpy()).decision_function(scaled)
        assert relative(found[:, column], torch.from_numpy(expected)) < 1e-4


def test_logistic_regression_is_quick_whatever_the_spectrum(generator, monkeypatch):
    """A condition of 1e10: without coordinates of its own it takes thousands of steps."""
    states, targets = planted(generator, 200, 40)
    states = states * torch.logspace(-3, 2, 40, dtype=torch.float64)
    monkeypatch.setattr(supervised, "ITERATIONS", 80)
    found = fit_logistic(states, targets)  # a column that has not converged would give a warning
    centred = states - states.mean(0)
    scaled = centred / centred.square().mean().sqrt()
    weight = found.weight * centred.square().mean().sqrt()
    errors = targets - torch.sigmoid(found.logits(states))
    assert torch.allclose(scaled.T @ errors, weight, atol=1e-4)
    assert torch.allclose(errors.sum(0), torch.zeros(3, dtype=torch.float64), atol=1e-4)


def test_a_fit_that_has_not_converged_is_told(generator, monkeypatch):
    monkeypatch.setattr(supervised, "ITERATIONS", 2)
    with pytest.warns(UserWarning, match="3 of 3 columns did not converge"):
        fit_logistic(*planted(generator, 60, 5))


@pytest.mark.parametrize("rows", [40, 9])
def test_mass_mean_equals_the_formula(generator, rows):
    states, targets = planted(generator, rows, 12)
    probe = fit_mass_mean(states, targets)
    for column, target in enumerate(targets.T):
        direction = states[target == 1].mean(0) - states[target == 0].mean(0)
        assert relative(probe.logits(states)[:, column], oracle_along(states, target, direction)) < 1e-9
        assert torch.cosine_similarity(probe.weight[:, column], direction, dim=0) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("shrinkage", [0.01, 0.4, 1.0, None])
@pytest.mark.parametrize(("rows", "width"), [(60, 7), (20, 20), (15, 40)])
def test_lda_equals_the_formula(generator, rows, width, shrinkage):
    states, targets = planted(generator, rows, width)
    probe = fit_lda(states, targets, shrinkage)
    amount = ledoit_wolf_shrinkage(states.numpy()) if shrinkage is None else shrinkage
    for column, target in enumerate(targets.T):
        direction = oracle_lda_direction(states, target, amount)
        assert relative(probe.logits(states)[:, column], oracle_along(states, target, direction)) < 1e-7
        assert torch.cosine_similarity(probe.weight[:, column], direction, dim=0) == pytest.approx(1, abs=1e-9)


def test_lda_has_the_direction_of_scikit_learn(generator):
    states, targets = planted(generator, 300, 6)
    probe = fit_lda(states, targets, 0.0)
    for column, target in enumerate(targets.T):
        theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.0).fit(states.numpy(), target.numpy())
        cosine = torch.cosine_similarity(probe.weight[:, column], torch.from_numpy(theirs.coef_[0]), dim=0)
        assert cosine == pytest.approx(1, abs=1e-9)


def test_lda_with_full_shrinkage_is_mass_mean(generator):
    states, targets = planted(generator, 50, 9)
    assert torch.allclose(fit_lda(states, targets, 1.0).weight, fit_mass_mean(states, targets).weight)


@pytest.mark.parametrize("width", [1, 2])
def test_the_shrinkage_of_one_and_two_features_is_scikit_learns(generator, width):
    states, targets = planted(generator, 12, width)
    amount = float(ledoit_wolf_shrinkage(states.numpy()))
    assert relative(fit_lda(states, targets).weight, fit_lda(states, targets, amount).weight) < 1e-5


def test_shrinkage_does_not_exceed_one(generator):
    """Nothing but noise tells the scatter from a multiple of the identity."""
    states = torch.randn(100, 2, generator=generator, dtype=torch.float64)
    targets = (torch.arange(100)[:, None] % 2).double()
    assert ledoit_wolf_shrinkage(states.numpy()) == 1
    assert torch.allclose(fit_lda(states, targets).weight, fit_mass_mean(states, targets).weight)


@pytest.mark.parametrize("fit", FITS)
def test_a_column_does_not_depend_on_the_others(generator, fit):
    states, targets = planted(generator, 40, 10, columns=5)
    together = fit(states, targets)
    for column in range(5):
        alone = fit(states, targets[:, column : column + 1])
        assert torch.allclose(together.weight[:, column], alone.weight[:, 0], rtol=1e-5, atol=1e-7)
        assert together.bias[column].item() == pytest.approx(alone.bias.item(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("fit", FITS)
def test_the_opposite_labels_give_the_opposite_probe(generator, fit):
    states, targets = planted(generator, 40, 10)
    probe, opposite = fit(states, targets), fit(states, 1 - targets)
    assert torch.allclose(probe.weight, -opposite.weight, rtol=1e-5, atol=1e-7)
    assert torch.allclose(probe.bias, -opposite.bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fit", FITS)
def test_shift_scale_and_rotation_of_the_states_change_no_logit(generator, fit):
    states, targets = planted(generator, 40, 6)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    other = 7 * states @ turn - 30
    assert relative(fit(other, targets).logits(other), fit(states, targets).logits(states)) < 1e-5


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("width", [12, 90])
def test_float32_with_a_massive_feature_costs_few_digits(generator, fit, width):
    states, targets = planted(generator, 50, width, dtype=torch.float32)
    states[:, 3] = 3000 + states[:, 3]
    probe = fit(states, targets)
    assert probe.weight.dtype == probe.bias.dtype == torch.float32
    exact = fit(states.double(), targets.double()).logits(states.double())
    assert relative(probe.logits(states), exact) < 1e-3


@pytest.mark.parametrize("fit", FITS)
def test_half_precision_states_give_a_float32_probe(generator, fit):
    states, targets = planted(generator, 50, 6, dtype=torch.float32)
    half = states.bfloat16()
    probe = fit(half, targets)
    assert probe.weight.dtype == torch.float32
    assert torch.equal(probe.weight, fit(half.float(), targets).weight)
    assert probe.logits(half).dtype == torch.float32


@pytest.mark.parametrize("fit", FITS)
def test_the_planted_feature_is_found_and_noise_is_not(generator, fit):
    states, targets = planted(generator, 400, 8)
    probe = fit(states[:200], targets[:200])
    agreement = ((probe.logits(states[200:]) > 0) == targets[200:].bool()).float().mean(dim=0)
    assert agreement[0] > 0.75
    assert agreement[1:].max() < 0.65


@pytest.mark.parametrize("fit", [fit_mass_mean, fit_lda])
@pytest.mark.parametrize("width", [2, 9])
def test_equal_means_give_a_probe_of_zero(fit, width):
    """0.1 + 0.2 + 0.3 in another order is another number: means that differ by rounding are equal."""
    values = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.2, 0.1], dtype=torch.float64)
    states = torch.stack([values, 1000.1 - values] + [values] * (width - 2), dim=1)
    targets = torch.tensor([[0.0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]], dtype=torch.float64).T.contiguous()
    probe = fit(states, targets, *([0.5] if fit is fit_lda else []))
    assert torch.equal(probe.weight[:, 0], torch.zeros(width, dtype=torch.float64))
    assert probe.bias[0] == 0
    assert probe.weight[:, 1].abs().max() > 0
    assert probe.logits(states).isfinite().all()


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("width", [1, 2, 30])
def test_two_rows_are_told_apart_by_finite_logits(generator, fit, width):
    states = torch.randn(2, width, generator=generator)
    logits = fit(states, torch.tensor([[0.0, 1.0], [1.0, 0.0]])).logits(states)
    assert logits.isfinite().all()
    assert torch.equal(logits > 0, torch.tensor([[False, True], [True, False]]))


def test_logits_keep_leading_axes(generator):
    probe = LinearProbe(torch.randn(4, 3, generator=generator), torch.randn(3, generator=generator))
    states = torch.randn(2, 5, 6, 4, generator=generator)
    assert probe.logits(states).shape == (2, 5, 6, 3)
    assert torch.allclose(probe.logits(states)[1, 2, 3], states[1, 2, 3] @ probe.weight + probe.bias)


@pytest.mark.parametrize("fit", FITS)
def test_what_cannot_be_fitted_is_refused(generator, fit):
    states, targets = planted(generator, 10, 4)
    for value in (0.0, 1.0):
        single = targets.clone()
        single[:, 1:] = value
        with pytest.raises(ValueError, match="one class only in column 1, 2 of"):
            fit(states, single)
    for value in (0.5, -1.0, torch.nan):
        soft = targets.clone()
        soft[3, 1] = value
        with pytest.raises(ValueError, match="0 or 1"):
            fit(states, soft)
    for value in (torch.nan, torch.inf):
        broken = states.clone()
        broken[2, 2] = value
        with pytest.raises(ValueError, match="not finite"):
            fit(broken, targets)
    for rows in (0, 1):
        with pytest.raises(ValueError, match=f"{rows} rows"):
            fit(states[:rows], targets[:rows])
    with pytest.raises(ValueError, match="constant"):
        fit(states[:1].expand(10, -1) / 3, targets)


def test_settings_out_of_range_are_refused(generator):
    states, targets = planted(generator, 10, 4)
    for value in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="inverse_penalty"):
            fit_logistic(states, targets, value)
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="from 0 to 1"):
            fit_lda(states, targets, value)
    with pytest.raises(ValueError, match="4 rows of 4 features"):
        fit_lda(states[:4], targets[:4] * 0 + torch.tensor([[0.0], [1], [0], [1]]), 0.0)
    with pytest.raises(ValueError, match="depend on each other"):
        fit_lda(torch.cat([states, torch.zeros(10, 1)], dim=1), targets, 0.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("width", [12, 90])
def test_on_a_card_nothing_else_comes_out(generator, fit, width):
    states, targets = planted(generator, 50, width)
    probe = fit(states.cuda(), targets.cuda())
    assert probe.weight.is_cuda
    assert relative(probe.logits(states.cuda()).cpu(), fit(states, targets).logits(states)) < 1e-5
