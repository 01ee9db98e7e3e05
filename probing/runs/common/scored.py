"""The table of a run of pairs, read back together with the data that it is of."""

import dataclasses
import hashlib
import io
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.errors import SourceMismatch, StoreCorrupt, UsageError
from probing.runs.common.options import PairColumnOptions
from probing.store.manifest import RUN_FILE, read_run
from probing.store.records import refuse_link

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
"""Options that say how the rows of a dataset are read, besides ``PARTS``."""


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
        UsageError: the run is not finished, or the table has no pairs.
        StoreCorrupt: the table is damaged, or is not the one that the run wrote.
    """
    import pandas as pd
    import pyarrow as pa

    refuse_link(file)
    facts = read_run(file.parent) if os.path.lexists(file.parent / RUN_FILE) else {}
    try:
        content = file.read_bytes()
        _check_hash(file, content, facts)
        frame = pd.read_parquet(io.BytesIO(content))
    except (pa.ArrowException, OSError) as error:
        raise StoreCorrupt(f"{file}: not a whole Parquet file ({error}); score again") from error
    missing = {"id", "status"} - set(frame.columns)
    if missing:
        raise UsageError(
            f"{file}: has no column {' and '.join(sorted(missing))}, so it was not made by 'probing score'"
        )
    return frame, facts


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
    if sha256 is not None and sha256 != found:
        raise SourceMismatch(
            f"{data}: these are not the pairs that were scored into {scored} (scored: {facts['data']['rows']} rows of "
            f"{facts['data']['path']}); ids or texts differ. Score this file first"
        )


def _check_hash(file: Path, content: bytes, facts: Mapping[str, Any]) -> None:
    """Raise unless the table is the one that the record of its run names; say so where there is none."""
    if facts.get("status") == "running":
        raise UsageError(f"{file.parent}: the run in it is not finished; run the same command again")
    hashes = {"scores.parquet": facts.get("scores_sha256"), **facts.get("sha256", {})}
    recorded = hashes.get(file.name)
    if recorded is None:
        log.warning("%s: no %s beside it tells its hash, so it cannot be checked for damage", file, RUN_FILE)
    elif hashlib.sha256(content).hexdigest() != recorded:
        raise StoreCorrupt(f"{file}: changed since the run ended; delete the folder and score again")
