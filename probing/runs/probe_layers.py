"""Fitting and judging supervised probes of every layer into a claimed folder: ``probing probe`` after its data."""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray

from probing.data.prompts import label_name
from probing.data.surface import surface_features
from probing.data.tables import Table, canonical
from probing.errors import DataInvalid, OutOfMemory, UsageError
from probing.models.load import LanguageModel, choose_device
from probing.probes.controls import Splits
from probing.probes.prompts import PROBES, LabelledRows, read_prompts
from probing.report.plots import draw_layers
from probing.runs.ccs_results import CHOSEN
from probing.runs.labelled_states import (
    Prompts,
    captured,
    check_same_request,
    join_states,
    request_of,
    text_key,
    text_units,
    values_to_split,
)
from probing.runs.layer_shards import (
    STATES,
    Arrays,
    all_layers,
    check_memory,
    finish,
    finished_report,
    folds_of,
    how_told,
    identity_of_layers,
    open_states,
    places_of,
    read_layer_arrays,
    source_of,
    write_summary,
)
from probing.runs.probe import (
    FRESH_STATES,
    PLOTS_FILE,
    PREDICTIONS_FILE,
    PROBES_FILE,
    RESULTS_FILE,
    SUMMARY_FILE,
    ProbeConfig,
)
from probing.runs.probe_results import SURFACE, Judged, judge
from probing.runs.probe_tables import make_tables
from probing.runs.problems import LISTED_PROBLEMS
from probing.runs.sharded import clear, plain
from probing.store.activations import ActivationStore
from probing.store.manifest import RunFolder
from probing.store.probes import save_probes
from probing.store.shards import join_shards
from probing.types import LabelledPrompt, Problem, Report

NOT_IDENTITY = (
    "model data out store fresh fresh_store device trust_remote_code split batch_tokens text_column response_column "
    "label_column category_column id_column dtype revision"
).split()
"""Options that change no byte, or are told apart by content."""

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
    source = source_of(config)
    positive = positive_label(config, table.path, prompts)
    if fresh is not None and config.positive is None:
        check_labels(fresh[0].path, fresh[1], prompts)
    values = values_to_split(config, table, prompts)
    folder.begin(_identity(config, prompts, values, fresh, source, device), {"config": plain(config)})
    if not folder.finished:
        _check_groups(config, prompts, values)
        seen = _prompts(folder, config, table, prompts, positive, source, STATES)
        others = None if fresh is None else _fresh(folder, config, fresh, positive, source, seen)
        rows = _rows(config, seen, prompts, values)
        places, skipped = _places(config, seen)
        all_layers(
            folder.shards,
            [*places, SURFACE],
            lambda place, report: _layer(config, seen, others, rows, place, device, report),
            "fitting",
        )
        judged = judge(
            config,
            rows,
            None if others is None else (others.labels, np.array(others.units)),
            places,
            lambda number: read_layer_arrays(folder.shards, number),
        )
        facts = _facts(config, table, seen, others, rows, positive, places, skipped, judged)
        tables = make_tables(config, judged, facts)
        written = _write(folder, seen, others, rows, places, judged, tables, facts)
        finish(folder, config, facts, written, began)
    clear(folder.shards)
    return finished_report(folder, SUMMARY_FILE)


def positive_label(config: ProbeConfig, path: str, prompts: Sequence[LabelledPrompt]) -> Any:
    """The label that a probe says yes to: the one that was named, or true, or 1, or the later one in the alphabet.

    Raises:
        UsageError: there are not two labels and none was named, or the one named does not occur.
    """
    known = {prompt.label for prompt in prompts if prompt.label is not None}
    named = {label_name(prompt): prompt.label for prompt in prompts if prompt.label is not None}
    shown = ", ".join(sorted(named)[:10])
    if config.positive is not None:
        if config.positive not in named:
            raise UsageError(f"{path}: no row has the label '{config.positive}'; there are {shown}")
        if len(known) < 2:
            raise DataInvalid(f"{path}: every row has the label '{config.positive}'; a probe needs two")
        return named[config.positive]
    if len(known) != 2:
        raise UsageError(
            f"{path}: there are {len(known)} labels ({shown}); a probe tells two apart: name the one it says yes to "
            f"with --positive, all others are no"
        )
    return max(known, key=lambda label: (not isinstance(label, str), label))


def check_labels(path: str, fresh: Sequence[LabelledPrompt], prompts: Sequence[LabelledPrompt]) -> None:
    """Raise unless fresh rows have the labels of the data: another would be taken for a no.

    Raises:
        DataInvalid: names the first that does not.
    """
    known = {prompt.label for prompt in prompts if prompt.label is not None}
    other = next((prompt for prompt in fresh if prompt.label is not None and prompt.label not in known), None)
    if other is not None:
        raise DataInvalid(
            f"{path}: row '{other.id}' has the label {other.label!r}, which no row of the data has "
            f"({', '.join(sorted(map(repr, known)))}); name the label that a probe says yes to with --positive if all "
            f"others are no"
        )


def _identity(
    config: ProbeConfig,
    prompts: Sequence[LabelledPrompt],
    values: Sequence[str] | None,
    fresh: tuple[Table, list[LabelledPrompt]] | None,
    source: LanguageModel | ActivationStore,
    device: torch.device,
) -> dict[str, Any]:
    others = None if fresh is None else [asdict(prompt) for prompt in fresh[1]]
    hashed = hashlib.sha256(canonical([[asdict(prompt) for prompt in prompts], values, others])).hexdigest()
    return {"prompts": hashed, **identity_of_layers(config, NOT_IDENTITY, source, device)}


def _prompts(
    folder: RunFolder,
    config: ProbeConfig,
    table: Table,
    prompts: list[LabelledPrompt],
    positive: Any,
    source: LanguageModel | ActivationStore,
    name: str,
) -> Prompts:
    store = captured(folder.path / name, config, str(config.model), table, prompts, source, **request_of(config))
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


def _layer(
    config: ProbeConfig,
    seen: Prompts,
    others: Prompts | None,
    rows: LabelledRows,
    place: str,
    device: torch.device,
    report: Callable[[float], None],
) -> Arrays:
    """The arrays of one place, or of the baseline that reads lengths and punctuation."""
    if place == SURFACE:
        states, fresh = _surface(seen, others)
    else:
        states = seen.states(place, device)
        fresh = None if others is None else others.states(place, device)
        origin = states.mean(dim=0)
        states, fresh = states - origin, None if fresh is None else fresh - origin
        width, count = states.shape[1], len(states)
        smaller = min(width, count)
        needed = 8 * (3 * count * width + 2 * smaller**2 + 30 * (config.refits + 1) * smaller)
        check_memory(needed, device, f"probing {place} ({count} rows of width {width})")
    try:
        found = read_prompts(states, rows, config.refits, config.seed, config.inverse_penalty, fresh)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"probing {place} does not fit on the {device}; take fewer rows") from error
    if place != SURFACE:
        moved = origin.double().cpu().numpy()
        for probe in PROBES:
            found[f"{probe}.bias"] = found[f"{probe}.bias"] - found[f"{probe}.weight"] @ moved
    report(1.0)
    return found


def _surface(seen: Prompts, others: Prompts | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Features of the texts, each of mean zero and variance one over the data; those that never vary left out."""
    features = surface_features(seen.rows)
    mean, spread = features.mean(axis=0), features.std(axis=0)
    varied = (features != features[:1]).any(axis=0)
    if not varied.any():  # then a column of zeros, from which nothing can be learnt
        varied[0], mean, spread = True, features[0], np.ones_like(spread)

    def scaled(values: NDArray[np.float64]) -> torch.Tensor:
        return torch.from_numpy(((values - mean) / np.where(varied, spread, 1))[:, varied])

    return scaled(features), None if others is None else scaled(surface_features(others.rows))


def _facts(
    config: ProbeConfig,
    table: Table,
    seen: Prompts,
    others: Prompts | None,
    rows: LabelledRows,
    positive: Any,
    places: Sequence[str],
    skipped: Mapping[str, str],
    judged: Judged,
) -> dict[str, Any]:
    statuses = Counter(problem.status for problem in seen.problems.values())
    facts: dict[str, Any] = {
        "data": {"path": table.path, "format": table.format, "rows": len(table.rows), "sha256": table.sha256},
        "source": seen.store.facts["source"],
        "how": how_told(seen.store),
        "request": seen.store.facts["request"],
        "positive": positive,
        "rows_by_status": {"ok": len(seen.rows), **dict(sorted(statuses.items()))},
        "problems": [asdict(problem) for problem in seen.problems.values()][:LISTED_PROBLEMS],
        "rows": len(seen.rows),
        "groups": len(set(rows.units.tolist())),
        "rows_positive": int(rows.labels.sum()),
        "folds": np.bincount(rows.splits.folds).tolist(),
        "places": list(places),
        "skipped_places": dict(skipped),
        "chosen": judged.chosen,
        "best": judged.best,
    }
    if others is not None:
        counted = Counter(problem.status for problem in others.problems.values())
        facts["fresh"] = {"path": config.fresh, "rows_by_status": {"ok": len(others.rows), **dict(counted)}}
    return facts


def _write(
    folder: RunFolder,
    seen: Prompts,
    others: Prompts | None,
    rows: LabelledRows,
    places: Sequence[str],
    judged: Judged,
    tables: Mapping[str, pd.DataFrame],
    facts: Mapping[str, Any],
) -> list[str]:
    """Every file but the record; their names."""
    written = [RESULTS_FILE, PREDICTIONS_FILE, PROBES_FILE, SUMMARY_FILE]
    join_shards([pa.Table.from_pandas(judged.results, preserve_index=False)], folder.path / RESULTS_FILE)
    frame = _predictions(seen, others, rows, judged)
    join_shards([pa.Table.from_pandas(frame, preserve_index=False)], folder.path / PREDICTIONS_FILE)
    width = judged.weights.shape[-1]
    save_probes(
        folder.path / PROBES_FILE,
        seen.store.source,
        places,
        PROBES,
        judged.weights,
        judged.biases,
        np.zeros((len(places), 1, width)),
        {"normalization": "none", "request": facts["request"], "positive": facts["positive"], "best": judged.best},
    )
    write_summary(folder.path / SUMMARY_FILE, facts, tables)
    if draw_layers(
        judged.results[judged.results["set"] == "held out"], {}, folder.path / PLOTS_FILE, [CHOSEN, SURFACE]
    ):
        written.append(PLOTS_FILE)
    return written


def _predictions(seen: Prompts, others: Prompts | None, rows: LabelledRows, judged: Judged) -> pd.DataFrame:
    """Every row: its status, and the logits at the place chosen without it (of fresh rows: at the best place)."""
    parts: list[tuple[str, Prompts, NDArray[np.int64] | None, dict[str, NDArray[np.float64]]]]
    parts = [("held out", seen, rows.splits.folds, judged.logits)]
    parts += [] if others is None else [("fresh", others, None, judged.fresh)]
    found = []
    for name, prompts, folds, logits in parts:
        for at, prompt in enumerate(prompts.rows):
            row: dict[str, Any] = {"set": name, "id": prompt.id, "status": "ok", "label": bool(prompts.labels[at])}
            row |= {"category": prompt.category, "fold": None if folds is None else int(folds[at])}
            found.append(row | {probe: float(logits[probe][at]) for probe in (*PROBES, SURFACE)})
        found += [{"set": name, "id": p.id, "status": p.status, "detail": p.detail} for p in prompts.problems.values()]
    return pd.DataFrame(found).astype({"fold": "Int64", "label": "boolean"})
