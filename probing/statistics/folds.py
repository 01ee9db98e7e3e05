"""Folds that share no group, and the splits of nested cross-validation: layers are chosen without the fold they are
judged on."""

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
STREAM = 1
LEAST_FOLDS = 3
"""Least number of folds: with fewer, nothing is left to train on when a layer is chosen inside a fold (nested
cross-validation)."""


def make_folds(groups: ArrayLike, folds: int, seed: int = 0, labels: ArrayLike | None = None) -> NDArray[np.int64]:
    """Fold of every row, such that no group is in two folds and the folds are about as large.

    With labels the folds are stratified: rows of each label are spread over the folds as evenly as the groups allow, so
    that no fold lacks a label by chance.

    Args:
        groups: rows of one group (pairs that share a text, a category) stay together.
        folds: number of folds; at least 3.
        seed: seed of the order in which groups are shared out.
        labels: label of each row; None where folds need not hold the labels alike.

    Raises:
        ValueError: too few folds, or fewer groups than folds.
    """
    names, sizes = np.unique(np.asarray(groups), return_counts=True)
    if folds < LEAST_FOLDS:
        raise ValueError(f"there must be at least {LEAST_FOLDS} folds to choose a layer inside each, not {folds}")
    if len(names) < folds:
        raise ValueError(f"{folds} folds need as many units that share nothing; there are {len(names)}")
    order = np.random.default_rng([seed, STREAM]).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    index = np.searchsorted(names, np.asarray(groups))
    counts = sizes[:, None] if labels is None else _count_labels(index, labels)
    rarity, filled = 1 / counts.sum(axis=0), np.zeros((folds, counts.shape[1]), dtype=np.int64)
    placed = np.zeros(len(names), dtype=np.int64)
    for group in order:
        # How much each fold already has of what this group brings; of folds that have as much, the smallest one.
        crowded = filled @ (counts[group] * rarity)
        placed[group] = int(np.lexsort((filled.sum(axis=1), crowded))[0])
        filled[placed[group]] += counts[group]
    return placed[index]


def _count_labels(index: NDArray[np.int64], labels: ArrayLike) -> NDArray[np.int64]:
    """Number of rows of each label in each group, [group label]."""
    codes = np.unique(np.asarray(labels), return_inverse=True)[1]
    counts = np.zeros((int(index.max()) + 1, int(codes.max()) + 1), dtype=np.int64)
    np.add.at(counts, (index, codes), 1)
    return counts


@dataclass(frozen=True, eq=False)
class Splits:
    """The trainings of nested cross-validation: without each fold, without each two folds, and on everything.

    The probe trained without two folds ``i`` and ``j`` gives, on ``j``, an inner score of its layer for the outer fold
    ``i``, and the other way round: so the layer of a fold is chosen without the rows of that fold.

    Attributes:
        folds: fold of every row, [row].
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
        """The splits that leave out one fold or none: enough where no layer is chosen."""
        return replace(self, left_out=tuple(out for out in self.left_out if len(out) < 2))

    @property
    def without_all(self) -> "Splits":
        """The splits that leave something out: enough where nothing is kept of probes that saw every row."""
        return replace(self, left_out=tuple(out for out in self.left_out if out))

    @property
    def count(self) -> int:
        """Number of folds."""
        return int(self.folds.max()) + 1

    @property
    def train(self) -> NDArray[np.bool_]:
        """Training rows of each split, [row split]."""
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
            credits: score of every row, less a half, [... row split]: above 0 where it is right.
        """
        return np.where((credits * self.train).sum(axis=-2) < 0, -1.0, 1.0)

    def inner_scores(self, credits: Array) -> Array:
        """Inner scores of every fold: of probes that saw neither it nor the fold they are judged on, [... fold].

        Args:
            credits: oriented, [... row split].
        """
        columns = []
        for fold in range(self.count):
            parts = [credits[..., self.folds == other, at].mean(axis=-1) for at, other in self.inner(fold)]
            columns.append(np.stack(parts, axis=-1).mean(axis=-1))
        return np.stack(columns, axis=-1)
