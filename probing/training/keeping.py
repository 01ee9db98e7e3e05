"""Nothing of a training run is changed by a measurement: random states, model, tokenizer."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from probing.engine.guard import LeaveAsFound
from probing.engine.stream import ONE_AT_A_TIME
from probing.models.language_model import LanguageModel

OF_TOKENIZERS = ("padding_side", "truncation_side", "pad_token", "model_max_length", "chat_template")
"""Settings of a tokenizer that its users set, and that collators go by."""


@contextlib.contextmanager
def leave_training(language_model: LanguageModel) -> Iterator[None]:
    """Leave random states, the model and its tokenizer as they were found, whatever ends the block.

    Args:
        language_model: the model that is trained.
    """
    tokenizer = language_model.tokenizer
    settings = {name: getattr(tokenizer, name, None) for name in OF_TOKENIZERS}
    whole = language_model.model
    with keep_random_states():
        try:
            with ONE_AT_A_TIME, LeaveAsFound(whole), LeaveAsFound(whole):
                yield
        finally:
            for name, value in settings.items():
                if getattr(tokenizer, name, None) != value:
                    setattr(tokenizer, name, value)


@contextlib.contextmanager
def keep_random_states() -> Iterator[None]:
    """Put the random states of Python, NumPy and torch (host and every card) back behind the block."""
    states: tuple[Any, Any, Any] = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    cards = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cards:
            torch.cuda.set_rng_state_all(cards)
