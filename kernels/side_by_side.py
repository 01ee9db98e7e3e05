"""Work on a card in two streams: while one chunk is used, the next one is made in another buffer."""

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch

BUFFERS = 2


def run_in_turn(chunks: Iterable[slice], make: Callable[[slice, int], None], use: Callable[[slice, int], None]) -> None:
    """Make and use each chunk in one buffer, number 0, one after another: the plain form."""
    for chunk in chunks:
        make(chunk, 0)
        use(chunk, 0)


def run_side_by_side(
    chunks: Iterable[slice],
    make: Callable[[slice, int], None],
    use: Callable[[slice, int], None],
    maker: Any,
    user: Any,
    on: Callable[[Any], AbstractContextManager[Any]] = torch.cuda.stream,
) -> None:
    """Make each chunk in one stream while the chunk before is used in another, in ``BUFFERS`` buffers.

    A buffer is filled again only after its previous use has ended, and used only after it has been filled. Whatever is
    queued in ``maker`` afterwards, such as work on freed memory, comes after the last use, even after an error.

    Args:
        chunks: chunks to make and use, in order.
        make: queues work that fills the buffer of this number.
        use: queues work that reads it.
        maker: the current stream, in which ``make`` queues its work.
        user: another stream.
        on: makes a stream the current one for a while.
    """
    emptied: dict[int, Any] = {}
    try:
        for number, chunk in enumerate(chunks):
            buffer = number % BUFFERS
            if buffer in emptied:
                maker.wait_event(emptied[buffer])
            make(chunk, buffer)
            user.wait_event(maker.record_event())
            with on(user):
                use(chunk, buffer)
            emptied[buffer] = user.record_event()
    finally:
        maker.wait_stream(user)


@functools.cache
def second_stream(device: torch.device) -> torch.cuda.Stream:
    """A second stream, always the same, since torch keeps freed memory separately for each stream."""
    return torch.cuda.Stream(device)
