"""Preference pairs that share a prompt or a text, which intervals count as one."""

import hashlib
from array import array
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
    rows, digests = array("q"), array("Q")
    for number, pair in enumerate(pairs):
        shared = [("text", _join_key(pair.prompt, side)) for side in (pair.chosen, pair.rejected)]
        shared += [("prompt", _join_key(pair.prompt))] if pair.prompt else []
        for kind, text in shared:
            rows.append(number)
            digests.frombytes(
                hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16, key=kind.encode()).digest()
            )
    groups = connected_groups(np.frombuffer(rows, np.int64), _number_digests(np.frombuffer(digests, np.uint64)))
    return groups[np.searchsorted(np.frombuffer(rows, np.int64), np.arange(len(pairs)))]


def _number_digests(halves: NDArray[np.uint64]) -> NDArray[np.int64]:
    """A number for every digest, equal for equal ones.

    Args:
        halves: both halves of each digest, one behind the other, [digest 2].
    """
    both = halves.reshape(-1, 2)
    order = np.lexsort((both[:, 1], both[:, 0]))
    ordered = both[order]
    begins = np.ones(len(order), np.int64)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.cumsum(begins) - 1
    return numbers


def _join_key(*parts: Text) -> str:
    """Texts one behind the other with every run of white space as one space, or all messages as JSON."""
    if all(isinstance(part, str) for part in parts):
        return collapse_spaces("".join(map(str, parts)))
    return canonical([message for part in parts for message in part]).decode()
