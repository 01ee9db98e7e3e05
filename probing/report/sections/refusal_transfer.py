"""What a run of ``probing refusal transfer`` says: whether a direction does the same in another model."""

import math
from typing import Any

import pandas as pd

from probing.report.checks import judge, judge_rows
from probing.report.parts import Check, RowTable, RunData, RunReport, Section
from probing.report.plots_refusal import draw_transfer
from probing.report.sections.shared import (
    LEAST_DIRECTIONS,
    NAN,
    Thresholds,
    collect,
    describe_missing,
    find_file,
    judge_p,
    make_rows,
    measure_outside,
    name_section,
    pick_tables,
    prefix,
    read_band,
    read_estimate,
    read_notes,
    read_number,
    read_option,
    say,
    say_band,
    say_estimate,
    say_rows,
)

SAME = "Does the direction do the same in another model?"
NEEDED = "model direction auroc auroc_low auroc_high"
TABLES = ("Models", "AUROC of held-out", "Change of", "Refused in", "By category", "AUROC by category")
OWN = "own direction"
EDITS = {
    "before": "without an edit",
    "own": "with the model's own direction",
    "transferred": "with the transferred direction",
    "random": "with a random one through the map",
}


def describe_transfer(run: RunData, thresholds: Thresholds) -> RunReport:
    """Sections, checks and answers of a run of ``probing refusal transfer``."""
    results = find_file(run, "results.parquet", NEEDED)
    if results is None:
        return describe_missing(run, "transfer", SAME, "results.parquet")
    name = name_section(run, "transfer")
    answers = find_file(run, "answers.parquet", "id")
    rows = [] if answers is None else [_list_answers(run, name, answers)]
    said, figures = [], []
    checks: list[Check | None] = [*judge_rows(run, name, thresholds)]
    for model, own in results.groupby("model", sort=False):
        own = own.reset_index(drop=True)
        best = _pick_best(own)
        said += [f"{model}: {sentence}" for sentence in _say_model(own, best)]
        figures += [figure | {"title": f"{model}: {figure['title']}"} for figure in draw_transfer(own)]
        checks += [prefix(check, str(model)) for check in _check_model(run, name, best, thresholds)]
    section = Section(
        name=name,
        question=SAME,
        run=run.label,
        says=[
            *said,
            "A map that was fitted on harmful and harmless prompts has seen that they differ in both models: a good "
            "AUROC through it says that the same prompts differ alike, and not that the mechanism is the same.",
            *say_rows(run),
            *read_notes(run),
        ],
        figures=figures,
        tables=pick_tables(run, *TABLES),
        rows=rows[0].name if rows else None,
    )
    return RunReport([section], collect(checks), rows)


def _pick_best(results: pd.DataFrame) -> "pd.Series[Any] | None":
    """The given direction through the map of least error: the one that was written."""
    given = results[results["direction"] != OWN]
    if given.empty:
        return None
    known = given["map_error"].notna() if "map_error" in given else pd.Series(False, index=given.index)
    return given[known].sort_values("map_error", kind="stable").iloc[0] if known.any() else given.iloc[0]


def _say_model(results: pd.DataFrame, best: "pd.Series[Any] | None") -> list[str]:
    if best is None:
        return ["no direction was carried over."]
    said = [
        f"through the map of least error ('{best['direction']}', error {say(read_number(best, 'map_error'))} of that "
        f"of the mean state alone) the direction separates held-out prompts with an AUROC of "
        f"{say_estimate(read_estimate(best, 'auroc', 'auroc_'))}; random directions through the same map: "
        f"{say_band(best, 'random') or 'not measured'}. Its cosine with the model's own is "
        f"{say(read_number(best, 'cosine_to_own'))}."
    ]
    for change, words in (("removed", "removing it from harmful"), ("added", "adding it to harmless")):
        value = read_estimate(best, change, f"{change}_")
        if not math.isnan(value.value):
            band = say_band(best, f"random_{change}")
            beside = f"; random ones through the map: {band}" if band else ""
            said.append(f"{words} prompts changes the refusal log-odds by {say_estimate(value)} nats{beside}.")
    return said


def _check_model(
    run: RunData, section: str, best: "pd.Series[Any] | None", thresholds: Thresholds
) -> list[Check | None]:
    p, drawn = read_number(best, "random_p"), read_option(run, "random_edits")
    removed = read_estimate(best, "removed", "removed_")
    few = drawn is not None and drawn < LEAST_DIRECTIONS
    outside = measure_outside(removed, *((NAN, NAN) if few else read_band(best, "random_removed")))
    rows, draws = _count_held_out(run), read_option(run, "permutations")
    return [
        judge_p("transfer_p_random", run, section, p, rows, draws=draws, thresholds=thresholds),
        judge("transfer_outside_random", run.label, section, outside, thresholds),
    ]


def _count_held_out(run: RunData) -> int:
    """Prompts that the directions were judged on."""
    facts = (run.record.get("directions") or [{}])[0]
    return int((facts.get("prompts") or {}).get("held_out") or 0)


def _list_answers(run: RunData, section: str, answers: pd.DataFrame) -> RowTable:
    columns = {"model": "model", "kind": "kind", "category": "category", "edit": "the direction is"}
    columns |= {f"verdict_{name}": f"answer {words}" for name, words in EDITS.items()}
    texts = {"prompt": "prompt"} | {f"answer {words}": f"answer_{name}" for name, words in EDITS.items()}
    about = (
        "One row a held-out prompt and model; verdicts are those of phrases, which is a weak judge: read the answers."
    )
    title = "Prompts with the answers under each direction"
    return make_rows(run, section, title, answers, columns, about, texts=texts, apart=["model"])
