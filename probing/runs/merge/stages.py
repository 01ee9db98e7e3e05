"""``probing merge`` after the shards and their dataset: each command's own end, from the tables of the shards."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from probing.data.pairs import list_pair_ids
from probing.instruments.pair_changes import TOKENS_SCHEMA
from probing.instruments.pull_rows import PULLS_SCHEMA
from probing.runs.capture.config import CaptureConfig
from probing.runs.capture.rows import choose_schema, find_batch
from probing.runs.capture.stages import finish_store
from probing.runs.capture.stages import read_report as read_store_report
from probing.runs.common.about import BEGAN, today
from probing.runs.common.parts import Blocks, Dataset
from probing.runs.common.record import begin_identified
from probing.runs.displacement.config import PAIRS_FILE, DisplacementConfig
from probing.runs.displacement.data import Inputs
from probing.runs.displacement.stages import finish_changes
from probing.runs.displacement.stages import read_report as read_changes_report
from probing.runs.merge.data import Array, Whole
from probing.runs.merge.parts import join_steps
from probing.runs.merge.rows import join_values, read_tables, tokens_joiner
from probing.runs.merge.states import join_states
from probing.runs.rollouts.config import ROLLOUTS_FILE, RolloutsConfig
from probing.runs.rollouts.stages import finish_rates, list_response_ids
from probing.runs.rollouts.stages import read_report as read_rates_report
from probing.runs.score.config import SCORES_FILE, ScoreConfig
from probing.runs.score.stages import finish_scores
from probing.runs.score.stages import read_report as read_scores_report
from probing.store.manifest import RunFolder
from probing.types import PreferencePair, Report

STORED = ("source", "model", "request", "places", "layers", "width", "dtype")
"""Facts of the manifest of a store that tell of the model and its states."""


def merge_into(folder: RunFolder, array: Array, whole: Whole) -> Report:
    """Join the shards into a claimed folder, unless an earlier merge or run has; answer with its tables.

    Raises:
        SourceMismatch: the folder holds a run that was made from something else; or a shard has other rows.
        StoreCorrupt: a file of a shard is gone or damaged.
    """
    # The seconds of all shards count as well.
    began = time.monotonic() - sum(member.record["wall_seconds"] for member in array.members)
    days = [str(member.record[BEGAN]) for member in array.members if BEGAN in member.record]
    begin_identified(folder, whole.config, array.identify_whole(whole.config), min(days, default=today()))
    if any("rendered_changed" in member.record for member in array.members):
        folder.write({**folder.facts(), "rendered_changed": True})
    config = whole.config
    if isinstance(config, ScoreConfig):
        return _merge_scores(folder, config, array, whole, began)
    if isinstance(config, DisplacementConfig) and whole.inputs is not None:
        return _merge_changes(folder, config, array, whole.inputs, began)
    if isinstance(config, RolloutsConfig):
        return _merge_rates(folder, config, array, whole, began)
    assert isinstance(config, CaptureConfig)
    return _merge_stores(folder, config, array, whole, began)


def _describe(array: Array, *models: str) -> dict[str, Any]:
    """Facts of the models of the shards, and of how they ran."""
    first = array.with_rows[0].record
    return {name: first[name] for name in models} | {"how": join_values([m.record["how"] for m in array.with_rows])}


def _merge_scores(folder: RunFolder, config: ScoreConfig, array: Array, whole: Whole, began: float) -> Report:
    if not folder.finished:
        data = Dataset(whole.table, whole.pairs, config.shard_pairs)
        shards = read_tables(array, SCORES_FILE, lambda rows: _list_ids(whole.pairs, rows), len(whole.pairs))
        tokens = tokens_joiner(array, PULLS_SCHEMA)
        finish_scores(folder, config, data, shards, _describe(array, "model"), tokens=tokens, began=began)
    return read_scores_report(folder, whole.pairs)


def _merge_changes(folder: RunFolder, config: DisplacementConfig, array: Array, inputs: Inputs, began: float) -> Report:
    if not folder.finished:
        shards = read_tables(array, PAIRS_FILE, lambda rows: _list_ids(inputs.pairs, rows), len(inputs.pairs))
        finish_changes(
            folder,
            config,
            inputs,
            shards,
            _describe(array, "reference", "policy"),
            steps=join_steps(array, list_pair_ids(inputs.pairs)),
            tokens=tokens_joiner(array, TOKENS_SCHEMA),
            began=began,
        )
    return read_changes_report(folder, config, inputs)


def _merge_rates(folder: RunFolder, config: RolloutsConfig, array: Array, whole: Whole, began: float) -> Report:
    groups = whole.groups

    def list_ids(rows: range) -> Sequence[object]:
        return list_response_ids(groups[rows.start : rows.stop])["id"]

    if not folder.finished:
        data = Blocks(whole.table, groups, config.shard_groups)
        shards = read_tables(array, ROLLOUTS_FILE, list_ids, len(groups))
        tokens = tokens_joiner(array, PULLS_SCHEMA)
        finish_rates(folder, config, data, shards, _describe(array, "model"), tokens=tokens, began=began)
    return read_rates_report(folder, config, groups)


def _merge_stores(folder: RunFolder, config: CaptureConfig, array: Array, whole: Whole, began: float) -> Report:
    if not folder.finished:
        schema = choose_schema(folder, whole.prompts)
        batch = find_batch(folder, config, whole.table, whole.prompts, schema)
        sizes = join_states(folder, array, whole, schema)
        facts = {**batch.facts, "shards": len(sizes), **_describe_blocks(sizes, config.shard_rows)}
        folder.write({"batch_tokens": array.with_rows[0].record["batch_tokens"], **folder.facts()})
        finish_store(folder, config, _describe(array, *STORED), replace(batch, facts=facts), schema, began)
    return read_store_report(folder)


def _describe_blocks(sizes: Sequence[int], usual: int) -> dict[str, list[int]]:
    """The number of rows of each shard of a store, where they are not those of one run."""
    plain = all(size == usual for size in sizes[:-1]) and sizes[-1] <= usual
    return {} if plain else {"blocks": list(sizes)}


def _list_ids(pairs: Sequence[PreferencePair], rows: range) -> Sequence[str]:
    return list_pair_ids(pairs)[rows.start : rows.stop]
