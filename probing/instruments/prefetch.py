"""The next part prepared by another thread while the current one is used."""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def prefetch(make: Callable[[Item], Made], items: Iterable[Item]) -> Generator[Made, None, None]:
    """``make`` of every item, in order; while one is being used, a thread makes the next.

    One thread makes all of them, so that ``make`` never runs twice at the same time. An error of ``make`` is raised
    when its item is due. Close the generator if it is not exhausted, so that no thread is left behind.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="one-ahead") as pool:
        waiting = None
        for item in items:
            following = pool.submit(make, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
