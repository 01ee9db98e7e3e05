"""Permutation tests: labels permuted among exchangeable rows, and p-values against a null distribution."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
FLIPS_STREAM, LABELS_STREAM = 3, 7
DRAWS = 10_000
"""Permutations of labels that are tried before an error says that none is usable."""


def permute_labels(
    labels: NDArray[Any],
    groups: ArrayLike,
    count: int,
    seed: int = 0,
    train: NDArray[np.bool_] | None = None,
    folds: NDArray[np.int64] | None = None,
) -> NDArray[Any]:
    """Permutations of the labels, [permutation row].

    Groups whose rows all have one label exchange these labels among each other, so that the rows of a group keep equal
    labels; in other groups labels are permuted among the rows of the group.

    Args:
        labels: [row]; two of them where ``train`` is given, as booleans.
        groups: group of each row, [row].
        count: number of permutations.
        seed: seed of the permutations.
        train: rows that splits train on, [row split]: permutations after which one of them has one class only are
            drawn again.
        folds: fold of each row, where folds were stratified by the labels: groups then exchange labels inside their
            fold only, so that every permutation has as many rows of each label in each fold as the labels have.

    Raises:
        ValueError: nearly no permutation leaves both classes in every split.
    """
    _, first, index = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    alike = np.ones(len(first), dtype=bool)
    alike[index[labels != labels[first][index]]] = False
    places = None if folds is None else folds[first][alike]
    generator = np.random.default_rng([seed, LABELS_STREAM])
    permutations = np.empty((count, len(labels)), dtype=labels.dtype)
    for number in range(count):
        for _ in range(DRAWS):
            drawn = _permute_within(labels, index, generator) if not alike.all() else labels.copy()
            if alike.any():
                exchanged = labels[first]
                exchanged[alike] = _exchange(exchanged[alike], places, generator)
                drawn = np.where(alike[index], exchanged[index], drawn)
            if train is None or not _has_one_class(drawn, train):
                break
        else:
            raise ValueError("nearly all permutations of the labels leave one class only to train on")
        permutations[number] = drawn
    return permutations


def draw_label_flips(groups: ArrayLike, count: int, seed: int = 0) -> Array:
    """1 or -1 for every row in each permutation of the labels, [permutation row]: which of two statements is true.

    Rows of one group share texts, so their labels are flipped together.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    signs = np.random.default_rng([seed, FLIPS_STREAM]).choice([-1.0, 1.0], size=(count, len(names)))
    flips: Array = signs[:, index]
    return flips


def p_value(value: float, null: Array, higher_is_better: bool = True) -> float:
    """Share of the null distribution that is as good as the value, the value itself counted in.

    Draws that are not finite are left out; NaN where none are finite, or the value is not.
    """
    known = null[np.isfinite(null)]
    if not len(known) or not np.isfinite(value):
        return float("nan")
    as_good = known >= value if higher_is_better else known <= value
    return float((1 + as_good.sum()) / (1 + len(known)))


def corrected_p_values(values: Array, nulls: Array, higher_is_better: bool = True) -> Array:
    """p-values of several layers, each against the best layer of every permutation.

    Args:
        values: [layer].
        nulls: under the same permutations at every layer, [layer permutation].
        higher_is_better: whether large values are good.

    Source: Westfall and Young 1993, the maxT procedure in one step.
    """
    if np.isnan(nulls).all() or not nulls.shape[1]:
        return np.full(len(values), np.nan)
    best = np.nanmax(nulls, axis=0) if higher_is_better else np.nanmin(nulls, axis=0)
    return np.array([p_value(float(value), best, higher_is_better) for value in values])


def _has_one_class(labels: NDArray[np.bool_], train: NDArray[np.bool_]) -> bool:
    """Whether any split trains on one class only."""
    ones = labels.astype(np.int64) @ train
    return bool(((ones == 0) | (ones == train.sum(axis=0))).any())


def _exchange(labels: NDArray[Any], places: NDArray[np.int64] | None, generator: np.random.Generator) -> NDArray[Any]:
    """Labels of groups in another order, inside each fold where folds are given."""
    if places is None:
        shuffled: NDArray[Any] = generator.permutation(labels)
        return shuffled
    return _permute_within(labels, places, generator)


def _permute_within(labels: NDArray[Any], index: NDArray[np.int64], generator: np.random.Generator) -> NDArray[Any]:
    """Labels in another order inside each group."""
    shuffled = generator.permutation(len(labels))
    order = shuffled[np.argsort(index[shuffled], kind="stable")]
    permuted = np.empty_like(labels)
    permuted[np.argsort(index, kind="stable")] = labels[order]
    return permuted
