"""Prompts with the chat template's switch for thinking set."""

from dataclasses import replace

from probing.models.language_model import LanguageModel
from probing.tokens.thinking import thinking_arguments
from probing.types import LabelledPrompt


def with_thinking(prompt: LabelledPrompt, model: LanguageModel, mode: str) -> LabelledPrompt:
    """A prompt with the chat template's switch for thinking set."""
    arguments = thinking_arguments(model.tokenizer, mode, model.source.model)
    if not arguments:
        return prompt
    return replace(prompt, chat_template_kwargs={**(prompt.chat_template_kwargs or {}), **arguments})
