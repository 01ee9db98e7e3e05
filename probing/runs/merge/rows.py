"""The tables of the shards of an array, checked against their hashes and the rows of the dataset."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from probing.runs.common.parts import StoredShard
from probing.runs.common.record import check_files
from probing.runs.common.scored import list_hashes
from probing.runs.common.token_shards import TOKENS_FILE, JoinTokens
from probing.runs.merge.data import Array, Member, check_ids
from probing.store.manifest import RunFolder
from probing.store.shards import stream_row_groups

PLACES = ("row", "file")
"""Columns with the place of a row in the dataset, which are made anew."""


def check_member(member: Member, command: str) -> None:
    """Raise ``StoreCorrupt`` where a file of a shard is gone or changed."""
    check_files(RunFolder(member.path, command), list_hashes(member.record))


def read_tables(array: Array, name: str, list_ids: Callable[[range], Sequence[object]], rows: int) -> list[StoredShard]:
    """The table of every shard that has rows, and the facts of its making.

    Args:
        array: the shards.
        name: name of the table.
        list_ids: the ids that a table of some rows of the dataset has.
        rows: number of rows of the dataset.

    Raises:
        StoreCorrupt: a file of a shard is gone or damaged.
        SourceMismatch: a shard has other rows than those of the dataset that are its own.
    """
    shards = []
    for member in array.members:
        check_member(member, array.command)
        table = _read_table(member, name)
        check_ids(member, table["id"].to_pylist(), list_ids(member.config.choose_rows(rows)))
        if member.has_rows:
            # Of all tables one at a time is in memory.
            shards.append(StoredShard(partial(_read_table, member, name), _find_facts(member)))
    return shards


def _read_table(member: Member, name: str) -> pa.Table:
    # Given as an open file, since pyarrow takes a path with a colon for an address.
    with (member.path / name).open("rb") as file:
        table = pq.read_table(file).replace_schema_metadata(None)
    return table.drop_columns([place for place in PLACES if place in table.column_names])


def _find_facts(member: Member) -> dict[str, Any]:
    record = member.record
    names = ("problems", "problems_in_all", "tokens", "batch_tokens")
    return {**{name: record[name] for name in names}, "seconds": record["scoring_seconds"]}


def tokens_joiner(array: Array, schema: pa.Schema) -> JoinTokens:
    """What joins the tables of tokens of all shards, where they have one."""
    files = [member.path / TOKENS_FILE for member in array.with_rows if TOKENS_FILE in list_hashes(member.record)]

    def join(folder: Path) -> list[str]:
        if files:
            stream_row_groups(files, schema, folder / TOKENS_FILE)
        return [TOKENS_FILE] if files else []

    return join


def join_values(values: Sequence[Any]) -> Any:
    """What the shards say of how they were made, each way once: texts, or objects of texts."""
    if isinstance(values[0], dict):
        return {name: join_values([value[name] for value in values]) for name in values[0]}
    return "; ".join(dict.fromkeys(map(str, values)))
