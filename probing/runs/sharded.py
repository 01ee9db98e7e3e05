"""A job over a dataset, some pairs at a time: each part saved when it is done, and known again after a restart."""

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import torch

from probing.data.pairs import content_sha256
from probing.data.tables import Table
from probing.models.load import LanguageModel
from probing.report.progress import Progress
from probing.runs.ahead import one_ahead
from probing.runs.problems import LISTED_PROBLEMS
from probing.runs.versions import versions
from probing.store.shards import read_shard, shard_path, write_shard
from probing.types import PreferencePair, Source

LATER: Mapping[str, Any] = {"compile": False}
"""Options that the jobs did not have at first, with what was true before."""


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


def plain(config: Any) -> dict[str, Any]:
    """The fields of a job's options, as they are written down."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}


def identity(
    config: Any, left_out: Sequence[str], model: LanguageModel, later: Mapping[str, Any] = LATER
) -> dict[str, Any]:
    """What the bytes of every job depend on, besides its models and data: options, machine, versions.

    Args:
        config: the job's options.
        left_out: options that change no byte, or are told apart by content.
        model: says on which device and in which dtype.
        later: see ``options_of``.
    """
    device = model.device
    return {
        "options": options_of(config, left_out, later),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": versions(),
    }


def options_of(config: Any, left_out: Sequence[str], later: Mapping[str, Any] = LATER) -> dict[str, Any]:
    """The options that are part of a run's identity.

    Args:
        config: the job's options.
        left_out: those that are not.
        later: those that earlier versions of the job did not have, with what was true before: left out where they say
            the same, so that folders of these versions still resume.
    """
    found = {name: value for name, value in plain(config).items() if name not in left_out}
    return {name: value for name, value in found.items() if name not in later or value != later[name]}


def content_of(source: Source) -> dict[str, Any]:
    """The hashes of a model's source."""
    return {key: value for key, value in asdict(source).items() if key.endswith("sha256") and value is not None}


def clear(folder: Path) -> None:
    """Remove the shards of a run that is complete."""
    shutil.rmtree(folder, ignore_errors=True)
