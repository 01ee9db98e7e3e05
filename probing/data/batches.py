"""Batches that fill a budget of padded tokens instead of holding a number of rows."""

from collections.abc import Sequence

PAD_TO = 16
"""Also the least length at which attention on the CPU hands NaN on: torch 2.13 turns fewer NaN queries into numbers."""


def padded_length(length: int, limit: int | None = None) -> int:
    """The length that a sequence is padded to: the next multiple of 16, but not past ``limit``.

    It depends on the sequence alone. Attention kernels split their sums by the padded length, so padding to the longest
    neighbour would let a number depend, in its last digits, on what else is in the batch; and a score that is a small
    difference of large products loses further digits.
    """
    padded = -(-length // PAD_TO) * PAD_TO
    return padded if limit is None else max(length, min(padded, limit))


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Indices by falling length, ties in order: the batch most likely not to fit comes first."""
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def next_batch(order: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> Sequence[int]:
    """Indices from the front of ``order`` that share its first length, as many as fit the budget; at least one."""
    length = lengths[order[0]]
    most = max(1, batch_tokens // length)
    count = 1
    while count < min(most, len(order)) and lengths[order[count]] == length:
        count += 1
    return order[:count]
