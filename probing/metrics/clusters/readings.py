"""Cluster indices of a place, as the part file of a run stores them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from probing.metrics.clusters import ALL_INDICES
from probing.metrics.clusters.draws import IndexDraws

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class IndexReadings:
    """Every index of some points; NaN where the points of every label are the same.

    For several folds, every array has a leading axis of folds.

    Attributes:
        values: value of each of ``ALL_INDICES``, [index].
        null: values under permutations of the labels, [index permutation].
        draws: values in bootstrap replicates, [index replicate].
        sizes: number of rows in each replicate, [replicate].
    """

    values: Array
    null: Array
    draws: Array
    sizes: Array

    @classmethod
    def of(cls, readings: IndexDraws) -> "IndexReadings":
        """Readings from the indices of one space."""
        values, null, draws = (
            torch.stack([some[index] for index in ALL_INDICES]).double().numpy()
            for some in (readings.values, readings.null, readings.draws)
        )
        return cls(values[:, 0], null, draws, readings.sizes.numpy())

    @classmethod
    def of_nothing(cls, permutations: int, replicates: int) -> "IndexReadings":
        """Readings of points that have no index."""
        size = len(ALL_INDICES)
        shapes = ((size,), (size, permutations), (size, replicates), (replicates,))
        return cls(*(np.full(shape, np.nan) for shape in shapes))

    @classmethod
    def stack(cls, folds: Sequence["IndexReadings"]) -> "IndexReadings":
        """Readings of several folds together."""
        return cls(*(np.stack([getattr(each, field.name) for each in folds]) for field in fields(cls)))

    def at(self, fold: int) -> "IndexReadings":
        """Readings of one fold."""
        return IndexReadings(self.values[fold], self.null[fold], self.draws[fold], self.sizes[fold])

    def to_arrays(self, name: str) -> dict[str, Array]:
        """The arrays of a part file, by the names that they have there."""
        return {f"{name}.{field}": value for field, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], name: str) -> "IndexReadings":
        """From the arrays of a part file."""
        return cls(*(arrays[f"{name}.{field.name}"] for field in fields(cls)))


@dataclass(frozen=True, eq=False)
class PlaceReadings:
    """Every view of the states of a place.

    Attributes:
        views: indices of each.
        silhouettes: silhouette of every row of the first view, [row].
        train: the index by which a place is chosen, without each fold, [fold]; None without folds.
        norms: norm of every row of the first view, [row].
        without: indices of the first view without its rows of extreme norm, [index]; NaN where there are none.
    """

    views: Sequence[IndexReadings]
    silhouettes: Array
    train: Array | None
    norms: Array
    without: Array

    def to_arrays(self) -> dict[str, Array]:
        """The arrays of a part file, by the names that they have there."""
        arrays = {"silhouettes": self.silhouettes, "norms": self.norms, "without": self.without}
        for number, view in enumerate(self.views):
            arrays |= view.to_arrays(str(number))
        return arrays if self.train is None else arrays | {"train": self.train}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> "PlaceReadings":
        """From the arrays of a part file."""
        count = sum(name.endswith(".values") for name in arrays)
        views = [IndexReadings.from_arrays(arrays, str(number)) for number in range(count)]
        return cls(views, arrays["silhouettes"], arrays.get("train"), arrays["norms"], arrays["without"])


@dataclass(frozen=True, eq=False)
class HeldOutReadings:
    """Each fold, in spaces that were chosen or learned without it.

    Attributes:
        chosen: number of the place that was chosen for each fold, [fold].
        layer_weights: weight of every place, learned without each fold, [fold place].
        rows: number of rows of each fold, [fold].
        spaces: indices of all folds, by the name of the space.
    """

    chosen: Array
    layer_weights: Array
    rows: Array
    spaces: Mapping[str, IndexReadings]

    def to_arrays(self) -> dict[str, Array]:
        """The arrays of a part file, by the names that they have there."""
        arrays = {"chosen": self.chosen, "layer_weights": self.layer_weights, "rows": self.rows}
        for name, space in self.spaces.items():
            arrays |= space.to_arrays(name)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> "HeldOutReadings":
        """From the arrays of a part file."""
        names = [name.removesuffix(".values") for name in arrays if name.endswith(".values")]
        spaces = {name: IndexReadings.from_arrays(arrays, name) for name in names}
        return cls(arrays["chosen"], arrays["layer_weights"], arrays["rows"], spaces)


@dataclass(frozen=True, eq=False)
class DriftReadings:
    """Drift of a place of another model from the same place of the first; NaN where these cannot be compared.

    Attributes:
        cka: alignment of kernels as published, and debiased, [2].
        shifts: the way that the mean of each subset of the rows has moved, [subset width].
        shift: norm of each shift, relative and by noise alone, [subset 3].
        angles: angles between the principal subspaces, in degrees, [component].
        bures: distance and conflict of the covariances of each label, [label 2].
    """

    cka: Array
    shifts: Array
    shift: Array
    angles: Array
    bures: Array

    def to_arrays(self) -> dict[str, Array]:
        """The arrays of a part file, by the names that they have there."""
        return dict(vars(self))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> "DriftReadings":
        """From the arrays of a part file."""
        return cls(**arrays)
