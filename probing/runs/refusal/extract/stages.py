"""``probing refusal extract`` after its data: states, parts, results, tables, files."""

import hashlib
import time
from dataclasses import asdict

from probing.data.tables import canonical
from probing.instruments.directions import resolve_tokens
from probing.runs.common.layers import complete_layers, read_layer_arrays
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
from probing.runs.refusal.common.prompts import Kinds, hold_out
from probing.runs.refusal.extract.config import SUMMARY_FILE, ExtractConfig
from probing.runs.refusal.extract.files import (
    collect_directions,
    gather_facts,
    list_prompts,
    list_results,
    write_files,
)
from probing.runs.refusal.extract.parts import judge_place
from probing.runs.refusal.extract.rows import gather_material
from probing.runs.refusal.extract.tables import make_tables
from probing.shown import to_message
from probing.store.manifest import RunFolder
from probing.types import Report


def extract_into(folder: RunFolder, config: ExtractConfig, kinds: Kinds) -> Report:
    """Find and judge the directions into the folder, unless an earlier run has; answer with its tables.

    Raises:
        SourceMismatch: the folder's run was made from something else.
        DataInvalid: too few prompts can be read or pass the filter, or no refusal token.
        LayerNotFound: a place that the model does not have, or no output head.
    """
    began = time.monotonic()
    model = load_model(config.model, config, config.revision)
    if config.tokens is not None:
        # A wrong one is told before all states are read.
        resolve_tokens(model, config.tokens)
    hashed = hashlib.sha256(canonical([[asdict(prompt) for prompt in kinds.prompts], kinds.harmful])).hexdigest()
    made_of = {"prompts": hashed, "model": content_of(model.source), "states": {"dtype": dtype_name(model.dtype)}}
    begin_run(folder, config, made_of, [model.device])
    if not folder.finished:
        held_out = hold_out(kinds, config.validation_share, config.seed)
        material = gather_material(folder, config, kinds, held_out, model)
        complete_layers(
            folder.shards,
            material.places,
            lambda place, report: judge_place(material, config, place, report),
            "finding directions",
        )
        arrays = [read_layer_arrays(folder.shards, number) for number in range(len(material.places))]
        results = list_results(material.places, arrays)
        names = {token.id: to_message(model.tokenizer.decode([token.id])) for token in material.tokens}
        facts = gather_facts(material, kinds, names)
        tables = make_tables(config, material, results, facts, names)
        directions = collect_directions(config, material, arrays)
        written = write_files(folder.path, directions, results, list_prompts(material), tables, facts)
        finish(folder, config, facts, hash_files(folder, written), began)
    clear(folder.shards)
    return read_finished_report(folder, SUMMARY_FILE)
