"""A direction in the states of one model, as it travels between commands."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from probing.shown import Shown, list_some
from probing.types.results import Source
from probing.types.states import Place

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Direction(Shown):
    """A direction, or a subspace of a few, in the states of one place of one model.

    Attributes:
        vector: [width], or [rank width] for a subspace; at its natural length, so that adding it once moves the
            harmless mean to the harmful one.
        place: the place at which the states were read.
        position: token at which they were read, counted from the end of the prompt: -1 is the last token that the
            chat template writes before the answer.
        source: the model.
        method: how the direction was found, in words.
        harmless_mean: [width], mean state of the harmless prompts at the same place and position; None where it is not
            known. The affine edit needs it.
        facts: what else is known of it: numbers of prompts, hashes of data, an interval.

    Raises:
        ValueError: a vector of another shape, zero or not finite; a position that is not before the answer.
    """

    vector: "Tensor"
    place: Place
    position: int
    source: Source
    method: str = "difference in means"
    harmless_mean: "Tensor | None" = None
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.vector.ndim not in (1, 2) or 0 in self.vector.shape:
            raise ValueError(f"a direction is [width] or [rank width], not {list(self.vector.shape)}")
        rows = self.vector.reshape(-1, self.width)
        if not bool(rows.isfinite().all()) or not bool((rows.norm(dim=1) > 0).all()):
            raise ValueError("a direction has to be finite, and of a length above zero")
        if self.position >= 0:
            raise ValueError(f"a position is counted from the end of the prompt, from -1 on down, not {self.position}")
        if self.harmless_mean is not None and tuple(self.harmless_mean.shape) != (self.width,):
            raise ValueError(f"a mean of shape {list(self.harmless_mean.shape)} for a direction of width {self.width}")

    @property
    def width(self) -> int:
        """Width of the states."""
        return int(self.vector.shape[-1])

    @property
    def rank(self) -> int:
        """Number of vectors."""
        return 1 if self.vector.ndim == 1 else len(self.vector)

    def shown_facts(self) -> dict[str, object]:
        """Its main facts by name."""
        rank = {"rank": self.rank} if self.rank > 1 else {}
        where = {"place": self.place, "position": self.position}
        return {**rank, "width": self.width, **where, "method": self.method, "model": self.source.model}


@dataclass(frozen=True, eq=False, repr=False)
class Directions(Shown):
    """Directions of every place and position; made by ``extract_directions`` or ``open_directions``.

    Attributes:
        vectors: [place position width], or [place position rank width], float64; NaN where both kinds look the same.
        harmful_mean: [place position width], float64.
        harmless_mean: the same of harmless prompts.
        places: places, with layers counted from 0.
        positions: positions, from the last token of the instruction to -1, the last token before the answer.
        source: the model.
        method: how the directions were found.
        facts: numbers of prompts, refusal tokens, what was left out.
    """

    vectors: "Tensor"
    harmful_mean: "Tensor"
    harmless_mean: "Tensor"
    places: tuple[Place, ...]
    positions: tuple[int, ...]
    source: Source
    method: str
    facts: dict[str, Any] = field(default_factory=dict)

    def shown_facts(self) -> dict[str, object]:
        """Their main facts by name."""
        where = {"places": list_some(self.places), "positions": list_some(self.positions)}
        return {**where, "width": self.vectors.shape[-1], "method": self.method, "model": self.source.model}

    def at(self, place: Place | str, position: int = -1) -> Direction:
        """The direction at one place and position.

        Raises:
            ValueError: there is no such place or position; lists those there are.
        """
        wanted = Place.parse(place) if isinstance(place, str) else place
        if wanted.layer is not None and wanted.layer < 0:
            layers = 1 + max(each.layer or 0 for each in self.places)
            wanted = Place(wanted.kind, wanted.layer + layers)
        if wanted not in self.places:
            raise ValueError(f"there is no direction at {wanted}; there are {', '.join(map(str, self.places))}")
        if position not in self.positions:
            raise ValueError(f"there is no position {position}; there are {', '.join(map(str, self.positions))}")
        at, token = self.places.index(wanted), self.positions.index(position)
        if not bool(self.vectors[at, token].isfinite().all()):
            raise ValueError(f"there is no direction at {wanted}, position {position}: all prompts look the same there")
        mean = self.harmless_mean[at, token]
        return Direction(
            vector=self.vectors[at, token],
            place=wanted,
            position=position,
            source=self.source,
            method=self.method,
            harmless_mean=mean,
            facts=dict(self.facts),
        )
