"""A plugin of pytest that writes every outcome to a file at once, so that a run that is stopped has told what it did.

Nothing of this project is imported here, so that the shape checks of the tests are set up before it is.
"""

import json
import os
from pathlib import Path
from typing import Any

PATH_VARIABLE = "ON_CARD_REPORTS"
LONGEST = 1500


def pytest_runtest_logreport(report: Any) -> None:
    """One line a test: when it has been called, or when setting it up or taking it down did not pass."""
    if report.when == "call" or not report.passed:
        _write(report, report.outcome if report.when == "call" or report.skipped else "error")


def pytest_collectreport(report: Any) -> None:
    """A file that could not be imported is an error of its own."""
    if report.failed:
        _write(report, "error")
    elif report.skipped:
        _write(report, "skipped")


def _write(report: Any, outcome: str) -> None:
    path = os.environ.get(PATH_VARIABLE)
    if path is None or "PYTEST_XDIST_WORKER" in os.environ:  # the process that gathers the workers' reports writes them
        return
    line = {"id": report.nodeid, "outcome": outcome, "seconds": round(getattr(report, "duration", 0.0), 3)}
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps({**line, "said": _said(report)}) + "\n")


def _said(report: Any) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return str(report.longrepr or "")[-LONGEST:]
