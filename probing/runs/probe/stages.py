"""``probing probe`` after its data: states, parts, results, tables, files."""

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from probing.data.tables import Table, canonical
from probing.errors import DataInvalid
from probing.models.devices import choose_device
from probing.models.load import LanguageModel
from probing.probes.prompts import LabelledRows
from probing.runs.capture.within import capture_states
from probing.runs.common.groups import folds_of, text_key, text_units, values_to_split
from probing.runs.common.parts import complete_layers, read_layer_arrays
from probing.runs.common.record import begin_run, clear, content_of_states, finish, finished_report, hash_files
from probing.runs.common.states import (
    STATES,
    Prompts,
    check_same_request,
    join_states,
    open_source,
    open_states,
    places_of,
)
from probing.runs.probe.config import FRESH_STATES, SUMMARY_FILE, ProbeConfig
from probing.runs.probe.data import check_labels, positive_label
from probing.runs.probe.files import gather_facts, write_files
from probing.runs.probe.parts import fit_place
from probing.runs.probe.results import SURFACE, judge
from probing.runs.probe.tables import make_tables
from probing.statistics.folds import Splits
from probing.store.activations import ActivationStore
from probing.store.manifest import RunFolder
from probing.types import LabelledPrompt, Problem, Report

log = logging.getLogger(__name__)


def probe_into(
    folder: RunFolder,
    config: ProbeConfig,
    table: Table,
    prompts: list[LabelledPrompt],
    fresh: tuple[Table, list[LabelledPrompt]] | None,
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
    if fresh is not None and config.positive is None:
        check_labels(fresh[0].path, fresh[1], prompts)
    values = values_to_split(config, table, prompts)
    begin_run(folder, config, _made_of(prompts, values, fresh, source), [device])
    if not folder.finished:
        _check_groups(config, prompts, values)
        seen = _prompts(folder, config, table, prompts, positive, source, STATES)
        others = None if fresh is None else _fresh(folder, config, fresh, positive, source, seen)
        rows = _rows(config, seen, prompts, values)
        places, skipped = _places(config, seen)
        complete_layers(
            folder.shards,
            [*places, SURFACE],
            lambda place, report: fit_place(config, seen, others, rows, place, device, report),
            "fitting",
        )
        judged = judge(
            config,
            rows,
            None if others is None else (others.labels, np.array(others.units)),
            places,
            lambda number: read_layer_arrays(folder.shards, number),
        )
        facts = gather_facts(config, table, seen, others, rows, positive, places, skipped, judged)
        tables = make_tables(config, judged, facts)
        written = write_files(folder, seen, others, rows, places, judged, tables, facts)
        finish(folder, config, facts, hash_files(folder, written), began)
    clear(folder.shards)
    return finished_report(folder, SUMMARY_FILE)


def _made_of(
    prompts: Sequence[LabelledPrompt],
    values: Sequence[str] | None,
    fresh: tuple[Table, list[LabelledPrompt]] | None,
    source: LanguageModel | ActivationStore,
) -> dict[str, Any]:
    """What tells the texts and the states from others."""
    others = None if fresh is None else [asdict(prompt) for prompt in fresh[1]]
    hashed = hashlib.sha256(canonical([[asdict(prompt) for prompt in prompts], values, others])).hexdigest()
    return {"prompts": hashed, **content_of_states(source)}


def _prompts(
    folder: RunFolder,
    config: ProbeConfig,
    table: Table,
    prompts: list[LabelledPrompt],
    positive: Any,
    source: LanguageModel | ActivationStore,
    name: str,
) -> Prompts:
    store = capture_states(
        folder.path / name,
        config,
        str(config.model),
        table,
        prompts,
        source,
        pooling=config.pooling,
        over=config.over,
        chat=config.chat,
    )
    return join_states(store, table.path, prompts, lambda prompt: prompt.label == positive)


def _check_groups(config: ProbeConfig, prompts: Sequence[LabelledPrompt], values: Sequence[str] | None) -> None:
    """Raise ``DataInvalid`` for too few groups before anything is captured."""
    labelled = [at for at, prompt in enumerate(prompts) if prompt.label is not None]
    units = text_units([prompts[at] for at in labelled])
    folds_of(config, units, None if values is None else [values[at] for at in labelled], "rows", "text")


def _fresh(
    folder: RunFolder,
    config: ProbeConfig,
    fresh: tuple[Table, list[LabelledPrompt]],
    positive: Any,
    source: LanguageModel | ActivationStore,
    seen: Prompts,
) -> Prompts:
    """The fresh rows that are none of those that were trained on."""
    table, prompts = fresh
    if isinstance(source, ActivationStore):
        assert config.fresh_store is not None
        source = open_states(config.fresh_store)
        check_same_request(seen.store, source)
    others = _prompts(folder, config, table, prompts, positive, source, FRESH_STATES)
    known = {text_key(prompt) for prompt in seen.rows}
    kept = [at for at, prompt in enumerate(others.rows) if text_key(prompt) not in known]
    for prompt in others.rows:
        if text_key(prompt) in known:
            others.problems[prompt.id] = Problem(prompt.id, "not_fresh", "the same text is in the data")
    if len(kept) < len(others.rows):
        log.warning(
            "%d of %d fresh rows are in the data and are left out", len(others.rows) - len(kept), len(others.rows)
        )
    rows = [others.rows[at] for at in kept]
    labels = others.labels[kept]
    if not kept or labels.all() or not labels.any():
        raise DataInvalid(f"{table.path}: {len(kept)} rows are fresh, and they must hold both labels")
    units = [others.units[at] for at in kept]
    return Prompts(rows, labels, units, others.problems, others.store, [others.index[at] for at in kept])


def _rows(
    config: ProbeConfig, seen: Prompts, prompts: Sequence[LabelledPrompt], values: Sequence[str] | None
) -> LabelledRows:
    """Units and folds.

    Raises:
        DataInvalid: fewer groups than folds, or one class only where two are needed.
    """
    if seen.labels.all() or not seen.labels.any():
        raise DataInvalid(f"all {len(seen.rows)} rows that could be read have the same label")
    by_id = None if values is None else {prompt.id: value for prompt, value in zip(prompts, values, strict=True)}
    kept = None if by_id is None else [by_id[prompt.id] for prompt in seen.rows]
    folds, groups = folds_of(config, seen.units, kept, "rows", "text")
    splits = Splits.of(folds)
    for at, out in enumerate(splits.left_out):
        inside = seen.labels[splits.train[:, at]]
        if inside.all() or not inside.any():
            raise DataInvalid(
                f"without the folds {', '.join(map(str, out))} all rows have the same label; take fewer --folds, or "
                f"another --split-by"
            )
    if all(seen.labels[folds == fold].all() or not seen.labels[folds == fold].any() for fold in range(config.folds)):
        raise DataInvalid(
            "every fold holds rows of one label only, so that nothing can be compared inside one; take fewer --folds, "
            "another --seed or another --split-by"
        )
    rows = LabelledRows(seen.labels, np.array(seen.units if values is None else groups), splits)
    try:
        rows.labelings(config.refits, config.seed)
    except ValueError as error:
        raise DataInvalid(f"{error}; take fewer --folds, or another --split-by") from error
    return rows


def _places(config: ProbeConfig, seen: Prompts) -> tuple[list[str], dict[str, str]]:
    """Places that can be probed, and why others cannot.

    Raises:
        DataInvalid: none can.
    """
    skipped = {}
    asked = places_of(seen.store, config.places)
    for place in asked:
        states = seen.store.read(place)[seen.index]
        if bool((states == states[:1]).all()):
            skipped[place] = "the states of all rows are the same there"
            log.warning("%s is left out: %s", place, skipped[place])
    places = [place for place in asked if place not in skipped]
    if not places:
        raise DataInvalid(f"no place can be probed; {next(iter(skipped))}: {next(iter(skipped.values()))}")
    return places, skipped
