"""The job ``probing demo``: every job on the bundled model and data."""

import importlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.data.bundled import BUNDLED, BUNDLED_DISPLACED
from probing.data.tables import read_table
from probing.errors import SourceMismatch
from probing.runs import capture, ccs, clusters, displacement, influence, probe, report, rollouts, score
from probing.runs import filter as filtering
from probing.runs.common.datasets import read_pairs
from probing.runs.common.options import DatasetOptions, EngineOptions, PairDataOptions, option
from probing.runs.refusal.audit import AuditConfig
from probing.runs.refusal.evaluate import EvaluateConfig
from probing.runs.refusal.extract import ExtractConfig
from probing.runs.refusal.select import SelectConfig
from probing.runs.score.config import SCORES_FILE
from probing.store.manifest import MANIFEST, RUN_FILE, read_run
from probing.types import Report

if TYPE_CHECKING:
    import pandas as pd


KEEP_LOWEST = 0.5
REPORT_FILE = "report.html"
QUICK: dict[str, Any] = {"restarts": 3, "epochs": 500, "pairings": 1, "resamples": 300, "permutations": 300}
"""Options of contrast-consistent probes that take seconds instead of minutes."""
PLACES = "resid_post:all,final_norm"


FEW_DRAWS: dict[str, Any] = {"resamples": 200, "permutations": 50}
KL_MOST = 5.0
"""So small a model knows two kinds of answers, so that its harmless ones change a lot with any edit."""
EVALUATED = 48
"""Prompts that the model answers before and after the edit."""


GROUPS = 24
"""Groups of responses that are measured, so that the page of the demo has room for the tokens of pairs too."""
LABELLED: dict[str, Any] = {"data": BUNDLED, "chat": True, "over": "template"}
JOBS: dict[str, Callable[[Path], DatasetOptions]] = {
    "displacement": lambda out: displacement.DisplacementConfig(
        reference=BUNDLED,
        policy=BUNDLED_DISPLACED,
        data=BUNDLED,
        out=out / "displacement",
        group_column="kind",
        predictors="ches_normalized,displacement_rate",
    ),
    "influence": lambda out: influence.InfluenceConfig(
        model=BUNDLED,
        data=BUNDLED,
        target=BUNDLED,
        target_split="[:64]",
        quantity="refusal",
        refusal_text="I am sorry, but I cannot",
        group_column="kind",
        null_draws=2,
        out=out / "influence",
    ),
    "rollouts": lambda out: rollouts.RolloutsConfig(model=BUNDLED, data=BUNDLED, sample=GROUPS, out=out / "rollouts"),
    "capture": lambda out: capture.CaptureConfig(model=BUNDLED, places=PLACES, out=out / "states", **LABELLED),
    "ccs": lambda out: ccs.CCSConfig(model=BUNDLED, data=BUNDLED, out=out / "ccs", **QUICK),
    "probe": lambda out: probe.ProbeConfig(model=BUNDLED, out=out / "probe", split_by="object", **LABELLED),
    "clusters": lambda out: clusters.ClustersConfig(
        model=[BUNDLED, BUNDLED_DISPLACED],
        out=out / "clusters",
        split_by="object",
        permutations=200,
        resamples=200,
        **LABELLED,
    ),
    "refusal extract": lambda out: ExtractConfig(model=BUNDLED, out=out / "directions", **FEW_DRAWS),
    "refusal select": lambda out: SelectConfig(
        model=BUNDLED, directions=out / "directions", kl_most=KL_MOST, out=out / "selected"
    ),
    "refusal evaluate": lambda out: EvaluateConfig(
        model=BUNDLED,
        direction=out / "selected",
        mode="affine",
        sample=EVALUATED,
        out=out / "evaluated",
        resamples=FEW_DRAWS["resamples"],
    ),
    "refusal audit": lambda out: AuditConfig(
        reference=BUNDLED, policy=BUNDLED_DISPLACED, out=out / "audit", resamples=FEW_DRAWS["resamples"]
    ),
}
"""Every job that comes after scoring and filtering, with its options."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig(EngineOptions):
    """Score and filter the bundled preference pairs, see what training on some of them did, and which of them take
    refusals away; capture, probe and cluster; find the direction by which the bundled model refuses, and see what an
    edit along it changes; write one page about all of it.

    Args:
        out: folder for everything that is made.
    """

    out: Path = option(identity=False)


def run(config: DemoConfig) -> Report:
    """Run each job once; the tables are those of the jobs, and one by kind of pair."""
    if config.engine != "ray":
        return _run_jobs(config)
    # All jobs share the one Ray.
    from probing.runs.common.on_ray import connect

    with connect(config):
        return _run_jobs(config)


def _run_jobs(config: DemoConfig) -> Report:
    out = Path(config.out).expanduser()
    # Without a record of a run the files there are not the demo's.
    again = (out / "scores" / RUN_FILE).exists()
    of_score = score.ScoreConfig(model=BUNDLED, data=BUNDLED, out=out / "scores")
    reports = {"score": _run_anew("score", _choose_engine(of_score, config))}
    reports["filter"] = filtering.run(
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
    tables = {**_add_titles(reports), "By kind of pair": _count_by_kind(out)}
    others = {job: _run_anew(job, _choose_engine(settings(out), config)) for job, settings in JOBS.items()}
    others["report"] = report.run(
        report.ReportConfig(
            folders=[out], out=out / REPORT_FILE, title="Report on the demo", most_megabytes=1, overwrite=again
        )
    )
    reports |= others
    wrote = [name for report in reports.values() for name in report.facts["wrote"]]
    facts = {job: report.facts for job, report in reports.items()}
    return Report(tables | _add_titles(others), {**facts, "wrote": wrote})


def _choose_engine(job: DatasetOptions, config: DemoConfig) -> DatasetOptions:
    """The options of a job with the engine of the demo, where the job can be run by it."""
    names = [entry.name for entry in fields(EngineOptions)]
    chosen = {name: getattr(config, name) for name in names}
    return replace(job, **chosen) if isinstance(job, EngineOptions) else job


def _run_anew(job: str, config: DatasetOptions) -> Report:
    """Run a job; results of an earlier demo that were made with other versions are made again."""
    run_job = importlib.import_module(f"probing.runs.{job.replace(' ', '.')}").run
    try:
        report: Report = run_job(config)
    except SourceMismatch:
        record = RUN_FILE if (config.out / RUN_FILE).exists() else MANIFEST
        known = read_run(config.out, record).get("config", {})
        models = known.get("model", known.get("reference"))
        if models not in (BUNDLED, [BUNDLED, BUNDLED_DISPLACED]) or known.get("data") != BUNDLED:
            raise
        shutil.rmtree(config.out)
        report = run_job(config)
    return report


def _add_titles(reports: "dict[str, Report]") -> "dict[str, pd.DataFrame]":
    return {f"[{job}] {title}": table for job, report in reports.items() for title, table in report.tables.items()}


def _count_by_kind(out: Path) -> "pd.DataFrame":
    """The mean score of each kind of pair, and the number of them that were kept."""
    import pandas as pd

    table, pairs = read_pairs(PairDataOptions(data=BUNDLED, out=out))
    kinds = pd.DataFrame({"id": [pair.id for pair in pairs], "kind": [row["kind"] for row in table.rows]})
    joined = kinds.merge(pd.read_parquet(out / "scores" / SCORES_FILE), on="id", validate="one_to_one")
    kept = {row["id"] for row in read_table(str(out / "kept.jsonl")).rows}
    joined["kept"] = joined["id"].isin(kept)
    means = {name: (name, "mean") for name in ("ches_normalized", "edit_similarity")}
    return joined.groupby("kind", as_index=False).agg(pairs=("id", "size"), kept=("kept", "sum"), **means)
