"""``probing ccs`` after its data: states, parts, results, tables, files."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from probing.data.statements import text_groups
from probing.data.tables import Table, canonical
from probing.models.devices import choose_device
from probing.models.load import LanguageModel
from probing.ranks import current_ranks
from probing.runs.ccs.config import FORMS_FILE, SUMMARY_FILE, CCSConfig
from probing.runs.ccs.files import gather_facts, write_files
from probing.runs.ccs.parts import count_places_at_once, gather_material, train_place, training_options
from probing.runs.ccs.results import judge
from probing.runs.ccs.states import Variants, read_forms
from probing.runs.ccs.tables import make_tables
from probing.runs.common.groups import name_way
from probing.runs.common.layers import complete_layers, read_layer_arrays
from probing.runs.common.record import begin_run, clear, content_of_states, finish, hash_files, read_finished_report
from probing.runs.common.states import open_source
from probing.store.activations import ActivationStore
from probing.store.manifest import RunFolder
from probing.types import ContrastPair, Report

VINC = "among directions in which training rows differ"
"""How VINC is found, as the identity of a run says it; earlier versions looked among all directions."""


def probe_into(
    folder: RunFolder, config: CCSConfig, table: Table, pairs: list[ContrastPair], split_values: list[str] | None
) -> Report:
    """Train and judge the probes of every place into the folder, unless an earlier run has; answer with its tables.

    Raises:
        SourceMismatch: the folder's run was made from something else.
        DataInvalid: too few pairs are left, or no place can be probed.
        NotFinite: training diverged.
        OutOfMemory: a layer does not fit.
    """
    began = time.monotonic()
    device = choose_device(config.device)
    source = open_source(config)
    made_of = {**_identify_content(pairs, split_values, source), "vinc": name_way(folder.facts(), "vinc", VINC)}
    begin_run(folder, config, made_of, [device])
    if not folder.finished:
        groups = text_groups(pairs)
        variants = Variants.of(config, pairs, groups)
        forms = read_forms(folder.path, config, table, pairs, variants, source)
        material, problems = gather_material(config, pairs, groups, split_values, forms, variants)
        options = training_options(config)
        at_once = count_places_at_once(material, options, device)
        threads = torch.get_num_threads() // (at_once or 1)
        current_ranks().leave()
        complete_layers(
            folder.shards,
            material.places,
            lambda place, report: train_place(material, place, options, device, report, threads),
            "probing",
            at_once,
        )
        judged = judge(
            config,
            material.pairs,
            material.rows,
            material.places,
            lambda number: read_layer_arrays(folder.shards, number),
        )
        facts = gather_facts(table, pairs, material, problems, judged)
        tables = make_tables(config, judged, facts)
        written = write_files(
            folder, config, material, judged, pairs=pairs, problems=problems, tables=tables, facts=facts
        )
        # The forms are not there where the states came from a store.
        written += [FORMS_FILE] if (folder.path / FORMS_FILE).is_file() else []
        finish(folder, config, facts, hash_files(folder, written), began)
    clear(folder.shards)
    return read_finished_report(folder, SUMMARY_FILE)


def _identify_content(
    pairs: Sequence[ContrastPair],
    split_values: Sequence[str] | None,
    source: LanguageModel | ActivationStore,
) -> dict[str, Any]:
    """Hashes that identify the statements and the states."""
    statements = [[asdict(pair), None if split_values is None else split_values[at]] for at, pair in enumerate(pairs)]
    hashed = hashlib.sha256(canonical(statements)).hexdigest()
    return {"statements": hashed, **content_of_states(source)}
