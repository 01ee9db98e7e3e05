"""What a caller asks an edit for, checked against the model: directions, layers, kinds of writers, coefficients."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from probing.directions.edits import orthonormal_rows
from probing.errors import UsageError
from probing.models.stack import Stack
from probing.models.writers import WRITER_KINDS, Writer, WriterKind
from probing.types import Direction, Place, PlaceKind

Mode = Literal["project", "affine", "add"]
MODES: tuple[Mode, ...] = ("project", "affine", "add")
RESIDUAL = ("resid_pre", "resid_post")
DEFAULTS = {"project": 1.0, "affine": 0.0, "add": 1.0}
"""Coefficient of each mode where none is given."""


@dataclass(frozen=True, eq=False)
class EditRequest:
    """What was asked for, checked against the model.

    Attributes:
        stack: the model.
        vectors: [width] or [rank width] each.
        directions: the same as objects, where they were given as such.
        several: whether each row of a batch has a direction of its own.
        mode: "project", "affine" or "add".
        layers: blocks that are chosen, from 0.
        coefficients: of each of these.
    """

    stack: Stack
    vectors: tuple[Tensor, ...]
    directions: tuple[Direction, ...]
    several: bool
    mode: Mode
    layers: tuple[int, ...]
    coefficients: dict[int, float]

    def stacked(self, make: Callable[[int], Tensor]) -> Tensor:
        """Something of each direction: alone, or stacked where there are several."""
        return torch.stack([make(at) for at in range(len(self.vectors))]) if self.several else make(0)

    def choose(self, writers: Sequence[Writer], kinds: Collection[WriterKind]) -> tuple[Writer, ...]:
        """The writers of some kinds that belong to the chosen layers; embeddings belong to layer 0.

        Raises:
            UsageError: there are none.
        """
        chosen = tuple(each for each in writers if each.kind in kinds and (each.layer or 0) in self.coefficients)
        if not chosen:
            raise UsageError(f"there is no {' or '.join(kinds)} among the writers of the layers {list(self.layers)}")
        return chosen

    @property
    def removes(self) -> bool:
        """Whether a projection leaves nothing of the direction."""
        return all(value == 1.0 for value in self.coefficients.values())

    def coefficient_of(self, writer: Writer) -> float:
        """The coefficient of the layer of a writer."""
        return self.coefficients[writer.layer or 0]

    @property
    def side(self) -> PlaceKind:
        """The side of the blocks on which a layer is edited: "resid_pre" or "resid_post", as the directions were read.

        Raises:
            UsageError: they were read elsewhere, or on both sides.
        """
        if self.mode == "project" or not self.directions:
            return "resid_pre"
        kinds = {each.place.kind for each in self.directions}
        if len(kinds) > 1:
            raise UsageError("the directions of one batch were read on different sides of the blocks")
        kind = kinds.pop()
        if kind not in RESIDUAL:
            raise UsageError(f"mode {self.mode!r} changes the residual stream, and the direction was read at {kind}")
        return kind

    def shift(self, layer: int) -> Tensor:
        """What mode "add" adds at a layer, in float64: [width], or [direction width].

        Raises:
            UsageError: a subspace of several vectors.
        """
        if any(vector.ndim == 2 and len(vector) > 1 for vector in self.vectors):
            raise UsageError("a subspace has no length, so that it cannot be added; give one of its vectors")
        return self.coefficients[layer] * self.stacked(lambda at: self.vectors[at].double().reshape(-1))

    def basis(self) -> Tensor:
        """Orthonormal vectors, [rank width], or [direction rank width]."""
        return self.stacked(lambda at: orthonormal_rows(self.vectors[at]))


def read_request(
    stack: Stack,
    direction: Any,
    mode: Mode,
    layers: int | Sequence[int] | None,
    coefficient: float | Sequence[float] | None,
) -> EditRequest:
    """Check what was asked for; see ``probing.ablate``.

    Raises:
        UsageError: options that contradict each other, or do not fit the model.
        LayerNotFound: a layer that the model does not have.
    """
    if mode not in MODES:
        raise UsageError(f"mode is one of {', '.join(MODES)}, not {mode!r}")
    directions, vectors, several = _read_directions(direction)
    for vector in vectors:
        if vector.shape[-1] != stack.width:
            raise UsageError(f"a direction of width {vector.shape[-1]}, and {stack.family} has states of {stack.width}")
    if layers is None:
        chosen = tuple(range(len(stack.blocks))) if mode == "project" else (_own_layer(stack, directions),)
    else:
        given = [layers] if isinstance(layers, int) else list(layers)
        chosen = tuple(stack.resolve(Place("resid_pre", layer)).layer or 0 for layer in given)
    if not chosen or len(set(chosen)) < len(chosen):
        raise UsageError(f"layers are different ones, and at least one, not {layers}")
    coefficients = _read_coefficients(coefficient, DEFAULTS[mode], chosen)
    return EditRequest(stack, vectors, directions, several, mode=mode, layers=chosen, coefficients=coefficients)


def _read_directions(direction: Any) -> tuple[tuple[Direction, ...], tuple[Tensor, ...], bool]:
    """The directions, as far as they are more than tensors; their vectors; whether each row of a batch has its own."""
    if isinstance(direction, Direction):
        return (direction,), (direction.vector,), False
    if isinstance(direction, Tensor):
        if direction.ndim not in (1, 2, 3) or 0 in direction.shape or not bool(direction.isfinite().all()):
            raise UsageError(f"a finite direction is [width] or [rank width], not {list(direction.shape)}")
        return (), tuple(direction) if direction.ndim == 3 else (direction,), direction.ndim == 3
    given = list(direction)
    if not given or not all(isinstance(each, Direction) for each in given):
        raise UsageError("several directions are a list of Direction objects, or one tensor [direction rank width]")
    if len({each.rank for each in given}) > 1:
        raise UsageError(
            f"directions of ranks {sorted({each.rank for each in given})}: those of a batch have the same rank"
        )
    return tuple(given), tuple(each.vector for each in given), True


def _own_layer(stack: Stack, directions: Sequence[Direction]) -> int:
    """The layer at which the directions were read.

    Raises:
        UsageError: they were read at none, or at several.
    """
    places = {stack.resolve(each.place) for each in directions}
    if len(places) != 1 or next(iter(places)).layer is None:
        told = ", ".join(map(str, sorted(places))) or "no place"
        raise UsageError(f"the directions were read at {told}, so that layers must be given")
    return next(iter(places)).layer or 0


def _read_coefficients(
    coefficient: float | Sequence[float] | None, default: float, layers: Sequence[int]
) -> dict[int, float]:
    if coefficient is None or isinstance(coefficient, int | float):
        return dict.fromkeys(layers, default if coefficient is None else float(coefficient))
    if len(coefficient) != len(layers):
        raise UsageError(f"{len(coefficient)} coefficients for {len(layers)} layers: give one number, or one a layer")
    return dict(zip(layers, map(float, coefficient), strict=True))


def read_kinds(where: str | Collection[str] | None) -> tuple[WriterKind, ...]:
    """Kinds of writers to edit; none for the residual stream itself.

    Raises:
        UsageError: there are no such writers.
    """
    if where in (None, "writes"):
        return WRITER_KINDS
    names = {where} if isinstance(where, str) else set(where or ())
    if names == {"resid"}:
        return ()
    if not names or names - set(WRITER_KINDS):
        raise UsageError(f"where is 'writes', 'resid', or some of {', '.join(WRITER_KINDS)}, not {where!r}")
    return tuple(kind for kind in WRITER_KINDS if kind in names)
