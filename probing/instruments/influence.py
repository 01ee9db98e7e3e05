"""First-order effects of training on preference pairs: on a target, and on each pair when all are trained on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probing.errors import NotFinite
from probing.instruments.pair_likelihoods import make_token_readout
from probing.instruments.pair_scores import PairScorer
from probing.instruments.parameter_directions import ParameterDirection, move_along
from probing.instruments.parameter_gradients import ParameterGradients, PromptedRow
from probing.metrics.preference_losses import PreferenceLoss, Slopes
from probing.models.heads import find_head
from probing.tokens.pairs import TokenizedPair

Report = Callable[[int], None]
LADDER = tuple(0.32 * 0.5**rung for rung in range(11))
"""Lengths of steps that are tried, from long to short, as Euclidean distance in the space of the parameters."""
LARGEST_ERROR = 0.1
"""Difference of two steps, relative, above which nothing comes out."""


class TrainingGradient(NamedTuple):
    """Gradient of a preference loss over pairs.

    Attributes:
        mean: minus the gradient of the mean loss: the direction in which plain gradient descent goes, one tensor a
            parameter.
        mean_square: mean over batches of the squared gradient of a batch's mean loss; None where it was not asked for.
        slopes: slopes of every pair.
    """

    mean: list[Tensor]
    mean_square: list[Tensor] | None
    slopes: Slopes


def rows_of(pair: TokenizedPair) -> list[PromptedRow]:
    """The chosen and the rejected response of a pair, after their prompt."""
    return [PromptedRow(ids, pair.prompt_tokens) for ids in (pair.chosen, pair.rejected)]


def training_gradient(
    gradients: ParameterGradients,
    pairs: Sequence[TokenizedPair],
    loss: PreferenceLoss,
    batch_pairs: int | None = None,
    report: Report | None = None,
) -> TrainingGradient:
    """The gradient of a loss over pairs as they are at the start of training.

    Args:
        gradients: the model and its parameters.
        pairs: that can be run; in the order of the batches.
        loss: the loss.
        batch_pairs: pairs of a batch of the training, for the mean square; None leaves it out.
        report: called with the number of pairs that were done.
    """
    slopes: list[tuple[Tensor, Tensor]] = []
    mean, square = gradients.zeros(), None if batch_pairs is None else gradients.zeros()
    size, batches = batch_pairs or len(pairs), 0
    for start in range(0, len(pairs), size):
        batch = pairs[start : start + size]
        own = mean if square is None else gradients.zeros()
        found = gradients.add([rows_of(pair) for pair in batch], weigh_pairs(loss, batch), own, report)
        slopes.append(slopes_of(loss, batch, torch.stack(found)))
        if square is not None:
            batches += 1
            for total, squares, gradient in zip(mean, square, own, strict=True):
                total += gradient
                squares += (gradient / len(batch)).square()
    for tensor in mean:
        tensor /= len(pairs)
    for tensor in square or ():
        tensor /= batches
    return TrainingGradient(mean, square, Slopes(*(torch.cat(side) for side in zip(*slopes, strict=True))))


def slopes_of(
    loss: PreferenceLoss, pairs: Sequence[TokenizedPair], logprobs: Tensor, reference: Tensor | None = None
) -> Slopes:
    """Slopes of pairs from ln p of both responses.

    Args:
        loss: the loss.
        pairs: the pairs.
        logprobs: ln p of chosen and rejected response, [pair 2].
        reference: the same under the reference; None where it is the same model.
    """
    chosen, rejected = logprobs.double().cpu().unbind(1)
    return loss.slopes(
        chosen,
        rejected,
        torch.tensor([pair.chosen_tokens for pair in pairs]),
        torch.tensor([pair.rejected_tokens for pair in pairs]),
        reference=None if reference is None else reference.double().cpu(),
    )


def weigh_pairs(
    loss: PreferenceLoss, pairs: Sequence[TokenizedPair], reference: Tensor | None = None
) -> Callable[[Sequence[int], Tensor], Tensor]:
    """Weights of both rows of pairs under a loss, by ln p as it is when they are run; see ``ParameterGradients.add``.

    Args:
        loss: the loss.
        pairs: the pairs, each of which is one group.
        reference: ln p of both responses under the reference, [pair 2]; None where it is the same model.
    """

    def weigh(some: Sequence[int], logprobs: Tensor) -> Tensor:
        before = None if reference is None else reference[list(some)]
        own = slopes_of(loss, [pairs[at] for at in some], logprobs.unflatten(0, (-1, 2)), before)
        return torch.stack([own.chosen, -own.rejected], dim=1).flatten().to(logprobs.device)

    return weigh


class Derivatives(NamedTuple):
    """How ln p of both responses of some pairs changes along a direction, per unit of it.

    Attributes:
        chosen: ``<direction, grad ln p(y+)>``, [pair], in float64; NaN where ln p is not finite.
        rejected: ``<direction, grad ln p(y-)>``, [pair].
        chosen_logprob: ln p of the chosen response, in the middle of both passes, [pair].
        rejected_logprob: ln p of the rejected response, [pair].
    """

    chosen: NDArray[np.float64]
    rejected: NDArray[np.float64]
    chosen_logprob: NDArray[np.float64]
    rejected_logprob: NDArray[np.float64]


@dataclass(eq=False)
class DirectionalScorer:
    """Derivatives of ln p of pairs along a direction in the space of parameters, by central differences.

    Two scoring passes with the model a small step ahead and behind. No gradient of any pair is made.

    Attributes:
        scorer: scores the likelihood columns of the model whose parameters are moved.
        direction: the direction.
        step: length of the step, Euclidean; see ``choose_step``.
    """

    scorer: PairScorer
    direction: ParameterDirection
    step: float = 0.01
    norm: float = field(init=False)

    def __post_init__(self) -> None:
        self.norm = self.direction.norm

    def measure(self, pairs: Sequence[TokenizedPair], report: Report | None = None) -> Derivatives:
        """Derivatives of some pairs that can be run.

        Args:
            pairs: the pairs.
            report: called with the number of tokens of each batch.
        """
        with move_along(self.direction) as put:
            ahead, behind = (self._score(put, sign * self.step, pairs, report) for sign in (1, -1))
        slope = (ahead - behind) / (2 * self.step) * self.norm
        return Derivatives(*slope.T, *((ahead + behind) / 2).T)

    def _score(
        self, put: Callable[[float], None], step: float, pairs: Sequence[TokenizedPair], report: Report | None
    ) -> NDArray[np.float64]:
        """ln p of both responses after a step, [pair 2]."""
        put(step / self.norm)
        renew_head(self.scorer)
        measured = self.scorer.measure(pairs, report).columns
        return np.stack([np.array(measured[f"{side}_logprob"]) for side in ("chosen", "rejected")], axis=1)


def renew_head(scorer: PairScorer) -> None:
    """Have a scorer use the output head as it is now: that of some models is a copy."""
    scorer.head = find_head(scorer.stream.stack)
    if scorer.stream.per_token is not None:
        scorer.stream.per_token = make_token_readout(scorer.head)


class Step(NamedTuple):
    """A length of step, and how well two lengths agree.

    Attributes:
        length: Euclidean distance in the space of parameters.
        error: root mean square of the difference of the derivatives at this length and at twice of it, over the root
            mean square of the derivatives.
    """

    length: float
    error: float


def choose_step(scorer: PairScorer, direction: ParameterDirection, pairs: Sequence[TokenizedPair]) -> Step:
    """The length of step at which central differences agree best with those of twice the length.

    With long steps the derivative itself changes, with short ones rounding wins; in between both are small.

    Args:
        scorer: scores the pairs.
        direction: the direction.
        pairs: some pairs; their derivatives are made at every length of ``LADDER`` until the agreement gets worse.

    Raises:
        NotFinite: no two lengths agree.
    """
    best, before = Step(math.nan, math.inf), None
    for length in LADDER:
        now = _both(DirectionalScorer(scorer, direction, length).measure(pairs))
        if before is not None:
            error = _compare(now, before)
            if error < best.error:
                best = Step(length, error)
            elif error > 4 * best.error:
                break
        before = now
    if not best.error <= LARGEST_ERROR:
        raise NotFinite(f"no length of step is good; where two of them agree best, {_describe_error(best)}")
    return best


def measure_step(
    scorer: PairScorer, direction: ParameterDirection, pairs: Sequence[TokenizedPair], length: float
) -> Step:
    """How well the differences of a given length agree with those of twice the length.

    Raises:
        NotFinite: they do not.
    """
    near, far = (_both(DirectionalScorer(scorer, direction, factor * length).measure(pairs)) for factor in (1, 2))
    step = Step(length, _compare(near, far))
    if not step.error <= LARGEST_ERROR:
        raise NotFinite(
            f"over a step of {length:.2g} and one of twice the length, {_describe_error(step)}: the step is so short "
            f"that rounding wins, or so long that the model is not linear within it; without a given length the best "
            f"one is taken"
        )
    return step


def _describe_error(step: Step) -> str:
    if math.isfinite(step.error):
        return f"the derivatives of the pairs differ by {step.error:.0%} of their size"
    return "the derivatives of all pairs are 0 or not finite"


def _both(found: Derivatives) -> NDArray[np.float64]:
    return np.concatenate([found.chosen, found.rejected])


def _compare(near: NDArray[np.float64], far: NDArray[np.float64]) -> float:
    """Relative root mean square of a difference, where both are finite."""
    known = np.isfinite(near) & np.isfinite(far)
    size = math.sqrt(float(np.square(near[known]).mean())) if known.any() else 0.0
    return math.sqrt(float(np.square(near[known] - far[known]).mean())) / size if size else math.inf


def influence_of(derivatives: Derivatives, slopes: Slopes) -> Float[NDArray[np.float64], " pair"]:
    """``<T, d_w s_w - d_l s_l>`` of every pair: how a step of plain gradient descent on it alone moves the target."""
    value: NDArray[np.float64] = (
        slopes.chosen.numpy() * derivatives.chosen - slopes.rejected.numpy() * derivatives.rejected
    )
    return value
