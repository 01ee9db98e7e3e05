"""``probing score`` after its data: scoring, shard by shard, and what is answered."""

import shlex
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from probing.data.tables import Table
from probing.instruments.columns import GROUPS, TOKEN_COLUMNS, known_columns
from probing.instruments.pair_scores import PairScorer
from probing.instruments.problems import refuse_if_none
from probing.instruments.pull_rows import PULLS_SCHEMA
from probing.instruments.reading import Advance
from probing.models.load import LanguageModel
from probing.ranks import current_ranks
from probing.report.pulls import pull_tables
from probing.report.tables import counts
from probing.runs.common.budget import budget_facts
from probing.runs.common.engines import open_workers
from probing.runs.common.held import NOT_FILES
from probing.runs.common.losses import make_loss
from probing.runs.common.model_facts import ModelFacts
from probing.runs.common.models import load_model
from probing.runs.common.parts import Dataset, Shard, Shards, note_making, pair_facts, to_rows
from probing.runs.common.record import (
    begin_run,
    check_files,
    check_ids,
    check_rendered,
    clear,
    content_of,
    finish,
    hash_files,
    model_facts,
    note_rendered,
    rendered_pairs,
    report_of,
)
from probing.runs.common.scored import recorded_shard
from probing.runs.common.token_shards import TOKENS_FILE, JoinTokens, TokenShards, WithTokens
from probing.runs.common.workers import ScorerWorker, Workers
from probing.runs.score.config import SCORES_FILE, SUGGESTED_DROP, ScoreConfig
from probing.runs.score.files import write_pages
from probing.runs.score.rows import check_ref_logps, write_ref_logps
from probing.runs.score.tables import BY, score_tables
from probing.store.files import file_sha256
from probing.store.manifest import RUN_FILE, RunFolder
from probing.store.shards import join_shards, read_frame
from probing.tokens.pairs import TokenizedPair
from probing.types import PreferencePair, Report

_KINDS = {"id": pa.string(), "status": pa.string(), "ranking_correct": pa.bool_()}
_KINDS |= dict.fromkeys(TOKEN_COLUMNS, pa.int64()) | dict.fromkeys(GROUPS, pa.string())
HASH = "scores_sha256"
"""Key of the record that holds the hash of the scores."""


def score_into(folder: RunFolder, config: ScoreConfig, table: Table, pairs: Sequence[PreferencePair]) -> Report:
    """Score every pair into the folder, unless an earlier run has done so; answer with its tables.

    Raises:
        SourceMismatch: the folder's run was made from something else.
        StoreCorrupt: the folder's finished scores are missing or changed.
        DataInvalid, NotFinite: not one pair could be scored.
    """
    began = time.monotonic()
    data, tokens = Dataset(table, pairs, config.shard_pairs), token_shards(folder, config.pull)
    plan = Shards(folder.shards, data, schema_of(known_columns(config.computed)), whole=tokens.is_whole)
    with open_workers(config, ScoreWorker, folder, partial(plan.missing, folder)) as workers:
        model: ModelFacts = workers.facts["model"]
        made_of = {"model": content_of(model.source), "data": {"sha256": table.sha256}}
        rendered = rendered_pairs(pairs, model=model)
        begin_run(folder, config, made_of, model.device_kinds, model.dtype, rendered)
        if not folder.finished:
            check_rendered(folder, rendered)
            shards = score_shards(folder, plan, tokens, workers)
            current_ranks().leave()
            note_rendered(folder, rendered_pairs(pairs, model=model))
            facts = {"model": model_facts(model), "how": workers.how()}
            finish_scores(folder, config, data, shards, facts, tokens=tokens.joiner(len(data.blocks)), began=began)
    clear(folder.shards)
    return read_report(folder, pairs)


def finish_scores(
    folder: RunFolder,
    config: ScoreConfig,
    data: Dataset,
    shards: Sequence[Shard],
    facts: Mapping[str, Any],
    *,
    tokens: JoinTokens,
    began: float,
) -> None:
    """Join the scores of all pairs, and write what is made of them, and the record.

    Args:
        folder: folder of the run, which has begun.
        config: the options.
        data: the pairs.
        shards: their scores, in order.
        facts: facts of the model for the record.
        tokens: joins the pulls of tokens.
        began: start of the run, by ``time.monotonic``.
    """
    join_shards(data.with_places(shards), folder.path / SCORES_FILE)
    facts = {**facts, "data": data.facts(), **pair_facts(shards, data)}
    frame = read_frame(folder.path / SCORES_FILE)
    if config.write_ref_logps and (frame["status"] == "ok").any():
        facts["ref_logps"] = write_ref_logps(folder, data.table, frame)
    wrote = [*write_pages(folder, config, frame), *tokens(folder.path)]
    hashes = {HASH: file_sha256(folder.path / SCORES_FILE), **hash_files(folder, wrote)}
    finish(folder, config, facts, hashes, began)


def make_scorer(config: ScoreConfig, model: LanguageModel) -> PairScorer:
    """A scorer with a model by the options."""
    return PairScorer(
        model,
        eos=config.eos,
        max_length=config.max_length,
        batch_tokens=config.batch_tokens,
        columns=config.computed,
        rate_parameters=config.rate_parameters,
        loss=make_loss(config),
        compile=config.compile,
        pull=config.pull,
    )


def token_shards(folder: RunFolder, pull: bool) -> TokenShards:
    """The tables of the pulls of tokens; none where they are not asked for."""
    return TokenShards(folder.shards, PULLS_SCHEMA, wanted=pull)


def schema_of(columns: Sequence[str]) -> pa.Schema:
    """Types of a table of scores."""
    return pa.schema([(name, _KINDS.get(name, pa.float64())) for name in columns])


class ScoreWorker(ScorerWorker[PairScorer]):
    """Scores blocks of pairs.

    Args:
        config: the options.
    """

    def __init__(self, config: ScoreConfig) -> None:
        super().__init__(load_model(config.model, config, config.revision), partial(make_scorer, config))
        self._schema = schema_of(known_columns(config.computed))

    def make(self, tokenized: list[TokenizedPair], report: Advance) -> WithTokens:
        """Scores of some pairs."""
        return _new_shard(self.scorer, self._schema, tokenized, report)


def score_shards(folder: RunFolder, plan: Shards, tokens: TokenShards, workers: Workers[WithTokens]) -> list[Shard]:
    """Scores of every pair; the pulls of tokens are written beside them."""
    return plan.complete(workers.maker(plan.block), tokens.keep, budget=workers.keep_budget(folder))


def _new_shard(scorer: PairScorer, schema: pa.Schema, tokenized: list[TokenizedPair], report: Advance) -> WithTokens:
    began = time.monotonic()
    scored = scorer.score_tokenized(tokenized, report)
    rows, batch_tokens = to_rows(scored.frame, schema), budget_facts([scorer.stream])
    return note_making(rows, scored.problems, scored.tokens, began, batch_tokens), scored.pulls


def read_report(folder: RunFolder, pairs: Sequence[PreferencePair]) -> Report:
    """The tables of a finished run.

    Raises:
        StoreCorrupt: a file of the run is missing or changed.
        SourceMismatch: the scores are of rows with other ids.
    """
    facts, path = folder.facts(), folder.path / SCORES_FILE
    # Folders of earlier versions have no plots.
    others = facts.get("sha256", {})
    check_files(folder, {SCORES_FILE: facts[HASH], **others})
    further = check_ref_logps(folder, facts)
    frame = read_frame(path)
    check_ids(path, frame["id"], pairs)
    refuse_if_none(facts, "no pair could be scored", path)
    wrote = [SCORES_FILE, *further, *others, RUN_FILE]
    if not len(frame):
        return report_of(folder, {"Pairs by status": counts({}, "status")}, facts, wrote)
    shown = {**facts, "next": suggest_next(folder.path, facts)} if BY in frame else facts
    pulls = pull_tables(folder.path / TOKENS_FILE) if TOKENS_FILE in others else {}
    tables = score_tables(frame, pairs, facts, pulls)
    return report_of(folder, tables, shown, wrote)


def suggest_next(out: Path, facts: Mapping[str, Any]) -> list[str]:
    """Commands that come after scoring: look at the pairs that are most alike, and leave some out."""
    # Options in a record are not believed: they are shown, and run by nobody but a reader.
    config = facts.get("config", {})
    if recorded_shard(config):
        return []
    data = config.get("data")
    sources = data if isinstance(data, list) else [data]
    show = ["probing", "show", str(out), "--highest", "20"]
    given = [part for source in sources for part in ("--data", str(source))]
    drop = ["--by", BY, "--drop-highest", f"{SUGGESTED_DROP:g}", "--out", "kept.jsonl"]
    keep = ["probing", "filter", *given, "--scores", str(out), *drop]
    known = all(isinstance(source, str) and source not in NOT_FILES for source in sources)
    return [shlex.join(command) for command in ([show, keep] if known else [])]
