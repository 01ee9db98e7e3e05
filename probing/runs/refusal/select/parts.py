"""Measurements that are kept on disk layer by layer, so that an interrupted run does not make them again."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from probing.directions.measurements import Measure, Measured, Measurements, Score
from probing.store.shards import read_shard, shard_path, write_shard

SCHEMA = pa.schema(
    [
        ("block", pa.int64()),
        ("row", pa.int64()),
        ("scores", pa.list_(pa.float64())),
        ("ends", pa.list_(pa.float64())),
    ]
)
"""One row a block of prompts and candidate."""
Kept = dict[tuple[int, int], tuple[NDArray[np.float64], NDArray[np.float64] | None]]
"""Scores, and states for COSMIC, by block and row."""


class SavedMeasurements:
    """``Measurements`` that are read from a folder where an earlier run left them, and written into it otherwise.

    Args:
        measurements: what measures.
        folder: folder of the parts.
    """

    def __init__(self, measurements: Measurements, folder: Path) -> None:
        self._measurements, self._folder = measurements, folder
        self.candidates, self.targets = measurements.candidates, measurements.targets
        self.blocks, self.depth = measurements.blocks, measurements.depth

    @contextlib.contextmanager
    def open(self, score: Score, layer: int, rows: Sequence[int]) -> Iterator[Measure]:
        """Prepare the measurement of some rows of a layer.

        A measurement that was stopped early may be asked for further blocks of prompts; only these are measured then.
        """
        path = shard_path(self._folder, layer, f"{score}_{'_'.join(map(str, rows))}_")
        kept = self._read(path) or {}
        before = len(kept)
        with contextlib.ExitStack() as stack:
            opened: list[Measure] = []

            def measure_or_recall(left: Sequence[int], block: int) -> Measured:
                if all((block, row) in kept for row in left):
                    return self._recall(kept, left, block)
                if not opened:
                    opened.append(stack.enter_context(self._measurements.open(score, layer, rows)))
                found = opened[0](left, block)
                for at, row in enumerate(left):
                    kept[block, row] = (found.scores[at], None if found.ends is None else found.ends[at])
                return found

            yield measure_or_recall
        if len(kept) > before:
            write_shard(path, _to_table(kept), {})

    def _read(self, path: Path) -> Kept | None:
        read = read_shard(path, SCHEMA)
        if read is None:
            return None
        return {
            (row["block"], row["row"]): (
                np.array(row["scores"]),
                None if row["ends"] is None else np.array(row["ends"]),
            )
            for row in read[0].to_pylist()
        }

    def _recall(self, known: Kept, left: Sequence[int], block: int) -> Measured:
        scores = np.stack([known[block, row][0] for row in left])
        ends = [own for own in (known[block, row][1] for row in left) if own is not None]
        if not ends or self.targets is None:
            return Measured(scores)
        return Measured(scores, np.stack(ends).reshape(len(left), *self.targets[0].shape))


def _to_table(kept: Kept) -> pa.Table:
    rows = [
        {"block": block, "row": row, "scores": scores, "ends": None if ends is None else ends.ravel()}
        for (block, row), (scores, ends) in kept.items()
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)
