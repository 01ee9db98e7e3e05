"""What sections of every command share: files that may be missing, numbers in words, rows with their texts."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from probing.report.checks import judge
from probing.report.figures import Figure, choose_edges, make_figure, make_histogram, note_outside, stack_bars
from probing.report.parts import Check, RowColumn, RowTable, RunData, RunReport, Section
from probing.types import Estimate

CHOSEN = "chosen inside folds"
"""Place of results that were judged at the place that was chosen inside each fold."""
ALL = "all"
NAN = float("nan")
COLORS = ("#c8553d", "#1b6ca8", "#3a7d44", "#7d5ba6", "#b8860b", "#555555")
LEAST_DIRECTIONS = 3
"""Number of random directions below which their range is no band."""
MOST_SERIES = 6
"""Largest number of labels that are told apart in a histogram."""
Thresholds = Mapping[str, float | None]


def name_section(run: RunData, what: str) -> str:
    """Name of a section: what it is about, and the label of its run as a link has it.

    No two sections may begin with the same word: "labels" and "labels-controls" of the runs "controls-a" and "a" would
    have one name.
    """
    return f"{what}-{run.anchor}"


def name_rows(section: str) -> str:
    """Name of the table of rows of a section."""
    return f"rows-{section}"


def find_file(run: RunData, name: str, columns: str) -> pd.DataFrame | None:
    """A table of the run; None where it is missing, has no row, or lacks one of these columns, "id label category"."""
    frame = run.files.get(name)
    if frame is None or not len(frame) or not set(columns.split()) <= set(frame.columns):
        return None
    return frame


def describe_missing(run: RunData, what: str, question: str, file: str) -> RunReport:
    """What is said where the file that all else is made from is missing."""
    says = [f"This run has no {file}, or one without the columns that are shown here.", *read_notes(run)]
    return RunReport([Section(name=name_section(run, what), question=question, run=run.label, says=says)])


def read_notes(run: RunData, *titles: str) -> list[str]:
    """Sentences of the run's own tables of one column, by their titles; those of "Notes" by default."""
    found = []
    for title in titles or ("Notes",):
        table = run.summary.get(title)
        if table is not None and table.shape[1]:
            found += [_end(str(text)) for text in table.iloc[:, 0].dropna()]
    return found


def _end(sentence: str) -> str:
    return sentence if sentence.endswith((".", ":", "?")) else f"{sentence}."


def pick_tables(run: RunData, *beginnings: str) -> dict[str, pd.DataFrame]:
    """Printed tables of the run whose titles begin so, in this order; those that it lacks are left out."""
    return {
        title: table
        for beginning in beginnings
        for title, table in run.summary.items()
        if title.startswith(beginning) and len(table)
    }


def pick_row(frame: pd.DataFrame | None, **where: object) -> "pd.Series[Any] | None":
    """The first row with these values; None where there is none."""
    if frame is None or not set(where) <= set(frame.columns):
        return None
    chosen = np.ones(len(frame), dtype=bool)
    for name, value in where.items():
        chosen &= (frame[name] == value).fillna(False).to_numpy(dtype=bool)
    return frame[chosen].iloc[0] if chosen.any() else None


def read_number(row: "pd.Series[Any] | None", name: str) -> float:
    """A number of a row; NaN where the row, the column or the number is missing."""
    value = None if row is None else row.get(name)
    return NAN if value is None or pd.isna(value) else float(value)


def read_estimate(row: "pd.Series[Any] | None", name: str = "value", ends: str = "", n: str = "n") -> Estimate:
    """A number of a row with its interval, in columns ``ends`` + "low" and "high"."""
    count = read_number(row, n)
    low, high = read_number(row, f"{ends}low"), read_number(row, f"{ends}high")
    return Estimate(read_number(row, name), low, high, 0 if math.isnan(count) else int(count))


def subtract(estimate: Estimate, from_below: float) -> Estimate:
    """How far a number with its interval lies above a number that has none."""
    return Estimate(estimate.value - from_below, estimate.low - from_below, estimate.high - from_below, estimate.n)


def read_band(row: "pd.Series[Any] | None", band: str) -> tuple[float, float]:
    """The ends of a band of directions; NaN where fewer than three directions were drawn, which bound nothing."""
    if read_number(row, f"{band}_n") < LEAST_DIRECTIONS:
        return NAN, NAN
    return read_number(row, f"{band}_low"), read_number(row, f"{band}_high")


def measure_outside(found: Estimate, low: float, high: float) -> Estimate:
    """How far a number lies outside of a band, on the side that it is nearer to; negative inside of it.

    Args:
        found: the number with its interval, which goes over to the result.
        low: lower end of the band; NaN where there is none.
        high: upper end.
    """
    if math.isnan(low) or math.isnan(found.value):
        return Estimate(NAN, NAN, NAN, found.n)
    if found.value - low < high - found.value:
        return Estimate(low - found.value, low - found.high, low - found.low, found.n)
    return subtract(found, high)


def say(number: float, digits: int = 3) -> str:
    """A number with so many digits; a dash where there is none."""
    return "-" if math.isnan(number) else f"{number:.{digits}g}"


def say_estimate(estimate: Estimate, digits: int = 3) -> str:
    """A number with its interval: "0.82 [0.74, 0.88]"."""
    if math.isnan(estimate.value) or math.isnan(estimate.low):
        return say(estimate.value, digits)
    return f"{say(estimate.value, digits)} [{say(estimate.low, digits)}, {say(estimate.high, digits)}]"


def say_band(row: "pd.Series[Any] | None", name: str) -> str:
    """The middle 95 % of a null distribution, "0.42 to 0.58"; empty where there is none."""
    low, high = read_number(row, f"{name}_low"), read_number(row, f"{name}_high")
    return "" if math.isnan(low) else f"{say(low)} to {say(high)}"


def say_p(p: float, draws: int | None) -> str:
    """A p-value; where it is the least that so many draws can give, this is said."""
    if draws is not None and p <= (1 + 1e-9) / (draws + 1):
        return f"p <= {say(p)}, the least that {draws:,} draws can give"
    return f"p = {say(p)}"


def say_percent(share: float) -> str:
    """A share in percent."""
    return "an unknown share" if math.isnan(share) else f"{100 * share:.3g} %"


def collect(checks: Iterable[Check | None]) -> list[Check]:
    """Those checks that are not switched off."""
    return [check for check in checks if check is not None]


def judge_p(
    name: str,
    run: RunData,
    section: str,
    p: float,
    rows: int,
    draws: int | None,
    thresholds: Thresholds,
) -> Check | None:
    """A p-value held against its threshold; not judged where so few draws were made that none could be below it."""
    check = judge(name, run.label, section, Estimate(p, NAN, NAN, rows), thresholds)
    if check is None or math.isnan(p) or draws is None or 1 / (draws + 1) <= check.threshold:
        return check
    sentence = f"{check.sentence}; not judged, since with {draws} draws no p-value is below {say(1 / (draws + 1))}"
    return replace(check, state="not judged", sentence=sentence)


def prefix(check: Check | None, words: str) -> Check | None:
    """A check of one of several models or kinds of prompts, which its sentence names first."""
    return None if check is None else replace(check, sentence=f"{words}: {check.sentence}")


def read_option(run: RunData, name: str) -> Any:
    """An option of the run as it was recorded; None where it is not known."""
    return run.record.get("config", {}).get(name)


def count_statuses(run: RunData) -> dict[str, int]:
    """Number of rows by status."""
    return {str(status): int(count) for status, count in (run.record.get("rows_by_status") or {}).items()}


def say_rows(run: RunData) -> list[str]:
    """How many rows were left out, and why; nothing where all were used."""
    lost = {status: count for status, count in count_statuses(run).items() if status != "ok" and count}
    if not lost:
        return []
    told = ", ".join(f"{count:,} {status}" for status, count in lost.items())
    return [f"Left out, by status: {told} (of {sum(count_statuses(run).values()):,} rows)."]


def make_rows(
    run: RunData,
    section: str,
    title: str,
    frame: pd.DataFrame,
    columns: Mapping[str, str],
    about: str,
    first: str | None = None,
    texts: Mapping[str, str] | None = None,
    apart: Sequence[str] = (),
) -> RowTable:
    """The rows behind the numbers of a section.

    Args:
        run: the run, whose texts are shown where they are known.
        section: name of the section.
        title: heading.
        frame: one row each, with ``id``.
        columns: title by column; those that the frame lacks, or that hold nothing, are left out.
        about: what the rows are.
        first: column by which the rows are sorted at first.
        texts: columns of the frame that are texts, by what they are; by default the texts that the run knows by id.
        apart: columns that tell rows of the same id apart.
    """
    shown = [
        make_column(frame[name], name, words)
        for name, words in columns.items()
        if name in frame and frame[name].notna().any()
    ]
    if texts is None:
        known = find_texts(run, frame["id"].tolist())
    else:
        known = {
            what: [None if pd.isna(text) else str(text) for text in frame[name]]
            for what, name in texts.items()
            if name in frame
        }
    return RowTable(
        name=name_rows(section),
        title=title,
        ids=name_ids(frame, apart),
        columns=shown,
        texts=known,
        first=first if first in [column.name for column in shown] else None,
        about=about if known else f"{about} Their texts are not known, since the data were not found.",
    )


def make_column(values: "pd.Series[Any]", name: str, title: str) -> RowColumn:
    """One column of a table of rows."""
    if pd.api.types.is_bool_dtype(values) and not values.isna().any():
        return RowColumn(name, title, [bool(value) for value in values], "flag")
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return RowColumn(name, title, values.to_numpy(dtype=np.float64, na_value=np.nan).tolist(), "number")
    return RowColumn(name, title, ["" if pd.isna(value) else str(value) for value in values], "text")


def name_ids(frame: pd.DataFrame, apart: Sequence[str]) -> list[str]:
    """Ids of rows, each once: where an id occurs again, what tells its rows apart is added, or else a number."""
    ids = [str(value) for value in frame["id"]]
    tell = (
        [", ".join(str(row[name]) for name in apart if name in frame) for _, row in frame.iterrows()] if apart else []
    )
    often = {value for value, times in Counter(ids).items() if times > 1}
    taken: dict[str, int] = {}
    named = []
    for at, value in enumerate(ids):
        name = f"{value} ({tell[at]})" if value in often and tell and tell[at] else value
        taken[name] = taken.get(name, 0) + 1
        named.append(name if taken[name] == 1 else f"{name} #{taken[name]}")
    return named


def find_texts(run: RunData, ids: Sequence[object]) -> dict[str, list[str | None]]:
    """Texts of these rows by what they are; empty where none is known."""
    found = [run.texts.get(str(value), {}) for value in ids]
    names = dict.fromkeys(name for texts in found for name in texts)
    return {name: [texts.get(name) for texts in found] for name in names}


def draw_rows(
    frame: pd.DataFrame, column: str, title: str, axis: str, section: str, by: str | None = None, unit: str = "rows"
) -> list[Figure]:
    """A histogram of a column over the rows, in colours by another; nothing where no row has a number."""
    values = frame[column].to_numpy(dtype=np.float64, na_value=np.nan)
    if not np.isfinite(values).any():
        return []
    edges = choose_edges(values)
    parts = _split(frame, by)
    traces = [
        _count(values[chosen], edges, f"{name}, {int(chosen.sum()):,} {unit}", color, unit)
        for (name, chosen), color in zip(parts.items(), COLORS, strict=False)
    ]
    figure = make_figure(traces, f"{title}{note_outside(values, edges)}", axis, unit)
    return [stack_bars(figure) | {"rows": {"table": name_rows(section), "column": column}}]


def _split(frame: pd.DataFrame, by: str | None) -> dict[str, Any]:
    """Rows by the values of a column, at most six of which are told apart."""
    if by is None or by not in frame or not frame[by].notna().any():
        return {"all": np.ones(len(frame), dtype=bool)}
    names = frame[by].astype("string").fillna("none")
    usual = names.value_counts(sort=True).index.tolist()
    kept = sorted(usual) if len(usual) <= MOST_SERIES else sorted(usual[: MOST_SERIES - 1])
    parts = {str(name): (names == name).to_numpy(dtype=bool) for name in kept}
    if len(kept) < len(usual):
        parts["others"] = ~names.isin(kept).to_numpy(dtype=bool)
    return parts


def _count(values: Any, edges: Any, name: str, color: str, unit: str) -> dict[str, Any]:
    trace = make_histogram(values, edges, name, color)
    return trace | {"hovertext": [text.replace(" pairs", f" {unit}") for text in trace.get("hovertext", [])]}


def is_ok(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows that were used."""
    return frame[frame["status"] == "ok"] if "status" in frame else frame
