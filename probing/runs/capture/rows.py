"""Rows of ``probing capture``: their columns, which of them a run adds, and the shards that hold those before."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import pyarrow as pa

from probing.data.contents import content_of_row
from probing.data.lazy import BLOCK, pick
from probing.data.tables import Table, canonical
from probing.errors import SourceMismatch, StoreCorrupt, UsageError
from probing.runs.capture.config import CaptureConfig
from probing.runs.common.parts import Shard, StoredShard, find_shard
from probing.store.activations import REPAIR
from probing.store.manifest import RunFolder
from probing.store.shards import shard_path
from probing.types import LabelledPrompt

log = logging.getLogger(__name__)

LABELS = {"bool": pa.bool_(), "int64": pa.int64(), "double": pa.float64(), "string": pa.string()}


@dataclass(frozen=True)
class Batch:
    """Rows of one dataset that make up consecutive shards.

    Attributes:
        facts: path, hashes, first shard, number of shards: what the manifest says of it; and ``blocks``, the number of
            rows of each shard, where these are not as long as ``shard_rows`` says: joined from those of an array.
        prompts: rows of the dataset that no earlier dataset brought.
        table: table that the rows come from.
        finished: whether an earlier run has made them all.
    """

    facts: dict[str, Any]
    prompts: Sequence[LabelledPrompt]
    table: Table
    finished: bool


def choose_schema(folder: RunFolder, prompts: Sequence[LabelledPrompt]) -> pa.Schema:
    """Columns of the rows; the label has the type of the labels, which later rows have to have as well.

    Raises:
        UsageError: the labels are of another type than those in the store, or of no type that a column can have.
    """
    kinds = {type(prompt.label) for prompt in prompts} - {type(None)}
    kind = "bool" if kinds == {bool} else "int64" if kinds == {int} else "double" if kinds <= {int, float} else "string"
    label = folder.facts().get("label_type") or (kind if kinds else "string")
    if kinds and kind != label and (kind, label) != ("int64", "double"):
        raise UsageError(f"{folder.path}: the labels there are of type {label}, those of the new rows of type {kind}")
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("status", pa.string()),
            ("tokens", pa.int64()),
            ("counted", pa.int64()),
            ("label", LABELS[label]),
            ("category", pa.string()),
            ("shard", pa.int64()),
            ("content", pa.string()),
            ("detail", pa.string()),
        ]
    )
    try:
        for start in range(0, len(prompts), BLOCK):
            pa.array([label_of(schema, prompt) for prompt in prompts[start : start + BLOCK]], LABELS[label])
    except (pa.ArrowException, OverflowError) as error:
        raise UsageError(f"the labels cannot be written as {label}: {error}") from error
    folder.write({**folder.facts(), "label_type": label})
    return schema


def label_of(schema: pa.Schema, prompt: LabelledPrompt) -> Any:
    """The label of a row, as the column of the labels holds it."""
    as_text = schema.field("label").type == pa.string() and prompt.label is not None
    return str(prompt.label) if as_text else prompt.label


def find_batch(
    folder: RunFolder, config: CaptureConfig, table: Table, prompts: Sequence[LabelledPrompt], schema: pa.Schema
) -> Batch:
    """Rows of this run as the manifest records them, or will record them.

    The manifest's ``data`` are finished; what is being made is its ``pending``, so that rows being added never keep
    the others from being read.
    """
    facts = folder.facts()
    done: list[dict[str, Any]] = facts.get("data", [])
    pending: dict[str, Any] | None = facts.get("pending")
    whole = _hash_rows(prompts)
    source = next((known for known in [*done, *([pending] if pending else [])] if known["rows_sha256"] == whole), None)
    if source is None and done and not config.append:
        raise SourceMismatch(
            f"{folder.path} holds states of other rows, or of these with other labels "
            f"({', '.join(known['path'] for known in done)}). "
            f"Choose another --out, or add new rows with --append"
        )
    if source is None and pending and not done:
        raise SourceMismatch(
            f"{folder.path} holds an unfinished run on other rows ({pending['path']}): finish it with those, choose "
            f"another --out, or delete the folder"
        )
    first = source["first_shard"] if source else sum(known["shards"] for known in done)
    new = _leave_out_known(folder, prompts, first, schema)
    if source is None:
        shards = -(-len(new) // config.shard_rows)
        source = {"path": table.path, "format": table.format, "sha256": table.sha256, "rows_sha256": whole}
        source |= {"rows": len(new), "first_shard": first, "shards": shards}
        if new:
            if pending:
                log.warning("the unfinished addition of %s is given up", pending["path"])
            folder.write({**facts, "pending": source})
    return Batch(source, new, table, finished=source in done or not new)


def _hash_rows(prompts: Sequence[LabelledPrompt]) -> str:
    """Hash of the ids and contents of all rows, as one list in JSON."""
    digest = hashlib.sha256(b"[")
    for number, prompt in enumerate(prompts):
        digest.update((b", " if number else b"") + canonical([prompt.id, content_of_row(prompt)]).removesuffix(b"\n"))
    digest.update(b"]\n")
    return digest.hexdigest()


def cut_into_blocks(batch: Batch, size: int) -> list[Sequence[LabelledPrompt]]:
    """The rows of each shard of a batch, of which a new one has so many rows."""
    count = len(batch.prompts)
    sizes = batch.facts.get("blocks") or [size] * -(-count // size)
    starts = [0, *accumulate(sizes)]
    return [pick(batch.prompts, range(start, min(end, count))) for start, end in pairwise(starts)]


def _leave_out_known(
    folder: RunFolder, prompts: Sequence[LabelledPrompt], before: int, schema: pa.Schema
) -> Sequence[LabelledPrompt]:
    """Rows that no shard before this number has.

    Raises:
        SourceMismatch: a row has the id of another row in the store.
    """
    if not before:
        return prompts
    known: dict[str, str] = {}
    for number in range(before):
        rows = read_whole_shard(folder, number, schema).rows
        known.update(zip(rows["id"].to_pylist(), rows["content"].to_pylist(), strict=True))
    for prompt in prompts:
        if known.get(prompt.id, content_of_row(prompt)) != content_of_row(prompt):
            raise SourceMismatch(f"{folder.path}: there is another row with the id '{prompt.id}' in it")
    return pick(prompts, [at for at, prompt in enumerate(prompts) if prompt.id not in known])


def read_whole_shard(folder: RunFolder, number: int, schema: pa.Schema) -> Shard:
    """Read a shard that has to be there.

    Raises:
        StoreCorrupt: the shard is missing or damaged.
    """
    path = shard_path(folder.shards, number)
    shard = find_shard(path, schema, {})
    if shard is None:
        raise StoreCorrupt(f"{path}: missing or damaged; {REPAIR} (on its own data)")
    return StoredShard.of(shard, path)
