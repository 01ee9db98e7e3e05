"""Preference pairs that share a prompt or a text, which intervals count as one."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from probing.data.tables import canonical
from probing.data.words import collapse_spaces
from probing.statistics.groups import connected_groups
from probing.types import PreferencePair, Text


def pair_units(pairs: Sequence[PreferencePair]) -> NDArray[np.int64]:
    """The group of every preference pair: pairs with the same prompt or a text in common, directly or through others.

    A text is a prompt with a response. An empty prompt is nothing that pairs have in common.
    """
    rows, texts = [], []
    for number, pair in enumerate(pairs):
        shared = [("text", _join_key(pair.prompt, side)) for side in (pair.chosen, pair.rejected)]
        shared += [("prompt", _join_key(pair.prompt))] if pair.prompt else []
        rows += [number] * len(shared)
        texts += shared
    groups = connected_groups(rows, texts)
    return groups[np.searchsorted(rows, np.arange(len(pairs)))]


def _join_key(*parts: Text) -> str:
    """Texts one behind the other with every run of white space as one space, or all messages as JSON."""
    if all(isinstance(part, str) for part in parts):
        return collapse_spaces("".join(map(str, parts)))
    return canonical([message for part in parts for message in part]).decode()
