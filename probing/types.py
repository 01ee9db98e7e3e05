"""The values that travel between floors: frozen, and checked when made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas
    from torch import Tensor

Format = Literal["jsonl", "json", "csv", "parquet", "datasets"]
Message = Mapping[str, Any]
Text = str | Sequence[Message]
"""Plain text, or a conversation as a list of ``{"role": ..., "content": ...}``."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt with a chosen and a rejected response: all three plain text, or all three lists of messages.

    Attributes:
        id: unique within its dataset.
        prompt: what both responses answer. Text is joined to the response as it stands.
        chosen: the preferred response alone, without the prompt.
        rejected: the other one.
        tools: tool schemas for the chat template, if any.
        chat_template_kwargs: further arguments of the chat template, if any.

    Raises:
        ValueError: empty id, or a message without role or content.
        TypeError: a mixture of text and messages, or neither.
    """

    id: str
    prompt: Text
    chosen: Text
    rejected: Text
    tools: Sequence[Any] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ValueError(f"a pair needs a non-empty text as id, not {self.id!r}")
        sides = {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}
        if all(isinstance(side, str) for side in sides.values()):
            return
        for name, side in sides.items():
            if isinstance(side, str) or not isinstance(side, Sequence):
                found = "text" if isinstance(side, str) else type(side).__name__
                raise TypeError(f"'{name}' is {found} where the others are lists of messages")
            if not side:
                raise ValueError(f"'{name}' holds no message")
            for message in side:
                check_message(message, name)

    @property
    def conversational(self) -> bool:
        """Whether the pair is made of messages, to be rendered by a chat template."""
        return not isinstance(self.prompt, str)


def check_message(message: object, name: str) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless this is one chat message; ``name`` is the column it came from."""
    if not isinstance(message, Mapping):
        raise TypeError(f"'{name}' must hold messages like {{'role': 'user', 'content': '...'}}, not {message!r:.60}")
    if not isinstance(message.get("role"), str):
        raise ValueError(f"a message in '{name}' has no 'role': {message!r:.80}")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return
    parts = [content] if isinstance(content, str | Mapping) else content
    if not isinstance(parts, Sequence) or not all(isinstance(part, str) or _is_text_part(part) for part in parts):
        raise ValueError(f"a message in '{name}' has no text 'content' (images are not read): {message!r:.80}")


def _is_text_part(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)


def message_text(message: Message) -> str:
    """The text of one message, its parts joined."""
    content = message.get("content") or ""
    parts = [content] if isinstance(content, str | Mapping) else content
    return "".join(part if isinstance(part, str) else part["text"] for part in parts)


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
            ValueError: it is written otherwise.
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
Over = Literal["text", "content", "prompt", "response", "template", "span"]
OVERS: tuple[Over, ...] = ("text", "content", "prompt", "response", "template", "span")
DTYPE_NAMES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Capture:
    """Which states to read; knows no model.

    Attributes:
        places: where in the model; at least one, none twice.
        pooling: what to keep of each row: the state of the "last" or "first" token that counts, the "mean" or "sum"
            over them, or all "tokens".
        over: which tokens count. "text": all that are run, special ones included. "content": without special tokens at
            both ends (BOS has states a thousand times larger than others in many models). "prompt", "response": of rows
            with a response. "template": what the chat template writes after the instruction. "span": of rows that
            name characters or a substring.
        dtype: of the values: "auto" is float32 for means and sums, otherwise the model's own.
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


@dataclass(frozen=True, slots=True)
class LabelledPrompt:
    """A text to read states of, with what is known of it.

    Attributes:
        id: unique within its dataset.
        text: plain text, or a conversation.
        label: of any kind that a table can hold.
        category: for grouping.
        response: what follows the text, if it is a prompt with an answer.
        span: the part that counts with ``over="span"``: characters (start, stop) of a plain text (with its response),
            or of the last message of a conversation; or a substring that occurs once in what was said (not in what the
            chat template writes around it).
        tools: tool schemas for the chat template, if any.
        chat_template_kwargs: further arguments of the chat template, if any.

    Raises:
        ValueError: empty id, a span that is none. TypeError: a text that is none.
    """

    id: str
    text: Text
    label: str | int | float | bool | None = None
    category: str | None = None
    response: Text | None = None
    span: tuple[int, int] | str | None = None
    tools: Sequence[Any] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ValueError(f"a prompt needs a non-empty text as id, not {self.id!r}")
        for name, side in (("text", self.text), ("response", self.response)):
            if side is None and name == "response":
                continue
            if not isinstance(side, str | Sequence):
                raise TypeError(f"'{name}' must be text or a list of messages, not {type(side).__name__}")
            for message in () if isinstance(side, str) else side:
                check_message(message, name)
        object.__setattr__(self, "span", _checked_span(self.span))


def _checked_span(span: Any) -> tuple[int, int] | str | None:
    if span is None:
        return None
    if isinstance(span, str):
        if not span:
            raise ValueError("an empty substring is in every text")
        return span
    bounds = list(span) if isinstance(span, Sequence) else []
    if len(bounds) != 2 or not all(isinstance(bound, int) and not isinstance(bound, bool) for bound in bounds):
        raise ValueError(f"a span is a substring or [first character, one past the last], not {span!r:.40}")
    if not 0 <= bounds[0] < bounds[1]:
        raise ValueError(f"characters {bounds[0]} to {bounds[1]} are no span")
    return (bounds[0], bounds[1])


@dataclass(frozen=True, slots=True)
class ContrastPair:
    """A statement and its opposite: exactly one of them is true.

    Attributes:
        id: unique within its dataset.
        statement: plain text.
        opposite: plain text that is true where the statement is false, and false where it is true.
        label: whether the statement is true.
        category: for grouping.
        formulation: how the opposite is put, for instance "negation" or "concurrent".

    Raises:
        ValueError: an empty id or text, or an opposite that is the statement itself.
        TypeError: a text that is none, or a label that is neither true nor false.
    """

    id: str
    statement: str
    opposite: str
    label: bool
    category: str | None = None
    formulation: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ValueError(f"a pair needs a non-empty text as id, not {self.id!r}")
        for name, text in (("statement", self.statement), ("opposite", self.opposite)):
            if not isinstance(text, str):
                raise TypeError(f"'{name}' must be text, not {type(text).__name__}")
            if not text.strip():
                raise ValueError(f"'{name}' is empty")
        if self.statement.split() == self.opposite.split():
            raise ValueError(f"the statement and its opposite are the same: {self.statement!r:.60}")
        if not isinstance(self.label, bool):
            raise TypeError(f"the label must be true or false, not {self.label!r:.40}")


@dataclass(frozen=True, slots=True)
class Problem:
    """A row without a number, and why."""

    id: str
    status: str
    detail: str


@dataclass(frozen=True, eq=False)
class Activations:
    """States of some rows, one vector a place: join with other things by id, never by position.

    Attributes:
        values: [row place width].
        ids: of the rows.
        places: with layers counted from 0.
        source: the model.
        problems: rows that are not among the values, and why.
    """

    values: "Tensor"
    ids: tuple[str, ...]
    places: tuple[Place, ...]
    source: "Source"
    problems: tuple[Problem, ...] = ()

    def __post_init__(self) -> None:
        if tuple(self.values.shape[:2]) != (len(self.ids), len(self.places)):
            raise ValueError(
                f"values of shape {tuple(self.values.shape)} for {len(self.ids)} ids and {len(self.places)} places"
            )

    def at(self, place: Place | str) -> "Tensor":
        """[row width] of one place."""
        return self.values[:, _index(self.places, place)]


@dataclass(frozen=True, eq=False)
class TokenActivations:
    """States of every token that counts: row ``i`` has the tokens ``offsets[i] .. offsets[i + 1] - 1``.

    Attributes:
        values: [token place width].
        offsets: [row + 1], from 0.
        ids: of the rows.
        places: with layers counted from 0.
        source: the model.
        problems: rows that are not among the values, and why.
    """

    values: "Tensor"
    offsets: "Tensor"
    ids: tuple[str, ...]
    places: tuple[Place, ...]
    source: "Source"
    problems: tuple[Problem, ...] = ()

    def __post_init__(self) -> None:
        if len(self.offsets) != len(self.ids) + 1 or int(self.offsets[-1]) != len(self.values):
            raise ValueError(
                f"{len(self.offsets)} offsets up to {int(self.offsets[-1])} for {len(self.ids)} ids and "
                f"{len(self.values)} tokens"
            )

    def at(self, place: Place | str) -> "Tensor":
        """[token width] of one place."""
        return self.values[:, _index(self.places, place)]

    def row(self, id: str) -> "Tensor":
        """[token place width] of one row."""
        if id not in self.ids:
            raise ValueError(f"there is no row '{id}'")
        index = self.ids.index(id)
        return self.values[int(self.offsets[index]) : int(self.offsets[index + 1])]


def _index(places: Sequence[Place], place: Place | str) -> int:
    place = Place.parse(place) if isinstance(place, str) else place
    if place not in places:
        raise ValueError(f"{place} was not captured; there are {', '.join(map(str, places))}")
    return places.index(place)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the estimate.
        low: lower end of the interval; NaN where there is none.
        high: upper end.
        n: rows that it was made from.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Source:
    """What a number was computed from, by content: two sources are equal only if their hashes are.

    Attributes:
        model: folder or hub id, as given.
        revision: the hub revision asked for.
        weights_sha256: over the weight files; None for a model handed over in memory.
        config_sha256: over the model's config, and over code that the checkpoint brings.
        tokenizer_sha256: over the tokenizer's own serialisation and its special tokens.
        template_sha256: over the chat template; None where there is none.
        adapter_sha256: over weights and config of an adapter on top; None where there is none.
    """

    model: str
    revision: str | None = None
    weights_sha256: str | None = None
    config_sha256: str | None = None
    tokenizer_sha256: str | None = None
    template_sha256: str | None = None
    adapter_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a job answers: tables by title, and the facts of the run (the content of ``run.json``)."""

    tables: Mapping[str, "pandas.DataFrame"]
    facts: Mapping[str, Any] = field(default_factory=dict)
