"""What is kept of the states at a place: reduced on the device, inside the hook, to something small."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.engine.trees import Batch
from probing.kernels.segment_pool import segment_sum
from probing.types import Pooling


class Spots:
    """Where the states that count lie among the packed tokens of one batch; indices go to each device once."""

    def __init__(self, batch: Batch) -> None:
        early, late = (torch.tensor(spans).reshape(-1, 2) for spans in (batch.early, batch.late))
        self.rows = torch.tensor(batch.rows)
        self.counts = (early[:, 1] - early[:, 0]) + (late[:, 1] - late[:, 0])
        self._early = early if bool((early[:, 1] > early[:, 0]).any()) else None
        self._late = late
        has_late, has_early = late[:, 1] > late[:, 0], early[:, 1] > early[:, 0]
        self._last = torch.where(has_late, late[:, 1], early[:, 1]) - 1
        self._first = torch.where(has_early, early[:, 0], late[:, 0])
        self._spans = [span for pair in zip(batch.early, batch.late, strict=True) for span in pair]
        self._known: dict[tuple[str, torch.device], Tensor] = {}

    def read(self, pooling: Pooling, states: Float[Tensor, "token width"]) -> Float[Tensor, "item width"]:
        """One row a row of the batch, in its order; with "tokens", one a token that counts, row after row.

        Sums and means are accumulated in float32 (float64 for float64 states); the others keep the states' dtype.
        """
        if pooling in ("last", "first", "tokens"):
            return states[self._indices(pooling, states.device)]
        total = segment_sum(states, self._late[:, 0], self._late[:, 1])
        if self._early is not None:
            total = segment_sum(states, self._early[:, 0], self._early[:, 1]) + total
        return total / self._indices("mean", total.device)[:, None] if pooling == "mean" else total

    def _indices(self, pooling: Pooling, device: torch.device) -> Int[Tensor, " item"]:
        if (pooling, device) not in self._known:
            found = {"last": self._last, "first": self._first, "mean": self.counts}.get(pooling)
            if found is None:
                found = torch.cat([torch.arange(start, stop) for start, stop in self._spans])
            self._known[pooling, device] = found.to(device)
        return self._known[pooling, device]


def combined(parts: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """Sum of what several modules write, each times its factor; every pooling is linear, so it may come after."""
    if len(parts) == 1 and factors[0] == 1.0:
        return parts[0]
    exact = torch.promote_types(parts[0].dtype, torch.float32)
    total = parts[0].to(exact) * factors[0]
    for part, factor in zip(parts[1:], factors[1:], strict=True):
        total = total + part.to(total) * factor
    return total
