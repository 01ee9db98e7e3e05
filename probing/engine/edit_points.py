"""Points at which states are changed while a model runs: their hooks, and the proof that these do what they should."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probing.directions.edits import Change
from probing.engine.edit_guard import LEFT, LEFT_HALF, ROWS, Component, EditGuard, guard_ids
from probing.engine.edited_tokens import EditedTokens
from probing.errors import EditRefused
from probing.models.hooks import first_tensor, read_input, replace_first_tensor, replace_input
from probing.models.layers import Stack, run_backbone, use_eval_mode

FEW_TOKENS = 12
"""Tokens of each row of that batch: a hook does the same to every token."""


@dataclass(frozen=True, eq=False)
class Point:
    """One side of a module at which states are changed."""

    name: str
    module: nn.Module
    change: Change
    before: bool = False


def install(stack: Stack, tokens: EditedTokens, checks: Sequence["Check"]) -> Iterator[Any]:
    """Put the hooks of an edit on, each between those of its check; yields their handles, which the caller removes."""

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens.begin(module, args, kwargs)

    outer = [] if tokens.everywhere else list(dict.fromkeys((stack.language_model.model, stack.backbone)))
    for module in outer:
        yield module.register_forward_pre_hook(look, with_kwargs=True)
    for check in checks:
        check.look_before()
        yield _hook(check.point, tokens)
        check.look_behind()


def _hook(point: Point, tokens: EditedTokens) -> Any:
    def edit(states: Tensor | None) -> Tensor:
        if states is None:
            raise EditRefused(f"{point.name} passes no tensor of states")
        flat, rows, mask = tokens.flatten(states)
        changed = point.change.apply(flat, rows)
        return tokens.shape_like(changed if mask is None else torch.where(mask[:, None], changed, flat), states)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return replace_input(args, kwargs, edit(read_input(args, kwargs)))

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        return replace_first_tensor(output, edit(first_tensor(output)))

    if point.before:
        return point.module.register_forward_pre_hook(before, with_kwargs=True)
    return point.module.register_forward_hook(after)


@contextlib.contextmanager
def edit_all_tokens(tokens: EditedTokens) -> Iterator[None]:
    """Edit all tokens of every pass inside the block."""
    chosen = tokens.tokens
    try:
        tokens.tokens = "all"
        yield
    finally:
        tokens.tokens = chosen


def prove_points(
    checks: Sequence["Check"], stack: Stack, tokens: EditedTokens, guard: EditGuard | None
) -> dict[str, Component]:
    """Run a small batch and compare, at every point, what came out with the formula in float64.

    Returns:
        What the guard measured in the same pass.

    Raises:
        EditRefused: a point that did not run, whose states are not as the formula says, or that was changed in place.
    """
    ids = guard_ids(stack, ROWS if tokens.rows is None else len(tokens.rows), FEW_TOKENS)
    watching: AbstractContextManager[dict[str, Component]] = contextlib.nullcontext({})
    if guard is not None:
        watching = guard.watch()
    with torch.no_grad(), use_eval_mode(stack.language_model.model), edit_all_tokens(tokens), watching as found:
        run_backbone(stack.backbone, ids)
        for check in checks:
            check.judge(tokens, stack)
    return found


class Check:
    """States at one point on both sides of its hook; ``remove`` takes the hooks of the check off."""

    def __init__(self, point: Point) -> None:
        self.point = point
        self.given: Tensor | None = None
        self.copied: Tensor | None = None
        self.edited: Tensor | None = None
        self._handles: list[Any] = []

    def look_before(self) -> None:
        """Put a hook on, before that of the edit."""
        self._tap(self._see)

    def look_behind(self) -> None:
        """Put a hook on, behind that of the edit; where there is none, both see the same states."""
        self._tap(self._see_edited)

    def remove(self) -> None:
        """Take both off."""
        while self._handles:
            self._handles.pop().remove()

    def _tap(self, receive: Callable[[Tensor | None], None]) -> None:
        module = self.point.module
        if self.point.before:
            handle = module.register_forward_pre_hook(
                lambda _, args, kwargs: receive(read_input(args, kwargs)), with_kwargs=True
            )
        else:
            handle = module.register_forward_hook(lambda _, args, output: receive(first_tensor(output)))
        self._handles.append(handle)

    def _see(self, tensor: Tensor | None) -> None:
        self.given, self.copied = tensor, None if tensor is None else tensor.clone()

    def _see_edited(self, tensor: Tensor | None) -> None:
        # Looked at here: later on the model itself may change its states in place.
        if self.given is not None and self.copied is not None and not _same(self.given, self.copied):
            raise EditRefused(f"the edit of {self.point.name} changed states in place that the model still holds")
        self.edited = None if tensor is None else tensor.clone()

    def judge(self, tokens: EditedTokens, stack: Stack) -> None:
        """Raise unless the states are as the formula says."""
        if self.copied is None or self.edited is None:
            raise EditRefused(f"{self.point.name} of {stack.family} did not run, so that its edit could not be proved")
        flat, rows, _ = tokens.flatten(self.copied.double())
        exact = self.point.change.apply(flat, rows)
        own = self.edited.double().reshape(exact.shape)
        off, length = float((own - exact).norm()), float(flat.norm().maximum(exact.norm()))
        if not off <= LEFT.get(self.copied.dtype, LEFT_HALF) * length:
            raise EditRefused(
                f"the edit of {self.point.name} of {stack.family} is off by {off / max(length, 1e-300):.1e} of the "
                f"length of its states"
            )


def _same(tensor: Tensor, other: Tensor) -> bool:
    return torch.equal(tensor.nan_to_num(), other.nan_to_num())
