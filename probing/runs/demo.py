"""The job ``probing demo``: every job on the bundled model and data."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from probing.data.bundled import BUNDLED
from probing.errors import SourceMismatch
from probing.runs import filter as filtering
from probing.runs import score
from probing.store.manifest import RUN_FILE, read_run
from probing.types import Report

if TYPE_CHECKING:
    import pandas as pd

KEEP_LOWEST = 0.5


@dataclass(frozen=True)
class DemoConfig:
    """Score and filter the bundled preference pairs with the bundled model.

    Args:
        out: folder for everything that is made.
    """

    out: Path


def run(config: DemoConfig) -> Report:
    """Run each job once; the tables are those of the jobs, and one by kind of pair."""
    out = Path(config.out).expanduser()
    again = (out / "scores" / RUN_FILE).exists()  # or the files there are somebody else's
    scored = _score(score.ScoreConfig(model=BUNDLED, data=BUNDLED, out=out / "scores"))
    kept = filtering.run(
        filtering.FilterConfig(
            data=BUNDLED,
            scores=out / "scores",
            by="ches_normalized",
            keep_lowest=KEEP_LOWEST,
            out=out / "kept.jsonl",
            bad="drop",
            overwrite=again,
        )
    )
    tables = {**_titled("score", scored), **_titled("filter", kept), "By kind of pair": _by_kind(out)}
    wrote = [*scored.facts["wrote"], *kept.facts["wrote"]]
    return Report(tables, {"score": scored.facts, "filter": kept.facts, "wrote": wrote})


def _score(config: score.ScoreConfig) -> Report:
    """Score; what an earlier demo left, made with another version of anything, is made anew."""
    try:
        return score.run(config)
    except SourceMismatch:
        known = read_run(config.out).get("config", {})
        if (known.get("model"), known.get("data")) != (BUNDLED, BUNDLED):
            raise
        shutil.rmtree(config.out)
        return score.run(config)


def _titled(job: str, report: Report) -> "dict[str, pd.DataFrame]":
    return {f"[{job}] {title}": table for title, table in report.tables.items()}


def _by_kind(out: Path) -> "pd.DataFrame":
    """The mean score of each kind, and how many of it were kept."""
    import pandas as pd

    table, pairs = score.read_pairs(BUNDLED, None, None)
    kinds = pd.DataFrame({"id": [pair.id for pair in pairs], "kind": [row["kind"] for row in table.rows]})
    joined = kinds.merge(pd.read_parquet(out / "scores" / score.SCORES_FILE), on="id", validate="one_to_one")
    kept = {row["id"] for row in score.read_pairs(str(out / "kept.jsonl"), None, None)[0].rows}
    joined["kept"] = joined["id"].isin(kept)
    means = {name: (name, "mean") for name in ("ches_normalized", "edit_similarity")}
    return joined.groupby("kind", as_index=False).agg(pairs=("id", "size"), kept=("kept", "sum"), **means)
