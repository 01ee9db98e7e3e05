"""``probing probe`` after its data: states, parts, results, tables, files."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from probing.data.tables import Table, canonical
from probing.models.devices import choose_device
from probing.models.load import LanguageModel
from probing.ranks import current_ranks
from probing.runs.common.groups import name_folds, values_to_split
from probing.runs.common.layers import complete_layers, read_layer_arrays
from probing.runs.common.record import begin_run, clear, content_of_states, finish, hash_files, read_finished_report
from probing.runs.common.results import SURFACE
from probing.runs.common.states import (
    open_source,
)
from probing.runs.probe.config import SUMMARY_FILE, ProbeConfig
from probing.runs.probe.data import positive_label
from probing.runs.probe.files import gather_facts, write_files
from probing.runs.probe.parts import fit_place
from probing.runs.probe.results import judge
from probing.runs.probe.rows import Labelled, gather_material
from probing.runs.probe.tables import make_tables
from probing.store.activations import ActivationStore
from probing.store.manifest import RunFolder
from probing.types import LabelledPrompt, Report


def probe_into(
    folder: RunFolder,
    config: ProbeConfig,
    table: Table,
    prompts: list[LabelledPrompt],
    fresh: Labelled | None,
) -> Report:
    """Fit and judge the probes of every place into the folder, unless an earlier run has; answer with its tables.

    Raises:
        SourceMismatch: the folder's run was made from something else, or a store is of other texts.
        DataInvalid: too few rows or groups, one class only, or no place that can be probed.
        OutOfMemory: a layer does not fit.
    """
    began = time.monotonic()
    device = choose_device(config.device)
    source = open_source(config)
    positive = positive_label(config, table.path, prompts)
    values = values_to_split(config, table, prompts)
    made_of = {**_identify_content(prompts, values, fresh, source), "folds": name_folds(folder.facts())}
    begin_run(folder, config, made_of, [device])
    if not folder.finished:
        data = (table, prompts)
        material = gather_material(folder, config, data, fresh, positive=positive, values=values, source=source)
        current_ranks().leave()
        complete_layers(
            folder.shards,
            [*material.places, SURFACE],
            lambda place, report: fit_place(material, place, device, report),
            "fitting",
        )
        others = material.fresh
        judged = judge(
            config,
            material.rows,
            None if others is None else (others.labels, np.array(others.units)),
            material.places,
            lambda number: read_layer_arrays(folder.shards, number),
        )
        facts = gather_facts(material, table, judged)
        tables = make_tables(config, judged, facts)
        written = write_files(folder, material, judged, tables, facts)
        finish(folder, config, facts, hash_files(folder, written), began)
    clear(folder.shards)
    return read_finished_report(folder, SUMMARY_FILE)


def _identify_content(
    prompts: Sequence[LabelledPrompt],
    values: Sequence[str] | None,
    fresh: Labelled | None,
    source: LanguageModel | ActivationStore,
) -> dict[str, Any]:
    """Hashes that identify the texts and the states."""
    others = None if fresh is None else [asdict(prompt) for prompt in fresh[1]]
    hashed = hashlib.sha256(canonical([[asdict(prompt) for prompt in prompts], values, others])).hexdigest()
    return {"prompts": hashed, **content_of_states(source)}
