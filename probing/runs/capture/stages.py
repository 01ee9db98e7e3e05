"""``probing capture`` after its data: shard by shard, into a claimed folder."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from typing import Any

import pandas as pd
import pyarrow as pa
import torch

from probing.data.contents import content_of_row
from probing.data.tables import Table
from probing.engine.stream import Stream
from probing.errors import StoreCorrupt
from probing.instruments.capture import CapturedBlock, Capturer
from probing.instruments.problems import refuse_if_none
from probing.instruments.reading import Advance
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
from probing.runs.common.budget import budget_facts
from probing.runs.common.engines import open_workers
from probing.runs.common.makers import Block, Where
from probing.runs.common.model_facts import ModelFacts, find_model_facts
from probing.runs.common.models import load_model
from probing.runs.common.parts import (
    Shard,
    Spread,
    StoredShard,
    complete_parts,
    find_shard,
    status_facts,
    weigh_rows,
)
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
from probing.runs.common.workers import Workers
from probing.store.activations import REPAIR, ROWS_FILE, find_fault, states_path, write_states
from probing.store.files import file_sha256
from probing.store.manifest import MANIFEST, SHARDS, RunFolder, Unwritten
from probing.store.shards import join_shards, shard_path, write_shard
from probing.tokens.prompts import TokenizedPrompt
from probing.types import LabelledPrompt, Place, Report


@dataclass(frozen=True)
class MadeStates:
    """States of the rows of one shard.

    Attributes:
        places: where they were read.
        captured: the states.
        batch_tokens: facts of the token budget afterwards.
    """

    places: tuple[Place, ...]
    captured: CapturedBlock
    batch_tokens: dict[str, Any]


def capture_into(
    folder: RunFolder,
    config: CaptureConfig,
    table: Table,
    prompts: Sequence[LabelledPrompt],
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

    def plan_batch(target: RunFolder) -> tuple[Batch, pa.Schema]:
        # All shards of an array have the labels of one type.
        schema = choose_schema(target, prompts)
        return find_batch(target, config, table, choose_prompts(config, table, prompts), schema), schema

    def missing() -> Iterator[Block]:
        # Nothing is written, since the run has not begun.
        batch, schema = plan_batch(Unwritten(folder.path, folder.command, folder.record))
        if batch.finished and not config.repair:
            return iter(())
        blocks, found = cut_into_blocks(batch, config.shard_rows), _find_shards(folder, config, batch, schema)
        return (_block(batch, blocks, at) for at, shard in enumerate(found) if isinstance(shard, str))

    with open_workers(config, partial(CaptureWorker, model=model), folder, missing) as workers:
        facts: ModelFacts = workers.facts["model"]
        made_of = {"model": content_of(facts.source), "places": ", ".join(map(str, workers.facts["places"]))}
        rendered = rendered_prompts(prompts, config.chat, model=facts)
        begin_run(folder, config, made_of, facts.device_kinds, facts.dtype, rendered)
        batch, schema = plan_batch(folder)
        made = capture_shards(folder, config, workers, batch, schema)

        def finish_if_needed() -> None:
            whole = is_unchanged(folder.path / ROWS_FILE, folder.facts().get("rows_sha256"))
            if made or not batch.finished or not whole:
                _finish(folder, config, workers, batch, schema, began)

        # All processes of a launch read the store afterwards.
        current_ranks().wait_for_leader(finish_if_needed)
        _check_others(folder, batch, schema, config.repair)
    return read_report(folder)


class CaptureWorker:
    """Captures the states of blocks of rows.

    Args:
        config: the options.
        model: the model that they name, where it is loaded already.
    """

    def __init__(self, config: CaptureConfig, model: LanguageModel | None = None) -> None:
        self._model = load_model(config.model, config, config.revision) if model is None else model
        self.capturer = Capturer(
            self._model,
            config.request(self._model.layers),
            eos=config.eos,
            max_length=config.max_length,
            batch_tokens=config.batch_tokens,
            compile=config.compile,
        )

    @property
    def streams(self) -> list[Stream]:
        """The stream that runs the model."""
        return [self.capturer.stream]

    def describe(self) -> dict[str, Any]:
        """Facts of the model and of its states."""
        stack, dtype = self.capturer.stream.stack, dtype_name(self.capturer.dtype)
        facts = {"family": stack.family, "layers": len(stack.blocks), "width": stack.width, "dtype": dtype}
        return {"model": find_model_facts(self._model), "places": self.capturer.places, **facts}

    def how(self) -> str:
        """How the model is run."""
        return self.capturer.stream.how

    def prepare(self, prompts: Sequence[LabelledPrompt], where: Where) -> list[TokenizedPrompt]:
        """Tokens of some rows."""
        return self.capturer.tokenize(prompts, where)

    def make(self, tokenized: list[TokenizedPrompt], report: Advance) -> MadeStates:
        """States of some rows."""
        captured = self.capturer.read(tokenized, report)
        return MadeStates(self.capturer.places, captured, budget_facts(self.streams))


def capture_shards(
    folder: RunFolder, config: CaptureConfig, workers: Workers[MadeStates], batch: Batch, schema: pa.Schema
) -> int:
    """Write every missing shard of this run; returns the number of these.

    Raises:
        SourceMismatch: shards are missing, and the chat template writes other prompts than when the store was begun.
        StoreCorrupt: a shard of finished rows is missing or damaged, and ``repair`` is not set.
    """
    first, blocks = batch.facts["first_shard"], cut_into_blocks(batch, config.shard_rows)
    checked = _find_shards(folder, config, batch, schema)
    faults = [(at, shard) for at, shard in enumerate(checked) if isinstance(shard, str)]
    if faults and batch.finished and not config.repair:
        at, wrong = faults[0]
        path = states_path(folder.shards, first + at)
        raise StoreCorrupt(f"{path}: {wrong} ({len(faults)} of {len(checked)} shards); {REPAIR}")

    def render_fixed() -> dict[str, dict[str, str]]:
        return rendered_prompts(batch.prompts, config.chat, model=workers.facts["model"]) if faults else {}

    check_rendered(folder, render_fixed())
    budget = workers.keep_budget(folder)

    def write(at: int, made: MadeStates) -> Shard:
        return _new_shard(folder, made, blocks[at], first + at, schema)

    known = [shard if isinstance(shard, Shard) else None for shard in checked]
    bar = Progress(
        len(batch.prompts), sum(len(shard.rows) for shard in known if shard is not None), "rows", "capturing"
    )

    def find(at: int) -> Shard | None:
        shard = _find_shard(folder, first + at, blocks[at], schema, deep=False)
        return shard if isinstance(shard, Shard) else None

    maker = workers.maker(lambda at: _block(batch, blocks, at))
    spread = Spread(find, lambda: weigh_rows(blocks))
    complete_parts(known, maker, write, bar, lambda shard: budget.adopt(shard.facts), spread)
    note_rendered(folder, render_fixed())
    return len(faults)


def _block(batch: Batch, blocks: Sequence[Sequence[LabelledPrompt]], at: int) -> Block:
    """The rows of one shard of a batch."""
    rows = list(blocks[at])
    return Block(at, rows, lambda row: f"{batch.table.path}, id '{rows[row].id}'")


def _find_shards(folder: RunFolder, config: CaptureConfig, batch: Batch, schema: pa.Schema) -> list[Shard | str]:
    """The shards of a batch, each as ``_find_shard`` finds it."""
    first, blocks = batch.facts["first_shard"], cut_into_blocks(batch, config.shard_rows)
    return [_find_shard(folder, first + at, block, schema, config.repair) for at, block in enumerate(blocks)]


def _find_shard(
    folder: RunFolder, number: int, block: Sequence[LabelledPrompt], schema: pa.Schema, deep: bool
) -> Shard | str:
    """An existing shard, or the reason why it cannot be used."""
    path = shard_path(folder.shards, number)
    if not path.is_file():
        return "missing"
    prompts = list(block)
    rows = {"content": [content_of_row(prompt) for prompt in prompts], "id": [prompt.id for prompt in prompts]}
    shard = find_shard(path, schema, rows)
    return "missing" if shard is None else _find_fault(folder, number, shard, deep) or StoredShard.of(shard, path)


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
    folder: RunFolder, made: MadeStates, block: Sequence[LabelledPrompt], number: int, schema: pa.Schema
) -> Shard:
    names, captured = list(map(str, made.places)), made.captured
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
        "batch_tokens": made.batch_tokens,
        "problems": [asdict(problem) for problem in captured.problems.values()],
    }
    path = shard_path(folder.shards, number)
    write_shard(path, rows, facts)
    return StoredShard.of(Shard(rows, facts), path)


def _finish(
    folder: RunFolder,
    config: CaptureConfig,
    workers: Workers[MadeStates],
    batch: Batch,
    schema: pa.Schema,
    began: float,
) -> None:
    told, model = workers.facts, workers.facts["model"]
    request = config.request(model.layers)
    facts = {
        "source": asdict(model.source),
        "model": {"family": told["family"], "device": model.placement, "dtype": str(model.dtype)},
        "request": {name: getattr(request, name) for name in ("pooling", "over", "dtype", "chat")},
        "places": list(map(str, told["places"])),
        **{name: told[name] for name in ("layers", "width", "dtype")},
        "how": workers.how(),
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
    join_shards(chain([schema.empty_table()], (shard.rows for shard in shards)), folder.path / ROWS_FILE)
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
