"""Conversations as text, by the chat template of a tokenizer: the one place where templates are applied."""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from probing.data.pairs import shared_prefix
from probing.data.rows import check_template_arguments, messages
from probing.data.tables import canonical
from probing.errors import DataInvalid
from probing.tokens.encoding import encode, texts_within
from probing.tokens.limits import CHARACTERS_EACH, FREE_CHARACTERS, check_bounded, render_in_time
from probing.types import Message, Text, message_text

REFUSALS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""Errors that a template ends in where it does not take a conversation."""
INSTRUCTIONS = ("apple", "What is 7 + 5?")
"""Two instructions that end differently, to see what a chat template writes after one."""

FIXED_CONVERSATIONS: Sequence[Sequence[Message]] = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}],
)
"""What a template writes around these tells one day's prompts from another's."""
MOST_ARGUMENTS = 16


@dataclass(frozen=True, slots=True)
class ConversationRenderer:
    """Renders the conversations of one row.

    Attributes:
        tokenizer: tokenizer with a chat template.
        tools: tool schemas for the template, if any.
        arguments: further arguments of the template, if any.
    """

    tokenizer: Any
    tools: Sequence[Any] | None = None
    arguments: Mapping[str, Any] | None = None

    def render(self, conversation: Sequence[Message], **options: Any) -> str:
        """A conversation as the text that the chat template makes of it.

        Raises:
            DataInvalid: the template refuses the conversation, or makes much more text of it than it holds; or the
                arguments are none that a row may give.
        """
        try:
            check_template_arguments(self.arguments)
        except (TypeError, ValueError) as error:
            raise DataInvalid(str(error)) from error
        try:
            text: str = self.tokenizer.apply_chat_template(
                conversation, tokenize=False, tools=self.tools, **options, **(self.arguments or {})
            )
        except REFUSALS as error:
            raise DataInvalid(f"the chat template refuses this conversation: {error}") from error
        self._check_size(text, conversation)
        return text

    def _check_size(self, text: str, conversation: Sequence[Message]) -> None:
        if len(text) <= FREE_CHARACTERS:
            return
        given = sum(map(len, texts_within([conversation, self.tools, self.arguments])))
        if len(text) > FREE_CHARACTERS + CHARACTERS_EACH * given:
            raise DataInvalid(
                f"the chat template makes {len(text)} characters of this conversation, which has {given}; at most "
                f"{FREE_CHARACTERS} and {CHARACTERS_EACH} for each of these are taken"
            )

    def render_answers(
        self, opening: Sequence[Message], answers: Sequence[Sequence[Message]]
    ) -> tuple[str, list[str]] | None:
        """A prompt up to where its answer begins, and the same with each of several answers.

        Returns:
            None if the template writes the prompt differently once an answer follows.

        Raises:
            DataInvalid: the template refuses a conversation.
        """
        prompt = self.render(opening, add_generation_prompt=True)
        answered = [self.render([*opening, *answer]) for answer in answers]
        bare = self.render(opening)
        return (prompt, answered) if all(text.startswith((prompt, bare)) for text in answered) else None


def check_template(tokenizer: Any, why: str) -> None:
    """Raise unless the tokenizer has a chat template that can be run; ``why`` says what needs one.

    Raises:
        DataInvalid: there is no template. ModelInvalid: a single step of it could fill the memory.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise DataInvalid(
            f"{why}, but the tokenizer has no chat template; "
            f"use a chat model, give the tokenizer a template, or turn the messages into text"
        )
    for text in template.values() if isinstance(template, Mapping) else [template]:
        check_bounded(text)


def plain_contents(side: Text) -> list[Message]:
    """Messages whose content is one text: most templates would write a list of parts as Python does."""
    return [
        message if isinstance(message.get("content"), str | None) else {**message, "content": message_text(message)}
        for message in messages(side)
    ]


def template_sha256(tokenizer: Any) -> str | None:
    """A hash of the chat template, or None where there is none."""
    template = getattr(tokenizer, "chat_template", None)
    return hashlib.sha256(repr(template).encode()).hexdigest() if template else None


def rendered_sha256(tokenizer: Any, arguments: Iterable[Mapping[str, Any] | None]) -> dict[str, str]:
    """Hashes of what the chat template writes around fixed conversations; they differ where it writes today's date.

    Args:
        tokenizer: a transformers tokenizer.
        arguments: arguments that rows give the template; of many different ones the first are taken.

    Returns:
        A hash for each of the arguments, by these as JSON; nothing where there is no template or no row.
    """
    if not getattr(tokenizer, "chat_template", None):
        return {}
    different = {canonical(given or {}).decode().strip(): given for given in arguments}
    check_template(tokenizer, "the prompt is compared")
    taken = dict(itertools.islice(different.items(), MOST_ARGUMENTS))
    renderers = [ConversationRenderer(tokenizer, arguments=given) for given in taken.values()]
    tasks = [functools.partial(_render_fixed, renderer) for renderer in renderers]
    texts = render_in_time(tasks, lambda index: "a conversation of one word")
    return {name: hashlib.sha256(canonical(text)).hexdigest() for name, text in zip(taken, texts, strict=True)}


def _render_fixed(renderer: ConversationRenderer) -> list[str | None]:
    """What the template makes of each fixed conversation; None where it does not take it."""
    texts: list[str | None] = []
    for conversation in FIXED_CONVERSATIONS:
        try:
            texts.append(renderer.render(conversation, add_generation_prompt=True))
        except DataInvalid:
            texts.append(None)
    return texts


def template_ending(tokenizer: Any, arguments: Mapping[str, Any] | None = None) -> tuple[int, ...]:
    """The tokens that a chat template writes after an instruction: what two rendered instructions end with alike.

    Args:
        tokenizer: a transformers tokenizer.
        arguments: further arguments of the template: one that switches thinking changes its end, for instance.

    Raises:
        DataInvalid: the template refuses an instruction.
    """
    return _ending(tokenizer, repr(tokenizer.chat_template), canonical(arguments or {}))


@functools.lru_cache(maxsize=8)
def _ending(tokenizer: Any, template: str, arguments: bytes) -> tuple[int, ...]:
    renderer = ConversationRenderer(tokenizer, arguments=json.loads(arguments))
    conversations: list[list[Message]] = [[{"role": "user", "content": content}] for content in INSTRUCTIONS]
    tasks = [functools.partial(renderer.render, each, add_generation_prompt=True) for each in conversations]
    texts = render_in_time(tasks, lambda index: f"the instruction {INSTRUCTIONS[index]!r}")
    left, right = (list(reversed(ids)) for ids in encode(tokenizer, texts, [True, True]))
    return tuple(reversed(left[: shared_prefix(left, right)]))
