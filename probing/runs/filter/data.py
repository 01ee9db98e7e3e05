"""The inputs of ``probing filter``: the scores, and the dataset as it was read for them."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.data.tables import list_files
from probing.errors import DataInvalid, SourceMismatch, UsageError
from probing.runs.common.scored import PAIR_TABLES, PARTS, READING, check_pair_table, recorded_reading
from probing.runs.filter.config import FilterConfig
from probing.store.manifest import RUN_FILE, read_run

if TYPE_CHECKING:
    import pandas as pd

SOURCES = "the output folder of 'probing score', 'probing displacement' or 'probing influence'"


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of a run.

    Attributes:
        path: the folder or file, as it was named.
        file: the table, with a row a pair.
        facts: record of the run; empty where there is none beside it.
    """

    path: Path
    file: Path
    facts: Mapping[str, Any]

    @cached_property
    def frame(self) -> "pd.DataFrame":
        """The whole table."""
        import pandas as pd

        return pd.read_parquet(self.file)

    @property
    def used(self) -> Mapping[str, Any]:
        """Options of the run."""
        used: Mapping[str, Any] = self.facts.get("config", {})
        return used


def read_scores(path: Path) -> Scores:
    """The table of a run that gives pairs scores, and the record of the run.

    Raises:
        UsageError: there is no such table, or its run is not finished.
        StoreCorrupt: it is damaged.
    """
    file = _find_table(path) if path.is_dir() else path
    if file.is_file() and file.name not in PAIR_TABLES.values() and not _is_parquet(file):
        raise UsageError(f"{file}: is no Parquet file; give {SOURCES} as --scores")
    if not file.is_file():
        raise UsageError(f"{file}: no such file; give {SOURCES} as --scores")
    return Scores(path, file, check_pair_table(file))


def _find_table(folder: Path) -> Path:
    """The table of the run in a folder; the name of a scoring's where there is none.

    Raises:
        UsageError: the run is not finished, or gives pairs no scores.
    """
    there = [folder / name for name in PAIR_TABLES.values() if (folder / name).is_file()]
    if not os.path.lexists(folder / RUN_FILE):
        return there[0] if there else folder / PAIR_TABLES["score"]
    record = read_run(folder)
    command = record["command"]
    if command not in PAIR_TABLES:
        raise UsageError(
            f"{folder}: is of 'probing {command}', which gives pairs no scores; give {SOURCES} as --scores"
        )
    if record["status"] != "done" and not there:
        raise UsageError(f"{folder}: the run in it is not finished; run the same 'probing {command}' again")
    return folder / PAIR_TABLES[command]


def _is_parquet(file: Path) -> bool:
    """Whether a file begins as Parquet files do, whatever its name."""
    with file.open("rb") as opened:
        return opened.read(4) == b"PAR1"


def check_same_runs(runs: Sequence[Scores]) -> None:
    """Raise unless all runs are of the same pairs; where a table has no record, its ids are compared later.

    Raises:
        SourceMismatch: the pairs of two runs differ; names both.
    """
    known = [(run.path, run.facts.get("data", {}).get("pairs_sha256")) for run in runs]
    recorded = [(path, sha256) for path, sha256 in known if sha256 is not None]
    for path, sha256 in recorded[1:]:
        if sha256 != recorded[0][1]:
            raise SourceMismatch(
                f"{path}: is of other pairs than {recorded[0][0]}; rules are compared over the scores of the same pairs"
            )


def as_scored(config: FilterConfig, used: Mapping[str, Any]) -> FilterConfig:
    """The options with those of the scoring in place of those that were not given, for how the data are read."""
    part = PARTS if config.limit is None and config.sample is None else ()
    known = recorded_reading(used, (*READING, *part))
    return dataclasses.replace(config, **{name: value for name, value in known.items() if not getattr(config, name)})


def stamp_files(config: FilterConfig) -> dict[str, tuple[int, int]]:
    """Size and time of the last change of every file of the data."""
    files = [file for source in config.sources for file in list_files(source)]
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()}


def check_unchanged(config: FilterConfig, before: Mapping[str, tuple[int, int]]) -> None:
    """Raise if a file has changed: rows are read anew when they are written."""
    for file, stamp in before.items():
        if stamp_files(config).get(file) != stamp:
            raise DataInvalid(f"{file}: changed while it was read; filter again when nothing writes into it")
