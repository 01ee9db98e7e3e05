"""What keeps probes honest: folds that share nothing, nulls, and layers chosen without the pairs they are judged on."""

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
LEAST_FOLDS = 3
"""With fewer, nothing is left to train on once a layer is to be chosen inside a fold."""
DRAWS = 10_000
"""Permutations of labels that are tried before it is said that none will do."""


def make_folds(units: ArrayLike, folds: int, seed: int = 0) -> NDArray[np.int64]:
    """Fold of every row, such that no unit is in two folds and the folds are about as large.

    Args:
        units: rows of one unit (pairs that share a text, a category) stay together.
        folds: how many; at least 3.
        seed: of the order in which units are shared out.

    Raises:
        ValueError: too few folds, or fewer units than folds.
    """
    names, sizes = np.unique(np.asarray(units), return_counts=True)
    if folds < LEAST_FOLDS:
        raise ValueError(f"there must be at least {LEAST_FOLDS} folds to choose a layer inside each, not {folds}")
    if len(names) < folds:
        raise ValueError(f"{folds} folds need as many units that share nothing; there are {len(names)}")
    order = np.random.default_rng([seed, 1]).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    filled = np.zeros(folds, dtype=np.int64)
    placed = np.zeros(len(names), dtype=np.int64)
    for unit in order:
        placed[unit] = int(np.argmin(filled))
        filled[placed[unit]] += sizes[unit]
    return placed[np.searchsorted(names, np.asarray(units))]


@dataclass(frozen=True, eq=False)
class Splits:
    """What is trained: without each fold, without each two folds, and on everything.

    Without two folds ``i`` and ``j``, a probe says how good its layer is for fold ``i`` by what it does on ``j``, and
    the other way round: fold ``i``'s layer is chosen without its own rows.

    Attributes:
        folds: of every row, [row].
        left_out: folds that each split does not see; the last split sees everything.
    """

    folds: NDArray[np.int64]
    left_out: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, folds: NDArray[np.int64]) -> "Splits":
        """All splits of these folds."""
        numbers = range(int(folds.max()) + 1)
        return cls(folds, (*((fold,) for fold in numbers), *combinations(numbers, 2), ()))

    @property
    def without_pairs(self) -> "Splits":
        """Those that leave out one fold or none: enough where no layer is chosen."""
        return replace(self, left_out=tuple(out for out in self.left_out if len(out) < 2))

    @property
    def without_all(self) -> "Splits":
        """Those that leave something out: enough where nothing is kept of probes that saw every row."""
        return replace(self, left_out=tuple(out for out in self.left_out if out))

    @property
    def count(self) -> int:
        """Number of folds."""
        return int(self.folds.max()) + 1

    @property
    def train(self) -> NDArray[np.bool_]:
        """Which rows each split trains on, [row split]."""
        return np.stack([~np.isin(self.folds, out) for out in self.left_out], axis=1)

    def inner(self, fold: int) -> list[tuple[int, int]]:
        """Splits that leave out ``fold`` and another one, with that other one."""
        return [(at, sum(out) - fold) for at, out in enumerate(self.left_out) if len(out) == 2 and fold in out]

    def held_out(self, values: Array) -> Array:
        """Values of every row by the split that leaves out its fold alone, [... row] from [... row split]."""
        picked: Array = np.take_along_axis(values, self.folds.reshape((1,) * (values.ndim - 2) + (-1, 1)), axis=-1)[
            ..., 0
        ]
        return picked

    def orientation(self, credits: Array) -> Array:
        """1 or -1 for every split: which way round is right more often on its training rows.

        Args:
            credits: how right every row is, less a half: [... row split].
        """
        return np.where((credits * self.train).sum(axis=-2) < 0, -1.0, 1.0)

    def inner_scores(self, credits: Array) -> Array:
        """How right, for every fold, the probes are that saw neither it nor the fold they are judged on: [... fold].

        Args:
            credits: oriented, [... row split].
        """
        columns = []
        for fold in range(self.count):
            parts = [credits[..., self.folds == other, at].mean(axis=-1) for at, other in self.inner(fold)]
            columns.append(np.stack(parts, axis=-1).mean(axis=-1))
        return np.stack(columns, axis=-1)


def resamples(units: ArrayLike, count: int, seed: int = 0) -> Array:
    """How often every row counts in each bootstrap resample of the units, [count row]."""
    names, index = np.unique(np.asarray(units), return_inverse=True)
    drawn = np.random.default_rng([seed, 2]).multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)
    rows: Array = drawn[:, index].astype(np.float64)
    return rows


def label_flips(units: ArrayLike, count: int, seed: int = 0) -> Array:
    """1 or -1 for every row in each permutation of the labels, [count row]: which of the two statements is called true.

    Rows of one unit share texts, so their labels turn together.
    """
    names, index = np.unique(np.asarray(units), return_inverse=True)
    signs = np.random.default_rng([seed, 3]).choice([-1.0, 1.0], size=(count, len(names)))
    flips: Array = signs[:, index]
    return flips


def permuted_pairings(folds: NDArray[np.int64], count: int, seed: int = 0) -> NDArray[np.int64]:
    """For each permutation, the row whose no form takes the place of each row's own, [count row]; within folds.

    No row of two or more in a fold keeps its own.
    """
    found = np.empty((count, len(folds)), dtype=np.int64)
    for number in range(count):
        generator = np.random.default_rng([seed, 4, number])
        for fold in np.unique(folds):
            rows = generator.permutation(np.flatnonzero(folds == fold))
            found[number, rows] = np.roll(rows, 1)
    return found


def random_directions(width: int, count: int, seed: int = 0) -> Array:
    """Directions of length one, uniform on the sphere: [width count]."""
    drawn = np.random.default_rng([seed, 5]).standard_normal((count, width)).T
    directions: Array = drawn / np.linalg.norm(drawn, axis=0)
    return directions


def p_value(value: float, null: Array, higher_is_better: bool = True) -> float:
    """Share of the null that is as good as the value, the value itself counted in; NaN where there is none."""
    known = null[np.isfinite(null)]
    if not len(known) or not np.isfinite(value):
        return float("nan")
    as_good = known >= value if higher_is_better else known <= value
    return float((1 + as_good.sum()) / (1 + len(known)))


def corrected_p_values(values: Array, nulls: Array, higher_is_better: bool = True) -> Array:
    """p-values of several layers, each against the best layer of every draw of the null (Westfall and Young's maxT).

    Args:
        values: [layer].
        nulls: the same draws at every layer, [layer draw].
        higher_is_better: whether large values are good.
    """
    if np.isnan(nulls).all() or not nulls.shape[1]:
        return np.full(len(values), np.nan)
    best = np.nanmax(nulls, axis=0) if higher_is_better else np.nanmin(nulls, axis=0)
    return np.array([p_value(float(value), best, higher_is_better) for value in values])


def permuted_labels(
    labels: NDArray[Any],
    units: ArrayLike,
    count: int,
    seed: int = 0,
    train: NDArray[np.bool_] | None = None,
) -> NDArray[Any]:
    """Permutations of the labels, [count row].

    Labels of units that have one label are exchanged between these, so that rows of one unit keep theirs alike; those
    of other units between the rows of a unit, which is where they differ.

    Args:
        labels: [row]; two of them where ``train`` is given, as booleans.
        units: of the rows.
        count: of permutations.
        seed: of the permutations.
        train: rows that splits train on, [row split]: permutations after which one of them has one class only are
            drawn again.

    Raises:
        ValueError: nearly no permutation leaves both classes in every split.
    """
    _, first, index = np.unique(np.asarray(units), return_index=True, return_inverse=True)
    alike = np.ones(len(first), dtype=bool)
    alike[index[labels != labels[first][index]]] = False
    generator = np.random.default_rng([seed, 7])
    found = np.empty((count, len(labels)), dtype=labels.dtype)
    for number in range(count):
        for _ in range(DRAWS):
            drawn = _within(labels, index, generator) if not alike.all() else labels.copy()
            if alike.any():
                exchanged = labels[first]
                exchanged[alike] = generator.permutation(exchanged[alike])
                drawn = np.where(alike[index], exchanged[index], drawn)
            if train is None or not _one_class(drawn, train):
                break
        else:
            raise ValueError("nearly all permutations of the labels leave one class only to train on")
        found[number] = drawn
    return found


def _one_class(labels: NDArray[np.bool_], train: NDArray[np.bool_]) -> bool:
    """Whether any split trains on one class only."""
    ones = labels.astype(np.int64) @ train
    return bool(((ones == 0) | (ones == train.sum(axis=0))).any())


def _within(labels: NDArray[Any], index: NDArray[np.int64], generator: np.random.Generator) -> NDArray[Any]:
    """Labels in another order inside each unit."""
    shuffled = generator.permutation(len(labels))
    order = shuffled[np.argsort(index[shuffled], kind="stable")]
    found = np.empty_like(labels)
    found[np.argsort(index, kind="stable")] = labels[order]
    return found
