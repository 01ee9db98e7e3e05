"""``probing rollouts`` after its data: measuring, shard by shard, and what is answered."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd

from probing.data.rollouts import name_response
from probing.data.tables import Table
from probing.errors import SourceMismatch
from probing.instruments.problems import refuse_if_none
from probing.instruments.pull_rows import PULLS_SCHEMA
from probing.instruments.reading import Advance
from probing.instruments.rollout_rates import ROLLOUTS_SCHEMA, RolloutScorer
from probing.models.load import LanguageModel
from probing.ranks import current_ranks
from probing.report.tables import counts
from probing.runs.common.budget import budget_facts
from probing.runs.common.engines import open_workers
from probing.runs.common.model_facts import ModelFacts
from probing.runs.common.models import load_model
from probing.runs.common.parts import Blocks, Shard, Shards, note_making, pair_facts, to_rows
from probing.runs.common.record import (
    begin_run,
    check_files,
    check_rendered,
    clear,
    content_of,
    finish,
    hash_files,
    model_facts,
    note_rendered,
    rendered_groups,
    report_of,
)
from probing.runs.common.token_shards import TOKENS_FILE, JoinTokens, TokenShards, WithTokens
from probing.runs.common.workers import ScorerWorker, Workers
from probing.runs.rollouts.config import ROLLOUTS_FILE, RolloutsConfig
from probing.runs.rollouts.data import describe_data
from probing.runs.rollouts.files import write_pages
from probing.runs.rollouts.tables import make_tables
from probing.store.manifest import RUN_FILE, RunFolder
from probing.store.shards import join_shards
from probing.tokens.rollouts import TokenizedGroup
from probing.types import Report, RolloutGroup


def measure_into(folder: RunFolder, config: RolloutsConfig, table: Table, groups: Sequence[RolloutGroup]) -> Report:
    """Measure every group into the folder, unless an earlier run has done so; answer with its tables.

    Raises:
        SourceMismatch: the folder's run was made from something else.
        StoreCorrupt: the folder's finished tables are missing or changed.
        DataInvalid, NotFinite: not one group could be measured.
    """
    began = time.monotonic()
    data, tokens = Blocks(table, groups, config.shard_groups), TokenShards(folder.shards, PULLS_SCHEMA)
    plan = Shards(folder.shards, data, ROLLOUTS_SCHEMA, whole=tokens.is_whole, columns=list_response_ids)
    with open_workers(config, RolloutsWorker, folder, partial(plan.missing, folder)) as workers:
        model: ModelFacts = workers.facts["model"]
        made_of = {"model": content_of(model.source), "data": {"sha256": table.sha256}}
        rendered = rendered_groups(groups, model=model)
        begin_run(folder, config, made_of, model.device_kinds, model.dtype, rendered)
        if not folder.finished:
            check_rendered(folder, rendered)
            shards = measure_shards(folder, plan, tokens, workers)
            current_ranks().leave()
            note_rendered(folder, rendered_groups(groups, model=model))
            facts = {"model": model_facts(model), "how": workers.how()}
            finish_rates(folder, config, data, shards, facts, tokens=tokens.joiner(len(data.blocks)), began=began)
    clear(folder.shards)
    return read_report(folder, config, groups)


def finish_rates(
    folder: RunFolder,
    config: RolloutsConfig,
    data: Blocks[RolloutGroup],
    shards: Sequence[Shard],
    facts: Mapping[str, Any],
    *,
    tokens: JoinTokens,
    began: float,
) -> None:
    """Join the rates of all groups, and write what is made of them, and the record.

    Args:
        folder: folder of the run, which has begun.
        config: the options.
        data: the groups.
        shards: the rates of their responses, in order.
        facts: facts of the model for the record.
        tokens: joins the pulls of tokens.
        began: start of the run, by ``time.monotonic``.
    """
    join_shards(data.with_places(shards, "group"), folder.path / ROLLOUTS_FILE)
    facts = {**facts, "data": describe_data(data.table, data.rows), **pair_facts(shards, data)}
    wrote = [ROLLOUTS_FILE, *tokens(folder.path)]
    wrote += write_pages(folder, config, pd.read_parquet(folder.path / ROLLOUTS_FILE))
    finish(folder, config, facts, hash_files(folder, wrote), began)


def make_scorer(config: RolloutsConfig, model: LanguageModel) -> RolloutScorer:
    """A scorer of groups with a model by the options."""
    return RolloutScorer(
        model,
        advantage=config.advantage,
        correct_above=config.correct_above,
        eos=config.eos,
        max_length=config.max_length,
        batch_tokens=config.batch_tokens,
        compile=config.compile,
    )


class RolloutsWorker(ScorerWorker[RolloutScorer]):
    """Computes the rates of blocks of groups.

    Args:
        config: the options.
    """

    def __init__(self, config: RolloutsConfig) -> None:
        super().__init__(load_model(config.model, config, config.revision), partial(make_scorer, config))

    def make(self, tokenized: list[TokenizedGroup], report: Advance) -> WithTokens:
        """Rates of the responses of some groups, and the pulls of their tokens."""
        began = time.monotonic()
        scored = self.scorer.score(tokenized, report)
        rows, budget = to_rows(scored.frame, ROLLOUTS_SCHEMA), budget_facts(self.streams)
        return note_making(rows, scored.problems, scored.tokens, began, budget), scored.pulls


def measure_shards(folder: RunFolder, plan: Shards, tokens: TokenShards, workers: Workers[WithTokens]) -> list[Shard]:
    """Rates of the responses of every group; the pulls of tokens are written beside them."""
    budget = workers.keep_budget(folder)
    return plan.complete(workers.maker(plan.block), tokens.keep, budget=budget, doing="measuring")


def list_response_ids(groups: Sequence[RolloutGroup]) -> Mapping[str, Sequence[object]]:
    """The ids of the responses of some groups, which a shard of these groups has."""
    return {"id": [name_response(group.id, at) for group in groups for at in range(len(group.responses))]}


def read_report(folder: RunFolder, config: RolloutsConfig, groups: Sequence[RolloutGroup]) -> Report:
    """The tables of a finished run.

    Raises:
        StoreCorrupt: a file of the run is missing or changed.
        SourceMismatch: the run is of rows with other ids.
        DataInvalid, NotFinite: not one group could be measured.
    """
    facts, path = folder.facts(), folder.path / ROLLOUTS_FILE
    check_files(folder, facts["sha256"])
    frame = pd.read_parquet(path)
    if frame["id"].tolist() != list_response_ids(groups)["id"]:
        raise SourceMismatch(
            f"{path}: was made from rows with other ids. Give the --id-column of that run, or choose another --out"
        )
    refuse_if_none(facts, "no group could be measured", path)
    if not len(frame):
        empty = {"Groups by status": counts({}, "status", "groups")}
        return report_of(folder, empty, facts, [*facts["sha256"], RUN_FILE])
    tables = make_tables(frame, folder.path / TOKENS_FILE, groups, config, facts)
    return report_of(folder, tables, facts, [*facts["sha256"], RUN_FILE])
