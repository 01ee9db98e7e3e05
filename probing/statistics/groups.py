"""Groups of rows that share something, directly or through others."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def number_values(values: Iterable[Hashable]) -> list[int]:
    """A number for every value, from 0 in the order in which they appear; equal values have the same number."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]


def find_twins(names: Iterable[str]) -> tuple[str, str] | None:
    """Two names that differ in white space at their ends only; None where there are no such two."""
    known: dict[str, str] = {}
    for name in sorted(names):
        other = known.setdefault(name.strip(), name)
        if other != name:
            return other, name
    return None


def connected_groups(units: ArrayLike, values: Sequence[Hashable] | NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """The group of every row: rows that share their unit or their value, directly or through others, are of one group.

    These are the connected components of the graph whose nodes are units and values, and whose edges are the rows.

    Args:
        units: unit of each row, sortable.
        values: a further value of each row, as many as units; equal to no unit, whatever they are. An array holds
            numbers from 0.

    Returns:
        The number of each row's group, from 0, in the order of the least unit of each group.

    Raises:
        ValueError: different numbers of units and values.
    """
    # Imported here since many jobs start without scipy.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, left = np.unique(np.asarray(units), return_inverse=True)
    # Values are numbered without an array of texts, in which every one would take as much memory as the longest.
    known = isinstance(values, np.ndarray)
    right = np.asarray(values if known else number_values(values), dtype=np.int64)
    if len(left) != len(right):
        raise ValueError(f"{len(left)} units and {len(right)} values; there must be as many")
    size = len(names) + int(right.max(initial=-1)) + 1
    edges = coo_array((np.ones(len(left), np.int8), (left, len(names) + right)), shape=(size, size))
    # Components are numbered by their first node, and units are numbered before values.
    components: NDArray[np.int32] = connected_components(edges, directed=False)[1]
    return components[left].astype(np.int64)
