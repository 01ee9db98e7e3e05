"""``probing rollouts``: its options and the function that runs it."""

from typing import Any

from probing.runs.common.calls import call_job
from probing.runs.rollouts.config import RolloutsConfig as RolloutsConfig
from probing.runs.rollouts.job import run as run
from probing.types import Report


def rollouts(**options: Any) -> Report:
    """Say which groups of responses a step of training would lower the correct ones of, as ``probing rollouts`` does.

    Options, models and rows in memory, result and errors: see ``probing.runs.common.calls.call_job``.
    """
    return call_job(RolloutsConfig, run, options)
