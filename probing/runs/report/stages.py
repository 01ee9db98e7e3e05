"""``probing report`` after its runs: their texts, the page, the answer."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from probing.report.page import write_report
from probing.report.parts import RunData
from probing.runs.report.config import MEGABYTE, ReportConfig
from probing.runs.report.files import write_page
from probing.runs.report.results import count_states, make_page
from probing.runs.report.rows import add_texts
from probing.runs.report.tables import list_checks, make_tables, write_text
from probing.shown import LISTED
from probing.types import Report

log = logging.getLogger(__name__)


def report_on(runs: Sequence[RunData], folders: Sequence[Path], config: ReportConfig, out: Path) -> Report:
    """Write the page about some runs; answer with its checks.

    Args:
        runs: the runs, without their texts.
        folders: the folder of each.
        config: the options.
        out: the file of the page.
    """
    data = [config.data] if isinstance(config.data, str) else list(config.data or [])
    read = [add_texts(run, folder, data) for run, folder in zip(runs, folders, strict=True)]
    page = make_page(
        runs=[run for run, _ in read],
        folders=[str(folder) for folder in folders],
        title=config.title or f"Report on {name_runs([run.label for run in runs])}",
        thresholds=config.thresholds,
        remarks=[reason for _, reason in read if reason is not None],
    )
    document = write_report(page, round(config.most_megabytes * MEGABYTE))
    write_page(document.text, out)
    for sentence in document.left_out:
        log.warning("%s", sentence)
    told = replace(page, remarks=[*page.remarks, *document.left_out])
    counts = count_states(told.checks)
    facts = {"checks": list_checks(told.checks), "states": counts, "remarks": list(told.remarks), "wrote": [str(out)]}
    failed = config.check and counts["WARN"] > 0
    return Report(make_tables(told), facts, write_text(told), exit_status=int(failed))


def name_runs(labels: Sequence[str]) -> str:
    """A few runs by their labels, many by their number."""
    return ", ".join(labels) if len(labels) <= LISTED else f"{len(labels)} runs"
