"""``probing displacement``: its options and the function that runs it."""

from typing import Any

from probing.runs.common.calls import call_job
from probing.runs.displacement.config import DisplacementConfig as DisplacementConfig
from probing.runs.displacement.job import run as run
from probing.types import Report


def displacement(**options: Any) -> Report:
    """Compare two models on preference pairs, as ``probing displacement`` does.

    Options, models and rows in memory, result and errors: see ``probing.runs.common.calls.call_job``.
    """
    return call_job(DisplacementConfig, run, options)
