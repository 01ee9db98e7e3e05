"""What runs of ``probing refusal extract`` and ``select`` say: where a direction tells, and which one decides."""

import math
from typing import Any

import pandas as pd

from probing.report.checks import judge, judge_rows
from probing.report.parts import Check, RunData, RunReport, Section
from probing.report.plots import draw_candidates
from probing.report.plots_refusal import draw_separation
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
    say_band,
    say_estimate,
    say_rows,
    subtract,
)
from probing.types import Estimate

WHERE = "Where do the states tell harmful prompts from harmless ones?"
WHICH = "Which direction makes the model refuse?"
PROMPTS = {
    "refusal_score": "refusal log-odds of the first token, nats",
    "kind": "kind",
    "category": "category",
    "part": "used to find directions (train) or to judge them (validation)",
    "used": "used: the model treats it as its kind",
    "status": "status",
}


def describe_extract(run: RunData, thresholds: Thresholds) -> RunReport:
    """Sections, checks and prompts of a run of ``probing refusal extract``."""
    results = find_file(run, "results.parquet", "place position auroc auroc_low auroc_high")
    if results is None:
        return describe_missing(run, "directions", WHERE, "results.parquet")
    name = name_section(run, "directions")
    best, count = _pick_best(results), int(run.record.get("held_out") or 0)
    prompts = find_file(run, "prompts.parquet", "id kind refusal_score")
    rows, figures = [], []
    if prompts is not None:
        about = "One row a prompt, with the log-odds of a refusal token to come first in the model as it is."
        title = "Prompts, and how the model begins to answer them"
        rows = [make_rows(run, name, title, prompts, PROMPTS, about, first="refusal_score")]
        axis, title = "refusal log-odds, nats (above 0: rather refuses)", "Refusal log-odds of the prompts"
        figures = draw_rows(is_ok(prompts), "refusal_score", title, axis, name, by="kind", unit="prompts")
    section = Section(
        name=name,
        question=WHERE,
        run=run.label,
        says=[
            *_say_best(best, count, int(results["auroc"].notna().sum())),
            *_say_signs(prompts),
            *say_rows(run),
            *read_notes(run),
        ],
        figures=[*draw_separation(results, _name_positions(results)), *figures],
        tables=pick_tables(run, "Prompts", "By place", "Refusal tokens"),
        rows=rows[0].name if rows else None,
    )
    checks = [*judge_rows(run, name, thresholds), *_check_best(run, name, best, count, thresholds)]
    return RunReport([section], collect(checks), rows)


def _name_positions(results: pd.DataFrame) -> dict[int, str]:
    """The positions that are drawn: where refusal is read, and where harmfulness is."""
    first, last = int(results["position"].min()), int(results["position"].max())
    named = {last: "the last token before the answer"}
    return named if first == last else named | {first: "the last token of the instruction"}


def _pick_best(results: pd.DataFrame) -> "pd.Series[Any] | None":
    """The direction with the highest AUROC of held-out prompts; of equal ones that with the lowest permuted labels."""
    known = results[results["auroc"].notna()]
    if known.empty:
        return None
    ends = ["labels_high"] if "labels_high" in known else []
    order = known.sort_values(["auroc", *ends], ascending=[False, *(True for _ in ends)], kind="stable")
    return order.iloc[0]


def _say_best(best: "pd.Series[Any] | None", count: int, judged: int) -> list[str]:
    if best is None:
        return ["No place and position has a direction of which held-out prompts could be judged."]
    value = read_estimate(best, "auroc", "auroc_")
    said = [
        f"The direction that tells held-out prompts apart best is at {best['place']}, position {best['position']}: "
        f"AUROC {say_estimate(value)} of {count:,} prompts. It is the best of {judged:,} on these prompts, so that "
        f"other prompts show somewhat less."
    ]
    band = say_band(best, "labels")
    if band:
        said.append(
            f"Directions made from permuted labels reach {band} there (middle 95 %). The band is wide where one "
            f"direction dominates the states: every difference of means then lies along it, with either sign."
        )
    angle = read_number(best, "angle")
    if not math.isnan(angle):
        said.append(f"95 % of bootstrap replicates of the prompts give a direction within {say(angle)} degrees of it.")
    return said


def _say_signs(prompts: pd.DataFrame | None) -> list[str]:
    """How many prompts the model treats as the other kind."""
    if prompts is None:
        return []
    read = is_ok(prompts)
    told = []
    for kind, wrong, words in (("harmful", -1, "not refused"), ("harmless", 1, "refused")):
        own = read.loc[read["kind"] == kind, "refusal_score"].dropna()
        if len(own):
            told.append(f"{int((own * wrong > 0).sum()):,} of {len(own):,} {kind} prompts are {words}")
    return [f"By the sign of their log-odds {' and '.join(told)} in the model as it is."] if told else []


def _check_best(
    run: RunData, section: str, best: "pd.Series[Any] | None", count: int, thresholds: Thresholds
) -> list[Check | None]:
    value = read_estimate(best, "auroc", "auroc_")
    value = Estimate(value.value, value.low, value.high, count)
    above = subtract(value, read_number(best, "labels_high"))
    return [
        judge("direction_auroc", run.label, section, value, thresholds),
        judge("direction_above_permuted", run.label, section, above, thresholds),
    ]


def describe_select(run: RunData, thresholds: Thresholds) -> RunReport:
    """Sections and checks of a run of ``probing refusal select``."""
    table = find_file(run, "candidates.parquet", "place position bypass induce kl cosmic status")
    if table is None:
        return describe_missing(run, "selection", WHICH, "candidates.parquet")
    name = name_section(run, "selection")
    chosen = pick_row(table, status="chosen")
    section = Section(
        name=name,
        question=WHICH,
        run=run.label,
        says=[
            *_say_chosen(run, chosen),
            *_say_candidates(table),
            *_say_cosmic(run, chosen),
            *say_rows(run),
            *read_notes(run),
        ],
        figures=draw_candidates(table),
        tables=pick_tables(run, "Choices", "Candidates", "Refusal score of the unedited", "Cost in"),
    )
    checks = [*judge_rows(run, name, thresholds), *_check_chosen(run, name, chosen, thresholds)]
    return RunReport([section], collect(checks))


def _say_chosen(run: RunData, chosen: "pd.Series[Any] | None") -> list[str]:
    if chosen is None:
        return ["No candidate was chosen."]
    base = run.record.get("base") or {}
    before, without = base.get("harmful", NAN), base.get("harmless", NAN)
    return [
        f"Chosen is {chosen['place']}, position {chosen['position']}. Without the direction the refusal log-odds of "
        f"harmful prompts are {say(read_number(chosen, 'bypass'))} nats in the mean, instead of {say(before)}; with it "
        f"added those of harmless prompts are {say(read_number(chosen, 'induce'))}, instead of {say(without)}; without "
        f"it the first token of harmless answers moves by {say(read_number(chosen, 'kl'))} nats. These means have no "
        f"interval."
    ]


def _say_candidates(table: pd.DataFrame) -> list[str]:
    within = int(table["status"].isin(["chosen", "passes"]).sum())
    return [
        f"{within:,} of {len(table):,} candidates were found to keep to all limits; of those that are not needed for "
        f"the choice this was not measured."
    ]


def _say_cosmic(run: RunData, chosen: "pd.Series[Any] | None") -> list[str]:
    """Whether the second opinion agrees."""
    other = run.record.get("cosmic")
    if not other or chosen is None:
        return ["There is no second opinion by COSMIC."]
    same = (str(other.get("place")), other.get("position")) == (str(chosen["place"]), chosen["position"])
    if same:
        return ["COSMIC, which needs no refusal tokens, chooses the same direction."]
    return [
        f"COSMIC, which needs no refusal tokens, chooses {other.get('place')}, position {other.get('position')}. Where "
        f"the two differ, the model may refuse with other first tokens than those that were found."
    ]


def _check_chosen(
    run: RunData, section: str, chosen: "pd.Series[Any] | None", thresholds: Thresholds
) -> list[Check | None]:
    counts = run.record.get("prompts") or {}
    checks = []
    for name, column, kind in (("select_bypass", "bypass", "harmful"), ("select_kl", "kl", "harmless")):
        number = Estimate(read_number(chosen, column), NAN, NAN, int(counts.get(kind) or 0))
        checks.append(judge(name, run.label, section, number, thresholds))
    return checks
