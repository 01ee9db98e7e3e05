"""The guard of edits: a batch through the model shows what is left of a direction in every write that was edited."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probing.errors import EditRefused
from probing.models.hooks import Tap, tap_modules
from probing.models.layers import Stack, run_backbone, trial_ids, use_eval_mode
from probing.models.writers import Writer

LEFT = {torch.float64: 1e-6, torch.float32: 1e-4}
LEFT_HALF = 2e-2
"""Largest component that an edit may leave, relative to what it was before.

Of the families that the tests know, right edits left up to 1e-6 in float32 and 1e-2 in bf16. A direction that was
rounded to bf16 leaves 2e-3, and lengths that were kept along the wrong axis leave 7e-2 and more. Norms compute in
float32 in models of float64, too.
"""
ROUNDINGS, ROUNDINGS_HALF = 4, 2
"""What rounding leaves where there was next to nothing before, in roundings of the length of the write; measured: up to
3.1 in float32 and 0.9 in bf16."""
TOKENS = 32
ROWS = 2
APART = 5


@dataclass(frozen=True)
class Component:
    """Root mean square, over the tokens of a batch, of the component along a direction, and of the whole length."""

    along: float
    length: float


@dataclass(frozen=True, eq=False)
class EditGuard:
    """Measures what writes hold of a direction.

    Attributes:
        stack: the model.
        writers: writers to be proved.
        basis: orthonormal, in float64: [rank width], or [direction rank width] with one for each row of the batch.
        rows: index of the direction of each row of the batch, where there are several.
        residual: whether the residual stream itself must be free of the direction too, as it is where every writer was
            edited.
    """

    stack: Stack
    writers: Sequence[Writer]
    basis: Tensor
    rows: Tensor | None = None
    residual: bool = False
    tokens: int = TOKENS

    def measure(self) -> dict[str, Component]:
        """The component in each write, and in the residual stream after each block, of a batch of tokens."""
        ids = guard_ids(self.stack, ROWS if self.rows is None else len(self.rows), self.tokens)
        with torch.no_grad(), use_eval_mode(self.stack.language_model.model), self.watch() as found:
            run_backbone(self.stack.backbone, ids)
        return found

    @contextlib.contextmanager
    def watch(self) -> Iterator[dict[str, Component]]:
        """Measure in a pass that the caller makes inside the block, of rows as many as have directions."""
        named = [(writer.name, Tap(writer.module)) for writer in self.writers]
        if self.residual:
            named.append(("the input of the first block", Tap(self.stack.blocks[0], before=True)))
            named += [(f"the output of layer {at}", Tap(block)) for at, block in enumerate(self.stack.blocks)]
        found: dict[str, Component] = {}

        def receive(index: int, tensor: Tensor | None) -> None:
            if tensor is not None:
                found[named[index][0]] = self._measure(tensor)

        with tap_modules([tap for _, tap in named], receive):
            yield found

    def _measure(self, tensor: Tensor) -> Component:
        states = tensor.reshape(-1, tensor.shape[-1]).double().cpu()
        if self.rows is None:
            along = states @ self.basis.T
        else:
            rows = self.rows.cpu().repeat_interleave(max(len(states) // len(self.rows), 1))
            kept = (rows >= 0) if len(rows) == len(states) else torch.zeros(len(states), dtype=torch.bool)
            along = torch.einsum("tw,tkw->tk", states[kept], self.basis[rows[kept]])
            states = states[kept]
        return Component(_root_mean_square(along), _root_mean_square(states))

    def check(self, before: dict[str, Component], after: dict[str, Component]) -> None:
        """Compare what was measured before and after an edit.

        Raises:
            EditRefused: a write still holds of the direction; names the module.
        """
        dtype = self.stack.language_model.dtype
        left, most = LEFT.get(dtype, LEFT_HALF), ROUNDINGS if dtype in LEFT else ROUNDINGS_HALF
        rounding = most * torch.finfo(dtype).eps
        names = [(writer.name, 1.0) for writer in self.writers]
        steps = (1 + 2 * len(self.stack.blocks)) ** 0.5
        names += [(name, steps) for name in before if name not in {name for name, _ in names}]
        spread = (self.basis.shape[-2] / self.basis.shape[-1]) ** 0.5
        for name, roundings in names:
            if name not in after or name not in before:
                raise EditRefused(f"{name} of {self.stack.family} did not run, so that its edit could not be proved")
            own, was = after[name], before[name]
            allowed = left * was.along + roundings * rounding * spread * was.length
            if not own.along <= allowed:
                raise EditRefused(
                    f"{name} of {self.stack.family} still holds {own.along:.2e} along the direction after the edit, "
                    f"where it held {was.along:.2e} before and {allowed:.1e} is allowed; the edit was undone"
                )


def guard_ids(stack: Stack, rows: int, tokens: int) -> Tensor:
    """Different tokens in each row of a small batch."""
    return torch.cat([trial_ids(stack.language_model, 1 + APART * row, tokens) for row in range(rows)])


def _root_mean_square(vectors: Tensor) -> float:
    return float(vectors.square().sum(dim=-1).mean().sqrt()) if len(vectors) else 0.0
