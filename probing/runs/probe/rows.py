"""The rows that are probed: their states, their groups and folds, the places where they differ; the fresh rows."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probing.data.tables import Table
from probing.errors import DataInvalid
from probing.metrics.norms import measure_norms
from probing.models.load import LanguageModel
from probing.probes.prompts import LabelledRows
from probing.runs.capture.within import capture_states
from probing.runs.common.groups import folds_of, text_key
from probing.runs.common.inputs import STATES
from probing.runs.common.norms import describe_extremes
from probing.runs.common.states import Prompts, check_same_request, choose_places, join_states, open_states
from probing.runs.probe.config import FRESH_STATES, ProbeConfig
from probing.statistics.folds import Splits
from probing.store.activations import ActivationStore
from probing.store.manifest import RunFolder
from probing.types import LabelledPrompt, Problem

Labelled = tuple[Table, list[LabelledPrompt]]
"""A dataset and its rows."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Material:
    """The rows and places that are probed.

    Attributes:
        config: the job's options.
        positive: the label that a probe says yes to.
        seen: rows of the dataset that have a label and states.
        fresh: rows that were written independently, if any were given.
        rows: labels, groups and folds of the rows that were seen.
        places: places at which the states of the rows differ.
        skipped: other places, and why nothing can be probed there.
        extremes: one row a place where the norms of some rows are far above those of the others.
    """

    config: ProbeConfig
    positive: Any
    seen: Prompts
    fresh: Prompts | None
    rows: LabelledRows
    places: Sequence[str]
    skipped: Mapping[str, str]
    extremes: Sequence[Mapping[str, Any]] = ()


def gather_material(
    folder: RunFolder,
    config: ProbeConfig,
    data: Labelled,
    fresh: Labelled | None,
    *,
    positive: Any,
    values: Sequence[str] | None,
    source: LanguageModel | ActivationStore,
) -> Material:
    """Capture the states, or take them from a store, and join them to the rows.

    Args:
        folder: folder of the run.
        config: the job's options.
        data: the dataset.
        fresh: rows that were written independently.
        positive: the label that a probe says yes to.
        values: value of each row that must not be in two folds.
        source: the model, or the store in its place.

    Raises:
        DataInvalid: too few rows or groups, one class only, or no place that can be probed.
        SourceMismatch: a store is of other texts.
    """
    seen = _read_prompts(folder, config, data, positive, source, STATES)
    others = None if fresh is None else _read_fresh(folder, config, fresh, positive, source, seen)
    rows = _assign_folds(config, seen, data[1], values)
    places, skipped, extremes = _find_places(config, seen)
    return Material(
        config,
        positive=positive,
        seen=seen,
        fresh=others,
        rows=rows,
        places=places,
        skipped=skipped,
        extremes=extremes,
    )


def _read_prompts(
    folder: RunFolder,
    config: ProbeConfig,
    data: Labelled,
    positive: Any,
    source: LanguageModel | ActivationStore,
    name: str,
) -> Prompts:
    table, prompts = data
    how = {"pooling": config.pooling, "over": config.over, "chat": config.chat}
    store = capture_states(folder.path / name, config, str(config.model), table, prompts, source, **how)
    return join_states(store, table.path, prompts, lambda prompt: prompt.label == positive)


def _read_fresh(
    folder: RunFolder,
    config: ProbeConfig,
    fresh: Labelled,
    positive: Any,
    source: LanguageModel | ActivationStore,
    seen: Prompts,
) -> Prompts:
    """The fresh rows that are none of those that were trained on."""
    if isinstance(source, ActivationStore):
        assert config.fresh_store is not None
        source = open_states(config.fresh_store)
        check_same_request(seen.store, source)
    others = _read_prompts(folder, config, fresh, positive, source, FRESH_STATES)
    check_same_request(seen.store, others.store)
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
        raise DataInvalid(f"{fresh[0].path}: {len(kept)} rows are fresh, and they must hold both labels")
    units = [others.units[at] for at in kept]
    return Prompts(rows, labels, units, others.problems, others.store, [others.index[at] for at in kept])


def _assign_folds(
    config: ProbeConfig, seen: Prompts, prompts: Sequence[LabelledPrompt], values: Sequence[str] | None
) -> LabelledRows:
    """Groups and folds.

    Raises:
        DataInvalid: fewer groups than folds, or one class only where two are needed.
    """
    if seen.labels.all() or not seen.labels.any():
        raise DataInvalid(f"all {len(seen.rows)} rows that could be read have the same label")
    by_id = None if values is None else {prompt.id: value for prompt, value in zip(prompts, values, strict=True)}
    kept = None if by_id is None else [by_id[prompt.id] for prompt in seen.rows]
    folds, groups = folds_of(config, seen.units, kept, "rows", "text", seen.labels)
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


def _find_places(config: ProbeConfig, seen: Prompts) -> tuple[list[str], dict[str, str], list[dict[str, Any]]]:
    """Places that can be probed, why others cannot, and the rows of extreme norm of those that can.

    Raises:
        DataInvalid: no place can be probed.
    """
    skipped, extremes = {}, []
    ids = [prompt.id for prompt in seen.rows]
    asked = choose_places(seen.store, config.places)
    for place in asked:
        states = seen.store.read(place)[seen.index]
        if bool((states == states[:1]).all()):
            skipped[place] = "the states of all rows are the same there"
            log.warning("%s is left out: %s", place, skipped[place])
        else:
            named = describe_extremes(place, measure_norms(states), ids)
            extremes += [] if named is None else [named]
    places = [place for place in asked if place not in skipped]
    if not places:
        raise DataInvalid(f"no place can be probed; {next(iter(skipped))}: {next(iter(skipped.values()))}")
    return places, skipped, extremes
