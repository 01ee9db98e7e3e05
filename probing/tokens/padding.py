"""How long a sequence becomes when it is padded."""

PAD_TO = 16
"""Multiple that lengths are padded to. Also the least length at which attention on the CPU passes NaN on: torch 2.13
turns fewer NaN queries into numbers."""


def padded_length(length: int, limit: int | None = None) -> int:
    """The length that a sequence is padded to: the next multiple of 16, but not past ``limit``.

    It depends on the sequence alone. Attention kernels split their sums by the padded length, so padding to the longest
    neighbour would let a number depend, in its last digits, on what else is in the batch; and a score that is a small
    difference of large products loses further digits.
    """
    padded = -(-length // PAD_TO) * PAD_TO
    return padded if limit is None else max(length, min(padded, limit))
