"""How the parts of a job are made: one after the other, with the next one prepared, or several at once."""

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from probing.instruments.prefetch import prefetch
from probing.instruments.reading import Advance
from probing.probes.threads import open_single_threads
from probing.store.progress import Worker

Ready = TypeVar("Ready")
Made = TypeVar("Made")
Where = Callable[[int], str]
"""The name of a row of a block in messages."""
Maker = Callable[[Sequence[int], Advance], Generator[Made, None, None]]
"""Makes the parts with these numbers, in order, each when it is asked for."""


@dataclass(frozen=True)
class Block:
    """Rows that make one part of a run.

    Attributes:
        number: number of the part.
        rows: the rows.
        where: their names in messages.
    """

    number: int
    rows: Sequence[Any]
    where: Where


@dataclass(frozen=True)
class Delivery(Generic[Made]):
    """A part that another process made.

    Attributes:
        number: number of the part.
        made: the part.
        rank: number of the worker that made it.
        worker: what that worker has done so far; the statuses of its rows are left out.
    """

    number: int
    made: Made
    rank: int
    worker: Worker


@dataclass(frozen=True)
class MadeElsewhere(Generic[Made]):
    """Parts that other processes make.

    Attributes:
        receive: yields the parts that were missing, in the order in which they are done.
    """

    receive: Callable[[], Generator[Delivery[Made], None, None]]


def make_one_after_another(make: Callable[[int, Advance], Made]) -> Maker[Made]:
    """Make one part at a time, in this thread."""

    def make_all(missing: Sequence[int], report: Advance) -> Generator[Made, None, None]:
        for number in missing:
            yield make(number, report)

    return make_all


def make_with_next_prepared(
    prepare: Callable[[int], Ready], make: Callable[[int, Ready, Advance], Made]
) -> Maker[Made]:
    """Make one part at a time, while another thread prepares the next one."""

    def make_all(missing: Sequence[int], report: Advance) -> Generator[Made, None, None]:
        with closing(prefetch(prepare, missing)) as prepared:
            for number, ready in zip(missing, prepared, strict=True):
                yield make(number, ready, report)

    return make_all


class Stopped(Exception):
    """Raised inside a part that is being made when another one failed, or the run was interrupted."""


def make_several_at_once(make: Callable[[int, Advance], Made], count: int) -> Maker[Made]:
    """Make ``count`` parts at once, by a thread each, in which torch uses no further threads."""

    def make_all(missing: Sequence[int], report: Advance) -> Generator[Made, None, None]:
        stop, one_at_a_time = threading.Event(), threading.Lock()

        def report_unless_stopped(rows: float, tokens: int) -> None:
            if stop.is_set():
                raise Stopped
            with one_at_a_time:
                report(rows, tokens)

        def make_unless_stopped(number: int) -> Made:
            if stop.is_set():
                raise Stopped
            try:
                return make(number, report_unless_stopped)
            except BaseException:
                # Set before this thread goes on to the next part.
                stop.set()
                raise

        with open_single_threads(count) as pool:
            try:
                yield from pool.map(make_unless_stopped, missing)
            finally:
                stop.set()

    return make_all
