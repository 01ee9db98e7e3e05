"""The page of a report: what each run says, runs of the same pairs joined by id, in the order of the questions."""

import importlib
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from probing.errors import StoreCorrupt
from probing.report.parts import Check, Page, Provenance, RowTable, RunData, RunReport, Section
from probing.report.sections import DESCRIBERS
from probing.report.sections.displacement import describe_displacement
from probing.report.sections.influence import describe_influence
from probing.report.sections.pairs import PAIR_FILES, join_pairs
from probing.report.sections.score import describe_score
from probing.report.shared_axes import share_axes
from probing.runs.common.about import BEGAN, spell_command
from probing.runs.report.data import identify_data

PAIR_DESCRIBERS = {
    "score": describe_score,
    "displacement": describe_displacement,
    "influence": describe_influence,
}
STATES = ("WARN", "unclear", "not judged", "ok")
"""States of checks in the order in which they are shown."""
HASH_DIGITS = 12


def make_page(
    runs: Sequence[RunData],
    folders: Sequence[str],
    title: str,
    thresholds: Mapping[str, float | None],
    remarks: Sequence[str],
) -> Page:
    """The page about some runs.

    Args:
        runs: the runs, with texts where they are known.
        folders: the folder of each, as it was named.
        title: title of the page.
        thresholds: thresholds in place of the usual ones; see ``checks.judge``.
        remarks: what is missing and why.

    Raises:
        StoreCorrupt: the tables of a run do not hold what this version reads from them; names the run.
    """
    reports = list(_describe(runs, thresholds))
    checks = [check for report in reports for check in report.checks]
    sections = _order_sections(reports)
    share_axes(sections)
    return Page(
        title=title,
        checks=sorted(checks, key=lambda check: STATES.index(check.state)),
        sections=sections,
        rows=[table for report in reports for table in report.rows],
        runs=[describe_provenance(run, folder) for run, folder in zip(runs, folders, strict=True)],
        remarks=list(remarks),
    )


def _describe(runs: Sequence[RunData], thresholds: Mapping[str, float | None]) -> Iterable[RunReport]:
    """What every run says; the pairs of runs on the same data come once, with the first of them."""
    tables: dict[Any, Any] = {}
    for run in runs:
        try:
            yield _describe_run(run, runs, thresholds, tables)
        except (LookupError, ValueError, TypeError, ArithmeticError) as error:
            # Columns differ between versions, and a table that has its hash may still hold anything.
            raise StoreCorrupt(
                f"{run.label}: its tables are not as this version writes and reads them ({type(error).__name__}: "
                f"{error}); leave the folder out, or run its command again"
            ) from error


def _describe_run(
    run: RunData, runs: Sequence[RunData], thresholds: Mapping[str, float | None], tables: dict[Any, Any]
) -> RunReport:
    """What a run says; ``tables`` holds the tables of pairs so far, by the hash of their data."""
    if run.command not in PAIR_FILES:
        return DESCRIBERS[run.command](run, thresholds)
    data = identify_data(run)
    known = data in tables
    if not known:
        same = [other for other in runs if other.command in PAIR_FILES and identify_data(other) == data]
        tables[data] = join_pairs(same, "pairs" if not tables else f"pairs-{len(tables) + 1}")
    report = PAIR_DESCRIBERS[run.command](run, thresholds, tables[data])
    rows: list[RowTable] = [] if known else [tables[data].table]
    return RunReport(report.sections, report.checks, [*rows, *report.rows])


def _order_sections(reports: Sequence[RunReport]) -> list[Section]:
    """Sections with those of one question together, in the order in which the questions come up."""
    sections = [section for report in reports for section in report.sections]
    questions = list(dict.fromkeys(section.question for section in sections))
    return sorted(sections, key=lambda section: questions.index(section.question))


def describe_provenance(run: RunData, folder: str) -> Provenance:
    """What a run was asked and with what: command, models, data, date, device, versions, hashes."""
    record, identity = run.record, run.record.get("identity", {})
    facts: dict[str, str] = {}
    for name, source in _list_models(record):
        hashes = source.get("weights_sha256")
        facts[name] = str(source["model"]) + (f" (weights {hashes[:HASH_DIGITS]})" if hashes else "")
    facts |= _describe_data(record)
    facts |= {"date": f"{record[BEGAN]} (UTC)"} if record.get(BEGAN) else {}
    facts["rows"] = ", ".join(f"{count:,} {status}" for status, count in record.get("rows_by_status", {}).items())
    facts["device"] = ", ".join(str(identity[name]) for name in ("device", "dtype") if identity.get(name))
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in identity.get("versions", {}).items())
    facts["record"] = str(record.get("record_sha256", ""))[:HASH_DIGITS]
    shown = {name: value for name, value in facts.items() if value}
    job = importlib.import_module(f"probing.runs.{run.command.replace(' ', '.')}")
    known = typing.get_type_hints(job.run)["config"]
    return Provenance(run.label, spell_command(run.command, record.get("config", {}), known), shown, folder)


def _list_models(record: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The models of a run by what they were to it: each is a source with the name of its model."""
    for name in ("source", "model", "reference", "policy", "edited_model"):
        source = record.get(name)
        if isinstance(source, Mapping) and isinstance(source.get("model"), str):
            yield "model" if name == "source" else name.replace("_", " "), source
    for name, facts in record.get("models", {}).items() if isinstance(record.get("models"), Mapping) else ():
        source = facts.get("source", {})
        if isinstance(source, Mapping) and "model" in source:
            yield f"model {name}", source


def _describe_data(record: Mapping[str, Any]) -> dict[str, str]:
    data = record.get("data")
    batches = [data] if isinstance(data, Mapping) else data if isinstance(data, list) else []
    said = []
    for batch in batches:
        rows = f", {batch['rows']:,} rows" if isinstance(batch.get("rows"), int) else ""
        sha256 = batch.get("sha256")
        said.append(f"{batch.get('path')}{rows}" + (f" (sha256 {sha256[:HASH_DIGITS]})" if sha256 else ""))
    return {"data": "; ".join(said)} if said else {}


def count_states(checks: Sequence[Check]) -> dict[str, int]:
    """Number of checks by state, all states that there are."""
    return {state: sum(check.state == state for check in checks) for state in STATES}
