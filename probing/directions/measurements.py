"""Scores of candidates, measured in blocks of prompts, and the table of what has been measured so far."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from probing.directions.choose import Limits, count_kept_layers

Score = Literal["bypass", "induce", "kl"]
SCORES: tuple[Score, ...] = ("bypass", "induce", "kl")
Candidate = tuple[int, int]
"""Row and layer of the grid."""
ROUNDING = 1e-9
"""Partial sums in another order may differ by so much; no candidate is given up within it."""
NOT_MEASURED, STOPPED, MEASURED = "", "stopped", "measured"


@dataclass(frozen=True, eq=False)
class Measured:
    """Numbers of some candidates of one layer on one block of prompts.

    Attributes:
        scores: [candidate prompt].
        ends: sums over the prompts of their states at the last token, behind the blocks that COSMIC looks at,
            [candidate place width]; None where they are not read.
    """

    scores: Float[np.ndarray, "candidate prompt"]
    ends: Float[np.ndarray, "candidate place width"] | None = None


Measure = Callable[[Sequence[int], int], Measured]
"""Measures some rows of a layer on the block of prompts with this number."""


class Measurements(Protocol):
    """What can be measured of a model.

    Attributes:
        candidates: [row layer], which candidates there are.
        targets: mean states at the last token, behind the blocks that COSMIC looks at, of harmful and of harmless
            prompts, [place width] each; None where they are not read.
    """

    candidates: NDArray[np.bool_]
    targets: tuple[NDArray[np.float64], NDArray[np.float64]] | None

    def blocks(self, score: Score) -> Sequence[int]:
        """Number of prompts in each block over which a score is the mean."""
        ...

    def depth(self, score: Score, layer: int) -> int:
        """Number of blocks of the model that one prompt runs through for one candidate."""
        ...

    def open(self, score: Score, layer: int, rows: Sequence[int]) -> AbstractContextManager[Measure]:
        """Prepare the measurement of some rows of a layer."""
        ...


Advance = Callable[[float], None]
Watch = Callable[[Score, int], AbstractContextManager[Advance]]
"""Shows how far the measurement of a score of so many candidates is."""


@contextlib.contextmanager
def watch_nothing(score: Score, count: int) -> Iterator[Advance]:
    """Show nothing."""
    yield lambda share: None


@dataclass(eq=False)
class Table:
    """What has been measured so far.

    Args:
        measurements: what can be measured.
        watch: shows how far it is.
    """

    measurements: Measurements
    watch: Watch = watch_nothing
    values: dict[Score, NDArray[np.float64]] = field(init=False)
    states: dict[Score, NDArray[np.object_]] = field(init=False)
    ends: dict[tuple[Score, Candidate], NDArray[np.float64]] = field(init=False, default_factory=dict)
    forwards: dict[Score, int] = field(init=False)

    def __post_init__(self) -> None:
        shape = self.measurements.candidates.shape
        self.values = {score: np.full(shape, np.nan) for score in SCORES}
        self.states = {score: np.full(shape, NOT_MEASURED, dtype=object) for score in SCORES}
        self.forwards = dict.fromkeys(SCORES, 0)

    def measure(
        self, score: Score, candidates: Iterable[Candidate], hopeless: Callable[[float, int], bool] | None = None
    ) -> None:
        """Measure a score of candidates, but not again what was measured to the end.

        Args:
            score: which.
            candidates: which candidates.
            hopeless: whether a sum over the prompts so far, with so many to come, settles that a limit is missed; the
                measurement of such a candidate stops.
        """
        wanted = [each for each in candidates if self.states[score][each] != MEASURED]
        layers = sorted({layer for _, layer in wanted})
        with self.watch(score, len(wanted)) as advance:
            for layer in layers:
                rows = [row for row, own in wanted if own == layer]
                with self.measurements.open(score, layer, rows) as measure:
                    self._measure_layer(score, layer, rows, measure, hopeless)
                advance(len(rows))

    def _measure_layer(
        self,
        score: Score,
        layer: int,
        rows: Sequence[int],
        measure: Measure,
        hopeless: Callable[[float, int], bool] | None,
    ) -> None:
        sizes = self.measurements.blocks(score)
        left, totals = list(rows), dict.fromkeys(rows, 0.0)
        ends: dict[int, NDArray[np.float64]] = {}
        for block, size in enumerate(sizes):
            found = measure(left, block)
            self.forwards[score] += len(left) * size * self.measurements.depth(score, layer)
            for at, row in enumerate(left):
                totals[row] += float(found.scores[at].sum())
                if found.ends is not None:
                    ends[row] = found.ends[at] + ends.get(row, 0.0)
            to_come = sum(sizes[block + 1 :])
            out = [row for row in left if to_come and hopeless is not None and hopeless(totals[row], to_come)]
            for row in out:
                self.states[score][row, layer] = STOPPED
            left = [row for row in left if row not in out]
            if not left:
                return
        for row in left:
            self.states[score][row, layer] = MEASURED
            self.values[score][row, layer] = totals[row] / sum(sizes)
            if row in ends:
                self.ends[score, (row, layer)] = ends[row] / sum(sizes)


def find_late(measurements: Measurements, limits: Limits) -> NDArray[np.bool_]:
    """Which places of the grid are in the last layers, which are left out."""
    shape = measurements.candidates.shape
    return np.broadcast_to(np.arange(shape[1]) >= count_kept_layers(shape[1], limits.pruned), shape)


def list_where(which: NDArray[np.bool_]) -> list[Candidate]:
    """The marked candidates of a grid, row by row."""
    return [(int(row), int(layer)) for row, layer in zip(*np.nonzero(which), strict=True)]


def keeps_answers(table: Table, candidate: Candidate, limits: Limits) -> bool:
    """Whether a candidate keeps to the limit of ``kl``, measured as far as it takes to know."""
    count = sum(table.measurements.blocks("kl"))

    def changes_too_much(total: float, to_come: int) -> bool:
        return total / count > limits.kl_most + ROUNDING

    if table.states["kl"][candidate] == NOT_MEASURED:
        table.measure("kl", [candidate], changes_too_much)
    return bool(table.values["kl"][candidate] <= limits.kl_most)


def count_exhaustive(measurements: Measurements) -> int:
    """Layer-forwards of a loop that runs every prompt through the whole model for every score of every candidate."""
    layers = measurements.candidates.shape[1]
    prompts = sum(sum(measurements.blocks(score)) for score in SCORES)
    return int(measurements.candidates.sum()) * prompts * layers
