"""Many small problems minimised at once: L-BFGS over independent columns."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Step = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Computes, from parameters [dim column], the loss [column] and its gradient [dim column]."""

DECREASE = 1e-4
CURVATURE = 0.9
"""Constants of the weak Wolfe conditions: the share of the predicted decrease that is required, and the share of the
slope that may be left."""


class Minimum(NamedTuple):
    """Minimum that every column ended at.

    Attributes:
        parameters: [dim column].
        loss: [column].
        converged: [column], whether no entry of the gradient exceeds the tolerance.
    """

    parameters: Tensor
    loss: Tensor
    converged: Tensor


def minimize(
    step: Step,
    start: Float[Tensor, "dim column"],
    iterations: int = 200,
    history: int = 10,
    tolerance: float = 1e-6,
) -> Minimum:
    """Minimise the loss of every column on its own, all evaluated at once.

    Every column has its own history, step length and line search, so none waits for another: at an evaluation one may
    take its step while another halves its own. Steps satisfy the weak Wolfe conditions, found by doubling and bisection
    (Lewis & Overton 2013, which also holds for losses with kinks); near the minimum, where the decrease drowns in
    rounding, by the slope (Hager & Zhang 2005). A column is finished, and stays as it is, when its gradient is within
    the tolerance, when no step changes it any more, or when it starts at a loss or gradient that is not finite.

    Args:
        step: loss and gradient of all columns. It is also asked about finished columns, where they stand.
        start: starting point of every column; left as it is.
        iterations: evaluations after the first, at most.
        history: pairs of steps and gradient changes kept for every column.
        tolerance: largest absolute entry of the gradient at which a column has converged.

    Raises:
        ValueError: a history of no pairs.
    """
    if history < 1:
        raise ValueError(f"a history of {history} pairs; at least one is needed")
    at = start.detach().clone()
    loss, gradient = step(at)
    pairs = _Pairs(history, at)
    running = loss.isfinite() & gradient.isfinite().all(dim=0)
    converged = running & (gradient.abs().amax(dim=0) <= tolerance)
    direction, slope = -gradient, -_dot(gradient, gradient)
    length = 1 / (-slope).sqrt().clamp(min=1)
    low, high = torch.zeros_like(loss), torch.full_like(loss, torch.inf)
    running &= ~converged
    for _ in range(iterations):
        trial = torch.where(running, at + length * direction, at)
        running &= (trial != at).any(dim=0)
        if not running.any():
            break
        trial_loss, trial_gradient = step(trial)
        trial_slope = _dot(trial_gradient, direction)
        lower = _decreases(loss, slope, length, trial_loss, trial_slope) & trial_gradient.isfinite().all(dim=0)
        taken = running & lower & (trial_slope >= CURVATURE * slope)
        pairs.add(trial - at, trial_gradient - gradient, taken)
        at, gradient = torch.where(taken, trial, at), torch.where(taken, trial_gradient, gradient)
        loss = torch.where(taken, trial_loss, loss)
        converged |= taken & (gradient.abs().amax(dim=0) <= tolerance)
        running &= ~converged
        direction = torch.where(taken, pairs.direction(gradient), direction)
        slope = _dot(gradient, direction)
        low, high = torch.where(lower, length, low), torch.where(lower, high, length)
        length = torch.where(high.isinf(), 2 * length, (low + high) / 2)
        running &= taken | ((low < length) & (length < high))
        low, high = low.masked_fill(taken, 0), high.masked_fill(taken, torch.inf)
        length = length.masked_fill(taken, 1)
    return Minimum(at, loss, converged)


def _decreases(
    loss: Float[Tensor, " column"],
    slope: Float[Tensor, " column"],
    length: Float[Tensor, " column"],
    trial_loss: Float[Tensor, " column"],
    trial_slope: Float[Tensor, " column"],
) -> Bool[Tensor, " column"]:
    """Whether the loss falls enough; where it changes by rounding only, whether the slope says that it does."""
    rounding = 8 * torch.finfo(loss.dtype).eps * loss.abs()
    by_slope = (trial_loss <= loss + rounding) & (trial_slope <= (2 * DECREASE - 1) * slope)
    return (trial_loss <= loss + DECREASE * length * slope) | by_slope


class _Pairs:
    """The last steps and changes of the gradient of every column, oldest first; zero where there are none yet."""

    def __init__(self, history: int, like: Float[Tensor, "dim column"]):
        self.steps = like.new_zeros(history, *like.shape)
        self.changes = torch.zeros_like(self.steps)
        self.inverses = like.new_zeros(history, 1, like.shape[1])
        self.scale = like.new_ones(like.shape[1])

    def add(
        self, step: Float[Tensor, "dim column"], change: Float[Tensor, "dim column"], taken: Bool[Tensor, " column"]
    ) -> None:
        """Remember the pairs of the columns that took their step, but for those without positive curvature."""
        product, square = _dot(step, change), _dot(change, change)
        keep = taken & (product > torch.finfo(step.dtype).eps * square)
        for pairs, newest in ((self.steps, step), (self.changes, change), (self.inverses, 1 / product[None])):
            for older, newer in zip(pairs, [*pairs[1:], newest], strict=True):
                torch.where(keep, newer, older, out=older)
        self.scale = torch.where(keep, product / square, self.scale)

    def direction(self, gradient: Float[Tensor, "dim column"]) -> Float[Tensor, "dim column"]:
        """Minus the estimated inverse Hessian times the gradient (Nocedal's two loops)."""
        direction, parts = -gradient, []
        pairs = list(zip(self.steps, self.changes, self.inverses, strict=True))
        for step, change, inverse in reversed(pairs):
            parts.append(inverse * _dot(step, direction))
            direction = direction - parts[-1] * change
        direction = direction * self.scale
        for (step, change, inverse), part in zip(pairs, reversed(parts), strict=True):
            direction = direction + (part - inverse * _dot(change, direction)) * step
        return direction


def _dot(left: Float[Tensor, "dim column"], right: Float[Tensor, "dim column"]) -> Float[Tensor, " column"]:
    return (left * right).sum(dim=0)
