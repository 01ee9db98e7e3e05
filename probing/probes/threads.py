"""Several pieces of work at once on a CPU, each computed by one thread alone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def open_single_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of so many threads, each of which torch computes in without others.

    Threads that share every operation wait for each other hundreds of times a second, and on a machine with other work
    one of them is always late. What a thread computes alone does not depend on how many there are. Tasks that have not
    begun when the pool is closed are dropped.
    """
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    try:
        # Torch's own threads would busy-wait while the other workers compute.
        torch.set_num_threads(1)
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
