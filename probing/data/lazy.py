"""Sequences whose items are made when they are asked for, so that a large file need not be in memory."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
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


def make_in_blocks(count: int, make: Callable[[int, int], Sequence[Item]], size: int = BLOCK) -> LazySequence[Item]:
    """A sequence whose items are made many at a time; only the latest block is kept.

    Args:
        count: number of items.
        make: makes the items from one number to the one before another.
        size: number of items of a block.
    """
    kept: dict[int, Sequence[Item]] = {}

    def make_item(number: int) -> Item:
        wanted, at = divmod(number, size)
        if wanted not in kept:
            kept.clear()
            kept[wanted] = make(wanted * size, min((wanted + 1) * size, count))
        return kept[wanted][at]

    return LazySequence(count, make_item)


def pick(items: Sequence[Item], indices: Sequence[int]) -> Sequence[Item]:
    """The items with these numbers, in the order given; in memory if all are."""
    if isinstance(items, LazySequence):
        return LazySequence(len(indices), lambda number: items[indices[number]])
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
