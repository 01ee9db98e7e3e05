"""The states of the shards of an array, put into one store."""

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from probing.data.contents import content_of_row
from probing.errors import StoreCorrupt
from probing.runs.common.parts import Shard, StoredShard, find_shard
from probing.runs.merge.data import Array, Member, Whole, check_ids
from probing.store.activations import ROWS_FILE, find_fault, states_path
from probing.store.files import file_sha256, new_file
from probing.store.manifest import SHARDS, RunFolder
from probing.store.records import refuse_link
from probing.store.shards import shard_path, write_shard

AGAIN = "run its 'probing capture' with --repair, then merge"


def join_states(folder: RunFolder, array: Array, whole: Whole, schema: pa.Schema) -> list[int]:
    """Put the states of all shards into a folder, and the rows that they are of.

    Args:
        folder: folder of the whole run, which has begun.
        array: the stores.
        whole: the dataset.
        schema: columns of the rows.

    Returns:
        The number of rows of each shard of the store.

    Raises:
        StoreCorrupt: a file of a store is gone or damaged.
        SourceMismatch: a store has other rows than those of the dataset that are its own.
    """
    stores = [(member, _read_shards(member, schema)) for member in array.members]
    for member, shards in stores:
        _check_rows(member, shards, whole)
    sizes: list[int] = []
    for member, shards in stores:
        for number, shard in enumerate(shards):
            _put_shard(folder, member, number, shard, len(sizes))
            sizes.append(len(shard.rows))
    return sizes


def _check_rows(member: Member, shards: Sequence[Shard], whole: Whole) -> None:
    """Raise ``SourceMismatch`` unless a store has the rows of the dataset that are its own, with the same texts."""
    sides, own = len(whole.prompts) // len(whole.table.rows), member.config.choose_rows(len(whole.table.rows))
    at = sides * own.start
    for shard in shards:
        # Of the texts those of one shard are in memory.
        prompts = whole.prompts[at : min(at + len(shard.rows), sides * own.stop)]
        at += len(shard.rows)
        expected = {"id": [prompt.id for prompt in prompts], "content": [content_of_row(prompt) for prompt in prompts]}
        for name, values in expected.items():
            check_ids(member, shard.rows[name].to_pylist(), values)
    check_ids(member, range(at), range(sides * own.stop))


def _read_shards(member: Member, schema: pa.Schema) -> list[StoredShard]:
    """The rows of a store, whose files are all found to be as they were written."""
    folder, rows = member.path / SHARDS, member.path / ROWS_FILE
    if rows.is_symlink() or not rows.is_file() or file_sha256(rows) != member.record["rows_sha256"]:
        raise StoreCorrupt(f"{rows}: gone or changed since the run ended; {AGAIN}")
    refuse_link(folder)
    shards = []
    for number, facts in enumerate(member.record["shards"]):
        shard = find_shard(shard_path(folder, number), schema, {})
        if shard is None or shard.facts.get("states") != facts:
            raise StoreCorrupt(f"{shard_path(folder, number)}: missing or damaged; {AGAIN}")
        fault = find_fault(states_path(folder, number), facts, deep=True)
        if fault is not None:
            raise StoreCorrupt(f"{states_path(folder, number)}: {fault}; {AGAIN}")
        shards.append(StoredShard.of(shard, shard_path(folder, number)))
    return shards


def _put_shard(folder: RunFolder, member: Member, number: int, shard: Shard, at: int) -> None:
    """Put a shard of a member under another number, its states before its rows, so that whole rows have states."""
    target = states_path(folder.shards, at)
    link_file(states_path(member.path / SHARDS, number), target)
    numbers = pa.array([at] * len(shard.rows), pa.int64())
    rows = shard.rows.set_column(shard.rows.column_names.index("shard"), shard.rows.schema.field("shard"), numbers)
    facts = {**shard.facts, "states": {**shard.facts["states"], "file": target.name}}
    write_shard(shard_path(folder.shards, at), rows, facts)


def link_file(source: Path, target: Path) -> None:
    """Put a file under another name as well: by a hard link, or by a copy where the file system makes no link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    with new_file(target) as temporary:
        shutil.copyfile(source, temporary)
