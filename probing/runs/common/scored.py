"""The table of a run of pairs, read back together with the data that it is of."""

import dataclasses
import io
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.data.pairs import content_sha256
from probing.data.tables import Table
from probing.errors import SourceMismatch, StoreCorrupt, UsageError
from probing.runs.common.datasets import read_pairs
from probing.runs.common.held import NOT_FILES
from probing.runs.common.options import ArrayOptions, PairColumnOptions, PairDataOptions
from probing.store.files import file_sha256
from probing.store.manifest import RUN_FILE, read_run
from probing.store.records import refuse_link
from probing.types import PreferencePair

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

PARTS = ("limit", "sample")
READING = (
    "split",
    "subset",
    "data_revision",
    "id_column",
    *(entry.name for entry in dataclasses.fields(PairColumnOptions)),
)
"""Options that say how the rows of a dataset are read, besides ``PARTS`` and ``SHARD``."""
SHARD = ("shard_index", "num_shards")
"""Options that say which shard of an array a run made."""
PAIR_TABLES: Mapping[str, str] = {
    "score": "scores.parquet",
    "displacement": "displacement.parquet",
    "influence": "influence.parquet",
}
"""Tables with a row a pair, by the command that writes them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedOptions(PairDataOptions, ArrayOptions):
    """How a run of pairs read its dataset, and which shard of it."""


def recorded_shard(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say which shard of an array a run made; nothing where it made the whole.

    Args:
        config: the options of the run, as its record holds them.
    """
    return {name: config[name] for name in SHARD if config.get(name) is not None}


def recorded_reading(config: Mapping[str, Any], names: Sequence[str] = (*READING, *PARTS)) -> dict[str, Any]:
    """The options by which a run read its data, of those that were given.

    Args:
        config: the options of the run, as its record holds them.
        names: names of the options that are wanted.
    """
    return {name: config[name] for name in names if config.get(name)}


def read_pair_table(file: Path) -> tuple["pd.DataFrame", Mapping[str, Any]]:
    """A table with a row a pair, and the record of its run; empty where there is none beside it.

    Raises:
        UsageError, StoreCorrupt: as ``check_pair_table``.
    """
    import pandas as pd

    facts = check_pair_table(file)
    return pd.read_parquet(io.BytesIO(file.read_bytes())), facts


def check_pair_table(file: Path) -> Mapping[str, Any]:
    """The record of the run of a table with a row a pair; empty where there is none beside it.

    Raises:
        UsageError: the run is not finished, or the table has no pairs.
        StoreCorrupt: the table is damaged, or is not the one that the run wrote.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    refuse_link(file)
    facts = read_run(file.parent) if os.path.lexists(file.parent / RUN_FILE) else {}
    try:
        _check_hash(file, facts)
        # Given as an open file, since pyarrow takes a path with a colon for an address.
        with file.open("rb") as opened:
            names = pq.read_schema(opened).names
    except (pa.ArrowException, OSError) as error:
        raise StoreCorrupt(f"{file}: not a whole Parquet file ({error}); score again") from error
    missing = {"id", "status"} - set(names)
    if missing:
        raise UsageError(
            f"{file}: has no column {' and '.join(sorted(missing))}, so it was not made by 'probing score'"
        )
    return facts


def list_hashes(facts: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the files of a run by name, as its record holds them."""
    scores = {"scores.parquet": facts["scores_sha256"]} if "scores_sha256" in facts else {}
    return {**scores, **facts.get("sha256", {})}


def check_readable(data: str | list[str] | None, folder: Path) -> str | list[str]:
    """The dataset of a run, if its rows can be read once more.

    Args:
        data: the dataset as the record of the run, or an option, names it.
        folder: folder of the run, for the message.

    Raises:
        UsageError: none is named, or its rows came from standard input or from memory.
    """
    if not data:
        raise UsageError(f"{folder}: its record names no dataset; name it with --data")
    gone = next((name for name in ([data] if isinstance(data, str) else data) if name in NOT_FILES), None)
    if gone is not None:
        raise UsageError(f"{folder}: its rows came from {NOT_FILES[gone]}; name a file that holds them with --data")
    return data


def read_scored_pairs(
    data: str | list[str] | None, facts: Mapping[str, Any], folder: Path
) -> tuple[Table, Sequence[PreferencePair]]:
    """The dataset of a run and its pairs, read again as the run read them.

    Args:
        data: where the dataset lies.
        facts: record of the run.
        folder: folder of the run.

    Raises:
        UsageError: see ``check_readable``.
        SourceMismatch: these are other pairs.
    """
    known = facts.get("config", {})
    options = {**recorded_reading(known), **recorded_shard(known)}
    reading = RecordedOptions(data=check_readable(data, folder), out=folder, **options)
    table, pairs = read_pairs(reading)
    check_same_pairs(content_sha256(pairs), facts, ", ".join(reading.sources), folder)
    return table, pairs


def check_same_pairs(found: str, facts: Mapping[str, Any], data: str, scored: object) -> None:
    """Raise unless the texts agree: ids easily agree by chance (0, 1, 2, ...).

    Args:
        found: ``content_sha256`` of the pairs of the dataset.
        facts: record of the run.
        data: name of the dataset, for the message.
        scored: name of the run, for the message.

    Raises:
        SourceMismatch: these are other pairs.
    """
    sha256 = facts.get("data", {}).get("pairs_sha256")
    shard = recorded_shard(facts.get("config", {}))
    if sha256 is not None and sha256 != found and shard:
        raise SourceMismatch(
            f"{scored}: holds shard {shard.get('shard_index')} of {shard.get('num_shards')} of its dataset, not all of "
            f"its pairs; join the shards first: probing merge"
        )
    if sha256 is not None and sha256 != found:
        raise SourceMismatch(
            f"{data}: these are not the pairs that were scored into {scored} (scored: {facts['data']['rows']} rows of "
            f"{facts['data']['path']}); ids or texts differ. Score this file first"
        )


def _check_hash(file: Path, facts: Mapping[str, Any]) -> None:
    """Raise unless the table is the one that the record of its run names; say so where there is none."""
    if facts.get("status") == "running":
        raise UsageError(f"{file.parent}: the run in it is not finished; run the same command again")
    recorded = list_hashes(facts).get(file.name)
    if recorded is None:
        log.warning("%s: no %s beside it tells its hash, so it cannot be checked for damage", file, RUN_FILE)
    elif file_sha256(file) != recorded:
        raise StoreCorrupt(f"{file}: changed since the run ended; delete the folder and score again")
