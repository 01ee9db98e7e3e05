"""What a run of ``probing refusal evaluate`` says: what an edit changes in refusal, and what it breaks."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.report.checks import judge, judge_rows
from probing.report.figures import Figure
from probing.report.parts import Check, RowTable, RunData, RunReport, Section
from probing.report.plots_refusal import BANDS, draw_edit
from probing.report.sections.shared import (
    ALL,
    NAN,
    Thresholds,
    collect,
    describe_missing,
    draw_rows,
    find_file,
    make_rows,
    measure_outside,
    name_section,
    pick_row,
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
    subtract,
)
from probing.statistics.bootstrap import bootstrap_mean, estimate_share
from probing.types import Estimate

CHANGES = "What does the edit change in refusal?"
BROKE = "What did the edit break?"
REFUSED = ("refusal", "soft refusal")
BROKEN = ("empty", "degenerate", "unfinished thought")
TABLES = (
    "Refusal in generated",
    "Log-odds of refusal",
    "By category",
    "Each category left out",
    "Refused, by where",
    "Our verdicts",
)
LEAST_CHANGED = 10
"""Answers that changed, and that did not, below which the bootstrap of a change is too narrow."""
BAND_CHECKS = {
    "random": "edit_outside_random",
    "covariance": "edit_outside_covariance",
    "labels": "edit_outside_permuted",
}
"""The checks against bands of directions that mean nothing, by the beginning of the columns of the band."""
NOTHING = Estimate(NAN, NAN, NAN, 0)
COLUMNS = {
    "log_odds_change": "change of the refusal log-odds, nats",
    "log_odds_before": "refusal log-odds before, nats",
    "log_odds_after": "refusal log-odds after, nats",
    "verdict_before": "answer before",
    "verdict_after": "answer after",
    "kind": "kind",
    "category": "category",
    "thinking": "thinking",
    "kl_first": "KL of the first token, nats",
    "kl_answer": "KL over the model's own answer, nats a token",
    "ended_before": "ended by itself before",
    "ended_after": "ended by itself after",
}
TEXTS = {
    "prompt": "prompt",
    "answer before": "answer_before",
    "answer after": "answer_after",
    "thought before": "thought_before",
    "thought after": "thought_after",
}


def describe_evaluate(run: RunData, thresholds: Thresholds) -> RunReport:
    """Sections, checks and answers of a run of ``probing refusal evaluate``."""
    results = find_file(run, "results.parquet", "kind category measure when value low high")
    if results is None:
        return describe_missing(run, "refusal", CHANGES, "results.parquet")
    everything = results[results["category"] == ALL]
    refusal, broke = name_section(run, "refusal"), name_section(run, "broken")
    answers = find_file(run, "answers.parquet", "id kind verdict_before verdict_after")
    rows = [] if answers is None else [_list_answers(run, refusal, answers)]
    checks: list[Check | None] = [*judge_rows(run, refusal, thresholds)]
    for thinking, own in _split_thinking(everything):
        found = [*_check_bands(run, refusal, own, thresholds), _check_kl(run, broke, own, thresholds)]
        checks += [prefix(check, thinking.removesuffix(": ")) if thinking else check for check in found]
    checks += _check_answers(run, refusal, broke, answers, thresholds)
    sections = [
        _describe_refusal(run, refusal, everything, answers, rows),
        _describe_broken(run, broke, everything, answers, rows),
    ]
    return RunReport(sections, collect(checks), rows)


def _describe_refusal(
    run: RunData, name: str, results: pd.DataFrame, answers: pd.DataFrame | None, rows: Sequence[RowTable]
) -> Section:
    said: list[str] = []
    figures: list[Figure] = []
    for thinking, own in _split_thinking(results):
        said += [f"{thinking}{sentence}" for sentence in _say_refusal(own)]
        figures += _draw_refusal(own, thinking)
    return Section(
        name=name,
        question=CHANGES,
        run=run.label,
        says=[*read_notes(run, "Verdict"), *said, *say_rows(run), *read_notes(run)],
        figures=[*figures, *_draw_answers(answers, name)],
        tables=pick_tables(run, *TABLES),
        rows=rows[0].name if rows else None,
    )


def _split_thinking(results: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The results of each way of thinking, and how its sentences begin; the text has none."""
    own = results[results["kind"].isin(["harmful", "harmless"])]
    if "thinking" not in own or own["thinking"].nunique() < 2:
        return [("", own)]
    return [(f"Thinking {name}: ", part) for name, part in own.groupby("thinking", sort=False)]


def _pick(results: pd.DataFrame, kind: str, measure: str, when: str = "after") -> "pd.Series[Any] | None":
    return pick_row(results, kind=kind, measure=measure, when=when)


def _aim(run: RunData) -> str:
    """The kind of prompts whose refusal the edit is made to change."""
    coefficient = read_option(run, "coefficient")
    adds = read_option(run, "mode") == "add" and (coefficient is None or float(coefficient) > 0)
    return "harmless" if adds else "harmful"


def _say_refusal(results: pd.DataFrame) -> list[str]:
    said = []
    for kind in ("harmful", "harmless"):
        before, after = (_pick(results, kind, "refusal_log_odds", when) for when in ("before", "after"))
        if after is None:
            continue
        bands = [f"{BANDS[name][0]}: {say_band(after, name)}" for name in BANDS if say_band(after, name)]
        beside = f" ({'; '.join(bands)})" if bands else " (no directions were drawn to compare it with)"
        said.append(
            f"The refusal log-odds of {kind} prompts are {say_estimate(read_estimate(before))} nats in the mean before "
            f"and {say_estimate(read_estimate(after))} after{beside}."
        )
        said += _say_texts(_pick(results, kind, "refused"), kind)
    if said:
        said.append(
            "Random directions hardly touch what the states vary along, so that a direction that means nothing often "
            "leaves their band; those with the covariance of the states are the harder comparison."
        )
    return said or ["No prompt was scored."]


def _say_texts(refused: "pd.Series[Any] | None", kind: str) -> list[str]:
    """Refusals in text beside those under random directions; nothing where these answered no prompt."""
    count, band = read_number(refused, "random_n"), say_band(refused, "random")
    if not band or not count > 0:
        return []
    said = (
        f"The share of {kind} prompts that are refused in text is {say_estimate(read_estimate(refused))} after the edit"
    )
    if count == 1:
        return [f"{said}; under one random direction it is {say(read_number(refused, 'random_low'))}."]
    return [f"{said}; under {int(count)} random directions it is {band} (middle 95 %)."]


def _draw_refusal(results: pd.DataFrame, thinking: str) -> list[Figure]:
    shares = "Share of prompts that are refused, by their answers"
    odds = "Refusal log-odds of the first token, mean"
    return [
        *draw_edit(results, "refused", f"{thinking}{shares}", "share"),
        *draw_edit(results, "refusal_log_odds", f"{thinking}{odds}", "log-odds, nats"),
    ]


def _draw_answers(answers: pd.DataFrame | None, section: str) -> list[Figure]:
    if answers is None:
        return []
    figures = []
    for when in ("before", "after"):
        if f"log_odds_{when}" in answers:
            title = f"Refusal log-odds of the prompts {when} the edit"
            axis = "refusal log-odds, nats (above 0: rather refuses)"
            figures += draw_rows(answers, f"log_odds_{when}", title, axis, section, by="kind", unit="prompts")
    return figures


def _describe_broken(
    run: RunData, name: str, results: pd.DataFrame, answers: pd.DataFrame | None, rows: Sequence[RowTable]
) -> Section:
    said = [*_say_broken(answers)]
    for thinking, own in _split_thinking(results):
        kl = _pick(own, "harmless", "kl_first")
        if not math.isnan(read_number(kl, "value")):
            band = say_band(kl, "random")
            beside = f"; random directions: {band}" if band else "; no random directions were drawn"
            said.append(
                f"{thinking}The first token of harmless answers moves by {say_estimate(read_estimate(kl))} nats "
                f"(KL{beside})."
            )
        answer = _pick(own, "harmless", "kl_answer")
        if not math.isnan(read_number(answer, "value")):
            said.append(
                f"{thinking}The KL over the model's own harmless answers is {say_estimate(read_estimate(answer))} nats "
                f"a token."
            )
    text = pick_row(results, kind="text", measure="cross_entropy", when="change")
    if text is None:
        said.append("There is no cross-entropy on a text of another kind (--text).")
    else:
        said.append(
            f"On the text that was given the cross-entropy changes by {say_estimate(read_estimate(text))} nats a token."
        )
    said.append("That fewer answers refuse is no success where answers are empty or go in circles.")
    return Section(
        name=name,
        question=BROKE,
        run=run.label,
        says=said,
        tables=pick_tables(run, "Answers by what they do", "How far harmless", "Cross-entropy"),
        rows=rows[0].name if rows else None,
    )


def _say_broken(answers: pd.DataFrame | None) -> list[str]:
    if answers is None:
        return ["The answers themselves are not in the files."]
    said = []
    for kind, own in answers.groupby("kind", sort=False):
        before, after = (own[f"verdict_{when}"].isin(BROKEN) for when in ("before", "after"))
        said.append(
            f"Of {len(own):,} answers to {kind} prompts {int(after.sum()):,} are empty, degenerate or unfinished after "
            f"the edit, {int(before.sum()):,} before it."
        )
    return said


def _list_answers(run: RunData, section: str, answers: pd.DataFrame) -> RowTable:
    """The prompts with both answers, those whose refusal fell most first."""
    if {"log_odds_before", "log_odds_after"} <= set(answers.columns):
        answers = answers.assign(log_odds_change=answers["log_odds_after"] - answers["log_odds_before"])
    others = {name: name.replace("_", " ") for name in answers.columns if name.startswith("judge_")}
    return make_rows(
        run,
        section,
        "Prompts with the answers before and after the edit",
        answers,
        {**COLUMNS, **others},
        "One row a prompt (and way of thinking); verdicts are those of phrases, which is a weak judge: read the "
        "answers.",
        first="log_odds_change",
        texts=TEXTS,
        apart=["thinking"],
    )


def _check_bands(run: RunData, section: str, results: pd.DataFrame, thresholds: Thresholds) -> list[Check | None]:
    """How far the refusal log-odds after the edit lie outside of what directions do that mean nothing."""
    row = _pick(results, _aim(run), "refusal_log_odds")
    found = read_estimate(row)
    judged = [
        judge(name, run.label, section, measure_outside(found, *read_band(row, band)), thresholds)
        for band, name in BAND_CHECKS.items()
        if band == "random" or say_band(row, band)
    ]
    return [prefix(check, f"{_aim(run)} prompts") for check in judged]


def _check_kl(run: RunData, section: str, results: pd.DataFrame, thresholds: Thresholds) -> Check | None:
    row = _pick(results, "harmless", "kl_first")
    more = subtract(read_estimate(row), read_band(row, "random")[1])
    return judge("edit_kl_harmless", run.label, section, more, thresholds)


def _check_answers(
    run: RunData, refusal: str, broke: str, answers: pd.DataFrame | None, thresholds: Thresholds
) -> list[Check | None]:
    change, broken = NOTHING, NOTHING
    if answers is not None and len(answers):
        units = answers["prompt"].to_numpy() if "prompt" in answers else answers["id"].to_numpy()
        broken = estimate_share(answers["verdict_after"].isin(BROKEN).astype(float), groups=units)
        harmless = (answers["kind"] == "harmless").to_numpy()
        if harmless.any():
            own = answers[harmless]
            change = estimate_change(
                own["verdict_before"].isin(REFUSED).to_numpy(),
                own["verdict_after"].isin(REFUSED).to_numpy(),
                units[harmless],
            )
    return [
        judge("edit_refuses_harmless", run.label, refusal, change, thresholds),
        judge("edit_broken_answers", run.label, broke, broken, thresholds),
    ]


def estimate_change(before: NDArray[np.bool_], after: NDArray[np.bool_], units: NDArray[Any]) -> Estimate:
    """Change of a share of the same rows, with a 95 % interval over groups of rows.

    Where few rows changed, or few did not, the bootstrap is too narrow: there the ends are those of the shares of rows
    that were gained and lost, the outer ones of both.

    Args:
        before: whether each row had the property, [row].
        after: whether it has it, [row].
        units: group of each row, [row].
    """
    change = after.astype(np.float64) - before.astype(np.float64)
    moved = int(np.count_nonzero(change))
    if min(moved, len(change) - moved) >= LEAST_CHANGED:
        return bootstrap_mean(change, groups=units)
    gained, lost = (estimate_share((change == sign).astype(np.float64), groups=units) for sign in (1, -1))
    return Estimate(float(change.mean()), gained.low - lost.high, gained.high - lost.low, len(change))
