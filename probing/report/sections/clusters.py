"""What a run of ``probing clusters`` says: how far labels lie apart in the states, by chance, and after training."""

import math
from typing import Any

import pandas as pd

from probing.report.checks import judge, judge_rows
from probing.report.figures import Figure
from probing.report.parts import Check, RowTable, RunData, RunReport, Section
from probing.report.plots import draw_clusters
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
    prefix,
    read_estimate,
    read_notes,
    read_number,
    read_option,
    say,
    say_band,
    say_estimate,
    say_p,
    say_rows,
)

LABELS = "Do the states tell the labels apart?"
REAL = "Is the separation real?"
TRAINING = "What did training change in the states?"
HELD_OUT, CATEGORY, CONTROL = "held out", "category", "control"
SILHOUETTE, CENTRES = "silhouette", "welch"
NEEDED = "model set category place metric value low high rows labels_low labels_high"
SCALE = (
    "The silhouette goes from -1 to 1: 1 where rows lie much nearer to rows of their own label than to others, 0 where "
    "they do not. Labels may lie apart by topic or style: this does not say why."
)
DRAWN = (SILHOUETTE, "aqi_size_free", "davies_bouldin", "dunn", "calinski_harabasz", "xie_beni")


def describe_clusters(run: RunData, thresholds: Thresholds) -> RunReport:
    """Sections, checks and rows of a run of ``probing clusters``."""
    results = find_file(run, "results.parquet", NEEDED)
    if results is None:
        return describe_missing(run, "labels", LABELS, "results.parquet")
    labels, real = name_section(run, "labels"), name_section(run, "controls-labels")
    models = list(dict.fromkeys(results["model"]))
    rows, figures = _list_rows(run, labels, models)
    drawn = results[(results["set"] == ALL) & results["metric"].isin(DRAWN)]
    # The index that the sentences tell of comes first.
    drawn = drawn.sort_values("metric", key=lambda names: names.map(DRAWN.index), kind="stable")
    categories = results[(results["set"] == CATEGORY) & (results["metric"] == SILHOUETTE)]
    sections = [
        Section(
            name=labels,
            question=LABELS,
            run=run.label,
            says=[
                SCALE,
                *(sentence for model in models for sentence in _say_model(results, model)),
                *_say_misplaced(run, models),
                *say_rows(run),
            ],
            figures=[*draw_clusters(drawn, categories, {}), *figures],
            tables=pick_tables(run, "Held out", "By place", "Sets of rows"),
            rows=None if rows is None else rows.name,
        ),
        Section(
            name=real,
            question=REAL,
            run=run.label,
            says=[
                *(sentence for model in models for sentence in _say_chance(run, results, model)),
                *_say_control(run, results, models),
                *read_notes(run),
            ],
        ),
        *_describe_training(run, results, models),
    ]
    checks: list[Check | None] = [*judge_rows(run, labels, thresholds)]
    for model in models:
        checks += _check_chance(run, real, results, model, thresholds)
    for model in models[1:]:
        checks.append(_check_change(run, results, model, thresholds))
    return RunReport(sections, collect(checks), [] if rows is None else [rows])


def _pick(results: pd.DataFrame, model: str, metric: str) -> "pd.Series[Any] | None":
    """An index at the place chosen inside each fold."""
    return pick_row(results, model=model, set=HELD_OUT, place=CHOSEN, metric=metric)


def _say_model(results: pd.DataFrame, model: str) -> list[str]:
    row = _pick(results, model, SILHOUETTE)
    value = read_number(row, "value")
    if math.isnan(value):
        return [f"{model}: no place was judged inside folds; the tables hold the values of all rows by place."]
    corrected = read_estimate(row, "corrected", n="rows")
    many = "" if math.isnan(corrected.value) else f" (as of many rows: {say_estimate(corrected)})"
    return [f"{model}: at the place chosen inside each fold the silhouette of the labels is {say(value)}{many}."]


def _say_misplaced(run: RunData, models: list[str]) -> list[str]:
    """How many rows lie nearer to another label than to their own."""
    frame = find_file(run, "rows.parquet", "id")
    said = []
    for model in models:
        name = f"silhouette {model}"
        if frame is None or name not in frame or not frame[name].notna().any():
            continue
        known = frame[name].dropna()
        said.append(
            f"{model}: {int((known < 0).sum()):,} of {len(known):,} rows lie nearer to another label than to their own "
            f"(silhouette below 0)."
        )
    return said


def _say_chance(run: RunData, results: pd.DataFrame, model: str) -> list[str]:
    row = _pick(results, model, SILHOUETTE)
    band = say_band(row, "labels")
    if not band:
        return []
    centres = read_number(_pick(results, model, CENTRES), "p_labels")
    also = "" if math.isnan(centres) else f"; for the distance of their centres p is {say(centres)}"
    return [
        f"{model}: permuted labels have a silhouette of {band} (middle 95 %), "
        f"{say_p(read_number(row, 'p_labels'), read_option(run, 'permutations'))}{also}. Where the second is not small "
        f"too, the labels differ in spread and need not lie apart."
    ]


def _say_control(run: RunData, results: pd.DataFrame, models: list[str]) -> list[str]:
    """The silhouette beside a control, at each model's best place."""
    best = run.record.get("best") or {}
    said = []
    for model in models:
        row = pick_row(results, model=model, set=CONTROL, place=best.get(model), metric=SILHOUETTE)
        if row is not None:
            said.append(
                f"{model}: with the control in place of the rows of its labels the silhouette at {best[model]} is "
                f"{say_estimate(read_estimate(row, n='rows'))}; what is left there is not topic."
            )
    return said or ["There is no control of texts of one label about the topics of the other (--control)."]


def _describe_training(run: RunData, results: pd.DataFrame, models: list[str]) -> list[Section]:
    """Differences from the first model; nothing where there is one."""
    if len(models) < 2:
        return []
    said = []
    for model in models[1:]:
        change = read_estimate(_pick(results, model, SILHOUETTE), "minus_first_corrected", "minus_first_", "rows")
        if not math.isnan(change.value):
            said.append(
                f"{model}: its silhouette, corrected, less that of {models[0]} is {say_estimate(change)}, each at the "
                f"place chosen inside each fold. The interval is of paired bootstrap replicates."
            )
    drift = find_file(run, "drift.parquet", "model place subset measure value")
    said += [sentence for model in models[1:] for sentence in _say_drift(drift, model, models[0])]
    return [
        Section(
            name=name_section(run, "training"),
            question=TRAINING,
            run=run.label,
            says=said or [f"The files hold no difference from {models[0]}."],
            tables=pick_tables(run, "Differences of corrected values", "Drift"),
        )
    ]


def _say_drift(drift: pd.DataFrame | None, model: str, first: str) -> list[str]:
    """Where the states moved most."""
    if drift is None:
        return []
    own = drift[(drift["model"] == model) & (drift["subset"] == ALL) & (drift["measure"] == "shift_relative")].dropna(
        subset=["value"]
    )
    if own.empty:
        return []
    row = own.sort_values("value", kind="stable").iloc[-1]
    return [
        f"{model}: the mean state moved most from {first} at {row['place']}, by {say(float(row['value']))} of the root "
        f"mean square distance of states to their mean. This number has no interval; that states moved does not say "
        f"that answers changed."
    ]


def _check_chance(
    run: RunData, section: str, results: pd.DataFrame, model: str, thresholds: Thresholds
) -> list[Check | None]:
    draws = read_option(run, "permutations")
    checks = []
    for name, metric in (("clusters_labels_p", SILHOUETTE), ("clusters_centres_p", CENTRES)):
        row = _pick(results, model, metric)
        rows = read_estimate(row, n="rows").n
        check = judge_p(name, run, section, read_number(row, "p_labels"), rows, draws=draws, thresholds=thresholds)
        checks.append(prefix(check, model))
    return checks


def _check_change(run: RunData, results: pd.DataFrame, model: str, thresholds: Thresholds) -> Check | None:
    change = read_estimate(_pick(results, model, SILHOUETTE), "minus_first_corrected", "minus_first_", "rows")
    section = name_section(run, "training")
    return prefix(judge("clusters_separation_change", run.label, section, change, thresholds), model)


def _list_rows(run: RunData, section: str, models: list[str]) -> tuple[RowTable | None, list[Figure]]:
    """The rows with their silhouettes, and the distribution of these."""
    frame = find_file(run, "rows.parquet", "id status")
    if frame is None:
        return None, []
    columns = {f"silhouette {model}": f"silhouette in {model} (below 0: nearer to another label)" for model in models}
    columns |= {"label": "label", "category": "category", "status": "status", "fold": "fold"}
    columns |= {"detail": "what is wrong with the row"}
    table = make_rows(
        run,
        section,
        "Rows, and on which side they lie",
        frame,
        columns,
        "One row a text, with its silhouette at the place of each model.",
        first=f"silhouette {models[0]}",
    )
    figures = []
    for model in models:
        name = f"silhouette {model}"
        if name in frame:
            title = f"Silhouette of the rows, {model}"
            axis = "silhouette (below 0: nearer to another label)"
            figures += draw_rows(is_ok(frame), name, title, axis, section, by="label")
    return table, figures
