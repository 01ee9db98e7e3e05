"""``probing clusters`` after its data: states of every model, parts, results, tables, files."""

import hashlib
import time
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.data.places import expand_places
from probing.data.prompts import label_name
from probing.data.tables import Table, canonical
from probing.errors import LayerNotFound, SourceMismatch
from probing.models.devices import choose_device
from probing.models.load import LanguageModel
from probing.ranks import current_ranks
from probing.runs.capture.within import capture_states
from probing.runs.clusters.config import SUMMARY_FILE, ClustersConfig
from probing.runs.clusters.files import write_everything
from probing.runs.clusters.parts import Material, make_part
from probing.runs.clusters.rows import choose_rows
from probing.runs.common.groups import name_folds, values_to_split
from probing.runs.common.inputs import STATES
from probing.runs.common.layers import Pieces, complete_layers, pieces_path, read_layer_arrays
from probing.runs.common.models import load_model
from probing.runs.common.record import (
    begin_run,
    clear,
    content_of_states,
    content_of_store,
    finish,
    hash_files,
    read_finished_report,
)
from probing.runs.common.states import Prompts, check_same_request, join_states, open_states
from probing.store.activations import ActivationStore
from probing.store.manifest import RunFolder
from probing.types import LabelledPrompt, Report

CONTROL_STATES = "control-states"


def clusters_into(
    folder: RunFolder,
    config: ClustersConfig,
    table: Table,
    prompts: list[LabelledPrompt],
    control: tuple[Table, list[LabelledPrompt]] | None,
) -> Report:
    """Compute every part into the folder, unless an earlier run has; answer with its tables.

    Raises:
        SourceMismatch: the folder's run was made from something else, or a store is of other texts.
        DataInvalid: too few rows of a label.
        OutOfMemory: a layer does not fit.
    """
    began = time.monotonic()
    device = choose_device(config.device)
    made_of, kept = _identify_content(config, (table, prompts), control)
    begin_run(folder, config, made_of | {"folds": name_folds(folder.facts())}, [device])
    if not folder.finished:
        seen, controls = _states(folder, config, (table, prompts), control, kept)
        rows = choose_rows(config, (table, prompts), control, seen, controls)
        material = Material(config, rows, seen, controls, model_names(config))
        parts = material.parts
        numbers = {part: number for number, part in enumerate(parts)}

        def arrays_of(part: tuple[int, str, str]) -> dict[str, NDArray[np.float64]]:
            return read_layer_arrays(folder.shards, numbers[part])

        def pieces_of(part: tuple[int, str, str]) -> Pieces:
            return Pieces(pieces_path(folder.shards, numbers[part]))

        keys = {" ".join(map(str, part)): part for part in parts}
        current_ranks().leave()
        complete_layers(
            folder.shards,
            list(keys),
            lambda key, report: make_part(material, keys[key], arrays_of, report, pieces_of(keys[key])),
            "reading",
        )
        facts, written = write_everything(folder, material, table, control, arrays_of)
        finish(folder, config, facts, hash_files(folder, written), began)
    clear(folder.shards)
    return read_finished_report(folder, SUMMARY_FILE)


def model_names(config: ClustersConfig) -> list[str]:
    """Short and distinct names: as many of the last parts of the paths as needed."""
    given = [name.rstrip("/") for name in config.models or config.stores]
    for parts in range(1, max(name.count("/") for name in given) + 2):
        names = ["/".join(name.split("/")[-parts:]) for name in given]
        if len(set(names)) == len(names):
            return names
    return given


def _identify_content(
    config: ClustersConfig,
    data: tuple[Table, list[LabelledPrompt]],
    control: tuple[Table, list[LabelledPrompt]] | None,
) -> tuple[dict[str, Any], LanguageModel | None]:
    """Hashes that identify the texts and the models; and the model, if there is only one.

    Of several models only one is in memory at a time.
    """
    read = [data] if control is None else [data, control]
    rows = [[[asdict(prompt) for prompt in each[1]], values_to_split(config, *each)] for each in read]
    made_of: dict[str, Any] = {"prompts": hashlib.sha256(canonical(rows)).hexdigest()}
    source: LanguageModel | ActivationStore | None = None
    for number in range(len(config.models or config.stores)):
        # The last model is freed before the next one is loaded.
        source = None
        source = _source(config, number)
        if isinstance(source, LanguageModel):
            _check_places(config, config.models[number], source)
        contents = content_of_states(source)
        if config.control_stores:
            contents["control"] = content_of_store(open_states(config.control_stores[number]))
        made_of[f"model {number + 1}"] = contents
    return made_of, source if isinstance(source, LanguageModel) and len(config.models) == 1 else None


def _check_places(config: ClustersConfig, name: str, model: LanguageModel) -> None:
    """Raise, before any model is captured, unless this model has the requested layers."""
    for place in expand_places(config.places, model.layers):
        if place.layer is not None and not 0 <= place.layer < model.layers:
            raise LayerNotFound(
                f"{name} has {model.layers} layers, 0 to {model.layers - 1} (or -{model.layers} to -1 from the end), "
                f"and no {place}"
            )


def _source(config: ClustersConfig, number: int) -> LanguageModel | ActivationStore:
    if config.stores:
        return open_states(config.stores[number])
    return load_model(config.models[number], config, config.revision)


def _states(
    folder: RunFolder,
    config: ClustersConfig,
    data: tuple[Table, list[LabelledPrompt]],
    control: tuple[Table, list[LabelledPrompt]] | None,
    model: LanguageModel | None,
) -> tuple[list[Prompts], list[Prompts]]:
    """States of the data and of the control, of every model."""
    seen: list[Prompts] = []
    controls: list[Prompts] = []
    request: dict[str, Any] = {"pooling": config.pooling, "over": config.over, "chat": config.chat}
    for number, given in enumerate(config.models or config.stores):
        source = None
        source = model or _source(config, number)
        last = f"-{number + 1}" if number else ""
        own = capture_states(folder.path / f"{STATES}{last}", config, given, *data, source, **request)
        seen.append(join_states(own, data[0].path, data[1], label_name))
        if own.facts["request"] != seen[0].store.facts["request"]:
            raise SourceMismatch(
                f"{own.path}: request {own.facts['request']}, of {seen[0].store.path}: {seen[0].store.facts['request']}"
            )
        if control is not None:
            if config.control_stores:
                source = open_states(config.control_stores[number])
            others = capture_states(folder.path / f"{CONTROL_STATES}{last}", config, given, *control, source, **request)
            check_same_request(own, others)
            controls.append(join_states(others, control[0].path, control[1], label_name))
    return seen, controls
