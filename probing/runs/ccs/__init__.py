"""``probing ccs``: its options and the function that runs it."""

from typing import Any

from probing.runs.ccs.config import CCSConfig as CCSConfig
from probing.runs.ccs.job import run as run
from probing.runs.common.calls import call_job
from probing.types import Report


def ccs(**options: Any) -> Report:
    """Train contrast-consistent probes on opposite statements, as ``probing ccs`` does.

    Options, models and rows in memory, result and errors: see ``probing.runs.common.calls.call_job``.
    """
    return call_job(CCSConfig, run, options)
