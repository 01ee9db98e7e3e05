"""The inputs of ``probing filter``: the scores, and the dataset as it was read for them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.errors import DataInvalid, UsageError
from probing.runs.common.scored import PARTS, READING, read_pair_table, recorded_reading
from probing.runs.filter.config import FilterConfig
from probing.runs.score.config import SCORES_FILE
from probing.store.manifest import RUN_FILE, read_run

if TYPE_CHECKING:
    import pandas as pd


def read_scores(path: Path) -> tuple["pd.DataFrame", Mapping[str, Any]]:
    """The table of a scoring, and the record of its run; empty where there is none beside it.

    Raises:
        UsageError: there is no such table, or its run is not finished.
        StoreCorrupt: it is damaged.
    """
    file = path / SCORES_FILE if path.is_dir() else path
    if file.is_file() and file.name != SCORES_FILE and not _is_parquet(file):
        raise UsageError(f"{file}: is no Parquet file; give the output folder of 'probing score' as --scores")
    if not file.is_file():
        run_file = file.parent / RUN_FILE
        if run_file.is_file() and read_run(file.parent).get("status") != "done":
            raise UsageError(f"{path}: the scoring run in it is not finished; run the same 'probing score' again")
        raise UsageError(f"{file}: no such file; give the output folder of 'probing score' as --scores")
    return read_pair_table(file)


def _is_parquet(file: Path) -> bool:
    """Whether a file begins as Parquet files do, whatever its name."""
    with file.open("rb") as opened:
        return opened.read(4) == b"PAR1"


def as_scored(config: FilterConfig, used: Mapping[str, Any]) -> FilterConfig:
    """The options with those of the scoring in place of those that were not given, for how the data are read."""
    part = PARTS if config.limit is None and config.sample is None else ()
    known = recorded_reading(used, (*READING, *part))
    return dataclasses.replace(config, **{name: value for name, value in known.items() if not getattr(config, name)})


def stamp_files(config: FilterConfig) -> dict[str, tuple[int, int]]:
    """Size and time of the last change of every file of the data."""
    files = [Path(source).expanduser() for source in config.sources]
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()}


def check_unchanged(config: FilterConfig, before: Mapping[str, tuple[int, int]]) -> None:
    """Raise if a file has changed: rows are read anew when they are written."""
    for file, stamp in before.items():
        if stamp_files(config).get(file) != stamp:
            raise DataInvalid(f"{file}: changed while it was read; filter again when nothing writes into it")
