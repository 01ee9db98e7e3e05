"""Parts of a job, each saved when it is done, and known again after a restart."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from probing.data.pairs import content_sha256
from probing.data.tables import Table
from probing.instruments.ahead import one_ahead
from probing.instruments.problems import LISTED_PROBLEMS
from probing.probes.threads import single_threads
from probing.report.progress import Progress
from probing.store.activations import fault, states_path, write_states
from probing.store.shards import read_shard, shard_path, write_shard
from probing.types import PreferencePair


@dataclass(frozen=True)
class Shard:
    """Rows of consecutive pairs, and what is to be remembered of their making."""

    rows: pa.Table
    facts: dict[str, Any]


@dataclass(frozen=True)
class Dataset:
    """Pairs as they lie in a table, cut into blocks."""

    table: Table
    pairs: Sequence[PreferencePair]
    size: int

    @property
    def blocks(self) -> list[range]:
        """Indices of the pairs that make one shard."""
        return [range(len(self.pairs))[start : start + self.size] for start in range(0, len(self.pairs), self.size)]

    def of(self, block: range) -> list[PreferencePair]:
        """The pairs of one block."""
        return [self.pairs[index] for index in block]

    def where(self, block: range) -> Callable[[int], str]:
        """Names a pair of a block in messages."""
        return lambda row: f"{self.table.where(block[row])} (id '{self.pairs[block[row]].id}')"

    def facts(self) -> dict[str, Any]:
        """What a record says of the data."""
        return {
            "path": self.table.path,
            "format": self.table.format,
            "rows": len(self.pairs),
            "sha256": self.table.sha256,
            "pairs_sha256": content_sha256(self.pairs),
        }


def all_shards(
    folder: Path,
    data: Dataset,
    schema: pa.Schema,
    make: Callable[[range, int, Progress, Any], Shard],
    adopt: Callable[[Shard], None] = lambda shard: None,
    whole: Callable[[int], bool] = lambda number: True,
    prefix: str = "",
    doing: str = "scoring",
    prepare: Callable[[range], Any] = lambda block: None,
) -> list[Shard]:
    """Every shard, made now or by an earlier run.

    Args:
        folder: where they lie.
        data: of which they are.
        schema: of their rows, with a column ``id``.
        make: makes the shard of a block, given its number too, and what was prepared for it.
        adopt: told of every shard, old or new, before the next one is made.
        whole: whether what else belongs to a shard that was found is there as well.
        prefix: of the files' names.
        doing: for the progress bar.
        prepare: what can be done for a block by another thread while the one before it is made.
    """

    def known(number: int, block: range) -> Shard | None:
        found = read_shard(shard_path(folder, number, prefix), schema)
        ids = [pair.id for pair in data.of(block)]
        return Shard(*found) if found is not None and found[0]["id"].to_pylist() == ids and whole(number) else None

    before = [known(number, block) for number, block in enumerate(data.blocks)]
    missing = [block for block, found in zip(data.blocks, before, strict=True) if found is None]
    shards = []
    bar = Progress(len(data.pairs), sum(len(shard.rows) for shard in before if shard is not None), doing=doing)
    with bar, closing(one_ahead(prepare, missing)) as prepared:
        for number, (block, found) in enumerate(zip(data.blocks, before, strict=True)):
            shard = found if found is not None else make(block, number, bar, next(prepared))
            if found is None:
                write_shard(shard_path(folder, number, prefix), shard.rows, shard.facts)
            adopt(shard)
            shards.append(shard)
    return shards


def rows_of(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """A frame as the rows of a shard."""
    return pa.Table.from_pandas(frame, schema=schema, preserve_index=False).replace_schema_metadata(None)


def status_facts(shards: Sequence[Shard], data: Dataset) -> dict[str, Any]:
    """What all shards together say: rows by status, the first problems with their lines, speed."""
    lines = {pair.id: data.table.lines[index] for index, pair in enumerate(data.pairs)}
    problems = [{**problem, "line": lines[problem["id"]]} for shard in shards for problem in shard.facts["problems"]]
    statuses = Counter(status for shard in shards for status in shard.rows["status"].to_pylist())
    tokens, seconds = (sum(shard.facts[name] for shard in shards) for name in ("tokens", "seconds"))
    return {
        "rows_by_status": dict(sorted(statuses.items())),
        "problems": problems[:LISTED_PROBLEMS],
        "problems_in_all": len(problems),
        "batch_tokens": shards[-1].facts["batch_tokens"],
        "tokens": tokens,
        "scoring_seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
    }


SCHEMA = pa.schema([("place", pa.string())])
Arrays = Mapping[str, NDArray[np.float64]]


def all_layers(
    folder: Path,
    places: Sequence[str],
    make: Callable[[str, Callable[[float], None]], Arrays],
    doing: str,
    at_once: int | None = None,
) -> None:
    """Make what is not there yet.

    Args:
        folder: where the parts lie.
        places: one part each.
        make: the arrays of a place; told how to report which share of it is done.
        doing: for the progress bar.
        at_once: how many parts are made at once, by a thread each, in which torch has no others; by default one, in
            this thread.
    """
    known = [_is_there(folder, number, place) for number, place in enumerate(places)]
    missing = [(number, place) for number, (place, there) in enumerate(zip(places, known, strict=True)) if not there]
    with Progress(len(places), sum(known), unit="places", doing=doing) as bar:
        for number, arrays in _made(missing, make, bar, at_once):
            tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
            facts = write_states(states_path(folder, number), tensors)
            write_shard(shard_path(folder, number), pa.table({"place": [places[number]]}, schema=SCHEMA), facts)


class Stopped(Exception):
    """Raised inside a part that is being made when another one failed, or the run was interrupted."""


def _made(
    missing: Sequence[tuple[int, str]],
    make: Callable[[str, Callable[[float], None]], Arrays],
    bar: Progress,
    at_once: int | None,
) -> Iterator[tuple[int, Arrays]]:
    """Every part in order, as soon as it is made."""
    if at_once is None:
        for number, place in missing:
            yield number, make(place, lambda share: bar.advance(share, 0))
        return
    stop, one_at_a_time = threading.Event(), threading.Lock()

    def report(share: float) -> None:
        if stop.is_set():
            raise Stopped
        with one_at_a_time:
            bar.advance(share, 0)

    def made(part: tuple[int, str]) -> Arrays:
        if stop.is_set():
            raise Stopped
        try:
            return make(part[1], report)
        except BaseException:
            stop.set()  # before this thread turns to the next part
            raise

    with single_threads(at_once) as pool:
        try:
            for (number, _), arrays in zip(missing, pool.map(made, missing), strict=True):
                yield number, arrays
        finally:
            stop.set()


def read_layer_arrays(folder: Path, number: int) -> dict[str, NDArray[np.float64]]:
    """The arrays of one place."""
    return {name: tensor.numpy() for name, tensor in load_file(states_path(folder, number)).items()}


def _is_there(folder: Path, number: int, place: str) -> bool:
    found = read_shard(shard_path(folder, number), SCHEMA)
    if found is None or found[0]["place"].to_pylist() != [place]:
        return False
    return fault(states_path(folder, number), found[1], deep=True) is None
