"""``probing report`` after its runs: their texts, the page, the answer."""

from collections.abc import Sequence
from pathlib import Path

from probing.report.page import write_report
from probing.report.parts import RunData
from probing.runs.report.config import MEGABYTE, ReportConfig
from probing.runs.report.files import write_page
from probing.runs.report.results import count_states, make_page
from probing.runs.report.rows import add_texts
from probing.runs.report.tables import list_checks, make_tables
from probing.shown import LISTED
from probing.types import Report


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
    write_page(write_report(page, round(config.most_megabytes * MEGABYTE)), out)
    counts = count_states(page.checks)
    facts = {"checks": list_checks(page.checks), "states": counts, "remarks": list(page.remarks), "wrote": [str(out)]}
    return Report(make_tables(page), facts, exit_status=int(config.check and counts["WARN"] > 0))


def name_runs(labels: Sequence[str]) -> str:
    """A few runs by their labels, many by their number."""
    return ", ".join(labels) if len(labels) <= LISTED else f"{len(labels)} runs"
