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
    rows, digests = array("i"), array("Q")
    for number, pair in enumerate(pairs):
        shared = [("text", _join_key(pair.prompt, side)) for side in (pair.chosen, pair.rejected)]
        shared += [("prompt", _join_key(pair.prompt))] if pair.prompt else []
        for kind, text in shared:
            rows.append(number)
            digests.frombytes(_digest(kind, text))
    at, several = _number_repeated(np.frombuffer(digests, np.uint64).reshape(-1, 2))
    sharing = np.frombuffer(rows, np.int32)[at]
    components = connected_groups(sharing, several)
    # Every pair is of the group of the first pair that it is connected with, of itself if with no other.
    first = np.arange(len(pairs), dtype=np.int32)
    first[sharing] = sharing[np.unique(components, return_index=True)[1]][components]
    begins = first == np.arange(len(pairs), dtype=np.int32)
    groups: NDArray[np.int64] = (np.cumsum(begins) - 1)[first]
    return groups


def _digest(kind: str, text: str) -> bytes:
    """Sixteen bytes that no two texts have in common."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16, key=kind.encode()).digest()


def _number_repeated(digests: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The places of the digests that occur more than once, and a number for each, equal for equal ones.

    Args:
        digests: both halves of each, [digest 2].
    """
    ordered = np.sort(digests[:, 0])
    several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    at = np.flatnonzero(np.isin(digests[:, 0], several)) if len(several) else np.empty(0, np.int64)
    known = digests[at]
    order = np.lexsort((known[:, 1], known[:, 0]))
    begins = np.ones(len(order), np.int32)
    begins[1:] = (known[order][1:] != known[order][:-1]).any(axis=1)
    numbers = np.empty(len(order), np.int32)
    numbers[order] = np.cumsum(begins) - 1
    return at, numbers


def _join_key(*parts: Text) -> str:
    """Texts one behind the other with every run of white space as one space, or all messages as JSON."""
    if all(isinstance(part, str) for part in parts):
        return collapse_spaces("".join(map(str, parts)))
    return canonical([message for part in parts for message in part]).decode()
