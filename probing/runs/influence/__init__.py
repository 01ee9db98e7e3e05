"""``probing influence``: its options and the function that runs it."""

from typing import Any

from probing.runs.common.calls import call_job
from probing.runs.influence.config import InfluenceConfig as InfluenceConfig
from probing.runs.influence.job import run as run
from probing.types import Report


def influence(**options: Any) -> Report:
    """Measure what training on each pair does to a target, and to each pair, as ``probing influence`` does.

    Options, models and rows in memory, result and errors: see ``probing.runs.common.calls.call_job``. The weights of a
    model in memory are moved while it runs, and are what they were, to the bit, when it ends.
    """
    return call_job(InfluenceConfig, run, options)
