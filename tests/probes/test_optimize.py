import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probing.kernels.ccs_step import ccs_step
from probing.probes.optimize import _decreases, _Pairs, minimize


def quadratics(curvatures, target=1.0):
    """A bowl for every column, its curvatures one column of the argument."""
    return lambda at: ((curvatures * (at - target) ** 2).sum(dim=0) / 2, curvatures * (at - target))


def rosenbrock(at):
    x, y = at
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2, torch.stack([2 * (x - 1) - 400 * x * (y - x**2), 200 * (y - x**2)])


def counted(step):
    def inner(at):
        inner.asked.append(at.clone())
        return step(at)

    inner.asked = []
    return inner


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_quadratics_of_any_condition_are_solved_together(dtype, tolerance):
    curvatures = torch.logspace(0, 1, 12, dtype=dtype)[:, None] ** torch.linspace(-1, 3, 9, dtype=dtype)
    found = minimize(quadratics(curvatures), torch.zeros_like(curvatures), tolerance=tolerance)
    assert found.converged.all()
    assert found.parameters.dtype == dtype
    assert (curvatures * (found.parameters - 1)).abs().max() <= 1.01 * tolerance


def test_rosenbrock_from_many_starts(generator):
    start = 2 * torch.randn(2, 40, generator=generator, dtype=torch.float64)
    step = counted(rosenbrock)
    found = minimize(step, start)
    assert found.converged.all()
    assert torch.allclose(found.parameters, torch.ones(2, 40, dtype=torch.float64), atol=1e-5)
    assert len(step.asked) < 120, "the columns share evaluations, and do not wait for each other's line search"
    assert torch.equal(found.loss, rosenbrock(found.parameters)[0])


def test_rosenbrock_in_float32(generator):
    found = minimize(rosenbrock, 2 * torch.randn(2, 40, generator=generator), tolerance=1e-4)
    assert found.converged.all()
    assert torch.allclose(found.parameters, torch.ones(2, 40), atol=1e-3)


def logistic(states, targets, penalty):
    def step(at):
        logits = states @ at
        loss = (torch.nn.functional.softplus(logits) - targets * logits).sum(dim=0) + penalty / 2 * at.square().sum(0)
        return loss, states.T @ (torch.sigmoid(logits) - targets) + penalty * at

    return step


def test_logistic_regression_equals_scipy(generator):
    states = torch.randn(60, 7, generator=generator, dtype=torch.float64) * torch.logspace(0, 1.5, 7)
    targets = torch.randint(0, 2, (60, 4), generator=generator).double()
    found = minimize(logistic(states, targets, 0.1), torch.zeros(7, 4, dtype=torch.float64))
    assert found.converged.all()
    for column in range(4):
        alone = logistic(states, targets[:, column : column + 1], 0.1)

        def flat(at, alone=alone):
            loss, gradient = alone(torch.tensor(at)[:, None])
            return loss.item(), gradient[:, 0].numpy()

        expected = scipy.optimize.minimize(flat, torch.zeros(7).double().numpy(), jac=True, options={"gtol": 1e-9})
        assert found.parameters[:, column].tolist() == pytest.approx(expected.x.tolist(), abs=1e-6)


def test_contrast_consistent_probes_find_the_planted_feature(generator):
    """Not convex, with a kink where the smaller probability changes."""
    truth = torch.randint(0, 2, (200,), generator=generator) * 2.0 - 1
    states = torch.randn(1, 2, 200, 6, generator=generator)
    states[0, 0, :, 2] += 3 * truth
    states[0, 1, :, 2] -= 3 * truth
    row_weights, centers = torch.full((200, 1), 1 / 200), states.mean(dim=2)[:, :, None]

    def step(at):
        found = ccs_step(states, centers, row_weights, at[:-1].T[None].contiguous(), at[None, -1].contiguous())
        return found.loss[0], torch.cat([found.weight[0].T, found.bias])

    start = torch.randn(7, 10, generator=generator)
    found = minimize(step, start, tolerance=1e-5)
    assert found.converged.all()
    assert (found.loss < step(start)[0]).all()
    best = found.parameters[:-1, found.loss.argmin()]
    assert abs(best[2]) > 0.9 * best.norm()


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=12).filter(lambda v: len(v) % 2 == 0), st.integers(0, 5))
def test_a_column_does_not_depend_on_the_others(values, which):
    start = torch.tensor(values, dtype=torch.float64).view(2, -1)
    which %= start.shape[1]
    for iterations in (10, 200):  # under way and at the end
        together = minimize(rosenbrock, start, iterations)
        alone = minimize(rosenbrock, start[:, which : which + 1], iterations)
        assert torch.allclose(together.parameters[:, which], alone.parameters[:, 0], atol=1e-6)
        assert together.converged[which] == alone.converged[0]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(1, 5), st.floats(-100, 100))
def test_any_quadratic_reaches_its_minimum(curvatures, columns, target):
    bowl = torch.tensor(curvatures, dtype=torch.float64)[:, None].expand(-1, columns)
    found = minimize(quadratics(bowl, target), torch.zeros(len(curvatures), columns, dtype=torch.float64))
    assert found.converged.all()
    assert (bowl * (found.parameters - target)).abs().max() <= 1e-6


def test_finished_columns_stay_where_they_are():
    easy, hard = torch.ones(2, 1, dtype=torch.float64), torch.tensor([[0.3], [-0.2]], dtype=torch.float64)

    def step(at):
        bowl = quadratics(torch.tensor([[1.0], [3.0]], dtype=torch.float64))(at[:, :1])
        valley = rosenbrock(at[:, 1:])
        return torch.cat([bowl[0], valley[0]]), torch.cat([bowl[1], valley[1]], dim=1)

    step = counted(step)
    found = minimize(step, torch.cat([easy - 0.5, hard], dim=1))
    assert found.converged.all()
    last = [torch.equal(at[:, 0], found.parameters[:, 0]) for at in step.asked]
    assert last.index(True) < len(last) / 2
    assert all(last[last.index(True) :])


def test_a_start_at_the_minimum_stays_and_the_given_start_is_left_alone():
    start = torch.tensor([[1.0, 0.0]])
    step = counted(quadratics(torch.ones(1, 2)))
    found = minimize(step, start)
    assert found.parameters[0].tolist() == pytest.approx([1, 1])
    assert start.tolist() == [[1, 0]]
    assert minimize(step, start, iterations=0).parameters.data_ptr() != start.data_ptr()
    assert all(at[0, 0] == 1 for at in step.asked)


def test_a_column_that_starts_at_nan_stops_alone():
    def step(at):
        loss, gradient = rosenbrock(at)
        return torch.where(at[0] > 5, torch.nan, loss), gradient.masked_fill(at[0] > 5, 0)

    start = torch.tensor([[9.0, 0.5, -1.0], [0.0, 0.5, 1.0]], dtype=torch.float64)
    found = minimize(step, start)
    assert found.converged.tolist() == [False, True, True]
    assert torch.equal(found.parameters[:, 0], start[:, 0])
    assert torch.allclose(found.parameters[:, 1:], torch.ones(2, 2, dtype=torch.float64), atol=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_steps_into_what_is_not_finite_are_taken_back(bad, where):
    """The minimum of x - log x is 1; the first step from 0.1 goes to 1.1, where there is nothing."""

    def step(at):
        loss, gradient = (at - at.log())[0], 1 - 1 / at
        outside = (at[0] <= 0) | (at[0] > 1.05)
        if where == "loss":
            return torch.where(outside, bad, loss), gradient.masked_fill(outside, -1.0)
        return torch.where(outside, -1e9, loss), gradient.masked_fill(outside, bad)

    found = minimize(step, torch.tensor([[0.1, 1.01, 0.3]], dtype=torch.float64))
    assert found.converged.all()
    assert found.parameters[0].tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_negative_curvature_is_left_behind():
    """Close to the top of a cosine the gradient grows along the way: no such pair may enter the history."""
    found = minimize(lambda at: (at.cos()[0], -at.sin()), torch.tensor([[1e-4, -1e-3, 0.5]], dtype=torch.float64))
    assert found.converged.all()
    assert found.loss.tolist() == pytest.approx([-1, -1, -1])


def test_a_loss_in_small_units_takes_long_steps():
    """Where the curvature is negative, no pair says how long a step should be."""
    step = counted(lambda at: (1e-4 * at.cos()[0], -1e-4 * at.sin()))
    found = minimize(step, torch.tensor([[1e-3, 0.5]], dtype=torch.float64), tolerance=1e-10)
    assert found.converged.all()
    assert len(step.asked) < 60


def test_only_pairs_of_positive_curvature_are_remembered():
    pairs = _Pairs(2, torch.zeros(1, 3))
    step, change = torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[4.0, -4.0, 4.0]])
    pairs.add(step, change, torch.tensor([True, True, False]))
    assert pairs.direction(torch.ones(1, 3)).tolist() == [[-0.25, -1, -1]]


def test_within_rounding_the_slope_decides():
    """The loss seems to stay, to rise a little, to rise much; last, the slope turns to more than it was."""
    loss, slope, length = torch.full((4,), 1e3), torch.full((4,), -1e-6), torch.ones(4)
    trial_loss = torch.tensor([1e3, 1e3 + 1e-4, 1e3 + 1, 1e3 + 1e-4])
    trial_slope = torch.tensor([5e-7, 5e-7, 5e-7, 2e-6])
    assert _decreases(loss, slope, length, trial_loss, trial_slope).tolist() == [True, True, False, False]


def test_a_kink_ends_the_search_without_convergence():
    def step(at):
        return torch.maximum(2 * at - 2, 1 - at)[0], torch.where(at > 1, 2.0, -1.0).to(at)

    step = counted(step)
    found = minimize(step, torch.tensor([[0.3, 7.0]], dtype=torch.float64), iterations=1000)
    assert not found.converged.any()
    assert found.loss.max() < 1e-9
    assert len(step.asked) < 300


def test_a_loss_without_a_minimum_ends_and_is_not_called_converged():
    step = counted(lambda at: (-at[0], -torch.ones_like(at)))
    found = minimize(step, torch.zeros(1, 3), iterations=20)
    assert not found.converged.any()
    assert len(step.asked) <= 21


def test_evaluations_are_limited_and_no_history_is_refused():
    step = counted(rosenbrock)
    found = minimize(step, torch.tensor([[-1.2], [1.0]], dtype=torch.float64), iterations=3)
    assert len(step.asked) == 4
    assert not found.converged.any()
    assert found.loss.item() < rosenbrock(torch.tensor([[-1.2], [1.0]]))[0].item()
    with pytest.raises(ValueError, match="history of 0"):
        minimize(step, torch.zeros(2, 1), history=0)


def test_no_columns_are_no_problem():
    assert minimize(rosenbrock, torch.zeros(2, 0)).parameters.shape == (2, 0)


def test_the_history_saves_evaluations():
    curvatures = torch.logspace(0, 3, 20, dtype=torch.float64)[:, None]
    needed = []
    for history in (1, 20):
        step = counted(quadratics(curvatures))
        assert minimize(step, torch.zeros_like(curvatures), history=history, iterations=1000).converged.all()
        needed.append(len(step.asked))
    assert needed[1] < 0.6 * needed[0]
