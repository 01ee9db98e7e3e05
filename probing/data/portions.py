"""Which part of a dataset is read: a split, a slice of it, the first rows, or rows at random."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from probing.errors import UsageError

SAMPLE_SEED = 0
"""Seed of every random sample: so many of the same rows are always the same sample."""


@dataclass(frozen=True)
class Part:
    """Which part of a dataset is read; by default all of it.

    Attributes:
        split: which split, where there are several; also a slice of it or of a file, as ``train[:200]``,
            ``train[100:200]``, ``train[:5%]`` or ``[:200]``.
        subset: name of a configuration of a dataset of the hub.
        revision: branch, tag or commit of a dataset of the hub.
        limit: number of rows to take from the start.
        sample: number of rows to take at random, always the same ones, in the order of the data.

    Raises:
        ValueError: both ``limit`` and ``sample`` are given.
        UsageError: the split holds brackets and no slice in them.
    """

    split: str | None = None
    subset: str | None = None
    revision: str | None = None
    limit: int | None = None
    sample: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.sample is not None:
            raise ValueError(
                "give at most one of limit and sample: limit takes the first rows, sample takes rows at random"
            )
        self._bounds()

    @property
    def split_name(self) -> str | None:
        """Name of the split without its slice; None where none is named."""
        return None if self.split is None else self.split.partition("[")[0] or None

    @property
    def is_sliced(self) -> bool:
        """Whether the split is followed by a slice."""
        return self._bounds() is not None

    @property
    def is_whole(self) -> bool:
        """Whether all rows of the split are read."""
        return not self.is_sliced and self.limit is None and self.sample is None

    def _bounds(self) -> tuple[str, str] | None:
        """The two bounds of the slice as they are written; None where there is no slice."""
        _, bracket, rest = (self.split or "").partition("[")
        if not bracket:
            return None
        bounds = re.fullmatch(r"\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\]", rest)
        if bounds is None:
            raise UsageError(
                f"'{self.split}' is no slice of a split; write train[:200], train[100:200], train[:5%] or [:200]"
            )
        return bounds[1] or "", bounds[2] or ""

    def choose_rows(self, count: int, name: str) -> Sequence[int]:
        """Numbers of the rows of a split or a file that are read, in order: the slice, and of it limit or sample.

        Args:
            count: number of rows that there are.
            name: name of the data, for messages.

        Raises:
            UsageError: the slice holds no row.
        """
        rows = range(count)
        bounds = self._bounds()
        if bounds is not None:
            rows = range(_find_bound(bounds[0], count, 0), _find_bound(bounds[1], count, count))
            if not rows:
                raise UsageError(f"{name}: the slice [{':'.join(bounds)}] of {count} rows holds none")
        return self.choose_among(rows)

    def choose_among(self, rows: range) -> Sequence[int]:
        """Of these rows the first ones, or some at random in their order; all where neither is asked for."""
        if self.sample is not None and self.sample < len(rows):
            return sorted(random.Random(SAMPLE_SEED).sample(rows, self.sample))
        return rows[: self.limit]


def _find_bound(text: str, count: int, default: int) -> int:
    """A bound of a slice as a number of rows; a share is rounded to whole rows, as the datasets library does."""
    if not text:
        return default
    number = round(int(text.removesuffix("%")) * count / 100) if text.endswith("%") else int(text)
    return min(max(number + count if number < 0 else number, 0), count)
