"""Surface features of a text, lengths and punctuation, as a baseline for probes."""

import string
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from probing.data.words import spaced_words
from probing.types import LabelledPrompt, Text, message_text

FEATURES = (
    "characters",
    "words",
    "characters a word",
    "lines",
    "messages",
    "capitals",
    "digits",
    "other than ASCII",
    *string.punctuation,
)


def surface_features(prompts: Sequence[LabelledPrompt]) -> NDArray[np.float64]:
    """[row feature]: the counts of ``FEATURES`` in each text with its response, as logarithms of one more."""
    rows = [_counts(prompt.text, prompt.response) for prompt in prompts]
    logarithms: NDArray[np.float64] = np.log1p(np.array(rows, dtype=np.float64))
    return logarithms


def scale_surface(
    seen: Sequence[LabelledPrompt], others: Sequence[LabelledPrompt] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Features of the texts, each with mean 0 and variance 1 over those seen, without those that never vary there."""
    features = surface_features(seen)
    mean, spread = features.mean(axis=0), features.std(axis=0)
    varied = (features != features[:1]).any(axis=0)
    # Without any varying feature, use a column of zeros, from which nothing can be learnt.
    if not varied.any():
        varied[0], mean, spread = True, features[0], np.ones_like(spread)

    def scale(values: NDArray[np.float64]) -> NDArray[np.float64]:
        scaled: NDArray[np.float64] = ((values - mean) / np.where(varied, spread, 1))[:, varied]
        return scaled

    return scale(features), None if others is None else scale(surface_features(others))


def _counts(text: Text, response: Text | None) -> list[float]:
    parts = [part for side in (text, response) if side is not None for part in _messages(side)]
    whole = "\n".join(parts)
    words = spaced_words(whole)
    return [
        len(whole),
        len(words),
        sum(map(len, words)) / max(len(words), 1),
        whole.count("\n") + 1,
        len(parts),
        sum(character.isupper() for character in whole),
        sum(character.isdigit() for character in whole),
        sum(not character.isascii() for character in whole),
        *(whole.count(mark) for mark in string.punctuation),
    ]


def _messages(text: Text) -> list[str]:
    return [text] if isinstance(text, str) else [message_text(message) for message in text]
