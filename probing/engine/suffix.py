"""Running only the upper blocks of a model, from states that another pass left at the input of one of them.

An edit at a layer leaves everything below it as it was. So what each block was called with is recorded in one plain
pass, and the blocks from the edited layer on are called again with other states. Whether a model can be run like this
is tried on it: the blocks of some models hand one another more than their states.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probing.engine.edit_guard import guard_ids
from probing.engine.modes import PARITY, PARITY_HALF
from probing.models.differences import channelwise_difference
from probing.models.hooks import first_tensor, read_input, replace_input
from probing.models.layers import UNUSABLE
from probing.models.passes import TRIAL_TOKENS, last_hidden_state, use_eval_mode
from probing.models.stack import Stack

COPIES = 2
"""Copies of each row in the trial, and rows of it: batches of one show nothing of what has a batch axis."""


@dataclass(frozen=True, eq=False)
class Recording:
    """What the blocks of a model were called with in one pass over some rows.

    Attributes:
        calls: positional and keyword arguments of each block; the states among them are of no use any more.
        states: input of each block and output of the last, on the host: [row token width] each.
        last: what the backbone returned.
    """

    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]
    states: tuple[Tensor, ...]
    last: Tensor


def record(stack: Stack, ids: Int[Tensor, "row token"]) -> Recording:
    """Run some rows through the whole model, and keep what every block was called with."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    states: list[Tensor] = []

    def see_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = read_input(args, kwargs)
        assert given is not None
        # A copy, since a block may go on in place.
        states.append(given.detach().to("cpu", copy=True))
        # Held with an empty tensor in the place of the states, which would fill the memory of a card.
        calls.append(replace_input(args, kwargs, given.new_empty(0)))

    def see_end(module: nn.Module, args: Any, output: Any) -> None:
        returned = first_tensor(output)
        assert returned is not None
        states.append(returned.detach().to("cpu", copy=True))

    handles = [block.register_forward_pre_hook(see_call, with_kwargs=True) for block in stack.blocks]
    handles.append(stack.blocks[-1].register_forward_hook(see_end))
    try:
        last = last_hidden_state(stack.backbone, ids)
    finally:
        for handle in handles:
            handle.remove()
    return Recording(tuple(calls), tuple(states), last)


def run_from(
    stack: Stack, recording: Recording, start: int, states: Float[Tensor, "row token width"], copies: int = 1
) -> Float[Tensor, "row token width"]:
    """States behind the last block (before the final norm), from others at the input of a block.

    Args:
        stack: the model.
        recording: of the rows that the states are of.
        start: the first block that runs; their number, where none does.
        states: at its input; rows of the recording one after the other, and all of them ``copies`` times.
        copies: how often each row of the recording is there.
    """
    rows = recording.states[0].shape[0]
    for block, (args, kwargs) in zip(stack.blocks[start:], recording.calls[start:], strict=True):
        given = replace_input(_repeat(args, rows, copies), _repeat(kwargs, rows, copies), states)
        returned = first_tensor(block(*given[0], **given[1]))
        if returned is None:
            raise TypeError("a block returned no tensor of states")
        states = returned
    return states


def _repeat(value: Any, rows: int, copies: int) -> Any:
    """Arguments for every row ``copies`` times: tensors with a batch axis are repeated along it."""
    if isinstance(value, Tensor):
        batched = value.ndim > 1 and value.shape[0] == rows and rows > 1
        return value.repeat(copies, *([1] * (value.ndim - 1))) if batched and copies > 1 else value
    if isinstance(value, Mapping):
        return {key: _repeat(own, rows, copies) for key, own in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_repeat(own, rows, copies) for own in value)
    return value


def apply_final_norm(stack: Stack, states: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes width"]:
    """What the output head multiplies, from states behind the last block."""
    return states if not stack.normed or stack.final_norm is None else stack.final_norm(states)


def find_why_not(stack: Stack, ids: Int[Tensor, "row token"] | None = None) -> str:
    """Why a model cannot be run from a block on; empty where it can be.

    Unedited states have to give what a whole pass gives, from every block on, with each row once and several times.

    Args:
        stack: the model.
        ids: rows to try it on; by default a few tokens.
    """
    if stack.normed and stack.final_norm is None:
        return "its final norm is not a single module"
    ids = guard_ids(stack, COPIES, TRIAL_TOKENS) if ids is None else ids
    allowed = PARITY.get(stack.language_model.dtype, PARITY_HALF)
    model = stack.language_model.model
    with torch.inference_mode(), use_eval_mode(model):
        recording = record(stack, ids)
        whole = torch.cat([recording.last] * COPIES).flatten(0, -2)
        for start in range(len(stack.blocks) + 1):
            try:
                states = torch.cat([recording.states[start]] * COPIES).to(stack.language_model.device)
                ended = apply_final_norm(stack, run_from(stack, recording, start, states, COPIES))
            except torch.OutOfMemoryError:
                raise
            except UNUSABLE as error:
                return f"block {start} alone fails with {type(error).__name__}: {error}"
            off = channelwise_difference(ended.flatten(0, -2), whole)
            if not off <= allowed:
                return f"its states from block {start} on are off by {off:.1e}"
    return ""


def repeat_states(states: Float[Tensor, "row token width"], shifts: Sequence[Tensor]) -> Float[Tensor, "..."]:
    """States of every row with each vector added to all tokens, [vector x row token width], in the states' dtype."""
    wide = states.to(torch.promote_types(states.dtype, torch.float32))
    return torch.cat([(wide + shift.to(wide)).to(states.dtype) for shift in shifts])
