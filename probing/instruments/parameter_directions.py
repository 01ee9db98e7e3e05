"""Directions in the space of a model's parameters: the model is moved along one, and comes back to the bit."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from probing.errors import NotFinite, UsageError
from probing.instruments.gradient_rates import choose_parameters
from probing.models.stack import Stack

LORA = "lora"
EPSILON = 1e-8
"""What AdamW adds to the root of the mean square."""


@dataclass(frozen=True, eq=False)
class ParameterDirection:
    """A tensor for each of some parameters of a model.

    Attributes:
        parameters: the parameters.
        tensors: the direction, of their shapes, on their devices.
    """

    parameters: Sequence[nn.Parameter]
    tensors: Sequence[Tensor]

    @property
    def norm(self) -> float:
        """Euclidean norm over all tensors."""
        return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in self.tensors))

    def scaled_to(self, other: "ParameterDirection") -> "ParameterDirection":
        """This direction with the norm of another; one of norm 0 stays as it is."""
        factor = other.norm / self.norm if self.norm else 1.0
        return ParameterDirection(self.parameters, [tensor * factor for tensor in self.tensors])

    def check(self, what: str) -> None:
        """Raise unless the direction is finite and not zero.

        Args:
            what: whose direction it is, for the message.

        Raises:
            NotFinite: the norm is NaN, infinite or zero.
        """
        if not math.isfinite(self.norm):
            raise NotFinite(f"{what} has a gradient that is not finite; look for NaN in the model's weights")
        if self.norm == 0:
            raise NotFinite(f"{what} has a gradient of zero over the chosen parameters, so nothing can be said of it")


@contextlib.contextmanager
def move_along(direction: ParameterDirection) -> Iterator[Callable[[float], None]]:
    """Move a model's parameters along a direction inside the block, and put them back as they were, to the bit.

    Yields:
        A function that puts the parameters at their first values plus so many times the direction.
    """
    # Copies on the host of a card would save memory there; they are on the device because moves are many.
    before = [parameter.detach().clone() for parameter in direction.parameters]

    def put(step: float) -> None:
        with torch.no_grad():
            for parameter, origin, tensor in zip(direction.parameters, before, direction.tensors, strict=True):
                torch.add(origin, tensor.to(origin), alpha=step, out=parameter.data)

    try:
        yield put
    finally:
        with torch.no_grad():
            for parameter, origin in zip(direction.parameters, before, strict=True):
                parameter.data.copy_(origin)


def find_parameters(stack: Stack, which: str) -> list[nn.Parameter]:
    """The parameters that a training changes.

    Args:
        stack: the model, from ``find_backbone``.
        which: "all", "head", "last:K" (see ``choose_parameters``), or "lora": those of the adapter on the model.

    Raises:
        UsageError: no such parameters, weights that are offloaded, or weights of half precision, in which a small
            step is lost in rounding.
    """
    chosen = _find_adapter_parameters(stack) if which == LORA else choose_parameters(stack, which)
    half = sorted({str(p.dtype).removeprefix("torch.") for p in chosen if p.dtype.itemsize < 4})
    if half:
        raise UsageError(
            f"the parameters are of {' and '.join(half)}, in which small steps are lost to rounding; load the model in "
            f"float32 (one in memory: model.float())"
        )
    return chosen


def _find_adapter_parameters(stack: Stack) -> list[nn.Parameter]:
    """The parameters of the active adapters."""
    peft = stack.language_model.peft
    if peft is None:
        raise UsageError("the parameters 'lora' are those of an adapter, and the model has none; name its folder")
    prefix = peft.base_model.prefix
    own = [p for name, p in stack.language_model.model.named_parameters() if prefix in name and p.is_floating_point()]
    if not own:
        raise UsageError("the adapter on the model has no parameters of its own")
    return list({id(parameter): parameter for parameter in own}.values())


def precondition(
    gradient: Sequence[Tensor], mean_square: Sequence[Tensor], epsilon: float = EPSILON
) -> tuple[list[Tensor], float]:
    """The direction in which AdamW goes: each entry over the root of its mean square.

    Entries that no batch moved have no size to be divided by: they become 0.

    Args:
        gradient: gradient of what is asked about, one tensor a parameter.
        mean_square: mean over batches of the squared gradient of the training loss, of the same shapes.
        epsilon: added to the root.

    Returns:
        The direction, and the share of the gradient's squared norm that lies in entries that became 0.
    """
    lost = total = 0.0
    out = []
    for own, square in zip(gradient, mean_square, strict=True):
        unmoved = square == 0
        lost += float(own[unmoved].double().square().sum())
        total += float(own.double().square().sum())
        out.append(torch.where(unmoved, 0, own / (square.sqrt() + epsilon)))
    return out, lost / total if total else 0.0


def draw_direction(like: ParameterDirection, generator: torch.Generator) -> ParameterDirection:
    """A random direction: within each tensor isotropic, and of the norm that this tensor has in ``like``."""
    tensors = []
    for tensor in like.tensors:
        drawn = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)
        tensors.append(drawn * (tensor.norm() / drawn.norm().clamp_min(torch.finfo(drawn.dtype).tiny)))
    return ParameterDirection(like.parameters, tensors)
