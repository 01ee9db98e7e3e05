"""Running a job with what other programs can watch it by."""

from collections.abc import Callable
from typing import TypeVar

from probing.runs.common.options import Options, RunOptions
from probing.types import Report

Config = TypeVar("Config", bound=Options)


def run_watched(run: Callable[[Config], Report], config: Config, command: str) -> Report:
    """Run a job, and serve its progress while it runs where the options ask for that.

    Args:
        run: runs the job.
        config: its options.
        command: what the job is called.

    Raises:
        UsageError: nothing can be served at the port.
        ProbingError: see ``probing.errors``.
    """
    address = config.metrics_address if isinstance(config, RunOptions) else None
    if address is None:
        return run(config)
    from probing.report.metrics import serve_metrics

    with serve_metrics(address, command):
        return run(config)
