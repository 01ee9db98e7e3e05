"""Tables of ``probing report``: the strip of checks, and what the page holds."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from probing.report.parts import Check, Page

CHECKS = "Checks (WARN: the whole 95 % interval lies beyond the threshold)"


def make_tables(page: Page) -> dict[str, pd.DataFrame]:
    """Tables by title."""
    rows = [(check.state, check.run, check.name, check.sentence) for check in page.checks]
    tables = {CHECKS: pd.DataFrame(rows, columns=["state", "run", "check", "finding"])}
    if page.remarks:
        tables["Left out"] = pd.DataFrame({"remark": list(page.remarks)})
    return tables


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
