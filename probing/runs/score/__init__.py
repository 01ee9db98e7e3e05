"""``probing score``: its options and the function that runs it."""

from typing import Any

from probing.runs.common.calls import call_job
from probing.runs.score.config import ScoreConfig as ScoreConfig
from probing.runs.score.job import run as run
from probing.types import Report


def score(**options: Any) -> Report:
    """Score every pair of a preference dataset, as ``probing score`` does.

    Options, models and rows in memory, result and errors: see ``probing.runs.common.calls.call_job``.
    """
    return call_job(ScoreConfig, run, options)
