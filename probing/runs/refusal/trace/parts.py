"""The parts of a trace: what is read at each place, and the projections of blocks of texts."""

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from probing.instruments.reading import Advance
from probing.instruments.trace_reading import LENS_KIND, SURFACE, ProjectionReader, trace_place
from probing.instruments.trace_tables import TracedText
from probing.report.progress import Progress
from probing.runs.common.layers import complete_layers, read_layer_arrays
from probing.runs.common.parts import Shard, complete_parts, find_shard
from probing.runs.refusal.trace.rows import Material
from probing.store.shards import shard_path, write_shard

Array = NDArray[np.float64]
PART_ROWS = 32
"""Texts that are run together and saved; a run that is killed loses at most so many."""
PREFIX = "curves_"
CURVES = pa.schema([("id", pa.string()), ("tokens", pa.int64()), ("values", pa.list_(pa.float64()))])


def read_places(folder: Path, material: Material) -> dict[str, Mapping[str, Array]]:
    """Arrays of every place, in order, and of lengths and punctuation; each saved when it is made."""
    fitted = {*material.places, SURFACE} if material.plan is not None else set()
    scored = {place for place in material.every if place.startswith(LENS_KIND)} if material.lens is not None else set()
    places = [place for place in (*material.every, SURFACE) if place in fitted | scored]

    def make(place: str, report: Callable[[float], None]) -> Mapping[str, Array]:
        plan = material.plan if place in fitted else None
        arrays = trace_place(place, material.states(place), plan, material.decided, material.lens)
        report(1.0)
        return arrays

    complete_layers(folder, places, make, "fitting heads" if fitted else "reading log-odds")
    return {place: read_layer_arrays(folder, number) for number, place in enumerate(places)}


def read_curves(folder: Path, texts: Sequence[TracedText], reader: ProjectionReader | None) -> list[Array]:
    """Projections of every text's tokens, [token direction] each; saved in blocks of texts."""
    if reader is None:
        return []
    blocks = [texts[start : start + PART_ROWS] for start in range(0, len(texts), PART_ROWS)]

    def make(missing: Sequence[int], report: Advance) -> Generator[Shard, None, None]:
        for number in missing:
            curves = reader.read(blocks[number], report)
            columns = {
                "id": [text.id for text in blocks[number]],
                "tokens": list(map(len, curves)),
                "values": [curve.reshape(-1) for curve in curves],
            }
            yield Shard(pa.table(columns, schema=CURVES), {"rows": len(curves)})

    def write(number: int, shard: Shard) -> Shard:
        write_shard(shard_path(folder, number, PREFIX), shard.rows, shard.facts)
        return shard

    known = [
        find_shard(shard_path(folder, number, PREFIX), CURVES, {"id": [text.id for text in block]})
        for number, block in enumerate(blocks)
    ]
    done = sum(len(block) for block, shard in zip(blocks, known, strict=True) if shard is not None)
    shards = complete_parts(known, make, write, Progress(len(texts), done, unit="texts", doing="tracing"))
    return [
        np.asarray(values, dtype=np.float64).reshape(tokens, -1)
        for shard in shards
        for tokens, values in zip(shard.rows["tokens"].to_pylist(), shard.rows["values"].to_pylist(), strict=True)
    ]
