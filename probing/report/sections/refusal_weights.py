"""What runs of ``probing refusal audit`` and ``export`` say: what was done to the weights, and what it does."""

import math
from typing import Any

import pandas as pd

from probing.report.checks import judge, judge_rows
from probing.report.figures import Figure
from probing.report.parts import Check, RowTable, RunData, RunReport, Section
from probing.report.plots_refusal import draw_direction_drift, draw_writers
from probing.report.sections.shared import (
    NAN,
    Thresholds,
    collect,
    describe_missing,
    draw_rows,
    find_file,
    is_ok,
    make_rows,
    name_section,
    pick_row,
    pick_tables,
    read_estimate,
    read_notes,
    read_number,
    say,
    say_estimate,
    say_rows,
)
from probing.types import Estimate

WEIGHTS = "Was refusal taken out of the weights?"
STILL = "Does the model still refuse?"
EXPORTED = "What was exported, and how was it proved?"
LEFT = 0.05
"""A direction counts as removed from a matrix where at most this much of its component is left."""
REFUSAL = "Refusal by the first token"
COLUMNS = {
    "log_odds_change": "change of the refusal log-odds, nats",
    "log_odds_before": "refusal log-odds in the reference, nats",
    "log_odds_after": "refusal log-odds in the policy, nats",
    "kind": "kind",
    "category": "category",
    "status": "status",
}


def describe_audit(run: RunData, thresholds: Thresholds) -> RunReport:
    """Sections, checks and prompts of a run of ``probing refusal audit``."""
    writers = find_file(run, "writers.parquet", "writer kind layer component_left")
    if writers is None:
        return describe_missing(run, "weights", WEIGHTS, "writers.parquet")
    weights, still = name_section(run, "weights"), name_section(run, "still-refuses")
    drift = find_file(run, "drift.parquet", "place position cosine")
    prompts = find_file(run, "prompts.parquet", "id kind log_odds_before log_odds_after")
    rows, figures = _list_prompts(run, still, prompts)
    sections = [
        Section(
            name=weights,
            question=WEIGHTS,
            run=run.label,
            says=[*read_notes(run, "Finding"), *_say_writers(run, writers), *read_notes(run)],
            figures=[*draw_writers(writers, LEFT), *([] if drift is None else draw_direction_drift(drift))],
            tables=pick_tables(run, "Writers", "Refusal direction of the policy"),
        ),
        Section(
            name=still,
            question=STILL,
            run=run.label,
            says=[*_say_refusal(run), *_say_prompts(prompts), *say_rows(run)],
            figures=figures,
            tables=pick_tables(run, REFUSAL, "Refusal tokens"),
            rows=rows[0].name if rows else None,
        ),
    ]
    checks = [
        *judge_rows(run, still, thresholds),
        _check_writers(run, weights, thresholds),
        judge("audit_log_odds_change", run.label, still, _read_change(run, "harmful"), thresholds),
    ]
    return RunReport(sections, collect(checks), rows)


def _say_writers(run: RunData, writers: pd.DataFrame) -> list[str]:
    left = writers["component_left"].dropna()
    if left.empty:
        return ["No matrix of the reference holds anything of the direction."]
    row = writers.loc[left.index].sort_values("component_left", kind="stable").iloc[0]
    return [
        f"Of the component along the direction {say(float(left.median()))} is left in the median of {len(left):,} "
        f"matrices, and least, {say(float(left.min()))}, in {row['writer']}. These are numbers of weights and have no "
        f"interval."
    ]


def _read_change(run: RunData, kind: str) -> Estimate:
    """Change of the refusal log-odds, as the run printed it."""
    for table in pick_tables(run, REFUSAL).values():
        return read_estimate(pick_row(table, measure=f"{kind}: change of log-odds"), n="prompts")
    return Estimate(NAN, NAN, NAN, 0)


def _say_refusal(run: RunData) -> list[str]:
    said = []
    for kind in ("harmful", "harmless"):
        change = _read_change(run, kind)
        if not math.isnan(change.value):
            said.append(
                f"From reference to policy the refusal log-odds of {change.n:,} {kind} prompts change by "
                f"{say_estimate(change)} nats in the mean."
            )
    said.append(
        "Log-odds are of the first token; what the model then writes is what 'probing refusal evaluate' judges."
    )
    return said if len(said) > 1 else ["No refusal token was found, so that no log-odds are known.", *said]


def _say_prompts(prompts: pd.DataFrame | None) -> list[str]:
    """How many prompts changed sides."""
    if prompts is None:
        return []
    read = is_ok(prompts).dropna(subset=["log_odds_before", "log_odds_after"])
    said = []
    for kind, own in read.groupby("kind", sort=False):
        before, after = own["log_odds_before"] > 0, own["log_odds_after"] > 0
        said.append(
            f"Of {len(own):,} {kind} prompts the reference rather refuses {int(before.sum()):,} and the policy "
            f"{int(after.sum()):,}; {int((before & ~after).sum()):,} are refused by the reference alone, and "
            f"{int((~before & after).sum()):,} by the policy alone."
        )
    return said


def _list_prompts(run: RunData, section: str, prompts: pd.DataFrame | None) -> tuple[list[RowTable], list[Figure]]:
    if prompts is None:
        return [], []
    prompts = prompts.assign(log_odds_change=prompts["log_odds_after"] - prompts["log_odds_before"])
    about = "One row a prompt, with the log-odds of a refusal token to come first in both models."
    title = "Prompts, and how both models begin to answer them"
    table = make_rows(run, section, title, prompts, COLUMNS, about, first="log_odds_change")
    axis = "refusal log-odds, nats (above 0: rather refuses)"
    shown = {"before": "in the reference", "after": "in the policy"}
    figures = [
        figure
        for when, words in shown.items()
        for figure in draw_rows(
            is_ok(prompts),
            f"log_odds_{when}",
            f"Refusal log-odds of the prompts {words}",
            axis,
            section,
            by="kind",
            unit="prompts",
        )
    ]
    return [table], figures


def _check_writers(run: RunData, section: str, thresholds: Thresholds) -> Check | None:
    states: dict[str, Any] = run.record.get("writers_by_state") or {}
    count = int(run.record.get("writers") or 0)
    share = int(states.get("removed", 0)) / count if count else NAN
    return judge("audit_writers_removed", run.label, section, Estimate(share, NAN, NAN, count), thresholds)


def describe_export(run: RunData, thresholds: Thresholds) -> RunReport:
    """What was exported, and how it was proved; an export has no numbers, so that there are no checks."""
    record = run.record
    direction, tensors = record.get("direction") or {}, record.get("tensors") or []
    said = [
        f"Exported as '{record.get('format', 'unknown')}', mode '{record.get('mode', 'unknown')}', of the direction at "
        f"{direction.get('place', 'an unknown place')}, position {direction.get('position', 'unknown')} "
        f"({direction.get('method', 'method unknown')})."
    ]
    if tensors:
        changed = read_number(pd.Series(dict(record)), "changed")
        said.append(f"{say(changed)} of {len(tensors):,} tensors changed; manifest.json holds the hash of each.")
    proof = record.get("proof")
    said.append(f"Proved before the folder appeared: {proof}." if proof else "The record holds no proof.")
    said += [f"{str(note).rstrip('.')}." for note in record.get("notes") or []]
    return RunReport([Section(name=name_section(run, "export"), question=EXPORTED, run=run.label, says=said)])
