import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage as sklearn_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from probing.probes.supervised import fit_lda, fit_logistic, fit_mass_mean, ledoit_wolf_shrinkage

FITS = [fit_logistic, fit_mass_mean, fit_lda]


def draw(rows=60, width=8, columns=3, seed=0, shift=1.0, scale=None):
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(rows, columns, generator=generator) < 0.5).float()
    states = torch.randn(rows, width, generator=generator)
    states = states * (torch.linspace(0.2, 3, width) if scale is None else scale) + 5
    states[:, 0] += shift * targets[:, 0]
    return states, targets


def cosine(left, right):
    return float(torch.nn.functional.cosine_similarity(left.double(), right.double(), dim=0))


@pytest.mark.parametrize(("rows", "width"), [(80, 6), (30, 100), (41, 40)])
@pytest.mark.parametrize("inverse_penalty", [0.01, 1.0, 100.0])
def test_logistic_is_that_of_scikit_learn(rows, width, inverse_penalty):
    states, targets = draw(rows, width)
    ours = fit_logistic(states, targets, inverse_penalty)
    centred = (states.double() - states.double().mean(dim=0)).numpy()
    scaled = centred / np.sqrt(centred.var(axis=0).mean())
    for column in range(3):
        theirs = LogisticRegression(C=inverse_penalty, tol=1e-10, max_iter=10_000)
        theirs.fit(scaled, targets[:, column].numpy())
        expected = theirs.decision_function(scaled)
        found = ours.logits(states.double())[:, column].numpy()
        assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max() + 1e-4


def test_logistic_ends_on_separable_states():
    states, targets = draw(shift=50.0)
    probe = fit_logistic(states, targets)
    assert ((probe.logits(states)[:, 0] > 0) == (targets[:, 0] > 0)).all()
    assert torch.isfinite(probe.weight).all()


def test_mass_mean_by_hand():
    states, targets = draw()
    probe = fit_mass_mean(states, targets)
    for column in range(3):
        wide, one = states.double(), targets[:, column] > 0
        direction = wide[one].mean(dim=0) - wide[~one].mean(dim=0)
        spots = wide @ direction
        high, low = spots[one].mean(), spots[~one].mean()
        variance = torch.cat([spots[one] - high, spots[~one] - low]).square().mean()
        expected = (spots - (high + low) / 2) * (high - low) / variance
        assert torch.allclose(probe.logits(wide)[:, column].double(), expected, atol=1e-4)


@pytest.mark.parametrize(("rows", "width"), [(80, 6), (30, 100)])
def test_lda_by_hand(rows, width):
    states, targets = draw(rows, width)
    probe = fit_lda(states, targets, 0.3)
    wide = states.double()
    centred = wide - wide.mean(dim=0)
    scatter = centred.T @ centred / rows
    shrunk = 0.7 * scatter + 0.3 * scatter.trace() / width * torch.eye(width, dtype=torch.float64)
    for column in range(3):
        one = targets[:, column] > 0
        direction = torch.linalg.solve(shrunk, wide[one].mean(dim=0) - wide[~one].mean(dim=0))
        assert cosine(probe.weight[:, column], direction) > 1 - 1e-6
        spots = wide @ direction
        assert float(probe.logits((wide[one].mean(dim=0) + wide[~one].mean(dim=0))[None] / 2)[0, column]) == (
            pytest.approx(0, abs=1e-3)
        )
        assert ((probe.logits(wide)[:, column] > 0) == (spots > (spots[one].mean() + spots[~one].mean()) / 2)).all()


def test_lda_has_the_direction_of_scikit_learn():
    """Theirs is of the scatter within classes, ours of the whole: the same direction."""
    states, targets = draw(rows=200)
    ours = fit_lda(states, targets, 0.0)
    for column in range(3):
        theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(states.numpy(), targets[:, column].numpy())
        assert cosine(ours.weight[:, column], torch.from_numpy(theirs.coef_[0])) > 1 - 1e-6


@pytest.mark.parametrize(("rows", "width"), [(80, 6), (30, 100), (2, 5)])
def test_shrinkage_is_that_of_scikit_learn(rows, width):
    states, _ = draw(rows, width)
    assert ledoit_wolf_shrinkage(states) == pytest.approx(sklearn_shrinkage(states.double().numpy()), abs=1e-9)


def test_shrinkage_in_a_basis_of_the_rows_is_the_same():
    states, targets = draw(30, 100)
    by_itself = fit_lda(states, targets)
    given = fit_lda(states, targets, max(ledoit_wolf_shrinkage(states), 1e-6))
    assert torch.allclose(by_itself.weight, given.weight, rtol=1e-4)


@pytest.mark.parametrize("fit", FITS)
def test_a_column_does_not_depend_on_the_others(fit):
    states, targets = draw(columns=5)
    together = fit(states, targets)
    for column in range(5):
        alone = fit(states, targets[:, column : column + 1])
        assert torch.allclose(together.weight[:, column], alone.weight[:, 0], rtol=1e-4, atol=1e-5)
        assert torch.allclose(together.bias[column], alone.bias[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fit", FITS)
def test_moving_and_turning_the_states_changes_no_answer(fit):
    states, targets = draw(width=6)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    moved = states @ turn * 7 - 100
    before, after = fit(states, targets).logits(states), fit(moved.double(), targets).logits(moved.double())
    assert torch.allclose(before.double(), after.double(), atol=2e-3)


@pytest.mark.parametrize("fit", FITS)
def test_a_far_away_mean_costs_no_digits(fit):
    states, targets = draw()
    far = states.double() + 1e6
    assert torch.allclose(fit(far, targets).logits(far), fit(states, targets).logits(states).double(), atol=1e-2)


def test_equal_means_say_nothing():
    states = torch.tensor([[1.0, 2], [-1, 3], [1, 2], [-1, 3]])
    targets = torch.tensor([[0.0], [0], [1], [1]])
    for fit in (fit_mass_mean, fit_lda):
        probe = fit(states, targets)
        assert probe.logits(states).abs().max() < 1e-6


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s, t: (s[:1], t[:1]), "at least two rows"),
        (lambda s, t: (s * float("nan"), t), "finite"),
        (lambda s, t: (s, t * 2), "0 or 1"),
        (lambda s, t: (s, torch.cat([t[:, :1], torch.ones_like(t[:, :1])], dim=1)), "column 1 .* one class"),
        (lambda s, t: (torch.ones_like(s), t), "constant"),
    ],
)
def test_bad_rows(fit, change, said):
    with pytest.raises(ValueError, match=said):
        fit(*change(*draw()))


def test_bad_options():
    with pytest.raises(ValueError, match="positive"):
        fit_logistic(*draw(), 0)
    with pytest.raises(ValueError, match="from 0 to 1"):
        fit_lda(*draw(), 1.5)
    with pytest.raises(ValueError, match="without shrinkage"):
        fit_lda(*draw(20, 40), 0.0)
