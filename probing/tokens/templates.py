"""Conversations as text, by the chat template of a tokenizer: the one place where templates are applied."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from probing.data.pairs import shared_prefix
from probing.data.rows import messages
from probing.errors import DataInvalid
from probing.tokens.encoding import encode
from probing.types import Message, Text, message_text

INSTRUCTIONS = ("apple", "What is 7 + 5?")
"""Two instructions that end differently, to see what a chat template writes after one."""


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
            DataInvalid: the template refuses the conversation.
        """
        try:
            text: str = self.tokenizer.apply_chat_template(
                conversation, tokenize=False, tools=self.tools, **options, **(self.arguments or {})
            )
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise DataInvalid(f"the chat template refuses this conversation: {error}") from error
        return text

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
    """Raise unless the tokenizer has a chat template; ``why`` says what needs one."""
    if not getattr(tokenizer, "chat_template", None):
        raise DataInvalid(
            f"{why}, but the tokenizer has no chat template; "
            f"use a chat model, give the tokenizer a template, or turn the messages into text"
        )


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


def template_ending(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that a chat template writes after an instruction: what two rendered instructions end with alike.

    Raises:
        DataInvalid: the template refuses an instruction.
    """
    return _ending(tokenizer, repr(tokenizer.chat_template))


@functools.lru_cache(maxsize=8)
def _ending(tokenizer: Any, template: str) -> tuple[int, ...]:
    renderer = ConversationRenderer(tokenizer)
    texts = [
        renderer.render([{"role": "user", "content": content}], add_generation_prompt=True) for content in INSTRUCTIONS
    ]
    left, right = (list(reversed(ids)) for ids in encode(tokenizer, texts, [True, True]))
    return tuple(reversed(left[: shared_prefix(left, right)]))
