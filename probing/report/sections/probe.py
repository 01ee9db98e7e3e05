"""What a run of ``probing probe`` says: whether states tell labels apart, and beyond what."""

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
    say_rows,
)

LABELS = "Do the states tell the labels apart?"
REAL = "Is the separation real?"
HELD_OUT, FRESH, SURFACE = "held out", "fresh", "surface"
BASELINE = "lengths and punctuation"
LOGISTIC = "logistic"
PROBES = {"logistic": "logistic regression", "mass_mean": "mass mean", "lda": "linear discriminant analysis"}
COLUMNS = {
    "margin": "logit of the right label by logistic regression (below 0: wrong)",
    "right": "logistic regression is right",
    "set": "rows",
    "label": "label is yes",
    "category": "category",
    "logistic": "logit of yes, logistic regression",
    "mass_mean": "logit of yes, mass mean",
    "lda": "logit of yes, linear discriminant analysis",
    "surface": "logit of yes, lengths and punctuation",
    "status": "status",
    "fold": "fold",
    "detail": "what is wrong with the row",
}


def describe_probe(run: RunData, thresholds: Thresholds) -> RunReport:
    """Sections, checks and predictions of a run of ``probing probe``."""
    results = find_file(run, "results.parquet", "set subset place probe metric value low high")
    if results is None:
        return describe_missing(run, "labels", LABELS, "results.parquet")
    labels, real = name_section(run, "labels"), name_section(run, "controls-labels")
    everything = results[results["subset"] == ALL]
    held = everything[everything["set"] == HELD_OUT]
    found = pick_row(held, place=CHOSEN, probe=LOGISTIC, metric="auroc")
    fresh = _pick_fresh(run, everything)
    rows, figures = _list_predictions(run, labels)
    sections = [
        Section(
            name=labels,
            question=LABELS,
            run=run.label,
            says=[*_say_auroc(run, held), *_say_wrong(rows), *say_rows(run)],
            figures=[*draw_layers(_name_baseline(held), {}, [CHOSEN, BASELINE]), *figures],
            tables=pick_tables(run, "AUROC, ", "By place"),
            rows=None if rows is None else rows.name,
        ),
        Section(
            name=real,
            question=REAL,
            run=run.label,
            says=[
                *_say_surface(held, found),
                *_say_permuted(run, found),
                *_say_fresh(fresh),
                *read_notes(run),
            ],
        ),
    ]
    checks = [*judge_rows(run, labels, thresholds), *_check_all(run, real, found, fresh, thresholds)]
    return RunReport(sections, collect(checks), [] if rows is None else [rows])


def _pick_fresh(run: RunData, results: pd.DataFrame) -> "pd.Series[Any] | None":
    """The AUROC of the logistic probe on fresh prompts, at the place that the folds of all data found best."""
    best = (run.record.get("best") or {}).get(LOGISTIC)
    return pick_row(results, set=FRESH, place=best, probe=LOGISTIC, metric="auroc")


def _say_auroc(run: RunData, held: pd.DataFrame) -> list[str]:
    told = []
    for probe, words in PROBES.items():
        value = read_estimate(pick_row(held, place=CHOSEN, probe=probe, metric="auroc"), n="rows")
        if not math.isnan(value.value):
            told.append(f"{words} {say_estimate(value)}")
    if not told:
        return ["No probe could be judged at the place chosen inside each fold."]
    positive = run.record.get("positive")
    yes = f" (yes: '{positive}')" if positive else ""
    return [
        f"AUROC of held-out rows{yes} at the place chosen inside each fold: {', '.join(told)}; in brackets the 95 % "
        f"interval over groups of rows. It is the share of pairs of a yes row and a no row that are in the right "
        f"order, and says that a label can be read from the states, not that the model uses it."
    ]


def _say_wrong(rows: RowTable | None) -> list[str]:
    right = next((column.values for column in rows.columns if column.name == "right"), None) if rows else None
    if right is None:
        return []
    known = [value for value in right if value != ""]
    wrong = sum(value == "no" for value in known)
    first = " These rows come first." if wrong else ""
    return [f"Logistic regression gives {wrong:,} of {len(known):,} rows the wrong label.{first}"]


def _name_baseline(held: pd.DataFrame) -> pd.DataFrame:
    """The results with the baseline under its name in words, among the places of a figure."""
    return held.assign(place=held["place"].replace(SURFACE, BASELINE))


def _say_surface(held: pd.DataFrame, found: "pd.Series[Any] | None") -> list[str]:
    surface = read_estimate(pick_row(held, place=SURFACE, metric="auroc"), n="rows")
    if math.isnan(surface.value):
        return ["There is no baseline of lengths and punctuation in the files."]
    above = read_estimate(found, "above_surface", "above_surface_", "rows")
    more = "" if math.isnan(above.value) else f" The probe is {say_estimate(above)} above that."
    return [
        f"A logistic regression on lengths and punctuation alone reaches an AUROC of {say_estimate(surface)}.{more} "
        f"What a probe has beyond this may still be topic or style and not what the label means."
    ]


def _say_permuted(run: RunData, found: "pd.Series[Any] | None") -> list[str]:
    band = say_band(found, "labels")
    if not band:
        return []
    return [
        f"Probes fitted to permuted labels, which choose their own place, reach {band} (middle 95 %), "
        f"{say_p(read_number(found, 'p_labels'), read_option(run, 'refits'))}."
    ]


def _say_fresh(fresh: "pd.Series[Any] | None") -> list[str]:
    value = read_estimate(fresh, n="rows")
    if math.isnan(value.value):
        return ["No prompts that were written independently were given (--fresh)."]
    return [
        f"On {value.n:,} prompts that were written independently the AUROC of the logistic probe is "
        f"{say_estimate(value)}. A fall from the held-out value is what the probe took from the habits of its "
        f"collection."
    ]


def _check_all(
    run: RunData,
    section: str,
    found: "pd.Series[Any] | None",
    fresh: "pd.Series[Any] | None",
    thresholds: Thresholds,
) -> list[Check | None]:
    above = read_estimate(found, "above_surface", "above_surface_", "rows")
    p = read_number(found, "p_labels")
    checks = [
        judge("probe_above_surface", run.label, section, above, thresholds),
        judge_p("probe_labels_p", run, section, p, above.n, draws=read_option(run, "refits"), thresholds=thresholds),
    ]
    if fresh is not None:
        checks.append(judge("probe_fresh_auroc", run.label, section, read_estimate(fresh, n="rows"), thresholds))
    return checks


def _list_predictions(run: RunData, section: str) -> tuple[RowTable | None, list[Figure]]:
    """The rows with the logits of their held-out probes, and the distribution of these."""
    frame = find_file(run, "predictions.parquet", f"id label {LOGISTIC}")
    if frame is None:
        return None, []
    frame = _judge_rows(frame, str(run.record.get("positive") or "yes"))
    table = make_rows(
        run,
        section,
        "Rows, and what the held-out probes say of them",
        frame,
        COLUMNS,
        "One row a text; logits are of the probes that did not see it, at the place that was chosen without it.",
        first="margin",
        apart=["set"],
    )
    title = "Logit of yes by logistic regression, held out"
    return table, draw_rows(is_ok(frame), LOGISTIC, title, "logit (above 0: yes)", section, by="side")


def _judge_rows(frame: pd.DataFrame, positive: str) -> pd.DataFrame:
    """The rows with the logit of their own label: it is below 0 where the probe is wrong."""
    known = frame["label"].notna().to_numpy()
    yes = frame["label"].fillna(False).to_numpy(dtype=bool)
    logits = frame[LOGISTIC].to_numpy(dtype=np.float64, na_value=np.nan)
    margin = np.where(known, np.where(yes, logits, -logits), np.nan)
    right = pd.Series(np.where(margin > 0, "yes", "no"), index=frame.index).where(np.isfinite(margin), None)
    side = pd.Series(np.where(yes, positive, f"not {positive}"), index=frame.index).where(known, None)
    return frame.assign(margin=margin, right=right, side=side)
