"""Linear probes for known labels (logistic regression, mass-mean, LDA), for many labelings of the same rows at once."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probing.probes.optimize import minimize

SAME_MEAN = 1e-12
"""Means whose distance is less than this part of the largest state differ by rounding alone."""
LEAST_SPREAD = 1e-6
"""Least variance along a direction, as a part of the squared distance of the means: keeps logits finite."""
LEAST_SHRINKAGE = 1e-6
"""What an estimated shrinkage is at least: on two rows the estimate is zero, and the scatter has no inverse."""


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Many linear probes of the same states: ``logits = states @ weight + bias``.

    Attributes:
        weight: in units of the states.
        bias: of every column.
    """

    weight: Float[Tensor, "width column"]
    bias: Float[Tensor, " column"]

    def logits(self, states: Float[Tensor, "*axes row width"]) -> Float[Tensor, "*axes row column"]:
        """Of every row by every probe, in the dtype of the weight."""
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
        Weight and bias for the states as given, float32 or better.

    Raises:
        ValueError: an ``inverse_penalty`` that is not positive, fewer than two rows, states that are not finite or the
            same in every row, targets other than 0 and 1, or a column with one class only.
    """
    if not 0 < inverse_penalty < math.inf:
        raise ValueError(f"inverse_penalty is {inverse_penalty}; it must be positive and finite")
    rows = _Rows(states, targets)
    scale = rows.coordinates.square().mean().mul(rows.coordinates.shape[1] / states.shape[1]).sqrt()
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

    found = minimize(step, scaled.new_zeros(len(root) + 1, targets.shape[1]), iterations=1000).parameters
    weight = torch.linalg.solve_triangular(root.T, found[:-1], upper=True) / scale
    return rows.probe(weight, 2 * found[-1])


def fit_mass_mean(states: Float[Tensor, "row width"], targets: Float[Tensor, "row column"]) -> LinearProbe:
    """The direction from the mean of class 0 to the mean of class 1.

    The logit is the log-odds of two Gaussians of equal variance along that direction, the classes equally frequent:
    zero half way between the means. A column whose means are the same has weight and bias 0.

    Args:
        states: one row an example.
        targets: 0 or 1; every column is a labeling of its own.

    Returns:
        Weight and bias for the states as given, float32 or better; computed in float64.

    Raises:
        ValueError: as ``fit_logistic`` has it.

    Source: Marks & Tegmark 2023, arXiv 2310.06824, the form for data like the training data is ``fit_lda``.
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
        ValueError: as ``fit_logistic`` has it, or a shrinkage outside 0 to 1, or one of 0 where the scatter has no
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


def ledoit_wolf_shrinkage(states: Float[Tensor, "row width"]) -> float:
    """How much to shrink the scatter of the rows about their mean towards a multiple of the identity.

    Source: Ledoit & Wolf 2004, A well-conditioned estimator for large-dimensional covariance matrices.
    """
    centred = states.double() - states.double().mean(dim=0)
    return _ledoit_wolf(centred, centred.T @ centred / len(centred), states.shape[1])


def _ledoit_wolf(centred: Float[Tensor, "row dim"], scatter: Float[Tensor, "dim dim"], width: int) -> float:
    """The same from centred rows and their scatter, which may be given in fewer coordinates than ``width``."""
    count = len(centred)
    mean = float(scatter.trace()) / width
    square = float(scatter.square().sum())
    spread = square / width - mean**2
    noise = (float(centred.square().sum(dim=1).square().sum()) / count - square) / (count * width)
    return min(max(noise / spread, 0.0), 1.0) if spread > 0 else 0.0


class _Rows:
    """Checked rows about their mean in float64; in a basis of their own where there are fewer of them than features.

    Attributes:
        coordinates: [row dim]; lengths and angles are those of the centred states.
        targets: [row column].
    """

    def __init__(self, states: Float[Tensor, "row width"], targets: Float[Tensor, "row column"]):
        _check(states, targets)
        self.dtype = torch.promote_types(states.dtype, torch.float32)
        wide = states.double()
        self.mean = wide.mean(dim=0)
        centred = wide - self.mean
        if not centred.any():
            raise ValueError("the states are constant: every row is the same")
        self.targets = targets.double()
        self.basis: Tensor | None = None
        if centred.shape[1] > len(centred):
            self.basis, triangle = torch.linalg.qr(centred.T)
            centred = triangle.T.contiguous()
        self.coordinates = centred

    def differences(self) -> Float[Tensor, "dim column"]:
        """Mean of class 1 less that of class 0, of every column."""
        ones = self.targets.sum(dim=0)
        sums = self.coordinates.T @ self.targets
        found = sums / ones - (self.coordinates.sum(dim=0)[:, None] - sums) / (len(self.targets) - ones)
        least = SAME_MEAN * float(self.coordinates.norm(dim=1).max())
        return torch.where(found.norm(dim=0) > least, found, torch.zeros_like(found))

    def probe(self, weight: Float[Tensor, "dim column"], bias: Float[Tensor, " column"]) -> LinearProbe:
        """Back in the states' own features and units."""
        full = weight if self.basis is None else self.basis @ weight
        return LinearProbe(full.to(self.dtype), (bias - self.mean @ full).to(self.dtype))

    def along(self, direction: Float[Tensor, "dim column"]) -> LinearProbe:
        """Log-odds of two Gaussians of equal variance along each direction; zero half way between their means."""
        spots = self.coordinates @ direction
        ones = self.targets.sum(dim=0)
        zeros = len(self.targets) - ones
        high = (spots * self.targets).sum(dim=0) / ones
        low = (spots * (1 - self.targets)).sum(dim=0) / zeros
        away = spots - torch.where(self.targets > 0, high, low)
        distance = high - low
        variance = (away.square().mean(dim=0)).clamp_min(LEAST_SPREAD * distance.square())
        slope = torch.where(distance > 0, distance / variance, torch.zeros_like(distance))
        return self.probe(direction * slope, -slope * (high + low) / 2)


def _check(states: Tensor, targets: Tensor) -> None:
    if len(states) < 2:
        raise ValueError(f"a probe needs at least two rows, not {len(states)}")
    if not torch.isfinite(states).all():
        raise ValueError("the states are not all finite")
    if not ((targets == 0) | (targets == 1)).all():
        raise ValueError("targets must be 0 or 1")
    ones = targets.sum(dim=0)
    single = ((ones == 0) | (ones == len(targets))).nonzero()
    if len(single):
        raise ValueError(f"column {int(single[0])} of the targets has one class only")
