"""What a run of ``probing ccs`` says: whether states tell true from false, and what else explains it."""

import math
from typing import Any

import numpy as np
import pandas as pd

from probing.report.checks import judge, judge_rows
from probing.report.figures import Figure
from probing.report.parts import Check, RowTable, RunData, RunReport, Section
from probing.report.plots import draw_layers
from probing.report.sections.shared import (
    ALL,
    CHOSEN,
    Thresholds,
    collect,
    describe_missing,
    draw_rows,
    find_file,
    is_ok,
    judge_p,
    make_rows,
    name_section,
    pick_row,
    pick_tables,
    read_estimate,
    read_notes,
    read_number,
    read_option,
    say_band,
    say_estimate,
    say_p,
    say_percent,
    say_rows,
)
from probing.types import Estimate

TRUTH = "Do the states tell true from false?"
REAL = "Is the separation real?"
FORMS = ("ccs_A1", "ccs_A0", "ccs_N1", "ccs_N0")
ACCURACY = "esa"
CONTROLS = (
    "CCS there, beside",
    "Distractor test",
    "Marker control",
    "By formulation",
    "Mean over places of",
    "Restarts of CCS",
    "Cosine of the CCS",
)
COLUMNS = {
    "right": "CCS is right, share of statement and opposite",
    "score": "score of the statement, 0 (false) to 1 (true)",
    "label": "the statement is true",
    "category": "category",
    "formulation": "formulation",
    "status": "status",
    "fold": "fold",
    "place": "place chosen without this fold",
    "ccs_A1": "probability of the statement affirmed",
    "ccs_A0": "probability of the statement denied",
    "ccs_N1": "probability of the opposite affirmed",
    "ccs_N0": "probability of the opposite denied",
    "detail": "what is wrong with the row",
}


def describe_ccs(run: RunData, thresholds: Thresholds) -> RunReport:
    """Sections, checks and pairs of statements of a run of ``probing ccs``."""
    results = find_file(run, "results.parquet", "subset place probe metric value low high")
    if results is None:
        return describe_missing(run, "truth", TRUTH, "results.parquet")
    truth, real = name_section(run, "truth"), name_section(run, "controls-truth")
    found = pick_row(results, subset=ALL, place=CHOSEN, probe="ccs", metric=ACCURACY)
    rows, figures = _list_pairs(run, truth)
    sections = [
        Section(
            name=truth,
            question=TRUTH,
            run=run.label,
            says=[*_say_accuracy(found), *_say_others(results), *_say_wrong(rows), *say_rows(run)],
            figures=[*draw_layers(results, {}, [CHOSEN]), *figures],
            tables=pick_tables(run, "Probes, held out", "By place"),
            rows=None if rows is None else rows.name,
        ),
        Section(
            name=real,
            question=REAL,
            run=run.label,
            says=[*_say_nulls(run, found), *_say_distractor(run), *_say_marker(run), *read_notes(run)],
            tables=pick_tables(run, *CONTROLS),
        ),
    ]
    checks = [*judge_rows(run, truth, thresholds), *_check_nulls(run, real, found, thresholds)]
    checks.append(_check_word(run, real, thresholds))
    return RunReport(sections, collect(checks), [] if rows is None else [rows])


def _say_accuracy(found: "pd.Series[Any] | None") -> list[str]:
    value = read_estimate(found, n="pairs")
    if math.isnan(value.value):
        return ["The accuracy of CCS at the place chosen inside each fold is not in the files."]
    return [
        f"The accuracy of CCS on held-out statements is {say_estimate(value)} at the place chosen inside each fold "
        f"({value.n:,} pairs; in brackets the 95 % interval over groups of pairs, of these trained probes: another "
        f"start of CCS is not in it)."
    ]


def _say_others(results: pd.DataFrame) -> list[str]:
    """The other probes at the place that each chose."""
    told = []
    for probe, words in (("logistic", "logistic regression"), ("mass_mean", "mass mean"), ("crc_tpc", "CRC-TPC")):
        value = read_estimate(pick_row(results, subset=ALL, place=CHOSEN, probe=probe, metric=ACCURACY), n="pairs")
        if not math.isnan(value.value):
            told.append(f"{words} {say_estimate(value)}")
    if not told:
        return []
    return [f"For comparison, the accuracy of other probes: {', '.join(told)}. The first two are fitted to the labels."]


def _say_wrong(rows: RowTable | None) -> list[str]:
    """How many pairs CCS gets wrong."""
    right = next((column.values for column in rows.columns if column.name == "right"), None) if rows else None
    if right is None:
        return []
    known = [value for value in right if not math.isnan(value)]
    wrong, half = sum(value == 0 for value in known), sum(0 < value < 1 for value in known)
    first = " These pairs come first in the rows." if wrong or half else ""
    return [
        f"Of {len(known):,} pairs it is wrong about both statement and opposite in {wrong:,}, and about one of them in "
        f"{half:,}.{first}"
    ]


def _say_nulls(run: RunData, found: "pd.Series[Any] | None") -> list[str]:
    said, draws = [], read_option(run, "permutations")
    random, labels, pairings = (say_band(found, name) for name in ("random", "labels", "pairings"))
    as_good, p = read_number(found, "p_random"), read_number(found, "p_labels")
    if random:
        said.append(
            f"Random directions, oriented in the same way, reach an accuracy of {random} (middle 95 %); "
            f"{say_percent(as_good)} of them do as well as CCS."
        )
    if labels:
        said.append(
            f"Under permuted labels the accuracy is {labels} (middle 95 %), {say_p(p, draws)}. A small p says that the "
            f"answers go with truth on these statements; it says nothing of whether the model uses what is read."
        )
    if pairings:
        said.append(
            f"CCS trained on statements with the no form of another statement reaches {pairings} on the true pairs."
        )
    return said or ["Null distributions are not in the files."]


def _read_word(run: RunData) -> tuple[str, "pd.Series[Any] | None", "pd.Series[Any] | None"]:
    """Accuracy about truth and about the appended word, at the place that CCS chose."""
    controls = find_file(run, "controls.parquet", "control place probe metric value")
    place = str((run.record.get("best") or {}).get("ccs", ""))
    where = {"control": "distractor", "place": place, "probe": "ccs"}
    return place, pick_row(controls, **where, metric="truth"), pick_row(controls, **where, metric="distractor")


def _say_distractor(run: RunData) -> list[str]:
    place, truth, word = _read_word(run)
    if truth is None or word is None:
        return ["There is no distractor test of this run at the chosen place (--distractor)."]
    return [
        f"With '{read_option(run, 'distractor') or 'a word'}' appended to half of the pairs, CCS at {place} is right "
        f"about truth in {say_estimate(read_estimate(truth, n='pairs'))} and about the word in "
        f"{say_estimate(read_estimate(word, n='pairs'))} of them: CCS finds whatever contrast is most prominent."
    ]


def _say_marker(run: RunData) -> list[str]:
    controls = find_file(run, "controls.parquet", "control place probe metric value")
    place = str((run.record.get("best") or {}).get("ccs", ""))
    row = pick_row(controls, control="marker:change", place=place, probe="ccs", metric=ACCURACY)
    if row is None:
        return []
    return [
        f"With the negating word replaced, the accuracy of the same probe at {place} changes by "
        f"{say_estimate(read_estimate(row, n='pairs'))}. A probe of truth must lose it, since nothing is denied any "
        f"more."
    ]


def _check_nulls(
    run: RunData, section: str, found: "pd.Series[Any] | None", thresholds: Thresholds
) -> list[Check | None]:
    rows = read_estimate(found, n="pairs").n
    p = read_number(found, "p_labels")
    random = read_number(found, "p_random")
    return [
        judge_p(
            "ccs_random_as_good", run, section, random, rows, draws=read_option(run, "random"), thresholds=thresholds
        ),
        judge_p("ccs_labels_p", run, section, p, rows, draws=read_option(run, "permutations"), thresholds=thresholds),
    ]


def _check_word(run: RunData, section: str, thresholds: Thresholds) -> Check | None:
    """Whether CCS follows the appended word; nothing where there was none."""
    _, truth, word = _read_word(run)
    if truth is None or word is None:
        return None
    about_word, about_truth = read_estimate(word, n="pairs"), read_estimate(truth, n="pairs")
    more = Estimate(
        value=about_word.value - about_truth.value,
        low=about_word.low - about_truth.high,
        high=about_word.high - about_truth.low,
        n=about_word.n,
    )
    return judge("ccs_follows_word", run.label, section, more, thresholds)


def _list_pairs(run: RunData, section: str) -> tuple[RowTable | None, list[Figure]]:
    """The pairs with what CCS says of each, and the distribution of its scores."""
    pairs = find_file(run, "pairs.parquet", f"id label {' '.join(FORMS)}")
    if pairs is None:
        return None, []
    pairs = _judge_pairs(pairs)
    table = make_rows(
        run,
        section,
        "Statements, and what the held-out CCS probe says of them",
        pairs,
        COLUMNS,
        "One row a pair of a statement and its opposite; probabilities are of the probe that did not see the pair.",
        first="right",
    )
    named = pairs.assign(truth=np.where(pairs["label"].fillna(False), "true", "false"))
    title = "Score of the statements by CCS, held out"
    axis = "score of the statement, 0 (false) to 1 (true)"
    return table, draw_rows(is_ok(named), "score", title, axis, section, by="truth", unit="pairs")


def _judge_pairs(pairs: pd.DataFrame) -> pd.DataFrame:
    """The pairs with the score of the statement, and how far CCS is right about statement and opposite, 0, .5 or 1."""
    # The formulas of probes need torch, which takes seconds to import.
    from probing.probes.evaluate import measure_pairs, scores

    forms = np.stack([pairs[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in FORMS])
    truth = np.where(pairs["label"].fillna(False).to_numpy(dtype=bool), 1.0, -1.0)
    return pairs.assign(score=scores(forms)[0], right=measure_pairs(ACCURACY, forms, truth))
