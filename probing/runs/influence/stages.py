"""``probing influence`` after its data: directions, passes over the pairs, and what is answered."""

import contextlib
import io
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from probing.errors import NotFinite, OutOfMemory
from probing.instruments.problems import refuse_if_none
from probing.kernels.output_head import is_out_of_memory
from probing.models.devices import devices_of
from probing.models.load import LanguageModel
from probing.ranks import current_ranks
from probing.runs.common.budget import KeptBudget
from probing.runs.common.held import NOT_FILES
from probing.runs.common.parts import Dataset, pair_facts
from probing.runs.common.record import (
    begin_run,
    check_files,
    check_ids,
    check_rendered,
    clear,
    content_of,
    finish,
    hash_files,
    model_facts,
    note_rendered,
    rendered_pairs,
    rendered_prompts,
    report_of,
)
from probing.runs.influence.config import INFLUENCE_FILE, NULL_FILE, SUGGESTED_DROP, InfluenceConfig
from probing.runs.influence.data import Inputs
from probing.runs.influence.files import write_pages
from probing.runs.influence.models import MovedModel, find_moved, load_float32
from probing.runs.influence.parts.directions import complete_direction, complete_training
from probing.runs.influence.parts.null import complete_null
from probing.runs.influence.parts.passes import complete_slopes
from probing.runs.influence.parts.pilot import complete_pilot, complete_points
from probing.runs.influence.parts.work import JOINT, POINT, TARGET, Work, describe_direction
from probing.runs.influence.results import ALONG_COLUMN, Passes, join_null, join_passes
from probing.runs.influence.rows import tokenize_target
from probing.runs.influence.tables import make_tables
from probing.store.manifest import RUN_FILE, RunFolder
from probing.store.shards import join_shards, write_frame
from probing.types import Report


# A caller in Python may be in inference mode, whose tensors take no gradients.
@torch.inference_mode(False)
def measure_into(folder: RunFolder, config: InfluenceConfig, inputs: Inputs) -> Report:
    """Measure the influences into the folder, unless an earlier run has; answer with their tables.

    Raises:
        SourceMismatch: the folder's run was made from something else.
        StoreCorrupt: the folder's finished tables are missing or changed.
        DataInvalid, NotFinite: not one pair could be measured, or a direction is of no use.
    """
    began = time.monotonic()
    model = load_float32(config)
    rendered = _render(config, inputs, model)
    begin_run(folder, config, _identify(inputs, model), devices_of(model), model.dtype, rendered)
    if not folder.finished:
        check_rendered(folder, rendered)
        moved = find_moved(config, model)
        data = Dataset(inputs.table, inputs.pairs, config.shard_pairs)
        target = None if inputs.target is None else tokenize_target(config, inputs.target, moved)
        work = Work(folder, config, data, moved, target, KeptBudget(folder, [moved.scorer.stream]))
        with explain_memory(work):
            passes, directions = measure_passes(work)
        current_ranks().leave()
        note_rendered(folder, _render(config, inputs, model))
        shards = join_passes(passes, work.loss)
        join_shards(data.with_places(shards), folder.path / INFLUENCE_FILE)
        frame = pd.read_parquet(folder.path / INFLUENCE_FILE)
        wrote = [INFLUENCE_FILE]
        if passes.null:
            write_frame(join_null(passes, frame, work.loss), folder.path / NULL_FILE)
            wrote.append(NULL_FILE)
        facts = _gather_facts(work, inputs, directions)
        facts |= {"data": data.facts(), **pair_facts(shards, data)}
        wrote += write_pages(folder, config, frame, inputs)
        finish(folder, config, facts, hash_files(folder, wrote), began)
    clear(folder.shards)
    return read_report(folder, config, inputs)


def _identify(inputs: Inputs, model: LanguageModel) -> dict[str, Any]:
    """Hashes that identify the model, the data and the target."""
    target = {} if inputs.target is None else {"target": {"sha256": inputs.target.table.sha256}}
    return {"model": content_of(model.source), "data": {"sha256": inputs.table.sha256}, **target}


def _render(config: InfluenceConfig, inputs: Inputs, model: LanguageModel) -> dict[str, dict[str, str]]:
    """Hashes of what the chat template writes around pairs and around the rows of the target."""
    rendered = rendered_pairs(inputs.pairs, model=model)
    if inputs.target is not None:
        of_target = rendered_prompts(inputs.target.prompts, config.quantity == "refusal", model=model)
        rendered |= {"target": {**rendered_pairs(inputs.target.pairs, model=model), **of_target}.get("model", {})}
    return {name: hashes for name, hashes in rendered.items() if hashes}


def measure_passes(work: Work) -> tuple[Passes, dict[str, list[dict[str, Any] | None]]]:
    """All passes over the pairs, and facts of the directions, part after part of the parameters.

    Raises:
        NotFinite: a direction is not finite, or zero in every part.
    """
    passes = Passes()
    names = [name for name, wanted in ((TARGET, work.target is not None), (JOINT, work.config.joint)) if wanted]
    directions: dict[str, list[dict[str, Any] | None]] = {name: [] for name in names}
    for part in range(len(work.moved.parts)):
        trained = complete_training(work, part)
        for name in names:
            along = complete_direction(work, name, part, trained)
            directions[name].append(None if along is None else along.facts)
            if along is None:
                continue
            passes.slopes.setdefault(name, []).append(complete_slopes(work, name, part, along))
            if name == TARGET and work.config.null_draws:
                passes.null.append(complete_null(work, part, along, trained))
        if work.config.pilot_influence:
            for done, found in enumerate(complete_points(work, part, trained), 1):
                name = f"{POINT}{done}"
                directions.setdefault(name, []).append(None if found is None else found.facts)
                if found is not None:
                    passes.slopes.setdefault(name, []).append(found.shards)
    flat = [name for name in directions if name not in passes.slopes]
    if flat:
        raise NotFinite(
            f"the {describe_direction(flat[0])} has a gradient of zero over the chosen parameters, so nothing can be "
            f"said of it"
        )
    if work.config.pilot_steps:
        passes.pilot = complete_pilot(work)
    return passes, directions


@contextlib.contextmanager
def explain_memory(work: Work) -> Iterator[None]:
    """Say what can be done where memory does not hold the copies of the parameters.

    Raises:
        OutOfMemory: memory ran out, other than in a batch of sequences, which gets smaller by itself.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        largest = max(sum(parameter.numel() for parameter in part) for part in work.moved.parts)
        raise OutOfMemory(
            f"the memory does not hold the directions over {largest:,} parameters beside the model; measure fewer at a "
            f"time with --parameter-parts (now {work.config.parameter_parts}), or fewer with --parameters"
        ) from error


def _gather_facts(work: Work, inputs: Inputs, directions: Mapping[str, list[dict[str, Any] | None]]) -> dict[str, Any]:
    moved: MovedModel = work.moved
    known = [entry for entries in directions.values() for entry in entries if entry is not None]
    ways = dict.fromkeys([moved.scorer.stream.how, *(way for entry in known for way in entry["how"])])
    facts: dict[str, Any] = {
        "model": model_facts(moved.language_model),
        "how": "; ".join(ways),
        "parameters": moved.which,
        "moved_parameters": sum(parameter.numel() for parameter in moved.parameters),
        "directions": directions,
    }
    if work.target is not None and inputs.target is not None:
        mean = next(entry["mean"] for entry in directions[TARGET] if entry is not None)
        facts["target"] = {
            **inputs.target.table.facts(),
            "of": len(inputs.target.texts),
            "rows": len(work.target.groups),
            "mean": mean,
        }
    return facts


def read_report(folder: RunFolder, config: InfluenceConfig, inputs: Inputs) -> Report:
    """The tables of a finished run.

    Raises:
        StoreCorrupt: a file of the run is missing or changed.
        SourceMismatch: the run is of rows with other ids.
    """
    facts, path = folder.facts(), folder.path / INFLUENCE_FILE
    check_files(folder, facts["sha256"])
    frame = pd.read_parquet(io.BytesIO(path.read_bytes()))
    check_ids(path, frame["id"].tolist(), inputs.pairs)
    refuse_if_none(facts, "no pair could be measured", path)
    null = pd.read_parquet(folder.path / NULL_FILE) if NULL_FILE in facts["sha256"] else None
    tables = make_tables(frame, null, config, inputs, facts)
    shown = {**facts, "next": suggest_next(folder.path, facts, frame)}
    return report_of(folder, tables, shown, [*facts["sha256"], RUN_FILE])


def suggest_next(out: Path, facts: Mapping[str, Any], frame: pd.DataFrame) -> list[str]:
    """Commands that come after: look at the pairs that hurt most, and leave some out."""
    by = next(name for name in (ALONG_COLUMN, "influence", "joint_rate") if name in frame)
    # Options in a record are not believed: they are shown, and run by nobody but a reader.
    data = facts.get("config", {}).get("data")
    sources = data if isinstance(data, list) else [data]
    if not all(isinstance(source, str) and source not in NOT_FILES for source in sources):
        return []
    given = [part for source in sources for part in ("--data", str(source))]
    drop = ["--by", by, "--drop-lowest", f"{SUGGESTED_DROP:g}", "--out", "kept.jsonl"]
    commands = [
        ["probing", "show", str(out), "--by", by, "--lowest", "20"],
        ["probing", "filter", *given, "--scores", str(out), *drop],
    ]
    return [shlex.join(command) for command in commands]
