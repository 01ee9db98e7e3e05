"""``probing clusters``: its options and the function that runs it."""

from typing import Any

from probing.runs.clusters.config import ClustersConfig as ClustersConfig
from probing.runs.clusters.job import run as run
from probing.runs.common.calls import call_job
from probing.types import Report


def clusters(**options: Any) -> Report:
    """What the command does, with the same options; ``probing clusters --help`` lists them.

    Args:
        options: options of the command with underscores, see ``ClustersConfig``. Without ``out`` no files
            are kept.

    Returns:
        The tables of the command as frames, by title, and the facts of the run.

    Raises:
        TypeError: an option that the command does not have. ProbingError: see ``probing.errors``.
    """
    return call_job(ClustersConfig, run, options)
