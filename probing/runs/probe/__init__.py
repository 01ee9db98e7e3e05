"""``probing probe``: its options and the function that runs it."""

from typing import Any

from probing.runs.common.calls import call_job
from probing.runs.probe.config import ProbeConfig as ProbeConfig
from probing.runs.probe.job import run as run
from probing.types import Report


def probe(**options: Any) -> Report:
    """Fit supervised probes to labelled prompts, as ``probing probe`` does.

    Options, models and rows in memory, result and errors: see ``probing.runs.common.calls.call_job``.
    """
    return call_job(ProbeConfig, run, options)
