"""``probing refusal trace`` after its data: states, parts, results, tables, files."""

import hashlib
import time
from dataclasses import asdict
from typing import Any

from probing.data.tables import canonical
from probing.engine.guard import LeaveAsFound
from probing.engine.stream import ONE_AT_A_TIME
from probing.runs.common.groups import name_folds
from probing.runs.common.record import (
    begin_run,
    clear,
    content_of,
    dtype_name,
    finish,
    hash_files,
    read_finished_report,
    rendered_prompts,
)
from probing.runs.refusal.common.directions import identify_direction
from probing.runs.refusal.trace.config import SUMMARY_FILE, TraceConfig
from probing.runs.refusal.trace.data import TraceData
from probing.runs.refusal.trace.files import gather_facts, write_files
from probing.runs.refusal.trace.models import TracedModel, open_model
from probing.runs.refusal.trace.parts import read_curves, read_places
from probing.runs.refusal.trace.results import gather_results
from probing.runs.refusal.trace.rows import gather_material, list_texts
from probing.runs.refusal.trace.tables import make_tables
from probing.shown import to_message
from probing.store.manifest import RunFolder
from probing.types import Report


def trace_into(folder: RunFolder, config: TraceConfig, data: TraceData) -> Report:
    """Trace the refusal into the folder, unless an earlier run has; answer with its tables.

    Raises:
        SourceMismatch: the folder's run was made from something else; direction or answers are of another model.
        DataInvalid: too few prompts can be read, no refusal token, or too few decisions of one kind.
        LayerNotFound: a place that the model does not have, or no output head. NotFinite: states that are NaN.
    """
    began = time.monotonic()
    traced = open_model(config, data.answers)
    model = traced.model
    made_of = {**_identify(data, traced), "folds": name_folds(folder.facts())}
    rendered = rendered_prompts(data.kinds.prompts, True, model=model)
    begin_run(folder, config, made_of, [model.device], rendered=rendered)
    if not folder.finished:
        with ONE_AT_A_TIME, LeaveAsFound(model.model), LeaveAsFound(model.model):
            material = gather_material(folder, config, data, traced)
            arrays = read_places(folder.shards, material)
            texts = list_texts(config, material, traced)
            curves = read_curves(folder.shards, texts, traced.reader)
        found = gather_results(
            config, material, layers=model.layers, arrays=arrays, texts=texts, curves=curves, tokenizer=model.tokenizer
        )
        names = {token.id: to_message(model.tokenizer.decode([token.id])) for token in material.tokens}
        facts = gather_facts(material, data, found, model, direction=traced.direction, names=names)
        tables = make_tables(config, material, found, facts, names)
        written = write_files(folder, config, found, tables, facts)
        finish(folder, config, facts, hash_files(folder, written), began)
    clear(folder.shards)
    return read_finished_report(folder, SUMMARY_FILE)


def _identify(data: TraceData, traced: TracedModel) -> dict[str, Any]:
    """What tells the run from others, besides its options."""
    kinds = data.kinds
    content = [[asdict(prompt) for prompt in kinds.prompts], kinds.harmful, data.sources, data.groups]
    return {
        "prompts": hashlib.sha256(canonical(content)).hexdigest(),
        "model": content_of(traced.model.source),
        "dtype": dtype_name(traced.model.dtype),
        "answers": None if data.answers is None else data.answers.sha256,
        **identify_direction(traced.direction),
    }
