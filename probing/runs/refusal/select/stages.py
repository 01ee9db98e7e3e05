"""``probing refusal select`` after its data: measurements, the choice, tables, files."""

import hashlib
import time
from dataclasses import asdict
from pathlib import Path

from probing.data.tables import canonical
from probing.engine.guard import LeaveAsFound
from probing.engine.stream import ONE_AT_A_TIME
from probing.errors import SourceMismatch
from probing.instruments.select_direction import Selection, prepare_measurements, select_among
from probing.models.language_model import LanguageModel
from probing.runs.common.models import load_model
from probing.runs.common.record import (
    begin_run,
    clear,
    content_of,
    dtype_name,
    finish,
    hash_files,
    read_finished_report,
)
from probing.runs.refusal.select.config import SUMMARY_FILE, SelectConfig
from probing.runs.refusal.select.data import HeldOut
from probing.runs.refusal.select.files import gather_facts, write_files
from probing.runs.refusal.select.parts import SavedMeasurements
from probing.runs.refusal.select.tables import make_tables
from probing.shown import to_message
from probing.store.directions import DIRECTIONS_FILE, open_directions
from probing.store.files import file_sha256
from probing.store.manifest import RunFolder
from probing.types import Report


def select_into(folder: RunFolder, config: SelectConfig, held_out: HeldOut) -> Report:
    """Select a direction into the folder, unless an earlier run has; answer with its tables.

    Raises:
        NonePasses: no candidate keeps to the limits.
        SourceMismatch: the folder's run was made from something else, or the directions are of another model.
        DataInvalid: too few prompts can be read or pass the filter.
        EditRefused: a direction cannot be ablated in this model.
    """
    began = time.monotonic()
    model = load_model(config.model, config, config.revision)
    prompts = [[asdict(prompt) for prompt in side] for side in (held_out.harmful, held_out.harmless)]
    directions = Path(config.directions).expanduser() / DIRECTIONS_FILE
    made_of = {
        "prompts": hashlib.sha256(canonical(prompts)).hexdigest(),
        "model": content_of(model.source),
        "states": {"dtype": dtype_name(model.dtype)},
        "directions": file_sha256(directions) if directions.is_file() else None,
    }
    begin_run(folder, config, made_of, [model.device])
    if folder.finished:
        _check_limits(folder, config)
    else:
        selection = _select(folder, config, held_out, model, directions)
        tokens = selection.direction.facts["refusal_tokens"]
        names = {id: to_message(model.tokenizer.decode([id])) for id in tokens}
        facts = gather_facts(selection, held_out, model)
        written = write_files(folder, config, selection, make_tables(config, selection, names), facts)
        finish(folder, config, facts, hash_files(folder, written), began)
    clear(folder.shards)
    return read_finished_report(folder, SUMMARY_FILE)


def _check_limits(folder: RunFolder, config: SelectConfig) -> None:
    """Raise ``SourceMismatch`` if a finished run chose by other limits."""
    known = folder.facts().get("config", {})
    for name, value in asdict(config.limits).items():
        if known.get(name) != value:
            raise SourceMismatch(
                f"{folder.path} holds a run that was made from something else: {name} was {known.get(name)}, is "
                f"{value}. Choose another --out, or delete the folder to start anew"
            )


def _select(
    folder: RunFolder, config: SelectConfig, held_out: HeldOut, model: LanguageModel, directions: Path
) -> Selection:
    """Measure the candidates, or read what an earlier run measured, and choose."""
    whole = model.model
    with ONE_AT_A_TIME, LeaveAsFound(whole), LeaveAsFound(whole):
        measured = prepare_measurements(
            model,
            open_directions(directions),
            held_out.harmful,
            held_out.harmless,
            refusal_tokens=config.tokens,
            filter_by_sign=config.filter_by_sign,
            whole_passes=config.exhaustive,
            cosmic=config.cosmic,
            batch_tokens=config.batch_tokens,
            max_length=config.max_length,
        )
        saved = SavedMeasurements(measured, folder.shards)
        return select_among(measured, saved, config.limits, exhaustive=config.exhaustive)
