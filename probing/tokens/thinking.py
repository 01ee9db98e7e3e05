"""The switch by which a chat template has a model think aloud before it answers, or not."""

from typing import Any

from probing.errors import DataInvalid, UsageError
from probing.tokens.templates import ConversationRenderer, check_template

SWITCHES = ("enable_thinking", "thinking")
"""Names of the template's argument in published models."""
QUESTION = [{"role": "user", "content": "What is 7 + 5?"}]


def find_thinking_switch(tokenizer: Any) -> str | None:
    """The argument of the chat template that switches thinking; None where on and off give the same prompt.

    Raises:
        DataInvalid: there is no chat template.
    """
    check_template(tokenizer, "a switch for thinking is looked for")
    for name in SWITCHES:
        try:
            on, off = (
                ConversationRenderer(tokenizer, arguments={name: value}).render(QUESTION, add_generation_prompt=True)
                for value in (True, False)
            )
        except DataInvalid:
            continue
        if on != off:
            return name
    return None


def thinking_arguments(tokenizer: Any, mode: str, model: str) -> dict[str, bool]:
    """Arguments of the chat template for "on" or "off"; none for "default".

    Args:
        tokenizer: tokenizer of the model.
        mode: "default", "on" or "off".
        model: name of the model, for the message.

    Raises:
        UsageError: the template has no such switch.
    """
    if mode == "default":
        return {}
    switch = find_thinking_switch(tokenizer)
    if switch is None:
        raise UsageError(
            f"the chat template of {model} has no switch for thinking (it writes the same prompt whatever "
            f"{' or '.join(SWITCHES)} is); leave --thinking out"
        )
    return {switch: mode == "on"}
