"""One row as the strings that get tokenised: plain text as it stands, a conversation through the chat template."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from probing.data.rows import has_text
from probing.errors import DataInvalid
from probing.tokens.limits import render_in_time
from probing.tokens.templates import ConversationRenderer, check_template, plain_contents
from probing.types import Capture, LabelledPrompt, Message, Problem, message_text

STAND_IN = "\u2603stand-in\u2603"
"""A text that no template writes by itself."""


@dataclass(frozen=True, slots=True)
class Said:
    """The text of one message, and where in the rendered text it begins (None: the template changed it)."""

    text: str
    start: int | None


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """One row as the strings that get tokenised.

    Attributes:
        prompt: up to where the response begins.
        full: the response included.
        conversational: whether the chat template wrote it.
        said: texts in which spans are looked for: the plain text, or each message, the last one last.
    """

    prompt: str
    full: str
    conversational: bool
    said: tuple[Said, ...]


def is_rendered(prompt: LabelledPrompt, chat: bool) -> bool:
    """Whether a row is written by the chat template; ``chat`` says whether a plain text becomes a user's turn."""
    return chat or not isinstance(prompt.text, str) or not isinstance(prompt.response, str | None)


def render_prompts(
    tokenizer: Any, prompts: Sequence[LabelledPrompt], request: Capture, where: Callable[[int], str]
) -> list[RenderedPrompt | Problem]:
    """The strings of each row, or why the chat template does not take it.

    Args:
        tokenizer: a transformers tokenizer.
        prompts: the rows.
        request: whether a plain text becomes a user's turn, and whether spans will be looked for.
        where: names a row in messages, given its index.

    Raises:
        DataInvalid: a row is a conversation, and there is no chat template.
        ModelInvalid: the chat template does not end.
    """
    chats = [index for index, prompt in enumerate(prompts) if is_rendered(prompt, request.chat)]
    if chats:
        check_template(tokenizer, f"{where(chats[0])}: the row is a conversation")
    tasks = [functools.partial(_render_prompt, tokenizer, prompt, request) for prompt in prompts]
    return render_in_time(tasks, where) if chats else [task() for task in tasks]


def _render_prompt(tokenizer: Any, prompt: LabelledPrompt, request: Capture) -> RenderedPrompt | Problem:
    text, response = prompt.text, prompt.response
    if isinstance(text, str) and isinstance(response, str | None) and not request.chat:
        full = text + (response or "")
        return RenderedPrompt(text, full, False, (Said(full, 0),))
    try:
        return _render_conversation(tokenizer, prompt, request)
    except DataInvalid as error:
        return Problem(prompt.id, "refused", str(error))


def _render_conversation(tokenizer: Any, prompt: LabelledPrompt, request: Capture) -> RenderedPrompt:
    opening = _to_messages(prompt.text, "user")
    if not opening:
        return RenderedPrompt("", "", True, ())
    renderer = ConversationRenderer(tokenizer, prompt.tools, prompt.chat_template_kwargs)
    answered = opening[-1]["role"] == "assistant"
    if prompt.response is None:
        conversation, render = opening, functools.partial(renderer.render, add_generation_prompt=not answered)
        start = full = render(conversation)
    elif answered:
        raise DataInvalid("the prompt ends with a message of the assistant; move it into the response")
    else:
        answer = _to_messages(prompt.response, "assistant")
        texts = renderer.render_answers(opening, [answer])
        if texts is None:
            raise DataInvalid(
                "the chat template writes the prompt differently once an answer follows; render it yourself"
            )
        start, (full,) = texts
        conversation, render = [*opening, *answer], functools.partial(renderer.render)
    said = _find_messages(conversation, full, render) if request.over == "span" else ()
    return RenderedPrompt(start, full, True, said)


def _to_messages(text: str | Sequence[Message], role: str) -> list[Message]:
    """A conversation as a list of messages; a plain text as one message of ``role``."""
    return [{"role": role, "content": text}] if isinstance(text, str) else plain_contents(text)


def _find_messages(
    conversation: Sequence[Message], full: str, render: Callable[[Sequence[Message]], str]
) -> tuple[Said, ...]:
    """Where the text of each message begins in the rendered conversation."""

    def render_with(at: int, content: str) -> str:
        return render([*conversation[:at], {**conversation[at], "content": content}, *conversation[at + 1 :]])

    return tuple(
        _find_message(message_text(message), full, functools.partial(render_with, at))
        for at, message in enumerate(conversation)
    )


def _find_message(text: str, full: str, render: Callable[[str], str]) -> Said:
    """Position at which a message's text begins in the rendered conversation, found by rendering another text instead.

    Looking for the text itself would find it in the template as well ("user").
    """
    try:
        start = render(STAND_IN).find(STAND_IN)
    except DataInvalid:
        return Said(text, None)
    lead = len(text) - len(text.lstrip())
    # Many templates strip white space from the content.
    for offset in (0, lead):
        if start >= 0 and has_text(text) and full.startswith(text[offset:].rstrip(), start):
            return Said(text, start - offset)
    return Said(text, None)
