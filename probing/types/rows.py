"""Rows of datasets: preference pairs, labelled prompts, statements with their opposites."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from probing.shown import show_fields

Format = Literal["jsonl", "json", "csv", "parquet", "datasets"]
AdvantageName = Literal["grpo", "dapo", "dr_grpo"]
"""How rewards of a group become weights of its responses; see ``metrics/group_advantages.py``."""
Message = Mapping[str, Any]
Text = str | Sequence[Message]
"""Plain text, or a conversation as a list of ``{"role": ..., "content": ...}``."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt with a chosen and a rejected response: all three plain text, or all three lists of messages.

    Attributes:
        id: unique within its dataset.
        prompt: text or messages that both responses answer. Text is joined to the response as it stands.
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

    def __repr__(self) -> str:
        return show_fields(self)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ValueError(f"a pair needs a non-empty text as id, not {self.id!r}")
        sides = {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}
        if all(isinstance(side, str) for side in sides.values()):
            return
        for name, side in sides.items():
            if isinstance(side, str) or not isinstance(side, Sequence):
                kind = "text" if isinstance(side, str) else type(side).__name__
                raise TypeError(f"'{name}' is {kind} where the others are lists of messages")
            if not side:
                raise ValueError(f"'{name}' holds no message")
            for message in side:
                check_message(message, name)

    @property
    def conversational(self) -> bool:
        """Whether the pair is made of messages, to be rendered by a chat template."""
        return not isinstance(self.prompt, str)


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """A prompt with several responses that a model gave to it, and the reward of each.

    Attributes:
        id: unique within its dataset.
        prompt: text or messages that all responses answer. Text is joined to each response as it stands.
        responses: the responses alone, without the prompt: all text, or all lists of messages.
        rewards: one a response; None or NaN where there is none.
        tools: tool schemas for the chat template, if any.
        chat_template_kwargs: further arguments of the chat template, if any.

    Raises:
        ValueError: an empty id, no response, numbers of responses and rewards that differ, or a message without role or
            content.
        TypeError: a mixture of text and messages, or a reward that is no number.
    """

    id: str
    prompt: Text
    responses: Sequence[Text]
    rewards: Sequence[float | None]
    tools: Sequence[Any] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        return show_fields(self)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise ValueError(f"a group needs a non-empty text as id, not {self.id!r}")
        if not self.responses:
            raise ValueError("the group has no responses")
        if len(self.responses) != len(self.rewards):
            raise ValueError(
                f"there are {len(self.responses)} responses and {len(self.rewards)} rewards; each response needs one"
            )
        for number, reward in enumerate(self.rewards):
            if reward is not None and not isinstance(reward, int | float):
                raise TypeError(f"reward {number} must be a number or true/false, not {reward!r:.40}")
        for name, side in [("prompt", self.prompt), *((f"response {n}", r) for n, r in enumerate(self.responses))]:
            _check_side(name, side, self.conversational)

    @property
    def conversational(self) -> bool:
        """Whether the group is made of messages, to be rendered by a chat template."""
        return not isinstance(self.prompt, str)


def _check_side(name: str, side: object, conversational: bool) -> None:
    """Raise unless a prompt or a response is text, or a list of messages where the group is made of these."""
    if isinstance(side, str):
        if conversational:
            raise TypeError(f"'{name}' is text where the others are lists of messages")
        return
    if not isinstance(side, Sequence) or not conversational:
        raise TypeError(f"'{name}' is {type(side).__name__} where the others are text")
    if not side:
        raise ValueError(f"'{name}' holds no message")
    for message in side:
        check_message(message, name)


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


@dataclass(frozen=True, slots=True)
class LabelledPrompt:
    """A text to read states of, with its label and other facts.

    Attributes:
        id: unique within its dataset.
        text: plain text, or a conversation.
        label: label of any kind that a table can hold.
        category: category, by which results are grouped.
        response: response that follows the text, if it is a prompt with an answer.
        span: the part that counts with ``over="span"``: characters (start, stop) of a plain text (with its response),
            or of the last message of a conversation; or a substring that occurs once in what was said (not in what the
            chat template writes around it).
        tools: tool schemas for the chat template, if any.
        chat_template_kwargs: further arguments of the chat template, if any.

    Raises:
        ValueError: an empty id, or an invalid span. TypeError: a text of the wrong type.
    """

    id: str
    text: Text
    label: str | int | float | bool | None = None
    category: str | None = None
    response: Text | None = None
    span: tuple[int, int] | str | None = None
    tools: Sequence[Any] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        return show_fields(self)

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
        object.__setattr__(self, "span", _check_span(self.span))


def _check_span(span: Any) -> tuple[int, int] | str | None:
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
        category: category, by which results are grouped.
        formulation: formulation of the opposite, for instance "negation" or "concurrent".

    Raises:
        ValueError: an empty id or text, or an opposite that is the statement itself.
        TypeError: a text of the wrong type, or a label that is neither true nor false.
    """

    id: str
    statement: str
    opposite: str
    label: bool
    category: str | None = None
    formulation: str | None = None

    def __repr__(self) -> str:
        return show_fields(self)

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
