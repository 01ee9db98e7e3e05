"""``probing clusters``: its options and the function that runs it."""

from typing import Any

from probing.runs.clusters.config import ClustersConfig as ClustersConfig
from probing.runs.clusters.job import run as run
from probing.runs.common.calls import call_job
from probing.types import Report


def clusters(**options: Any) -> Report:
    """Measure how far labelled prompts lie apart, as ``probing clusters`` does.

    Options, models and rows in memory, result and errors: see ``probing.runs.common.calls.call_job``.
    """
    return call_job(ClustersConfig, run, options)
