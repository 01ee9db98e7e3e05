"""Control probes: trained on shuffled pairs, and of random directions."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
PAIRS_STREAM, DIRECTIONS_STREAM = 4, 5


def shuffle_pairings(folds: NDArray[np.int64], count: int, seed: int = 0) -> NDArray[np.int64]:
    """The shuffled-pair control: the row whose no form takes the place of each row's own, [shuffle row]; within folds.

    No row of two or more in a fold keeps its own.
    """
    pairings = np.empty((count, len(folds)), dtype=np.int64)
    for number in range(count):
        generator = np.random.default_rng([seed, PAIRS_STREAM, number])
        for fold in np.unique(folds):
            rows = generator.permutation(np.flatnonzero(folds == fold))
            pairings[number, rows] = np.roll(rows, 1)
    return pairings


def draw_directions(width: int, count: int, seed: int = 0) -> Array:
    """Directions of random probes, of length one and uniform on the sphere: [width count]."""
    drawn = np.random.default_rng([seed, DIRECTIONS_STREAM]).standard_normal((count, width)).T
    directions: Array = drawn / np.linalg.norm(drawn, axis=0)
    return directions
