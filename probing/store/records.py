"""Records that a run wrote, read back: nothing in them is believed before it is checked.

``Check`` functions say what a value must be; ``read_run`` applies those of a command to the JSON in a folder. Keys
that are not described are left as they are, so that later versions may add some; a key that came after the first
version is optional, so that older folders still read.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from probing.errors import SourceMismatch, StoreCorrupt
from probing.types import Place, Pooling, Source

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

Check = Callable[[Any, str], None]
"""Raises ``ValueError`` with the place of the value and what is wrong with it."""


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
        return parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise StoreCorrupt(f"{path}: damaged ({error}); {DELETE}") from error


def parse_json(text: str) -> Any:
    """JSON of a sensible depth, without a key that stands twice.

    Raises:
        ValueError: the text is something else.
    """
    try:
        value = json.loads(text, object_pairs_hook=_refuse_twice)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level, deep = [value], 0
    while level:
        deep += 1
        if deep > DEEPEST:
            raise ValueError("it is nested too deeply")
        level = [inner for outer in level for inner in _children(outer)]
    return value


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


def _refuse_twice(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(name for at, (name, _) in enumerate(pairs) if name in dict(pairs[:at]))
        raise ValueError(f"'{twice}' stands in it twice")
    return value


def _children(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else ()


def is_anything(value: Any, where: str) -> None:
    """Whatever stands there."""


def is_text_or_texts(value: Any, where: str) -> None:
    """A text, or a list of texts."""
    (is_list(is_text) if isinstance(value, list) else is_text)(value, where)


def is_text(value: Any, where: str) -> None:
    """Text."""
    _expect(isinstance(value, str), where, "text", value)


def is_cell(value: Any, where: str) -> None:
    """A value that a table can hold: no list and no object, and of texts those that can be encoded."""
    plain = isinstance(value, str) and value.encode(errors="replace").decode() == value
    small = type(value) is not int or abs(value) < 2**63
    _expect(plain or (small and isinstance(value, int | float | None)), where, "a cell of a table", value)


def is_count(value: Any, where: str) -> None:
    """A whole number that is not negative."""
    _expect(type(value) is int and 0 <= value < 2**63, where, "a count", value)


def is_positive(value: Any, where: str) -> None:
    """A whole number above 0."""
    _expect(type(value) is int and 0 < value < 2**63, where, "a whole number above 0", value)


def is_hash(value: Any, where: str) -> None:
    """SHA-256 in hexadecimal digits."""
    _expect(isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None, where, "a SHA-256", value)


def is_file_name(value: Any, where: str) -> None:
    """Name of a file in the folder itself: never a path that leads elsewhere."""
    good = isinstance(value, str) and re.fullmatch(r"\w[\w.-]*", value, re.ASCII) is not None
    _expect(good, where, "the name of a file in the folder", value)


def is_place(value: Any, where: str) -> None:
    """A place in a model, with its layer counted from 0."""
    try:
        place = Place.parse(value)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: {error}") from error
    _expect(str(place) == value and (place.layer is None or place.layer >= 0), where, "a place", value)


def is_one_of(*values: str) -> Check:
    """One of these words."""

    def check(value: Any, where: str) -> None:
        _expect(isinstance(value, str) and value in values, where, f"one of {', '.join(values)}", value)

    return check


def is_none_or(check: Check) -> Check:
    """Nothing, or what passes the check."""

    def check_unless_none(value: Any, where: str) -> None:
        if value is not None:
            check(value, where)

    return check_unless_none


def is_list(each: Check) -> Check:
    """A list, every entry of which passes the check."""

    def check(value: Any, where: str) -> None:
        _expect(isinstance(value, list), where, "a list", value)
        for number, entry in enumerate(value):
            each(entry, f"{where}[{number}]")

    return check


def is_mapping(each: Check, key: Check = is_text) -> Check:
    """An object, every value and every key of which passes its check."""

    def check(value: Any, where: str) -> None:
        _expect(isinstance(value, dict), where, "an object", value)
        for name, entry in value.items():
            key(name, where)
            each(entry, _join(where, name))

    return check


def check_object(needed: Mapping[str, Check], further: Mapping[str, Check] = {}, closed: bool = False) -> Check:
    """An object with these keys.

    Args:
        needed: checks of the keys that must be there.
        further: checks of keys that may be there.
        closed: whether there may be no others.
    """

    def check(value: Any, where: str) -> None:
        _expect(isinstance(value, dict), where, "an object", value)
        missing = [name for name in needed if name not in value]
        if missing:
            raise ValueError(f"{where + ': ' if where else ''}{', '.join(missing)} missing")
        unknown = [name for name in value if name not in needed and name not in further]
        if closed and unknown:
            raise ValueError(f"{where + ': ' if where else ''}{', '.join(unknown)} unknown")
        for name, each in {**needed, **further}.items():
            if name in value:
                each(value[name], _join(where, name))

    return check


def _expect(good: bool, where: str, wanted: str, value: Any) -> None:
    if not good:
        shown = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
        raise ValueError(f"{where or 'the whole'}: expected {wanted}, found {shown[:60]}")


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


_PROBLEM = check_object({"id": is_text, "status": is_text, "detail": is_none_or(is_text)}, {"line": is_text})
_STATUSES = {"rows_by_status": is_mapping(is_count), "problems": is_list(_PROBLEM)}
_BUDGET = check_object({"tokens": is_positive, "reason": is_text}, closed=True)
_PAIRS = check_object({}, {"path": is_text, "rows": is_count, "sha256": is_hash, "pairs_sha256": is_hash})
_BATCH = check_object(
    {"path": is_text, "rows_sha256": is_hash, "first_shard": is_count, "shards": is_count}, {"sha256": is_hash}
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
_CONFIG = check_object(
    {}, {"data": is_none_or(is_text_or_texts), **dict.fromkeys(("split", "id_column"), is_none_or(is_text))}
)


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
    """A finished record with its rows by status; where no row is ok there is a problem."""

    def check(value: Any, where: str) -> None:
        check_object({**_STATUSES, **needed}, further)(value, where)
        if not value["rows_by_status"].get("ok") and not value["problems"]:
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


_TABLES = is_mapping(is_hash, is_one_of("displacement.parquet", "tokens.parquet", "course.parquet"))
DONE: Mapping[str, Check] = {
    "score": _with_problems({"scores_sha256": is_hash}, {"data": _PAIRS}),
    "displacement": _with_files({"broken_steps": is_list(_STEP)}, "displacement.parquet", _TABLES),
    "ccs": _with_files({}, SUMMARY),
    "probe": _with_files({}, SUMMARY),
    "clusters": _with_files({}, SUMMARY),
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
