"""Readouts of the states at a place: reduced on the device, inside the hook, to something small."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.engine.transfer import upload
from probing.engine.trees import Batch
from probing.kernels.segment_pool import segment_sum
from probing.types import Pooling


class Spots:
    """Indices, in the packed tokens of one batch, of the states that count; they go to each device in one copy."""

    def __init__(self, batch: Batch) -> None:
        early, late = (np.array(spans, dtype=np.int64).reshape(-1, 2) for spans in (batch.early, batch.late))
        self.rows = torch.tensor(batch.rows)
        self.counts = torch.from_numpy((early[:, 1] - early[:, 0]) + (late[:, 1] - late[:, 0]))
        has_late, has_early = late[:, 1] > late[:, 0], early[:, 1] > early[:, 0]
        self._spans = {"late": late} | ({"early": early} if has_early.any() else {})
        self._indices = {
            "last": np.where(has_late, late[:, 1], early[:, 1]) - 1,
            "first": np.where(has_early, early[:, 0], late[:, 0]),
            "mean": self.counts.numpy(),
        }
        self._order = [span for pair in zip(batch.early, batch.late, strict=True) for span in pair]
        self._placed: dict[torch.device, dict[str, Tensor]] = {}

    def read(self, pooling: Pooling, states: Float[Tensor, "token width"]) -> Float[Tensor, "item width"]:
        """One row a row of the batch, in its order; with "tokens", one a token that counts, row after row.

        Sums and means are accumulated in float32 (float64 for float64 states); the others keep the states' dtype.
        """
        placed = self._move_to(states.device)
        if pooling in ("last", "first"):
            return states.index_select(0, placed[pooling])
        if pooling == "tokens":
            return states.index_select(0, self._tokens(states.device))
        total = self._sum("late", states, placed)
        if "early" in self._spans:
            total = self._sum("early", states, placed) + total
        return total / placed["mean"][:, None] if pooling == "mean" else total

    def _sum(self, part: str, states: Tensor, placed: dict[str, Tensor]) -> Tensor:
        starts, stops = torch.from_numpy(self._spans[part]).unbind(1)
        return segment_sum(states, starts, stops, ends=placed[part])

    def _tokens(self, device: torch.device) -> Int[Tensor, " item"]:
        placed = self._move_to(device)
        if "tokens" not in placed:
            every = np.concatenate([np.arange(start, stop) for start, stop in self._order])
            placed["tokens"] = upload([every], device)[0]
        return placed["tokens"]

    def _move_to(self, device: torch.device) -> dict[str, Tensor]:
        if device not in self._placed:
            arrays = self._indices | {name: spans.reshape(-1) for name, spans in self._spans.items()}
            placed = dict(zip(arrays, upload(list(arrays.values()), device), strict=True))
            placed |= {name: placed[name].long().view(-1, 2) for name in self._spans}
            self._placed[device] = placed
        return self._placed[device]


def combine(parts: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """Sum of what several modules write, each times its factor; every pooling is linear, so it may come after."""
    if len(parts) == 1 and factors[0] == 1.0:
        return parts[0]
    exact = torch.promote_types(parts[0].dtype, torch.float32)
    total = parts[0].to(exact) * factors[0]
    for part, factor in zip(parts[1:], factors[1:], strict=True):
        total = total + part.to(total) * factor
    return total
