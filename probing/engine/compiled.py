"""Blocks compiled by ``torch.compile`` for a while, with hooks on them that still fire."""

import contextlib
from collections.abc import Iterator

import torch

from probing.engine.edit_points import is_edited
from probing.errors import UsageError
from probing.models.stack import Stack

BACKEND = "inductor"


@contextlib.contextmanager
def use_compiled_blocks(stack: Stack, wanted: bool = True) -> Iterator[None]:
    """Compile the ``forward`` of the blocks, and restore it afterwards.

    Compiling a block itself would include its hooks in the compiled code, where hooks that are added later are ignored.

    Raises:
        UsageError: an edit is on: code that was compiled before it would leave out the hooks of inner modules.
    """
    if not wanted:
        yield
        return
    if is_edited(stack.language_model.model):
        raise UsageError(
            "blocks are not compiled under probing.ablate: code compiled before would run without the edit"
        )
    before = [block.__dict__.get("forward") for block in stack.blocks]
    try:
        for block in stack.blocks:
            block.forward = torch.compile(block.forward, dynamic=True, backend=BACKEND)
        yield
    finally:
        for block, forward in zip(stack.blocks, before, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward
