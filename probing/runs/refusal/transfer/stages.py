"""``probing refusal transfer`` after its data: states of both models, maps, judgements, files."""

import hashlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from probing.data.tables import canonical
from probing.instruments.direction_transfer import read_states
from probing.models.language_model import LanguageModel
from probing.models.layers import find_stack
from probing.runs.common.models import load_model
from probing.runs.common.record import (
    begin_run,
    content_of,
    dtype_name,
    finish,
    hash_files,
    read_finished_report,
    write_summary,
)
from probing.runs.refusal.common.prompts import Kinds
from probing.runs.refusal.transfer.config import RESULTS_FILE, SUMMARY_FILE, TransferConfig
from probing.runs.refusal.transfer.parts import Judged, judge_model
from probing.runs.refusal.transfer.rows import Shared, share_prompts
from probing.runs.refusal.transfer.tables import make_tables
from probing.store.directions import DIRECTION_FILE, check_model, save_direction
from probing.store.manifest import RunFolder
from probing.store.shards import write_frame
from probing.types import Direction, Report


def transfer_into(folder: RunFolder, config: TransferConfig, kinds: Kinds, direction: Direction) -> Report:
    """Judge the direction in every model into the folder, unless an earlier run has; answer with its tables.

    Raises:
        SourceMismatch: the direction is not of the model that it is said to be of; or the folder's run was made from
            something else.
        DataInvalid: too few prompts that both models can read, or no refusal token.
    """
    began = time.monotonic()
    source = _load(config, config.from_model or direction.source.model)
    check_model(direction, source.source, find_stack(source).width, source.layers)
    layers = source.layers
    models = [_load(config, name) for name in config.models]
    hashed = hashlib.sha256(canonical([[asdict(prompt) for prompt in kinds.prompts], kinds.harmful])).hexdigest()
    vector = hashlib.sha256(direction.vector.double().numpy().tobytes()).hexdigest()
    made_of = {
        "prompts": hashed,
        "direction": vector,
        "from": content_of(source.source),
        "models": [content_of(each.source) for each in models],
        "states": {"dtype": dtype_name(source.dtype)},
    }
    begin_run(folder, config, made_of, [source.device])
    if not folder.finished:
        before = read_states(source, kinds.prompts, direction.place, direction.position)
        found = []
        for name, model in zip(config.models, models, strict=True):
            shared = share_prompts(config, kinds, direction, layers, before, model)
            found.append((name, shared, judge_model(config, shared, direction, model)))
        written, facts = _write(folder.path, config, kinds, found)
        finish(folder, config, facts, hash_files(folder, written), began)
    return read_finished_report(folder, SUMMARY_FILE)


def _load(config: TransferConfig, name: str) -> LanguageModel:
    return load_model(name, config, config.revision)


def _write(
    path: Path, config: TransferConfig, kinds: Kinds, found: list[tuple[str, Shared, Judged]]
) -> tuple[list[str], dict[str, Any]]:
    """Write every file but the record; returns their names and the facts of the run."""
    results = pd.DataFrame([{"model": name, **row} for name, _, judged in found for row in judged.rows])
    read = len(found[0][1].prompts)
    facts = {
        "data": kinds.table.facts(),
        "rows_by_status": {"ok": read},
        "problems": [],
        "rows_that_not_both_read": len(kinds.prompts) - read,
        "directions": [judged.direction.facts for _, _, judged in found],
    }
    write_frame(results, path / RESULTS_FILE)
    write_summary(path / SUMMARY_FILE, facts, make_tables(config, results, found))
    names = [RESULTS_FILE, SUMMARY_FILE]
    for number, (_, _, judged) in enumerate(found, start=1):
        name = DIRECTION_FILE if len(found) == 1 else f"direction-{number}.safetensors"
        save_direction(path / name, judged.direction)
        names.append(name)
    return names, facts
