"""What a run of ``probing refusal trace`` says: at which depth the decision can be read, and along which tokens."""

import math
from collections import Counter
from typing import Any

import pandas as pd

from probing.report.checks import judge, judge_rows
from probing.report.figures import Figure
from probing.report.parts import Check, RowTable, RunData, RunReport, Section
from probing.report.sections.shared import (
    CHOSEN,
    NAN,
    Thresholds,
    collect,
    describe_missing,
    draw_rows,
    find_file,
    find_texts,
    make_rows,
    name_section,
    pick_row,
    pick_tables,
    read_estimate,
    read_notes,
    say_band,
    say_estimate,
    say_percent,
    say_rows,
    subtract,
)
from probing.report.trace_plots import draw_trace
from probing.types import Estimate

WHERE = "Where does the model decide to refuse?"
TOKENS = "At which tokens does the refusal show?"
SURFACE = "surface"
SHOWN_TOKENS = 32
"""Tokens before the end of a prompt whose projections are written out."""
COLUMNS = {
    "cliff": "fall of the projection at the last token (below 0: it rises)",
    "plateau": "median of the projection over the tokens before",
    "last": "projection at the last token",
    "peak": "highest projection",
    "kind": "kind",
    "at": "where",
}


def describe_trace(run: RunData, thresholds: Thresholds) -> RunReport:
    """Sections, checks and texts of a run of ``probing refusal trace``."""
    places = find_file(run, "results.parquet", "place depth")
    if places is None:
        return describe_missing(run, "depth", WHERE, "results.parquet")
    name = name_section(run, "depth")
    bands = run.files.get("bands.parquet", pd.DataFrame())
    section = Section(
        name=name,
        question=WHERE,
        run=run.label,
        says=[
            *_say_decisions(run),
            *read_notes(run, "Finding"),
            *_say_heads(run, places),
            *say_rows(run),
            *read_notes(run),
        ],
        figures=draw_trace(places.sort_values("depth", kind="stable"), bands.iloc[:0]),
        tables=pick_tables(run, "Decisions", "Agreement", "Sources", "Logit lens", "Refusal tokens"),
    )
    tokens, rows = _describe_tokens(run, places, bands)
    checks = [*judge_rows(run, name, thresholds), *_check_heads(run, name, places, thresholds)]
    return RunReport([section, tokens], collect(checks), rows)


def _count_decisions(run: RunData) -> int:
    """Prompts whose decision is known."""
    return sum(int(each.get("refused", 0)) + int(each.get("complied", 0)) for each in run.record.get("decisions") or [])


def _say_decisions(run: RunData) -> list[str]:
    told = [
        f"{each['refused']:,} of {each['refused'] + each['complied']:,} {each['prompts']} prompts"
        for each in run.record.get("decisions") or []
        if {"refused", "complied", "prompts"} <= set(each)
    ]
    if not told:
        return ["The decisions of the model are not in the record."]
    by = run.record.get("decided_by")
    return [f"The model refuses {' and '.join(told)}{f' (decided by: {by})' if by else ''}."]


def _pick_place(run: RunData, places: pd.DataFrame) -> "pd.Series[Any] | None":
    """The place that most folds chose; without them that with the highest F1."""
    known = places[places["depth"].notna() & _known(places, "decision_f1")]
    if known.empty:
        return None
    chosen = Counter(run.record.get("chosen_inside_folds") or []).most_common(1)
    row = pick_row(known, place=chosen[0][0]) if chosen else None
    return known.sort_values("decision_f1", kind="stable").iloc[-1] if row is None else row


def _known(places: pd.DataFrame, column: str) -> "pd.Series[bool]":
    return places[column].notna() if column in places else pd.Series(False, index=places.index)


def _say_heads(run: RunData, places: pd.DataFrame) -> list[str]:
    chosen = read_estimate(pick_row(places, place=CHOSEN), "decision_f1", "decision_f1_")
    if math.isnan(chosen.value):
        return ["No head was fitted to the decisions (see the notes), so that their depth is not measured."]
    said = [f"At the place chosen inside each fold the head of the decision has an F1 of {say_estimate(chosen)}."]
    row = _pick_place(run, places)
    band = say_band(row, "decision_f1_labels")
    if row is not None and band:
        said.append(f"Heads fitted to permuted decisions reach {band} at {row['place']} (middle 95 %).")
    surface = read_estimate(pick_row(places, place=SURFACE), "decision_f1", "decision_f1_")
    if not math.isnan(surface.value):
        said.append(f"The same head on lengths and punctuation alone reaches {say_estimate(surface)}.")
    across = read_estimate(row, "across_f1", "across_f1_")
    if row is not None and not math.isnan(across.value):
        said.append(
            f"On prompts of sources that the head has not seen it has {say_estimate(across)} at {row['place']}."
        )
    return said


def _describe_tokens(run: RunData, places: pd.DataFrame, bands: pd.DataFrame) -> tuple[Section, list[RowTable]]:
    """The projections token by token."""
    name = name_section(run, "tokens")
    cliffs = find_file(run, "cliffs.parquet", "id kind cliff")
    rows, figures = _list_cliffs(run, name, cliffs)
    section = Section(
        name=name,
        question=TOKENS,
        run=run.label,
        says=_say_cliffs(run, cliffs),
        figures=[*draw_trace(places.iloc[:0], bands), *figures],
        tables=pick_tables(run, "Cliff"),
        rows=rows[0].name if rows else None,
    )
    return section, rows


def _say_cliffs(run: RunData, cliffs: pd.DataFrame | None) -> list[str]:
    if cliffs is None:
        return ["No direction was traced along the tokens (--direction)."]
    said = []
    for each in run.record.get("falls") or []:
        row = pd.Series(each)
        band = say_band(row, "random")
        beside = f"; along random directions: {band}" if band else ""
        said.append(
            f"At the {each['at']} the fall of the projection of {each['kind']} prompts is "
            f"{say_estimate(read_estimate(row, 'cliff', n='texts'))} in the mean of {int(each['texts']):,} "
            f"texts{beside}; a negative fall is a rise."
        )
    for (at, kind), own in cliffs.groupby(["at", "kind"], sort=False) if "at" in cliffs else ():
        fall = float((own["cliff"] > 0).mean())
        said.append(f"At the {at} it falls in {say_percent(fall)} of {len(own):,} {kind} texts.")
    said.append(
        "Tokens of the chat template lie apart from others along most directions, so that there is a step at the end "
        "of every prompt; what counts is how it differs between the kinds, and from random directions."
    )
    return said


def _list_cliffs(run: RunData, section: str, cliffs: pd.DataFrame | None) -> tuple[list[RowTable], list[Figure]]:
    if cliffs is None:
        return [], []
    curves = find_file(run, "curves.parquet", "id part token from_end text projection")
    written = pd.Series(dtype="object") if curves is None else _write_curves(curves)
    texts = find_texts(run, cliffs["id"].tolist())
    known = pd.DataFrame({f"text {what}": values for what, values in texts.items()}, index=cliffs.index)
    frame = pd.concat([cliffs.assign(curve=cliffs["id"].map(written)), known], axis=1)
    shown = {what: f"text {what}" for what in texts} | {"last tokens of the prompt [projection]": "curve"}
    table = make_rows(
        run,
        section,
        "Texts, and how their projection ends",
        frame,
        COLUMNS,
        "One row a text and end; behind each token its projection on the direction, in units of the states.",
        first="cliff",
        texts=shown if written.notna().any() else None,
        apart=["at"],
    )
    title, axis = "Fall of the projection at the last token", "fall (below 0: it rises), units of the states"
    return [table], draw_rows(cliffs, "cliff", title, axis, section, by="kind", unit="texts")


def _write_curves(curves: pd.DataFrame) -> "pd.Series[Any]":
    """The last tokens of every prompt with their projections, by id."""
    own = curves[(curves["part"] == "prompt") & (curves["from_end"] > -SHOWN_TOKENS)].sort_values(
        "token", kind="stable"
    )
    words = own["text"].fillna("").astype(str) + own["projection"].map(lambda value: f"[{value:.3g}]")
    joined: pd.Series[Any] = words.groupby(own["id"]).agg(" ".join)
    return joined


def _check_heads(run: RunData, section: str, places: pd.DataFrame, thresholds: Thresholds) -> list[Check | None]:
    count = _count_decisions(run)
    chosen = read_estimate(pick_row(places, place=CHOSEN), "decision_f1", "decision_f1_")
    # The chosen place has no null distribution of its own: the highest upper end of any place bounds it.
    ends = (
        places.loc[places["depth"].notna(), "decision_f1_labels_high"] if "decision_f1_labels_high" in places else None
    )
    highest = NAN if ends is None or not ends.notna().any() else float(ends.max())
    kind = read_estimate(_pick_place(run, places), "above_kind", "above_kind_")
    counted = [Estimate(each.value, each.low, each.high, count) for each in (subtract(chosen, highest), kind)]
    return [
        judge("trace_above_permuted", run.label, section, counted[0], thresholds),
        judge("trace_above_kind", run.label, section, counted[1], thresholds),
    ]
