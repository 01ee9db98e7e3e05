"""Scoring a dataset shard by shard into a claimed folder; the part of ``probing score`` that needs the model."""

import io
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import torch

from probing.data.pairs import content_sha256
from probing.data.tables import Table
from probing.engine.stream import TokenBudget
from probing.errors import StoreCorrupt
from probing.models.load import LanguageModel, load
from probing.report.progress import Progress
from probing.report.tables import counts, extremes, quantiles
from probing.runs.pair_scores import COLUMNS, SCORE_COLUMNS, TOKEN_COLUMNS, PairScorer
from probing.runs.problems import LISTED_PROBLEMS, refuse_if_none
from probing.runs.score import SCORES_FILE, ScoreConfig
from probing.runs.versions import versions
from probing.store.files import file_sha256
from probing.store.manifest import RUN_FILE, RunFolder
from probing.store.shards import join_shards, read_shard, shard_path, write_shard
from probing.types import PreferencePair, Report

LISTED_PAIRS = 5
_KINDS = {"id": pa.string(), "status": pa.string()} | dict.fromkeys(TOKEN_COLUMNS, pa.int64())
SCHEMA = pa.schema([(name, _KINDS.get(name, pa.float64())) for name in COLUMNS])
# The same weights may lie elsewhere, and "auto" is compared as what it turned out to be.
NOT_IDENTITY = ("model", "data", "out", "device", "dtype", "trust_remote_code")


@dataclass(frozen=True)
class Shard:
    """Scores of consecutive pairs, and what is to be remembered of their making."""

    rows: pa.Table
    facts: dict[str, Any]


def score_into(folder: RunFolder, config: ScoreConfig, table: Table, pairs: Sequence[PreferencePair]) -> Report:
    """Score every pair into the folder, unless an earlier run has done so; answer with its tables.

    Raises:
        SourceMismatch: the folder's run was made from something else.
        StoreCorrupt: the folder's finished scores are gone or changed.
        DataInvalid, NotFinite: not one pair could be scored.
    """
    began = time.monotonic()
    model = load(config.model, config.revision, config.dtype, config.device, config.trust_remote_code)
    folder.begin(_identity(config, model, table), {"config": _plain(config)})
    if not folder.finished:
        shards = _all_shards(folder, config, _scorer(folder, config, model), table, pairs)
        join_shards([shard.rows for shard in shards], folder.path / SCORES_FILE)
        facts: dict[str, Any] = {
            "model": asdict(model.source) | {"device": str(model.device), "dtype": str(model.dtype)}
        }
        facts |= {"data": _data_facts(table, pairs), **_shard_facts(shards, table, pairs)}
        facts |= {"wall_seconds": round(time.monotonic() - began, 3), "scores_sha256": _sha256(folder)}
        folder.write({**folder.facts(), "status": "done", "config": _plain(config), **facts})
    shutil.rmtree(folder.shards, ignore_errors=True)
    return _report(folder, pairs)


def _scorer(folder: RunFolder, config: ScoreConfig, model: LanguageModel) -> PairScorer:
    """A scorer with the budget of this folder's run: what is found on a card depends on the memory of the moment."""
    scorer = PairScorer(model, config.eos, config.max_length, config.batch_tokens)
    known = folder.facts().get("batch_tokens")
    if known is None:
        folder.write({**folder.facts(), "batch_tokens": asdict(scorer.stream.budget)})
    else:
        scorer.stream.budget = TokenBudget(**known)
    return scorer


def _sha256(folder: RunFolder) -> str:
    return file_sha256(folder.path / SCORES_FILE)


def _plain(config: ScoreConfig) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}


def _identity(config: ScoreConfig, model: LanguageModel, table: Table) -> dict[str, Any]:
    """Everything that the bytes of the scores depend on."""
    return {
        "model": {key: value for key, value in asdict(model.source).items() if key.endswith("sha256")},
        "data": {"sha256": table.sha256},
        "options": {key: value for key, value in _plain(config).items() if key not in NOT_IDENTITY},
        "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": versions(),
    }


def _all_shards(
    folder: RunFolder, config: ScoreConfig, scorer: PairScorer, table: Table, pairs: Sequence[PreferencePair]
) -> list[Shard]:
    """Every shard, made now or by an earlier run."""
    blocks = [
        range(len(pairs))[start : start + config.shard_pairs] for start in range(0, len(pairs), config.shard_pairs)
    ]
    known = [_known_shard(shard_path(folder.shards, number), block, pairs) for number, block in enumerate(blocks)]
    shards = []
    with Progress(len(pairs), sum(len(shard.rows) for shard in known if shard is not None)) as bar:
        for number, (block, found) in enumerate(zip(blocks, known, strict=True)):
            shard = found if found is not None else _new_shard(scorer, table, pairs, block, bar)
            if found is None:
                write_shard(shard_path(folder.shards, number), shard.rows, shard.facts)
            # A resumed run keeps the budget that the run before it had come to, so that it ends in the same bytes.
            scorer.stream.budget = TokenBudget(**shard.facts["batch_tokens"])
            shards.append(shard)
    return shards


def _known_shard(path: Path, block: range, pairs: Sequence[PreferencePair]) -> Shard | None:
    found = read_shard(path, SCHEMA)
    if found is None or found[0]["id"].to_pylist() != [pairs[index].id for index in block]:
        return None
    return Shard(*found)


def _new_shard(scorer: PairScorer, table: Table, pairs: Sequence[PreferencePair], block: range, bar: Progress) -> Shard:
    began = time.monotonic()

    def where(row: int) -> str:
        return f"{table.where(block[row])} (id '{pairs[block[row]].id}')"

    scored = scorer.score([pairs[index] for index in block], where, bar.advance)
    facts = {
        "tokens": scored.tokens,
        "seconds": time.monotonic() - began,
        "batch_tokens": asdict(scorer.stream.budget),
        "problems": [asdict(problem) for problem in scored.problems],
    }
    rows = pa.Table.from_pandas(scored.frame, schema=SCHEMA, preserve_index=False).replace_schema_metadata(None)
    return Shard(rows, facts)


def _data_facts(table: Table, pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    return {
        "path": table.path,
        "format": table.format,
        "rows": len(pairs),
        "sha256": table.sha256,
        "pairs_sha256": content_sha256(pairs),
    }


def _shard_facts(shards: Sequence[Shard], table: Table, pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    """What all shards together say: rows by status, the first problems with their lines, speed."""
    lines = {pair.id: table.lines[index] for index, pair in enumerate(pairs)}
    problems = [{**problem, "line": lines[problem["id"]]} for shard in shards for problem in shard.facts["problems"]]
    statuses = Counter(status for shard in shards for status in shard.rows["status"].to_pylist())
    tokens, seconds = (sum(shard.facts[name] for shard in shards) for name in ("tokens", "seconds"))
    return {
        "rows_by_status": dict(sorted(statuses.items())),
        "problems": problems[:LISTED_PROBLEMS],
        "problems_in_all": len(problems),
        "batch_tokens": shards[-1].facts["batch_tokens"],
        "tokens": tokens,
        "scoring_seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
    }


def _report(folder: RunFolder, pairs: Sequence[PreferencePair]) -> Report:
    facts = folder.facts()
    if not (folder.path / SCORES_FILE).is_file() or _sha256(folder) != facts["scores_sha256"]:
        raise StoreCorrupt(
            f"{folder.path / SCORES_FILE}: gone or changed since the run ended; delete {folder.path} and run again"
        )
    frame = pd.read_parquet(io.BytesIO((folder.path / SCORES_FILE).read_bytes()))
    statuses = facts["rows_by_status"]
    refuse_if_none(facts, "no pair could be scored", folder.path / SCORES_FILE)
    by = "ches_normalized"
    return Report(
        {
            "Pairs by status": counts(statuses, "status"),
            "Quantiles of the scores (higher: the responses look more alike to the model)": quantiles(
                frame, SCORE_COLUMNS
            ),
            f"Most alike by {by}": extremes(frame, by, pairs, LISTED_PAIRS, highest=True),
            f"Least alike by {by}": extremes(frame, by, pairs, LISTED_PAIRS, highest=False),
        },
        {**facts, "wrote": [str(folder.path / SCORES_FILE), str(folder.path / RUN_FILE)]},
    )
