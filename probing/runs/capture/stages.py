"""``probing capture`` after its data: shard by shard, into a claimed folder."""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import torch

from probing.data.contents import content_of_row
from probing.data.tables import Table, canonical
from probing.engine.stream import TokenBudget
from probing.errors import SourceMismatch, StoreCorrupt, UsageError
from probing.instruments.ahead import one_ahead
from probing.instruments.capture import CapturedBlock, Capturer
from probing.instruments.problems import LISTED_PROBLEMS, refuse_if_none
from probing.models.load import LanguageModel, load
from probing.report.progress import Progress
from probing.report.tables import counts
from probing.runs.capture.config import CaptureConfig
from probing.runs.common.parts import Shard
from probing.runs.common.record import content_of, identity, plain
from probing.store.activations import REPAIR, ROWS_FILE, fault, states_path, write_states
from probing.store.files import file_sha256
from probing.store.manifest import MANIFEST, SHARDS, RunFolder
from probing.store.shards import join_shards, read_shard, shard_path, write_shard
from probing.types import Capture, LabelledPrompt, Report

# What the values do not depend on, or what is compared by content instead.
NOT_IDENTITY = (
    "model data out device dtype trust_remote_code append repair places split id_column text_column response_column "
    "label_column category_column span_column substring"
).split()


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Rows of one dataset that make up consecutive shards.

    Attributes:
        facts: path, hashes, first shard, number of shards: what the manifest says of it.
        prompts: its rows that no earlier dataset brought.
        table: where they come from.
        finished: whether an earlier run has made them all.
    """

    facts: dict[str, Any]
    prompts: list[LabelledPrompt]
    table: Table
    finished: bool


def capture_into(
    folder: RunFolder,
    config: CaptureConfig,
    table: Table,
    prompts: list[LabelledPrompt],
    model: LanguageModel | None = None,
) -> Report:
    """Capture every row into the folder, unless an earlier run has done so; answer with its tables.

    Args:
        folder: claimed.
        config: what to read.
        table: where the rows come from.
        prompts: the rows.
        model: what ``config.model`` names, where it is loaded already.

    Raises:
        SourceMismatch: the folder's run was made from something else.
        StoreCorrupt: a shard of a finished run is gone or damaged.
        DataInvalid, NotFinite: not one row could be read.
    """
    began = time.monotonic()
    if model is None:
        model = load(config.model, config.revision, config.dtype, config.device, config.trust_remote_code)
    request = config.request(model.layers)
    capturer = Capturer(model, request, config.eos, config.max_length, config.batch_tokens, config.compile)
    request = Capture(capturer.places, request.pooling, request.over, request.dtype, request.chat)
    folder.begin(_identity(config, model, request), {"config": plain(config)})
    schema = _schema(folder, prompts)
    batch = _batch(folder, config, table, prompts, schema)
    made = _make_shards(folder, config, capturer, batch, schema)
    if made or not batch.finished or not _rows_are_whole(folder):
        _finish(folder, config, capturer, batch, schema, round(time.monotonic() - began, 3))
    _check_others(folder, batch, schema, config.repair)
    return _report(folder)


def _identity(config: CaptureConfig, model: LanguageModel, request: Capture) -> dict[str, Any]:
    """Everything but the rows that the bytes of the states depend on."""
    places = ", ".join(map(str, request.places))
    return {"model": content_of(model.source), "places": places, **identity(config, NOT_IDENTITY, model, later={})}


LABELS = {"bool": pa.bool_(), "int64": pa.int64(), "double": pa.float64(), "string": pa.string()}


def _schema(folder: RunFolder, prompts: Sequence[LabelledPrompt]) -> pa.Schema:
    """Columns of the rows; the label has the type of the labels, which later rows have to have as well.

    Raises:
        UsageError: the labels are of another type than those already there, or do not fit into any.
    """
    kinds = {type(prompt.label) for prompt in prompts} - {type(None)}
    found = (
        "bool" if kinds == {bool} else "int64" if kinds == {int} else "double" if kinds <= {int, float} else "string"
    )
    label = folder.facts().get("label_type") or (found if kinds else "string")
    if kinds and found != label and (found, label) != ("int64", "double"):
        raise UsageError(f"{folder.path}: the labels there are of type {label}, those of the new rows of type {found}")
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
        pa.array([_label(schema, prompt) for prompt in prompts], LABELS[label])
    except (pa.ArrowException, OverflowError) as error:
        raise UsageError(f"the labels cannot be written as {label}: {error}") from error
    folder.write({**folder.facts(), "label_type": label})
    return schema


def _label(schema: pa.Schema, prompt: LabelledPrompt) -> Any:
    as_text = schema.field("label").type == pa.string() and prompt.label is not None
    return str(prompt.label) if as_text else prompt.label


def _batch(
    folder: RunFolder, config: CaptureConfig, table: Table, prompts: list[LabelledPrompt], schema: pa.Schema
) -> Batch:
    """The rows of this run as the manifest knows them, or as it will.

    The manifest's ``data`` are finished; what is being made is its ``pending``, so that rows being added never keep
    the others from being read.
    """
    facts = folder.facts()
    done: list[dict[str, Any]] = facts.get("data", [])
    pending: dict[str, Any] | None = facts.get("pending")
    whole = hashlib.sha256(canonical([[prompt.id, content_of_row(prompt)] for prompt in prompts])).hexdigest()
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
    new = _not_known(folder, prompts, first, schema)
    if source is None:
        shards = -(-len(new) // config.shard_rows)
        source = {"path": table.path, "format": table.format, "sha256": table.sha256, "rows_sha256": whole}
        source |= {"rows": len(new), "first_shard": first, "shards": shards}
        if new:
            if pending:
                log.warning("the unfinished addition of %s is given up", pending["path"])
            folder.write({**facts, "pending": source})
    return Batch(source, new, table, finished=source in done or not new)


def _not_known(
    folder: RunFolder, prompts: Sequence[LabelledPrompt], before: int, schema: pa.Schema
) -> list[LabelledPrompt]:
    """Rows that no shard before this number has.

    Raises:
        SourceMismatch: a row has the id of another one there.
    """
    known: dict[str, str] = {}
    for number in range(before):
        found = read_shard(shard_path(folder.shards, number), schema)
        if found is None:
            raise StoreCorrupt(f"{shard_path(folder.shards, number)}: missing or damaged; {REPAIR} (on its own data)")
        known.update(zip(found[0]["id"].to_pylist(), found[0]["content"].to_pylist(), strict=True))
    for prompt in prompts:
        if known.get(prompt.id, content_of_row(prompt)) != content_of_row(prompt):
            raise SourceMismatch(f"{folder.path}: there is another row with the id '{prompt.id}' in it")
    return [prompt for prompt in prompts if prompt.id not in known]


def _make_shards(
    folder: RunFolder, config: CaptureConfig, capturer: Capturer, batch: Batch, schema: pa.Schema
) -> list[int]:
    """Every shard of this run that is not there yet; the numbers of those that were made."""
    first, blocks = batch.facts["first_shard"], []
    for start in range(0, len(batch.prompts), config.shard_rows):
        blocks.append(batch.prompts[start : start + config.shard_rows])
    known = [_known_shard(folder, first + at, block, schema, config.repair) for at, block in enumerate(blocks)]
    lost = [states_path(folder.shards, first + at) for at, shard in enumerate(known) if isinstance(shard, str)]
    if lost and batch.finished and not config.repair:
        faults = [shard for shard in known if isinstance(shard, str)]
        raise StoreCorrupt(f"{lost[0]}: {faults[0]} ({len(lost)} of {len(known)} shards); {REPAIR}")
    _keep_budget(folder, capturer)
    made = []
    done = sum(len(shard.rows) for shard in known if isinstance(shard, Shard))
    missing = [block for block, shard in zip(blocks, known, strict=True) if not isinstance(shard, Shard)]
    tokenized = one_ahead(lambda block: capturer.tokenize(block, _where(batch, block)), missing)
    with Progress(len(batch.prompts), done, "rows", "capturing") as bar, closing(tokenized):
        for at, (block, shard) in enumerate(zip(blocks, known, strict=True)):
            if not isinstance(shard, Shard):
                captured = capturer.read(next(tokenized), bar.advance)
                shard = _new_shard(folder, capturer, captured, block, first + at, schema)
                made.append(first + at)
            # A resumed run keeps the budget that the run before it had come to, so that it ends in the same bytes.
            capturer.stream.budget = TokenBudget(**shard.facts["batch_tokens"])
    return made


def _where(batch: Batch, block: Sequence[LabelledPrompt]) -> Callable[[int], str]:
    """Names a row of a block in messages."""
    return lambda row: f"{batch.table.path}, id '{block[row].id}'"


def _keep_budget(folder: RunFolder, capturer: Capturer) -> None:
    """The budget of this folder's run: what is found on a card depends on the memory of the moment."""
    known = folder.facts().get("batch_tokens")
    if known is None:
        folder.write({**folder.facts(), "batch_tokens": asdict(capturer.stream.budget)})
    else:
        capturer.stream.budget = TokenBudget(**known)


def _known_shard(
    folder: RunFolder, number: int, block: Sequence[LabelledPrompt], schema: pa.Schema, deep: bool
) -> Shard | str:
    """A shard that is there, or what is wrong with it."""
    found = read_shard(shard_path(folder.shards, number), schema)
    if found is None or found[0]["content"].to_pylist() != [content_of_row(prompt) for prompt in block]:
        return "missing"
    if found[0]["id"].to_pylist() != [prompt.id for prompt in block]:
        return "missing"
    return fault(states_path(folder.shards, number), found[1]["states"], deep) or Shard(*found)


def _check_others(folder: RunFolder, batch: Batch, schema: pa.Schema, deep: bool) -> None:
    """Raise if a shard that other data were made into is gone or damaged."""
    for source in folder.facts()["data"]:
        if source["rows_sha256"] == batch.facts["rows_sha256"]:
            continue
        for number in range(source["first_shard"], source["first_shard"] + source["shards"]):
            found = read_shard(shard_path(folder.shards, number), schema)
            path = states_path(folder.shards, number)
            wrong = "missing" if found is None else fault(path, found[1]["states"], deep)
            if wrong:
                raise StoreCorrupt(
                    f"{path}: {wrong}; it was made from {source['path']}: run the command for those data with --repair"
                )


def _new_shard(
    folder: RunFolder,
    capturer: Capturer,
    captured: CapturedBlock,
    block: Sequence[LabelledPrompt],
    number: int,
    schema: pa.Schema,
) -> Shard:
    names = list(map(str, capturer.places))
    states = write_states(states_path(folder.shards, number), dict(zip(names, captured.values, strict=True)))
    ok = [row.id for row in captured.tokenized if row.id not in captured.problems]
    counted = dict(zip(ok, captured.counts.tolist(), strict=True))
    rows = pa.Table.from_pylist(
        [
            {
                "id": row.id,
                "status": captured.problems[row.id].status if row.id in captured.problems else "ok",
                "tokens": len(row.ids),
                "counted": counted.get(row.id, 0),
                "label": _label(schema, prompt),
                "category": prompt.category,
                "shard": number,
                "content": content_of_row(prompt),
                "detail": captured.problems[row.id].detail if row.id in captured.problems else None,
            }
            for row, prompt in zip(captured.tokenized, block, strict=True)
        ],
        schema=schema,
    )
    facts = {
        "states": {**states, "rows": len(ok), "items": len(captured.values[0])},
        "tokens": captured.tokens,
        "batch_tokens": asdict(capturer.stream.budget),
        "problems": [asdict(problem) for problem in captured.problems.values()],
    }
    write_shard(shard_path(folder.shards, number), rows, facts)
    return Shard(rows, facts)


def _rows_are_whole(folder: RunFolder) -> bool:
    path = folder.path / ROWS_FILE
    return path.is_file() and file_sha256(path) == folder.facts().get("rows_sha256")


def _finish(
    folder: RunFolder, config: CaptureConfig, capturer: Capturer, batch: Batch, schema: pa.Schema, seconds: float
) -> None:
    """Join the rows of all shards and write what the whole is."""
    known = folder.facts()
    sources = known.get("data", []) + ([] if batch.finished else [batch.facts])
    total = sum(source["shards"] for source in sources)
    shards = [_whole(folder, number, schema) for number in range(total)]
    join_shards([shard.rows for shard in shards], folder.path / ROWS_FILE)
    statuses = Counter(status for shard in shards for status in shard.rows["status"].to_pylist())
    problems = [problem for shard in shards for problem in shard.facts["problems"]]
    model = capturer.language_model
    facts = {
        "source": asdict(model.source),
        "model": {"family": capturer.stream.stack.family, "device": model.placement, "dtype": str(model.dtype)},
        "request": {name: getattr(capturer.request, name) for name in ("pooling", "over", "dtype", "chat")},
        "places": list(map(str, capturer.places)),
        "layers": len(capturer.stream.stack.blocks),
        "width": capturer.stream.stack.width,
        "dtype": str(capturer.dtype).removeprefix("torch."),
        "how": capturer.stream.how,
        "rows_by_status": dict(sorted(statuses.items())),
        "problems": problems[:LISTED_PROBLEMS],
        "problems_in_all": len(problems),
        "tokens": sum(shard.facts["tokens"] for shard in shards),
        "wall_seconds": seconds,
        "shards": [shard.facts["states"] for shard in shards],
        "rows_sha256": file_sha256(folder.path / ROWS_FILE),
    }
    pending = known.get("pending") if batch.finished else None
    facts |= {"data": sources, "pending": pending, "config": plain(config)}
    folder.write({**known, "status": "done", **facts})


def _whole(folder: RunFolder, number: int, schema: pa.Schema) -> Shard:
    found = read_shard(shard_path(folder.shards, number), schema)
    if found is None:
        raise StoreCorrupt(f"{shard_path(folder.shards, number)}: missing or damaged; {REPAIR} (on its own data)")
    return Shard(*found)


def _report(folder: RunFolder) -> Report:
    facts = folder.facts()
    statuses = facts["rows_by_status"]
    refuse_if_none(facts, "no row could be read", folder.path / ROWS_FILE)
    items = sum(shard["items"] for shard in facts["shards"])
    size = items * facts["width"] * getattr(torch, facts["dtype"]).itemsize
    written = pd.DataFrame(
        {
            "place": facts["places"],
            "shape": [f"{items} x {facts['width']}"] * len(facts["places"]),
            "dtype": facts["dtype"],
            "megabytes": round(size / 1e6, 3),
        }
    )
    how = pd.DataFrame({"model": [facts["model"]["family"]], "run": [facts["how"]]})
    return Report(
        {"Rows by status": counts(statuses, "status", "rows"), "States": written, "How": how},
        {**facts, "wrote": [str(folder.path / name) for name in (MANIFEST, ROWS_FILE, SHARDS)]},
    )
