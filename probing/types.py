"""The values that travel between floors: frozen, and checked when made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas

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
    """

    model: str
    revision: str | None = None
    weights_sha256: str | None = None
    config_sha256: str | None = None
    tokenizer_sha256: str | None = None
    template_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a job answers: tables by title, and the facts of the run (the content of ``run.json``)."""

    tables: Mapping[str, "pandas.DataFrame"]
    facts: Mapping[str, Any] = field(default_factory=dict)
