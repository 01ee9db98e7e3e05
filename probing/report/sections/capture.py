"""What a run of ``probing capture`` says: which states of which rows it read."""

import pandas as pd

from probing.report.checks import judge_rows
from probing.report.parts import RunData, RunReport, Section
from probing.report.sections.shared import (
    Thresholds,
    describe_missing,
    draw_rows,
    find_file,
    is_ok,
    make_rows,
    name_rows,
    name_section,
    say_rows,
)

READ = "What was read?"
COLUMNS = {
    "tokens": "tokens of the text",
    "counted": "tokens that are pooled",
    "label": "label",
    "category": "category",
    "status": "status",
    "detail": "what is wrong with the row",
}


def describe_capture(run: RunData, thresholds: Thresholds) -> RunReport:
    """What was read, and the rows that were left out."""
    section = name_section(run, "states")
    rows = find_file(run, "rows.parquet", "id status")
    if rows is None:
        return describe_missing(run, "states", READ, "rows.parquet")
    about = "One row a text; the states themselves are in the folder of the run."
    table = make_rows(run, section, "Rows that were read", rows, COLUMNS, about, first="status")
    figures = []
    if "tokens" in rows:
        figures = draw_rows(is_ok(rows), "tokens", "Length of the texts that were read", "tokens", section, by="label")
    says = [_say_states(run), *_say_labels(rows), *say_rows(run)]
    part = Section(name=section, question=READ, run=run.label, says=says, figures=figures, rows=name_rows(section))
    return RunReport([part], judge_rows(run, section, thresholds), [table])


def _say_states(run: RunData) -> str:
    """Number of rows and places, and what a state is."""
    record = run.record
    places, request = record.get("places") or [], record.get("request") or {}
    count = (record.get("rows_by_status") or {}).get("ok", 0)
    ends = f"{places[0]} to {places[-1]}" if len(places) > 1 else "".join(places)
    told = f"The states of {count:,} rows were read at {len(places)} places ({ends})"
    if record.get("width"):
        told += f", {record['width']:,} wide"
    if record.get("dtype"):
        told += f", kept as {record['dtype']}"
    pooled = f"; pooling '{request['pooling']}' over '{request.get('over')}'" if "pooling" in request else ""
    return f"{told}{pooled}. No number is made from them here."


def _say_labels(rows: pd.DataFrame) -> list[str]:
    if "label" not in rows or not rows["label"].notna().any():
        return ["The rows have no labels."]
    counts = is_ok(rows)["label"].value_counts()
    shown = ", ".join(f"{label} {count:,}" for label, count in counts.head(10).items())
    more = f" and {len(counts) - 10:,} more" if len(counts) > 10 else ""
    return [f"Rows by label: {shown}{more}."]
