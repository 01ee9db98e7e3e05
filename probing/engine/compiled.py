"""Blocks compiled by ``torch.compile`` for a while, with hooks on them that still fire."""

import contextlib
from collections.abc import Iterator

import torch

from probing.models.stack import Stack

BACKEND = "inductor"


@contextlib.contextmanager
def use_compiled_blocks(stack: Stack, wanted: bool = True) -> Iterator[None]:
    """Compile the ``forward`` of the blocks, and restore it afterwards.

    Compiling a block itself would include its hooks in the compiled code, where hooks that are added later are ignored.
    """
    if not wanted:
        yield
        return
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
