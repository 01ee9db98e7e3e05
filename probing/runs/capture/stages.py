"""``probing capture`` after its data: shard by shard, into a claimed folder."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
import pyarrow as pa
import torch

from probing.data.contents import content_of_row
from probing.data.tables import Table
from probing.errors import StoreCorrupt
from probing.instruments.capture import CapturedBlock, Capturer
from probing.instruments.problems import refuse_if_none
from probing.instruments.reading import Advance
from probing.models.devices import devices_of
from probing.models.load import LanguageModel
from probing.ranks import current_ranks
from probing.report.progress import Progress
from probing.report.tables import counts
from probing.runs.capture.config import CaptureConfig
from probing.runs.capture.data import choose_prompts
from probing.runs.capture.rows import (
    Batch,
    choose_schema,
    cut_into_blocks,
    find_batch,
    label_of,
    read_whole_shard,
)
from probing.runs.common.budget import KeptBudget
from probing.runs.common.makers import make_with_next_prepared
from probing.runs.common.models import load_model
from probing.runs.common.parts import Shard, Spread, complete_parts, find_shard, status_facts, weigh_rows
from probing.runs.common.record import (
    begin_run,
    check_rendered,
    content_of,
    dtype_name,
    finish,
    is_unchanged,
    note_rendered,
    rendered_prompts,
    report_of,
)
from probing.store.activations import REPAIR, ROWS_FILE, find_fault, states_path, write_states
from probing.store.files import file_sha256
from probing.store.manifest import MANIFEST, SHARDS, RunFolder
from probing.store.shards import join_shards, shard_path, write_shard
from probing.tokens.prompts import TokenizedPrompt
from probing.types import Capture, LabelledPrompt, Report


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
        config: options, which say what to read.
        table: table that the rows come from.
        prompts: the rows of the whole dataset, also where a shard of it is asked for.
        model: the model that ``config.model`` names, where it is loaded already.

    Raises:
        SourceMismatch: the folder's run was made from something else.
        StoreCorrupt: a shard of a finished run is missing or damaged.
        DataInvalid, NotFinite: not one row could be read.
    """
    began = time.monotonic()
    if model is None:
        model = load_model(config.model, config, config.revision)
    request = config.request(model.layers)
    capturer = Capturer(
        model,
        request,
        eos=config.eos,
        max_length=config.max_length,
        batch_tokens=config.batch_tokens,
        compile=config.compile,
    )
    request = Capture(capturer.places, request.pooling, request.over, request.dtype, request.chat)
    made_of = {"model": content_of(model.source), "places": ", ".join(map(str, request.places))}
    rendered = rendered_prompts(prompts, config.chat, model=model)
    begin_run(folder, config, made_of, devices_of(model), model.dtype, rendered)
    # All shards of an array have the labels of one type.
    schema = choose_schema(folder, prompts)
    batch = find_batch(folder, config, table, choose_prompts(config, table, prompts), schema)
    made = capture_shards(folder, config, capturer, batch, schema)

    def finish_if_needed() -> None:
        if made or not batch.finished or not is_unchanged(folder.path / ROWS_FILE, folder.facts().get("rows_sha256")):
            _finish(folder, config, capturer, batch, schema, began)

    # All processes of a launch read the store afterwards.
    current_ranks().wait_for_leader(finish_if_needed)
    _check_others(folder, batch, schema, config.repair)
    return read_report(folder)


def capture_shards(
    folder: RunFolder, config: CaptureConfig, capturer: Capturer, batch: Batch, schema: pa.Schema
) -> int:
    """Write every missing shard of this run; returns the number of these.

    Raises:
        SourceMismatch: shards are missing, and the chat template writes other prompts than when the store was begun.
        StoreCorrupt: a shard of finished rows is missing or damaged, and ``repair`` is not set.
    """
    first, blocks = batch.facts["first_shard"], cut_into_blocks(batch, config.shard_rows)
    checked = [_find_shard(folder, first + at, block, schema, config.repair) for at, block in enumerate(blocks)]
    faults = [(at, shard) for at, shard in enumerate(checked) if isinstance(shard, str)]
    if faults and batch.finished and not config.repair:
        at, wrong = faults[0]
        path = states_path(folder.shards, first + at)
        raise StoreCorrupt(f"{path}: {wrong} ({len(faults)} of {len(checked)} shards); {REPAIR}")

    def render_fixed() -> dict[str, dict[str, str]]:
        return rendered_prompts(batch.prompts, config.chat, model=capturer.language_model) if faults else {}

    check_rendered(folder, render_fixed())
    budget = KeptBudget(folder, [capturer.stream])

    def prepare(at: int) -> list[TokenizedPrompt]:
        return capturer.tokenize(blocks[at], _where(batch, blocks[at]))

    def make(at: int, tokenized: list[TokenizedPrompt], report: Advance) -> CapturedBlock:
        return capturer.read(tokenized, report)

    def write(at: int, captured: CapturedBlock) -> Shard:
        return _new_shard(folder, capturer, captured, blocks[at], first + at, schema)

    known = [shard if isinstance(shard, Shard) else None for shard in checked]
    bar = Progress(
        len(batch.prompts), sum(len(shard.rows) for shard in known if shard is not None), "rows", "capturing"
    )

    def find(at: int) -> Shard | None:
        shard = _find_shard(folder, first + at, blocks[at], schema, deep=False)
        return shard if isinstance(shard, Shard) else None

    maker = make_with_next_prepared(prepare, make)
    spread = Spread(find, lambda: weigh_rows(blocks))
    complete_parts(known, maker, write, bar, lambda shard: budget.adopt(shard.facts), spread)
    note_rendered(folder, render_fixed())
    return len(faults)


def _where(batch: Batch, block: Sequence[LabelledPrompt]) -> Callable[[int], str]:
    """The name of a row of a block in messages."""
    return lambda row: f"{batch.table.path}, id '{block[row].id}'"


def _find_shard(
    folder: RunFolder, number: int, block: Sequence[LabelledPrompt], schema: pa.Schema, deep: bool
) -> Shard | str:
    """An existing shard, or the reason why it cannot be used."""
    rows = {"content": [content_of_row(prompt) for prompt in block], "id": [prompt.id for prompt in block]}
    shard = find_shard(shard_path(folder.shards, number), schema, rows)
    return "missing" if shard is None else _find_fault(folder, number, shard, deep) or shard


def _find_fault(folder: RunFolder, number: int, shard: Shard, deep: bool) -> str | None:
    """Reason why the states of a shard cannot be used; None where there is none."""
    return find_fault(states_path(folder.shards, number), shard.facts["states"], deep)


def _check_others(folder: RunFolder, batch: Batch, schema: pa.Schema, deep: bool) -> None:
    """Raise if a shard of other data is missing or damaged."""
    for source in folder.facts()["data"]:
        if source["rows_sha256"] == batch.facts["rows_sha256"]:
            continue
        for number in range(source["first_shard"], source["first_shard"] + source["shards"]):
            shard = find_shard(shard_path(folder.shards, number), schema, {})
            wrong = "missing" if shard is None else _find_fault(folder, number, shard, deep)
            if wrong:
                path = states_path(folder.shards, number)
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
                "label": label_of(schema, prompt),
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


def _finish(
    folder: RunFolder, config: CaptureConfig, capturer: Capturer, batch: Batch, schema: pa.Schema, began: float
) -> None:
    model, stack = capturer.language_model, capturer.stream.stack
    facts = {
        "source": asdict(model.source),
        "model": {"family": stack.family, "device": model.placement, "dtype": str(model.dtype)},
        "request": {name: getattr(capturer.request, name) for name in ("pooling", "over", "dtype", "chat")},
        "places": list(map(str, capturer.places)),
        "layers": len(stack.blocks),
        "width": stack.width,
        "dtype": dtype_name(capturer.dtype),
        "how": capturer.stream.how,
    }
    finish_store(folder, config, facts, batch, schema, began)


def finish_store(
    folder: RunFolder, config: CaptureConfig, facts: Mapping[str, Any], batch: Batch, schema: pa.Schema, began: float
) -> None:
    """Join the rows of all shards and write the manifest.

    Args:
        folder: folder of the run, which has begun.
        config: the options.
        facts: facts of the model and of its states for the manifest.
        batch: the rows that the run adds.
        schema: columns of the rows.
        began: start of the run, by ``time.monotonic``.
    """
    known = folder.facts()
    sources = known.get("data", []) + ([] if batch.finished else [batch.facts])
    shards = [read_whole_shard(folder, number, schema) for number in range(sum(source["shards"] for source in sources))]
    join_shards([schema.empty_table(), *(shard.rows for shard in shards)], folder.path / ROWS_FILE)
    counted = {**status_facts(shards), "tokens": sum(shard.facts["tokens"] for shard in shards)}
    files = {
        "shards": [shard.facts["states"] for shard in shards],
        "rows_sha256": file_sha256(folder.path / ROWS_FILE),
        "data": sources,
        "pending": known.get("pending") if batch.finished else None,
    }
    finish(folder, config, {**facts, **counted}, files, began)


def read_report(folder: RunFolder) -> Report:
    """Tables of the contents of a finished store."""
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
    family = facts.get("model", {}).get("family", "not recorded")
    how = pd.DataFrame({"model": [family], "run": [facts.get("how", "not recorded")]})
    tables = {"Rows by status": counts(statuses, "status", "rows"), "States": written, "How": how}
    return report_of(folder, tables, facts, [MANIFEST, ROWS_FILE, SHARDS])
