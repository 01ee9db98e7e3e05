"""Where states are read, and the states of rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from probing.shown import Shown, list_some
from probing.types.results import Source
from probing.types.status import Problem

if TYPE_CHECKING:
    from torch import Tensor

PlaceKind = Literal["resid_pre", "resid_post", "attn_out", "mlp_out", "final_norm"]
PLACE_KINDS: tuple[PlaceKind, ...] = ("resid_pre", "resid_post", "attn_out", "mlp_out", "final_norm")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A place in a model where states can be read, [token width] each.

    Attributes:
        kind: "resid_pre" and "resid_post": the residual stream before and after a block. "attn_out" and "mlp_out": what
            the block's attention (or other token mixer) and its MLP add to it, after any norm or factor that stands
            between. "final_norm": the residual stream after the last block and the final norm, which is what the
            output head multiplies.
        layer: the block, from 0; negative counts from the end. None for "final_norm".

    Raises:
        ValueError: an unknown kind, a layer missing or too many.
    """

    kind: PlaceKind
    layer: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in PLACE_KINDS:
            raise ValueError(f"'{self.kind}' is no place in a model; there are {', '.join(PLACE_KINDS)}")
        if self.kind == "final_norm" and self.layer is not None:
            raise ValueError(f"there is one final_norm, which has no layer {self.layer}")
        if self.kind != "final_norm" and (isinstance(self.layer, bool) or not isinstance(self.layer, int)):
            raise ValueError(f"{self.kind} needs the number of a layer, not {self.layer!r}")

    def __str__(self) -> str:
        return self.kind if self.layer is None else f"{self.kind}:{self.layer}"

    @classmethod
    def parse(cls, text: str) -> "Place":
        """The place that is written ``resid_post:3``, ``mlp_out:-1`` or ``final_norm``.

        Raises:
            ValueError: the text is written otherwise.
        """
        kind, colon, layer = text.strip().partition(":")
        try:
            return cls(kind, int(layer) if colon else None)  # type: ignore[arg-type]
        except ValueError as error:
            if str(error).startswith("invalid literal"):
                raise ValueError(f"'{text}': '{layer}' is no number of a layer") from error
            raise


Pooling = Literal["last", "first", "mean", "sum", "tokens"]
POOLINGS: tuple[Pooling, ...] = ("last", "first", "mean", "sum", "tokens")
Over = Literal["text", "content", "prompt", "response", "template", "instruction_end", "span"]
OVERS: tuple[Over, ...] = get_args(Over)
DTYPE_NAMES = ("auto", "float32", "bfloat16", "float16")
SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""What the short names of dtypes stand for."""


@dataclass(frozen=True, slots=True, repr=False)
class Capture(Shown):
    """States to read, independently of a model.

    Attributes:
        places: places in the model; at least one, none twice.
        pooling: value to keep of each row: the state of the "last" or "first" token that counts, the "mean" or "sum"
            over them, or all "tokens".
        over: tokens that count. "text": all that are run, special ones included. "content": without special tokens at
            both ends (BOS has states a thousand times larger than others in many models). "prompt", "response": of rows
            with a response. "template": what the chat template writes after the instruction. "instruction_end": the
            same with the last token of the instruction before it. "span": of rows that name characters or a substring.
        dtype: dtype of the values: "auto" is float32 for means and sums, otherwise the model's own.
        chat: whether a plain text is put into a user's turn of the chat template.

    Raises:
        ValueError: no place, a place twice, an unknown word.
    """

    places: Sequence[Place]
    pooling: Pooling = "last"
    over: Over = "text"
    dtype: str = "auto"
    chat: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.places, str | Place):
            raise TypeError(f"places must be a list of Place, not {self.places!r}")
        places = tuple(Place.parse(place) if isinstance(place, str) else place for place in self.places)
        object.__setattr__(self, "places", places)
        if not places or len(set(places)) < len(places):
            raise ValueError("at least one place must be given" if not places else "a place is given twice")
        for value, known in ((self.pooling, POOLINGS), (self.over, OVERS), (self.dtype, DTYPE_NAMES)):
            if value not in known:
                raise ValueError(f"'{value}' is none of {', '.join(known)}")

    def shown_facts(self) -> Mapping[str, object]:
        """The places, in short, and the other fields."""
        others = {"pooling": self.pooling, "over": self.over, "dtype": self.dtype, "chat": self.chat}
        return {"places": list_some(self.places), **others}


@dataclass(frozen=True, eq=False, repr=False)
class Activations(Shown):
    """States of some rows, one vector a place: join with other things by id, never by position.

    Attributes:
        values: [row place width].
        ids: ids of the rows.
        places: places, with layers counted from 0.
        source: the model.
        problems: rows that are not among the values, and why.
    """

    values: "Tensor"
    ids: tuple[str, ...]
    places: tuple[Place, ...]
    source: Source
    problems: tuple[Problem, ...] = ()

    def __post_init__(self) -> None:
        if tuple(self.values.shape[:2]) != (len(self.ids), len(self.places)):
            raise ValueError(
                f"values of shape {tuple(self.values.shape)} for {len(self.ids)} ids and {len(self.places)} places"
            )

    def shown_facts(self) -> Mapping[str, object]:
        """Model, size and place of the values."""
        return _list_facts(self, {"rows": len(self.ids)})

    def at(self, place: Place | str) -> "Tensor":
        """[row width] of one place."""
        return self.values[:, _index(self.places, place)]


@dataclass(frozen=True, eq=False, repr=False)
class TokenActivations(Shown):
    """States of every token that counts: row ``i`` has the tokens ``offsets[i] .. offsets[i + 1] - 1``.

    Attributes:
        values: [token place width].
        offsets: [row + 1], from 0.
        ids: ids of the rows.
        places: places, with layers counted from 0.
        source: the model.
        problems: rows that are not among the values, and why.
    """

    values: "Tensor"
    offsets: "Tensor"
    ids: tuple[str, ...]
    places: tuple[Place, ...]
    source: Source
    problems: tuple[Problem, ...] = ()

    def __post_init__(self) -> None:
        if len(self.offsets) != len(self.ids) + 1 or int(self.offsets[-1]) != len(self.values):
            raise ValueError(
                f"{len(self.offsets)} offsets up to {int(self.offsets[-1])} for {len(self.ids)} ids and "
                f"{len(self.values)} tokens"
            )

    def shown_facts(self) -> Mapping[str, object]:
        """Model, size and place of the values."""
        return _list_facts(self, {"rows": len(self.ids), "tokens": len(self.values)})

    def at(self, place: Place | str) -> "Tensor":
        """[token width] of one place."""
        return self.values[:, _index(self.places, place)]

    def row(self, id: str) -> "Tensor":
        """[token place width] of one row."""
        if id not in self.ids:
            raise ValueError(f"there is no row '{id}'")
        index = self.ids.index(id)
        return self.values[int(self.offsets[index]) : int(self.offsets[index + 1])]


def _list_facts(states: Activations | TokenActivations, counts: Mapping[str, int]) -> dict[str, object]:
    values = states.values
    facts = {"model": states.source.model, **counts, "places": list_some(states.places), "width": values.shape[-1]}
    facts |= {"dtype": str(values.dtype).removeprefix("torch."), "device": values.device}
    return facts | ({"rows left out": len(states.problems)} if states.problems else {})


def _index(places: Sequence[Place], place: Place | str) -> int:
    place = Place.parse(place) if isinstance(place, str) else place
    if place not in places:
        raise ValueError(f"{place} was not captured; there are {', '.join(map(str, places))}")
    return places.index(place)
