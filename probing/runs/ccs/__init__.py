"""``probing ccs``: its options and the function that runs it."""

from typing import Any

from probing.runs.ccs.config import CCSConfig as CCSConfig
from probing.runs.ccs.job import run as run
from probing.runs.common.calls import call_job
from probing.types import Report


def ccs(**options: Any) -> Report:
    """What the command does, with the same options; ``probing ccs --help`` lists them.

    Args:
        options: options of the command with underscores, see ``CCSConfig``. Without ``out`` no files
            are kept.

    Returns:
        The tables of the command as frames, by title, and the facts of the run.

    Raises:
        TypeError: an option that the command does not have. ProbingError: see ``probing.errors``.
    """
    return call_job(CCSConfig, run, options)
