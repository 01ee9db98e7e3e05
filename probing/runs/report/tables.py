"""What ``probing report`` answers: the checks, as a table, as text and for programs, and what was left out."""

import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

import pandas as pd

from probing.report.parts import Check, Page
from probing.shown import to_message

INDENT = 4
WIDTH = 100
"""Columns of text that goes to no terminal."""
CHECKS = "Checks (WARN: the whole 95 % interval lies beyond the threshold)"


def make_tables(page: Page) -> dict[str, pd.DataFrame]:
    """Tables by title."""
    rows = [(check.state, check.run, check.name, check.sentence) for check in page.checks]
    tables = {CHECKS: pd.DataFrame(rows, columns=["state", "run", "check", "finding"])}
    if page.remarks:
        tables["Left out"] = pd.DataFrame({"remark": list(page.remarks)})
    return tables


def write_text(page: Page) -> str:
    """The checks as text for a terminal, each with its whole sentence: a threshold that is cut says nothing."""
    width = shutil.get_terminal_size((WIDTH, 24)).columns
    states = max(len(check.state) for check in page.checks) if page.checks else 0
    runs = max(len(to_message(check.run)) for check in page.checks) if page.checks else 0
    lines = [CHECKS]
    for check in page.checks:
        begin = f"{check.state:<{states}} {to_message(check.run):<{runs}} "
        # Beside long names of runs the sentence has lines of its own.
        apart = " " * (len(begin) if len(begin) <= width // 3 else INDENT)
        lines.append(
            textwrap.fill(f"{begin}{to_message(check.sentence)} ({check.name})", width, subsequent_indent=apart)
        )
    return "\n".join([*lines, *(["", "Left out"] if page.remarks else []), *map(to_message, page.remarks)])


def list_checks(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """The checks as JSON has them: see docs/report.md, which names these keys; numbers that there are not are None."""
    return [
        {
            "name": check.name,
            "run": check.run,
            "state": check.state,
            "sentence": check.sentence,
            "value": _known(check.value),
            "low": _known(check.low),
            "high": _known(check.high),
            "n": check.n,
            "threshold": check.threshold,
            "side": check.side,
        }
        for check in checks
    ]


def _known(number: float) -> float | None:
    return None if number != number else number
