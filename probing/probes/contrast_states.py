"""States of the forms of statements as probes see them, with labels, units and splits of the pairs."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from probing.probes.ccs_options import CCSOptions
from probing.probes.ccs_states import Centering, Normalization, centers_of, normalize
from probing.probes.evaluate import Array
from probing.statistics.folds import Splits


@dataclass(frozen=True)
class ContrastOptions:
    """Options of all probes that are trained at a layer.

    Attributes:
        ccs: options of the contrast-consistent probes.
        normalization: normalization of every state.
        centering: centring of the yes and of the no forms, each by the training rows of a split.
        random: random probes, for their band.
        pairings: permutations of the no forms that probes are trained on, as a floor.
        refits: permutations of the labels that the supervised probes are fitted to.
        inverse_penalty: C of the logistic regression.
    """

    ccs: CCSOptions = field(default_factory=CCSOptions)
    normalization: Normalization = "l2"
    centering: Centering = "median"
    random: int = 100
    pairings: int = 3
    refits: int = 20
    inverse_penalty: float = 1.0


@dataclass(frozen=True, eq=False)
class Rows:
    """Labels, units and splits of the pairs.

    Attributes:
        labels: whether each statement is true, [pair].
        units: pairs of one unit share texts, or what folds keep whole, [pair].
        splits: splits of the pairs.
    """

    labels: NDArray[np.bool_]
    units: NDArray[np.int64]
    splits: Splits

    @property
    def truth(self) -> Array:
        """1 where the statement is true, -1 where its opposite is."""
        return np.where(self.labels, 1.0, -1.0)


@dataclass(frozen=True, eq=False)
class Prepared:
    """States of one layer as probes see them.

    Attributes:
        states: normalised, about a common origin, [1 2 row width]: statements, then opposites.
        origin: mean that was taken off the yes and the no forms, [2 width]; of no consequence but for rounding.
        centers: centres of each split, [1 2 split width].
        train: training rows of each split, [row split].
    """

    states: Tensor
    origin: Tensor
    centers: Tensor
    train: Tensor

    @classmethod
    def of(cls, forms: Tensor, splits: Splits, options: ContrastOptions) -> "Prepared":
        """From [4 pair width]: A1, A0, N1, N0."""
        states, origin = center_about(forms, options.normalization)
        train = torch.from_numpy(np.concatenate([splits.train] * 2)).to(states.device)
        centers = centers_of(states, train, options.centering)
        return cls(states, origin, centers, train)

    def rows_of(self, split: int) -> tuple[Tensor, Tensor]:
        """Centred training rows of the yes and the no forms."""
        kept = self.train[:, split]
        yes, no = (self.states[0, form, kept] - self.centers[0, form, split] for form in (0, 1))
        return yes, no


def center_about(
    forms: Float[Tensor, "4 pair width"], normalization: Normalization, origin: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Normalised states [1 2 row width], less the mean of the yes and of the no forms (or another ``origin``).

    Every split takes its own centre off afterwards, so that the origin cancels; near it no digits are lost.
    """
    a1, a0, n1, n0 = normalize(forms, normalization)
    states = torch.stack([torch.cat([a1, n1]), torch.cat([a0, n0])])
    origin = states.mean(dim=1) if origin is None else origin
    return (states - origin[:, None])[None], origin


def have_same_states(forms: Float[Tensor, "4 pair width"]) -> Bool[Tensor, " pair"]:
    """Whether a yes form of each pair has exactly the states of its no form, so that no probe can tell them apart."""
    return (forms[0] == forms[1]).all(dim=1) | (forms[2] == forms[3]).all(dim=1)
