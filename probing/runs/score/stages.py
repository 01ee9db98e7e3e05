"""``probing score`` after its data: scoring, shard by shard, and what is answered."""

import io
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
import pyarrow as pa

from probing.data.tables import Table
from probing.engine.stream import TokenBudget
from probing.errors import StoreCorrupt
from probing.instruments.columns import TOKEN_COLUMNS, split_columns
from probing.instruments.pair_scores import PairScorer
from probing.instruments.problems import refuse_if_none
from probing.models.load import LanguageModel, load
from probing.report.progress import Progress
from probing.runs.common.parts import Dataset, Shard, all_shards, rows_of, status_facts
from probing.runs.common.record import clear, content_of, identity, plain
from probing.runs.score.config import SCORES_FILE, ScoreConfig
from probing.runs.score.tables import score_tables
from probing.store.files import file_sha256
from probing.store.manifest import RUN_FILE, RunFolder
from probing.store.shards import join_shards
from probing.tokens.pairs import TokenizedPair
from probing.types import PreferencePair, Report

_KINDS = {"id": pa.string(), "status": pa.string(), "ranking_correct": pa.bool_()}
_KINDS |= dict.fromkeys(TOKEN_COLUMNS, pa.int64())
# The same weights may lie elsewhere, and "auto" is compared as what it turned out to be.
NOT_IDENTITY = ("model", "data", "out", "device", "dtype", "trust_remote_code")


def score_into(folder: RunFolder, config: ScoreConfig, table: Table, pairs: Sequence[PreferencePair]) -> Report:
    """Score every pair into the folder, unless an earlier run has done so; answer with its tables.

    Raises:
        SourceMismatch: the folder's run was made from something else.
        StoreCorrupt: the folder's finished scores are gone or changed.
        DataInvalid, NotFinite: not one pair could be scored.
    """
    began = time.monotonic()
    model = load(config.model, config.revision, config.dtype, config.device, config.trust_remote_code)
    folder.begin(_identity(config, model, table), {"config": plain(config)})
    if not folder.finished:
        data = Dataset(table, pairs, config.shard_pairs)
        scorer = _scorer(folder, config, model)
        shards = _shards(folder, data, scorer)
        join_shards([shard.rows for shard in shards], folder.path / SCORES_FILE)
        facts: dict[str, Any] = {"model": asdict(model.source) | {"device": model.placement, "dtype": str(model.dtype)}}
        facts |= {"how": scorer.stream.how, "data": data.facts(), **status_facts(shards, data)}
        facts |= {"wall_seconds": round(time.monotonic() - began, 3), "scores_sha256": _sha256(folder)}
        folder.write({**folder.facts(), "status": "done", "config": plain(config), **facts})
    clear(folder.shards)
    return _report(folder, pairs)


def _scorer(folder: RunFolder, config: ScoreConfig, model: LanguageModel) -> PairScorer:
    """A scorer with the budget of this folder's run: what is found on a card depends on the memory of the moment."""
    columns = split_columns(config.columns)
    options = (config.eos, config.max_length, config.batch_tokens, columns, config.rate_parameters)
    scorer = PairScorer(model, *options, compile=config.compile)
    known = folder.facts().get("batch_tokens")
    if known is None:
        folder.write({**folder.facts(), "batch_tokens": asdict(scorer.stream.budget)})
    else:
        scorer.stream.budget = TokenBudget(**known)
    return scorer


def schema_of(columns: Sequence[str]) -> pa.Schema:
    """Types of a table of scores."""
    return pa.schema([(name, _KINDS.get(name, pa.float64())) for name in columns])


def _sha256(folder: RunFolder) -> str:
    return file_sha256(folder.path / SCORES_FILE)


def _identity(config: ScoreConfig, model: LanguageModel, table: Table) -> dict[str, Any]:
    """Everything that the bytes of the scores depend on."""
    made_of = {"model": content_of(model.source), "data": {"sha256": table.sha256}}
    return made_of | identity(config, NOT_IDENTITY, model)


def _shards(folder: RunFolder, data: Dataset, scorer: PairScorer) -> list[Shard]:
    schema = schema_of(scorer.columns)

    def adopt(shard: Shard) -> None:
        # A resumed run keeps the budget that the run before it had come to, so that it ends in the same bytes.
        scorer.stream.budget = TokenBudget(**shard.facts["batch_tokens"])

    def make(block: range, number: int, bar: Progress, tokenized: list[TokenizedPair]) -> Shard:
        return _new_shard(scorer, schema, tokenized, bar)

    def prepare(block: range) -> list[TokenizedPair]:
        return scorer.tokenize(data.of(block), data.where(block))

    return all_shards(folder.shards, data, schema, make, adopt, prepare=prepare)


def _new_shard(scorer: PairScorer, schema: pa.Schema, tokenized: list[TokenizedPair], bar: Progress) -> Shard:
    began = time.monotonic()
    scored = scorer.score_tokenized(tokenized, bar.advance)
    facts = {
        "tokens": scored.tokens,
        "seconds": time.monotonic() - began,
        "batch_tokens": asdict(scorer.stream.budget),
        "problems": [asdict(problem) for problem in scored.problems],
    }
    return Shard(rows_of(scored.frame, schema), facts)


def _report(folder: RunFolder, pairs: Sequence[PreferencePair]) -> Report:
    facts = folder.facts()
    if not (folder.path / SCORES_FILE).is_file() or _sha256(folder) != facts["scores_sha256"]:
        raise StoreCorrupt(
            f"{folder.path / SCORES_FILE}: gone or changed since the run ended; delete {folder.path} and run again"
        )
    frame = pd.read_parquet(io.BytesIO((folder.path / SCORES_FILE).read_bytes()))
    refuse_if_none(facts, "no pair could be scored", folder.path / SCORES_FILE)
    wrote = [str(folder.path / SCORES_FILE), str(folder.path / RUN_FILE)]
    return Report(score_tables(frame, pairs, facts), {**facts, "wrote": wrote})
