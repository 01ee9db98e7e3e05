"""The job ``probing report``: one page about finished runs."""

from pathlib import Path

from probing.errors import UsageError
from probing.runs.report.config import ReportConfig
from probing.runs.report.data import check_comparable, find_record, find_runs, read_runs
from probing.runs.report.files import check_target
from probing.types import Report


def run(config: ReportConfig) -> Report:
    """Read the runs, hold their numbers against the thresholds, and write the page.

    Raises:
        UsageError: a folder is no finished run, or is named twice; or the file of the page cannot be written.
        SourceMismatch: two runs of one command are of different data.
        StoreCorrupt: files of a run are damaged.
    """
    out = Path(config.out).expanduser()
    check_target(out, config.overwrite)
    folders = find_runs(config.folders)
    if find_record(out.resolve().parent) is not None:
        raise UsageError(
            f"{out}: would lie in the folder of a run, which holds only what the run wrote; choose another --out"
        )
    runs = list(read_runs(folders))
    check_comparable(runs)
    from probing.runs.report.stages import report_on

    return report_on(runs, folders, config, out)
