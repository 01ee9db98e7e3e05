"""Linear probes for known labels: logistic regression, mass-mean, LDA; for many labelings of the same rows at once."""

import math
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probing.probes.optimize import minimize

ITERATIONS = 1000
TOLERANCE = 1e-8
"""Largest gradient of the mean loss, in coordinates of unit curvature, at which logistic regression has converged."""
SAME_MEAN = 1e-12
"""Means whose distance is less than this part of the largest state differ by rounding alone."""
LEAST_SPREAD = 1e-6
"""Least variance along a direction, as a part of the squared distance of the means: keeps logits finite."""
LEAST_SHRINKAGE = 1e-6
"""Lower limit of an estimated shrinkage: on two rows the estimate is zero, and the scatter has no inverse."""


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Many linear probes of the same states: ``logits = states @ weight + bias``.

    Attributes:
        weight: weight vector of every column, in units of the states.
        bias: bias of every column.
    """

    weight: Float[Tensor, "width column"]
    bias: Float[Tensor, " column"]

    def logits(self, states: Float[Tensor, "*axes row width"]) -> Float[Tensor, "*axes row column"]:
        """Logits of every row by every probe, in the dtype of the weight."""
        return states.to(self.weight.dtype) @ self.weight + self.bias


def fit_logistic(
    states: Float[Tensor, "row width"], targets: Float[Tensor, "row column"], inverse_penalty: float = 1.0
) -> LinearProbe:
    """Logistic regression: the minimum of ``inverse_penalty * (sum of log-losses) + |weight|^2 / 2``.

    The bias is not penalised. The states are centred and divided by one number, after which the variance of a feature
    is one on average: so a penalty means the same at every layer, and no direction is favoured. In float64.

    Args:
        states: one row an example.
        targets: 0 or 1; every column is a labeling of its own.
        inverse_penalty: scikit-learn's ``C``.

    Returns:
        Weight and bias for the states as given, float32 or better. A column that has not converged gives a warning.

    Raises:
        ValueError: an ``inverse_penalty`` that is not positive, fewer than two rows, states that are not finite or the
            same in every row, targets other than 0 and 1, or a column with one class only.
    """
    if not 0 < inverse_penalty < math.inf:
        raise ValueError(f"inverse_penalty is {inverse_penalty}; it must be positive and finite")
    rows = _Rows(states, targets)
    scale = (rows.coordinates.square().sum() / states.numel()).sqrt()
    scaled = rows.coordinates / scale
    count, penalty = len(scaled), 1 / (inverse_penalty * len(scaled))
    # In coordinates where the Hessian at weight 0 is the identity, few steps are needed whatever the spectrum is.
    hessian = scaled.T @ scaled / (4 * count)
    hessian.diagonal().add_(penalty)
    root = torch.linalg.cholesky(hessian)

    def step(parameters: Tensor) -> tuple[Tensor, Tensor]:
        weight = torch.linalg.solve_triangular(root.T, parameters[:-1], upper=True)
        logits = scaled @ weight + 2 * parameters[-1]
        losses = torch.nn.functional.softplus(logits) - rows.targets * logits
        errors = (torch.sigmoid(logits) - rows.targets) / count
        by_weight = torch.linalg.solve_triangular(root, scaled.T @ errors + penalty * weight, upper=False)
        loss = losses.mean(dim=0) + penalty / 2 * weight.square().sum(dim=0)
        return loss, torch.cat([by_weight, 2 * errors.sum(dim=0, keepdim=True)])

    start = scaled.new_zeros(len(root) + 1, targets.shape[1])
    fitted = minimize(step, start, ITERATIONS, tolerance=TOLERANCE)
    if not fitted.converged.all():
        warnings.warn(f"{int((~fitted.converged).sum())} of {start.shape[1]} columns did not converge", stacklevel=2)
    weight = torch.linalg.solve_triangular(root.T, fitted.parameters[:-1], upper=True) / scale
    return rows.probe(weight, 2 * fitted.parameters[-1])


def fit_mass_mean(states: Float[Tensor, "row width"], targets: Float[Tensor, "row column"]) -> LinearProbe:
    """The direction from the mean of class 0 to the mean of class 1.

    The logit is the log-odds of two Gaussians of equal variance along that direction, the classes equally frequent:
    zero midway between the means. A column whose means are the same has weight and bias 0.

    Args:
        states: one row an example.
        targets: 0 or 1; every column is a labeling of its own.

    Returns:
        Weight and bias for the states as given, float32 or better; computed in float64.

    Raises:
        ValueError: the errors of ``fit_logistic``.

    Source: Marks & Tegmark 2023, arXiv 2310.06824. Their form with the inverse covariance is ``fit_lda``.
    """
    rows = _Rows(states, targets)
    return rows.along(rows.differences())


def fit_lda(
    states: Float[Tensor, "row width"], targets: Float[Tensor, "row column"], shrinkage: float | None = None
) -> LinearProbe:
    """Linear discriminant analysis: the inverse of the shrunk scatter times the difference of the means.

    With the scatter ``T`` of all rows about their one mean, ``S = (1 - a) T + a (trace T / width) I``. It knows no
    labels, so one factorisation serves every column; the direction is that of the scatter ``W`` within the classes:
    ``T = W + c d d'`` with ``d`` the difference of the means and ``c = n0 n1 / n^2``, hence (Sherman-Morrison)
    ``S^-1 d = V^-1 d / (1 + (1 - a) c d' V^-1 d)`` with ``V = (1 - a) W + a (trace T / width) I``. Logits along the
    direction as in ``fit_mass_mean``.

    Args:
        states: one row an example.
        targets: 0 or 1; every column is a labeling of its own.
        shrinkage: ``a``, from 0 to 1; by default estimated from all rows (Ledoit & Wolf 2004).

    Returns:
        Weight and bias for the states as given, float32 or better; computed in float64.

    Raises:
        ValueError: the errors of ``fit_logistic``, or a shrinkage outside 0 to 1, or one of 0 where the scatter has no
            inverse.
    """
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage is {shrinkage}; it must be from 0 to 1")
    rows = _Rows(states, targets)
    count, width = states.shape
    scatter = rows.coordinates.T @ rows.coordinates / count
    if shrinkage is None:
        shrinkage = max(_ledoit_wolf(rows.coordinates, scatter, width), LEAST_SHRINKAGE)
    if shrinkage == 0 and width >= count:
        raise ValueError(f"{count} rows of {width} features have no inverse scatter without shrinkage")
    shrunk = (1 - shrinkage) * scatter
    shrunk.diagonal().add_(shrinkage * scatter.trace() / width)
    root, failed = torch.linalg.cholesky_ex(shrunk)
    if failed:
        raise ValueError("the features depend on each other: their scatter has no inverse without shrinkage")
    return rows.along(torch.cholesky_solve(rows.differences(), root))


def _ledoit_wolf(
    coordinates: Float[Tensor, "row coordinate"], scatter: Float[Tensor, "coordinate coordinate"], width: int
) -> float:
    """Shrinkage of the scatter towards a multiple of the identity in all ``width`` dimensions."""
    square, trace = scatter.square().sum(), scatter.trace()
    spread = square - trace.square() / width
    noise = (coordinates.square().sum(dim=1).square().mean() - square) / len(coordinates)
    return float((noise / spread).clamp(0, 1)) if spread > 0 else 0.0


class _Rows:
    """States and labelings to fit: centred, in float64, without dimensions in which no row differs.

    Where there are more features than rows, the rows are written in an orthonormal basis of what they span. Weights
    outside of it would change no logit and cost a penalty, so nothing is lost.
    """

    def __init__(self, states: Float[Tensor, "row width"], targets: Float[Tensor, "row column"]):
        _require_fit(states, targets)
        self.dtype = torch.promote_types(states.dtype, torch.float32)
        self.targets = targets.double()
        self.mean = states.double().mean(dim=0)
        self.least_distance = SAME_MEAN * float(states.abs().max())
        self.coordinates, self.basis = states.double() - self.mean, None
        if states.shape[1] > len(states):
            self.basis, triangle = torch.linalg.qr(self.coordinates.T)
            self.coordinates = triangle.T

    def differences(self) -> Float[Tensor, "coordinate column"]:
        """Mean of class 1 minus mean of class 0; exactly zero where they differ by rounding alone."""
        ones = self.targets.sum(dim=0)
        apart = self.coordinates.T @ (self.targets / ones - (1 - self.targets) / (len(self.targets) - ones))
        return apart.masked_fill(apart.norm(dim=0) <= self.least_distance, 0)

    def along(self, direction: Float[Tensor, "coordinate column"]) -> LinearProbe:
        """The log-odds of two Gaussians of equal variance along a direction of each column."""
        projected, ones = self.coordinates @ direction, self.targets.sum(dim=0)
        upper = (projected * self.targets).sum(dim=0) / ones
        lower = (projected * (1 - self.targets)).sum(dim=0) / (len(projected) - ones)
        distance = upper - lower
        variance = (projected - torch.where(self.targets == 1, upper, lower)).square().mean(dim=0)
        slope = distance / torch.maximum(variance, LEAST_SPREAD * distance.square())
        slope = torch.where(distance > 0, slope, 0)
        return self.probe(slope * direction, -slope * (upper + lower) / 2)

    def probe(self, weight: Float[Tensor, "coordinate column"], bias: Float[Tensor, " column"]) -> LinearProbe:
        """The probe of the states as they were given."""
        weight = weight if self.basis is None else self.basis @ weight
        return LinearProbe(weight.to(self.dtype), (bias - self.mean @ weight).to(self.dtype))


def _require_fit(states: Tensor, targets: Tensor) -> None:
    if len(states) < 2:
        raise ValueError(f"{len(states)} rows; at least two are needed")
    if not states.isfinite().all():
        raise ValueError("there are states that are not finite")
    if (states == states[0]).all():
        raise ValueError("the states are constant: the same in every row")
    if not ((targets == 0) | (targets == 1)).all():
        raise ValueError("every target must be 0 or 1")
    single = (targets == targets[0]).all(dim=0).nonzero().flatten().tolist()
    if single:
        raise ValueError(f"one class only in column {', '.join(map(str, single))} of the targets")
