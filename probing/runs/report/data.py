"""The runs of a report, read back from their folders: every file is checked against its hash before it is used."""

import hashlib
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.errors import SourceMismatch, StoreCorrupt, UsageError
from probing.report.parts import RunData, number_anchors
from probing.report.sections import DESCRIBERS
from probing.report.sections.pairs import PAIR_FILES
from probing.runs.common.scored import list_hashes
from probing.store.manifest import MANIFEST, RUN_FILE, read_run
from probing.store.records import SUMMARY, read_summary, refuse_link

if TYPE_CHECKING:
    import pandas as pd

DESCRIBED = (*PAIR_FILES, *DESCRIBERS)
"""Commands whose runs a report can show."""
log = logging.getLogger(__name__)


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The folders of runs that are named, or that lie in folders that are named.

    A folder without a record stands for the finished runs in it, in the order of ``DESCRIBED``; those in it that are
    not finished are left out, and a warning says so.

    Raises:
        UsageError: there is no such folder, it holds no run, or one is named twice.
    """
    found: list[Path] = []
    for given in folders:
        folder = given.expanduser()
        if not folder.is_dir():
            what = "is no folder" if os.path.lexists(folder) else "no such folder"
            raise UsageError(f"{folder}: {what}; give the output folder of a finished run")
        found += [folder] if find_record(folder) else _find_within(folder)
    first: dict[str, Path] = {}
    for folder in found:
        other = first.setdefault(os.path.realpath(folder), folder)
        if other is not folder:
            also = "" if other == folder else f", the first time as {other}"
            raise UsageError(f"{folder}: is named twice{also}; a report shows a run once")
    return found


def find_record(folder: Path) -> str | None:
    """Name of the record of the run that a folder holds; None where it holds none."""
    return next((name for name in (RUN_FILE, MANIFEST) if os.path.lexists(folder / name)), None)


def _find_within(folder: Path) -> list[Path]:
    inner = [each for each in sorted(folder.iterdir()) if each.is_dir() and find_record(each)]
    records = {each: read_run(each, str(find_record(each))) for each in inner}
    done = [each for each, record in records.items() if record["status"] == "done" and record["command"] in DESCRIBED]
    for each in [each for each in inner if each not in done]:
        unfinished = records[each]["status"] != "done"
        why = "the run in it is not finished" if unfinished else f"it is of 'probing {records[each]['command']}'"
        log.warning("%s: %s, and is left out of the report", each, why)
    if not done:
        raise UsageError(
            f"{folder}: holds no finished run (no {RUN_FILE} or {MANIFEST}); give the output folder of a command"
        )
    return sorted(done, key=lambda each: DESCRIBED.index(records[each]["command"]))


def label_runs(folders: Sequence[Path]) -> list[str]:
    """A label for each run: the last part of its path, and as many parts before it as tell it from the others."""
    parts = [Path(os.path.realpath(folder)).parts for folder in folders]
    depth = 1
    while len({each[-depth:] for each in parts}) < len(parts) and depth < max(map(len, parts)):
        depth += 1
    return ["/".join(each[-depth:] if len(parts) > 1 else each[-1:]) for each in parts]


def read_runs(folders: Sequence[Path]) -> Iterator[RunData]:
    """The runs, without their texts.

    Raises:
        UsageError: a run is not finished.
        SourceMismatch: a folder holds no run.
        StoreCorrupt: a file is gone or damaged.
    """
    labels = label_runs(folders)
    for folder, label, number in zip(folders, labels, number_anchors(labels), strict=True):
        record = read_run(folder, str(find_record(folder)))
        if record["status"] != "done":
            raise UsageError(f"{folder}: the run in it is not finished; run the same command again, then the report")
        if record["command"] not in DESCRIBED:
            raise UsageError(f"{folder}: no report is made of 'probing {record['command']}'; leave the folder out")
        files = {name: _read_table(folder / name, sha256) for name, sha256 in _list_tables(record).items()}
        yield RunData(label, record["command"], record, files, _read_summary(folder, record), number=number)


def _list_tables(record: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the Parquet files of a run, by name."""
    hashes = list_hashes(record)
    hashes |= {"rows.parquet": record["rows_sha256"]} if record["command"] == "capture" else {}
    return {name: sha256 for name, sha256 in hashes.items() if name.endswith(".parquet")}


def _read_table(path: Path, sha256: str) -> "pd.DataFrame":
    import pandas as pd
    import pyarrow as pa

    content = _read_unchanged(path, sha256)
    try:
        return pd.read_parquet(io.BytesIO(content))
    except pa.ArrowException as error:
        raise StoreCorrupt(f"{path}: not a whole Parquet file ({error}); delete the folder and run again") from error


def _read_summary(folder: Path, record: Mapping[str, Any]) -> dict[str, "pd.DataFrame"]:
    import pandas as pd

    sha256 = record.get("sha256", {}).get(SUMMARY)
    if sha256 is None:
        return {}
    _read_unchanged(folder / SUMMARY, sha256)
    return {title: pd.DataFrame(rows) for title, rows in read_summary(folder / SUMMARY).items()}


def _read_unchanged(path: Path, sha256: str) -> bytes:
    refuse_link(path)
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise StoreCorrupt(f"{path}: gone or changed since the run ended; delete {path.parent} and run again")
    return content


def check_comparable(runs: Sequence[RunData]) -> None:
    """Raise if two runs of one command are of different data: side by side they would be compared.

    Raises:
        SourceMismatch: names both.
    """
    first: dict[str, RunData] = {}
    for run in runs:
        other = first.setdefault(run.command, run)
        if identify_data(run) != identify_data(other):
            raise SourceMismatch(
                f"{other.label} and {run.label} are runs of 'probing {run.command}' on different data "
                f"({_describe_data(other)}; {_describe_data(run)}), whose numbers cannot be compared; write a report "
                f"of each"
            )


def identify_data(run: RunData) -> str | None:
    """Hash of the rows of a run: of its pairs, with texts and ids, or of its part of the dataset; None if unknown."""
    data = run.record.get("data")
    return data.get("pairs_sha256", data.get("groups_sha256", data.get("sha256"))) if isinstance(data, dict) else None


def _describe_data(run: RunData) -> str:
    data = run.record.get("data")
    if isinstance(data, dict):
        return f"{data.get('rows', 'unknown')} rows of {data.get('path', 'unknown')}"
    return str(run.record.get("config", {}).get("data"))
