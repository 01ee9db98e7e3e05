"""Sequences whose items are made when they are asked for, so that a large file need not be in memory."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from threading import RLock
from typing import Any, Generic, TypeVar, overload

Item = TypeVar("Item")
BLOCK = 1024


class LazySequence(Sequence[Item], Generic[Item]):
    """So many items, each of which is made anew whenever it is asked for."""

    def __init__(self, count: int, make: Callable[[int], Item]) -> None:
        self._numbers, self._make = range(count), make

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self._make(number) for number in self._numbers[index]]
        return self._make(self._numbers[index])

    def __iter__(self) -> Iterator[Item]:
        return map(self._make, self._numbers)

    def take(self, indices: Sequence[int]) -> "LazySequence[Item]":
        """The items with these numbers, in the order given."""
        return LazySequence(len(indices), lambda number: self[indices[number]])


class LazyRows(LazySequence[Mapping[str, Any]]):
    """Rows of a table, and the names of its columns.

    Args:
        count: number of rows.
        make: makes a row.
        columns: names of the columns, where they are known without reading every row.
    """

    def __init__(
        self, count: int, make: Callable[[int], Mapping[str, Any]], columns: Sequence[str] | None = None
    ) -> None:
        super().__init__(count, make)
        self._columns = columns

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns, in order of appearance."""
        return list_columns(iter(self)) if self._columns is None else tuple(self._columns)

    def take(self, indices: Sequence[int]) -> "LazyRows":
        """The rows with these numbers, in the order given."""
        return LazyRows(len(indices), lambda number: self[indices[number]])


def list_columns(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Names of all columns that any of the rows has, in order of appearance."""
    return rows.columns if isinstance(rows, LazyRows) else tuple(dict.fromkeys(name for row in rows for name in row))


def make_in_blocks(count: int, make: Callable[[int, int], Sequence[Item]], size: int = BLOCK) -> LazySequence[Item]:
    """A sequence whose items are made many at a time; only the latest block is kept. Several threads may read it.

    Args:
        count: number of items.
        make: makes the items from one number to the one before another.
        size: number of items of a block.
    """
    kept: dict[int, Sequence[Item]] = {}
    # Blocks are often read from a file, which has one position.
    lock = RLock()

    def make_item(number: int) -> Item:
        wanted, at = divmod(number, size)
        with lock:
            if wanted not in kept:
                kept.clear()
                kept[wanted] = make(wanted * size, min((wanted + 1) * size, count))
            return kept[wanted][at]

    return LazySequence(count, make_item)


def pick(items: Sequence[Item], indices: Sequence[int]) -> Sequence[Item]:
    """The items with these numbers, in the order given; in memory if all are."""
    if isinstance(items, LazySequence):
        return items.take(indices)
    return [items[index] for index in indices]


def chain(parts: Sequence[Sequence[Item]]) -> Sequence[Item]:
    """The items of several sequences, one behind the other; in memory if all are."""
    if not any(isinstance(part, LazySequence) for part in parts):
        return [item for part in parts for item in part]
    ends = list(accumulate(map(len, parts)))

    def find(number: int) -> Item:
        part = bisect_right(ends, number)
        return parts[part][number - ends[part] + len(parts[part])]

    return LazySequence(ends[-1], find)
