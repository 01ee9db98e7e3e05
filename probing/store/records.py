"""Records that a run wrote, read back: nothing in them is believed before it is checked.

``read_run`` applies the checks of a command to the JSON in a folder. Keys that are not described are left as they are,
so that later versions may add some; a key that came after the first version is optional, so that older folders still
read.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from probing.errors import SourceMismatch, StoreCorrupt
from probing.store.checks import (
    Check,
    check_object,
    is_anything,
    is_cell,
    is_count,
    is_file_name,
    is_hash,
    is_list,
    is_mapping,
    is_none_or,
    is_one_of,
    is_place,
    is_positive,
    is_text,
)
from probing.store.plain_json import parse_json
from probing.types import Pooling, Source

SCHEMA_VERSION = 1
RUN_FILE = "run.json"
MANIFEST = "manifest.json"
SUMMARY = "summary.json"
SEAL = "record_sha256"
"""Key of the hash of everything in a record but its options and its identity, which are compared as they are."""
UNSEALED = (SEAL, "config", "identity")
DEEPEST = 32
"""Levels of nesting that a record may have; a record of ours has fewer than ten."""
DTYPES = ("float64", "float32", "bfloat16", "float16")
DELETE = "delete the folder and run again"


def read_run(folder: Path, name: str = RUN_FILE) -> dict[str, Any]:
    """The record of a folder, checked.

    Raises:
        SourceMismatch: there is no record, so the folder holds no run.
        StoreCorrupt: the record is a link, is damaged, or is of another version.
    """
    path = folder / name
    if not path.is_file():
        raise SourceMismatch(f"{folder}: holds no {name}, so it is not the output folder of a run")
    record = read_json(path)
    newer = record.get("schema_version") if isinstance(record, dict) else None
    if isinstance(newer, int) and newer > SCHEMA_VERSION:
        raise StoreCorrupt(
            f"{path}: written by a newer version of probing (schema {newer}, this one reads {SCHEMA_VERSION}); update "
            f"probing to read it"
        )
    try:
        check_record(record, name)
    except ValueError as error:
        raise StoreCorrupt(f"{path}: damaged, or written by another version ({error}); {DELETE}") from error
    return dict(record)


def read_json(path: Path) -> Any:
    """JSON that this package wrote.

    Raises:
        StoreCorrupt: the file is missing, a link, or no JSON; names it.
    """
    refuse_link(path)
    try:
        return parse_json(path.read_text(encoding="utf-8"), DEEPEST)
    except (ValueError, OSError) as error:
        raise StoreCorrupt(f"{path}: damaged ({error}); {DELETE}") from error


def refuse_link(path: Path) -> None:
    """Raise if this is a link: what a run wrote lies in its folder.

    Raises:
        StoreCorrupt: it is a link; names it.
    """
    if path.is_symlink():
        raise StoreCorrupt(f"{path}: is a link, which is not followed; put the file itself in its place")


def seal(record: Mapping[str, Any]) -> str:
    """Hash of a record, as JSON holds it, without its options and its identity."""
    rest = {name: value for name, value in record.items() if name not in UNSEALED}
    # Once through JSON, so that what was written and what is read are spelled alike.
    plain = json.loads(json.dumps(rest, default=str))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def check_seal(record: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a record has a hash of its own, and it is another one."""
    if SEAL in record and record[SEAL] != seal(record):
        raise ValueError("it was changed since it was written")


def check_record(record: Any, name: str) -> None:
    """Raise ``ValueError`` unless this is a record that this version reads; says where it is not, and why."""
    check_object({"schema_version": is_count})(record, "")
    if record["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"schema {record['schema_version']}, this version reads {SCHEMA_VERSION}")
    check_seal(record)
    is_begun_record(record, "")
    if name == MANIFEST:
        check_object({}, PENDING)(record, "")
    if record["status"] == "done":
        DONE.get(record["command"], is_anything)(record, "")


_PROBLEM = check_object({"id": is_text, "status": is_text, "detail": is_none_or(is_text)}, {"line": is_text})
_STATUSES = {"rows_by_status": is_mapping(is_count), "problems": is_list(_PROBLEM)}
_BUDGET = check_object({"tokens": is_positive, "reason": is_text}, closed=True)
# Paths are shown in messages alone.
_PAIRS = check_object({}, {"path": is_anything, "rows": is_count, "sha256": is_hash, "pairs_sha256": is_hash})
_BATCH = check_object(
    {"path": is_anything, "rows_sha256": is_hash, "first_shard": is_count, "shards": is_count},
    {"sha256": is_hash, "blocks": is_list(is_positive)},
)
PENDING = {
    "data": is_list(_BATCH),
    "pending": is_none_or(_BATCH),
    "batch_tokens": _BUDGET,
    "label_type": is_one_of("bool", "int64", "double", "string"),
}
"""What a manifest has before its run is done."""
_STEP = check_object({"step": is_count, "folder": is_text, "why": is_text})
_FILES = is_mapping(is_hash, is_file_name)
_CONFIG = check_object({}, dict.fromkeys(("split", "id_column"), is_none_or(is_text)))


def is_begun_record(value: Any, where: str) -> None:
    """A record of any command, however far it got."""
    check_object(
        {"command": is_text, "status": is_one_of("running", "done")},
        {"config": _CONFIG, "identity": is_mapping(is_anything)},
    )(value, where)
    if value["status"] == "running":
        check_object({}, {"batch_tokens": _BUDGET})(value, where)


def is_source(value: Any, where: str) -> None:
    """The model that numbers were computed from."""
    names = {entry.name for entry in fields(Source)} - {"model"}
    check_object({"model": is_text}, dict.fromkeys(names, is_none_or(is_text)), closed=True)(value, where)


def _with_problems(needed: Mapping[str, Check], further: Mapping[str, Check] = {}) -> Check:
    """A finished record with its rows by status; where there are rows, and none is ok, there is a problem."""

    def check(value: Any, where: str) -> None:
        check_object({**_STATUSES, **needed}, further)(value, where)
        rows = value["rows_by_status"]
        if rows and not rows.get("ok") and not value["problems"]:
            raise ValueError("problems: empty, though no row is ok")

    return check


def _with_files(needed: Mapping[str, Check], name: str, files: Check = _FILES) -> Check:
    """A finished record with the hashes of its files, among which is this one."""
    plain = _with_problems({"sha256": files, **needed}, {"data": _PAIRS})

    def check(value: Any, where: str) -> None:
        plain(value, where)
        if name not in value["sha256"]:
            raise ValueError(f"sha256: {name} missing")

    return check


def _is_manifest(value: Any, where: str) -> None:
    """A finished store of states: its shards are numbered, and hold every place."""
    shard = check_object(
        {
            "file": is_file_name,
            "bytes": is_count,
            "sha256": is_hash,
            "tensors": is_mapping(is_hash, is_place),
            "rows": is_count,
            "items": is_count,
        }
    )
    # A store without rows is described all the same.
    request = check_object({"pooling": is_one_of(*get_args(Pooling))})
    _with_problems(
        {
            "shards": is_list(shard),
            "places": is_list(is_place),
            "layers": is_positive,
            "width": is_positive,
            "request": request,
            "source": is_source,
            "rows_sha256": is_hash,
            "dtype": is_one_of(*DTYPES),
        },
        {"how": is_text, "model": check_object({"family": is_text})},
    )(value, where)
    if len(set(value["places"])) < len(value["places"]):
        raise ValueError("places: one stands there twice")
    for number, entry in enumerate(value["shards"]):
        if entry["file"] != f"{number:06d}.safetensors":
            raise ValueError(f"shards[{number}].file: expected {number:06d}.safetensors, found {entry['file']}")
        if set(entry["tensors"]) != set(value["places"]):
            raise ValueError(f"shards[{number}].tensors: not those of the places")
    first = 0
    for number, batch in enumerate([*value.get("data", []), *([value["pending"]] if value.get("pending") else [])]):
        if batch["first_shard"] != first:
            raise ValueError(f"data[{number}].first_shard: expected {first}, found {batch['first_shard']}")
        first += batch["shards"] if number < len(value.get("data", [])) else 0
    if value.get("data") and first != len(value["shards"]):
        raise ValueError(f"data: {first} shards, found {len(value['shards'])}")


_PAGES = ("plots.html", "course.html")
_PAIR_FILES = ("displacement.parquet", "tokens.parquet", "course.parquet")
_TABLES = is_mapping(is_hash, is_one_of(*_PAIR_FILES, *_PAGES))
EXPORTS = ("model", "lora", "gguf")
"""Forms in which an edit leaves this package."""
_WRITTEN = check_object({"name": is_text, "file": is_file_name, "before": is_none_or(is_hash), "after": is_hash})
_REF_LOGPS = check_object({"file": is_file_name, "sha256": is_hash, "rows": is_count, "left_out": is_count})
DONE: Mapping[str, Check] = {
    "score": _with_problems(
        {"scores_sha256": is_hash},
        {"data": _PAIRS, "sha256": is_mapping(is_hash, is_one_of("tokens.parquet", *_PAGES)), "ref_logps": _REF_LOGPS},
    ),
    "displacement": _with_files({"broken_steps": is_list(_STEP)}, "displacement.parquet", _TABLES),
    "rollouts": _with_files({}, "rollouts.parquet"),
    "influence": _with_files({}, "influence.parquet"),
    "ccs": _with_files({}, SUMMARY),
    "probe": _with_files({}, SUMMARY),
    "clusters": _with_files({}, SUMMARY),
    "refusal extract": _with_files({}, SUMMARY),
    "refusal select": _with_files({}, SUMMARY),
    "refusal evaluate": _with_files({}, SUMMARY),
    "refusal export": check_object({"tensors": is_list(_WRITTEN), "model": is_source, "format": is_one_of(*EXPORTS)}),
    "refusal transfer": _with_files({}, SUMMARY),
    "refusal audit": _with_files({}, SUMMARY),
    "refusal trace": _with_files({}, SUMMARY),
    "capture": _is_manifest,
}
"""What the record of a finished run has, by command."""
_ROW = is_mapping(is_cell, is_cell)
is_summary: Check = check_object({"tables": is_mapping(is_list(_ROW))})
"""The tables of a finished run, by title."""


def read_summary(path: Path) -> dict[str, Any]:
    """The tables of a finished run, by title, as lists of rows.

    Raises:
        StoreCorrupt: the file is missing, a link, or damaged.
    """
    summary = read_json(path)
    try:
        is_summary(summary, "")
    except ValueError as error:
        raise StoreCorrupt(f"{path}: damaged ({error}); {DELETE}") from error
    return dict(summary["tables"])
