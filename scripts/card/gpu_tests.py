"""Stage ``tests``: everything marked ``gpu``, in a process of its own; a kernel that fails can take one with it."""

import ast
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from card.bare import ROOT, child_environment
from card.reporting import PATH_VARIABLE
from card.run import Run

MOST_WORKERS = 8
TAIL = 30
MARGIN = 5.0
"""Seconds that are left for telling what came out."""


def gpu_tests(run: Run) -> None:
    """How many passed, failed and were skipped, and each that failed with the end of what it said."""
    with tempfile.TemporaryDirectory() as folder:
        reports = Path(folder) / "reports.jsonl"
        status, output = pytest_run(run, reports)
        found = read_reports(reports)
    run.say(**counted(found), status=status, files=len(files_with_gpu_tests(ROOT / "tests")))
    for report in found:
        if report["outcome"] in ("failed", "error"):
            run.failures.append(report["id"])
            run.say(test=report["id"], outcome=report["outcome"], said=report["said"])
    if status not in (0, 5) and not any(report["outcome"] in ("failed", "error") for report in found):
        run.failures.append("tests: pytest itself")
        run.say(failed=f"pytest ended with {status}", output=output.splitlines()[-TAIL:])


def files_with_gpu_tests(root: Path) -> list[Path]:
    """Files with the mark; a ``conftest.py`` with it stands for its folder.

    Not all of ``tests``: many files need what a bare machine does not have as soon as they are imported.
    """
    marked = [path for path in sorted(root.rglob("*.py")) if names_the_mark(path.read_text(encoding="utf-8"))]
    folders = [path.parent for path in marked if path.name == "conftest.py"]
    return folders + [path for path in marked if path.name.startswith("test_") and path.parent not in folders]


def names_the_mark(source: str) -> bool:
    """Whether ``pytest.mark.gpu`` stands in the code, and not only in a string or a comment."""
    names = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute) and node.attr == "gpu")
    return any(isinstance(node.value, ast.Attribute) and node.value.attr == "mark" for node in names)


def command(files: Iterable[Path]) -> list[str]:
    """As pytest is called. A warning of another version of a library is no reason to fail here."""
    workers = min(MOST_WORKERS, os.cpu_count() or 1)
    # Each of several processes imports torch first, which pays with many cores only.
    parallel = ["-n", str(workers)] if workers == MOST_WORKERS and importlib.util.find_spec("xdist") else []
    return [
        *(sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "card.reporting", "-p", "no:cacheprovider"),
        *("-W", "default", "--continue-on-collection-errors", *parallel),
        *map(str, files),
    ]


def pytest_run(run: Run, reports: Path) -> tuple[int | str, str]:
    """Its status (or that it was stopped) and its output."""
    environment = child_environment(*run.children, ROOT / "scripts") | {PATH_VARIABLE: str(reports)}
    files = files_with_gpu_tests(ROOT / "tests")
    process = subprocess.Popen(
        command(files),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=max(run.left() - MARGIN, 1))
        return process.returncode, output
    except subprocess.TimeoutExpired:
        return "stopped: the allowance is used up", ""
    finally:
        if process.poll() is None:  # its workers too
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def read_reports(path: Path) -> list[dict[str, Any]]:
    """What the plugin wrote, a line a test; nothing if pytest did not get so far."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def counted(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Numbers by outcome, reasons of those that were skipped, and the slowest."""
    outcomes = Counter(report["outcome"] for report in reports)
    reasons = Counter(report["said"] for report in reports if report["outcome"] == "skipped")
    slowest = sorted(reports, key=lambda report: -report["seconds"])[:5]
    return {
        "passed": outcomes["passed"],
        "failing": outcomes["failed"] + outcomes["error"],
        "skipped": outcomes["skipped"],
        "not_run_because": dict(reasons),
        "slowest": {report["id"]: report["seconds"] for report in slowest},
    }
