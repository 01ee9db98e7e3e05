"""Warnings and errors about rows without a number."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probing.errors import DataInvalid, NotFinite
from probing.types import Problem

LISTED_PROBLEMS = 100


log = logging.getLogger(__name__)


def warn_of(problems: Sequence[Problem], rows: int) -> None:
    """Warn that rows were left out."""
    if problems:
        first = problems[0]
        log.warning(
            "%d of %d rows could not be read and are left out; the first: row '%s' (%s, %s)",
            len(problems),
            rows,
            first.id,
            first.status,
            first.detail,
        )


def refuse_if_none(facts: Mapping[str, Any], nothing: str, listed: Path) -> None:
    """Raise if a finished run has rows, and not one of them is ok.

    Args:
        facts: facts of the run, with ``rows_by_status`` and ``problems``.
        nothing: words for the result that did not come about.
        listed: the file that lists each row.

    Raises:
        NotFinite: all states were NaN or infinite. DataInvalid: there were other reasons.
    """
    statuses = facts["rows_by_status"]
    if statuses.get("ok") or not statuses:
        return
    first = facts["problems"][0]
    told = ", ".join(f"{count} {status}" for status, count in statuses.items())
    where = f"{first['line']} (id '{first['id']}')" if "line" in first else f"id '{first['id']}'"
    raise (NotFinite if set(statuses) == {"not_finite"} else DataInvalid)(
        f"{nothing} ({told}); the first: {where}: {first['detail']}. {listed} lists each"
    )
