"""``probing refusal transfer`` after its data: states of both models, maps, judgements, files."""

import hashlib
import time
from dataclasses import asdict
from typing import Any

from probing.data.bundled import bundled_phrases
from probing.data.tables import canonical
from probing.directions.judge_text import Phrases
from probing.models.language_model import LanguageModel
from probing.models.layers import find_stack
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
from probing.runs.refusal.common.prompts import Kinds
from probing.runs.refusal.transfer.config import SUMMARY_FILE, TransferConfig
from probing.runs.refusal.transfer.files import write_files
from probing.runs.refusal.transfer.parts import judge_model
from probing.runs.refusal.transfer.results import compare_categories, write_texts
from probing.runs.refusal.transfer.rows import check_split, read_refusals_of, share_prompts
from probing.runs.refusal.transfer.states import read_kept_states
from probing.runs.refusal.transfer.tables import Found
from probing.store.directions import check_model
from probing.store.files import file_sha256
from probing.store.manifest import RunFolder
from probing.types import Direction, Report


def transfer_into(
    folder: RunFolder, config: TransferConfig, kinds: Kinds, direction: Direction, phrases: Phrases | None
) -> Report:
    """Judge the direction in every model into the folder, unless an earlier run has; answer with its tables.

    Raises:
        SourceMismatch: the direction is not of the model that it is said to be of; or the folder's run was made from
            something else.
        DataInvalid: too few prompts that both models can read, or no refusal token.
    """
    began = time.monotonic()
    check_split(config, kinds)
    source = _load(config, config.from_model or direction.source.model)
    check_model(direction, source.source, find_stack(source).width, source.layers)
    layers = source.layers
    models = [_load(config, name) for name in config.models]
    hashed = hashlib.sha256(canonical([[asdict(prompt) for prompt in kinds.prompts], kinds.harmful])).hexdigest()
    vector = hashlib.sha256(direction.vector.double().numpy().tobytes()).hexdigest()
    made_of: dict[str, Any] = {
        "prompts": hashed,
        "direction": vector,
        "from": content_of(source.source),
        "models": [content_of(each.source) for each in models],
        "states": {"dtype": dtype_name(source.dtype)},
    }
    if phrases is not None:
        made_of["phrases_sha256"] = file_sha256(config.phrases.expanduser() if config.phrases else bundled_phrases())
    begin_run(folder, config, made_of, [source.device])
    if not folder.finished:
        for number, model in enumerate(models):
            # Where no refusal token is found other options are needed, so that is told before states are kept.
            read_refusals_of(config, kinds, direction, model, folder.shards / f"model-{number + 1}")
        kept = folder.shards / "from"
        before = read_kept_states(kept, "before", source, kinds, direction.place, direction.position)
        found = []
        for number, model in enumerate(models):
            kept = folder.shards / f"model-{number + 1}"
            shared = share_prompts(config, kinds, direction, layers, before, model=model, folder=kept)
            judged = judge_model(config, shared, direction, model, kept)
            matrix = compare_categories(config, shared, judged.best)
            texts = None if phrases is None else write_texts(config, shared, judged, model, phrases, kept)
            found.append(Found(config.models[number], shared, judged, matrix, texts))
        written, facts = write_files(folder.path, config, kinds, found)
        finish(folder, config, facts, hash_files(folder, written), began)
    clear(folder.shards)
    return read_finished_report(folder, SUMMARY_FILE)


def _load(config: TransferConfig, name: str) -> LanguageModel:
    return load_model(name, config, config.revision)
