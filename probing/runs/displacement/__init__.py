"""``probing displacement``: its options and the function that runs it."""

from typing import Any

from probing.runs.common.calls import call_job
from probing.runs.displacement.config import DisplacementConfig as DisplacementConfig
from probing.runs.displacement.job import run as run
from probing.types import Report


def displacement(**options: Any) -> Report:
    """What the command does, with the same options; ``probing displacement --help`` lists them.

    Args:
        options: options of the command with underscores, see ``DisplacementConfig``. Without ``out`` no files
            are kept.

    Returns:
        The tables of the command as frames, by title, and the facts of the run.

    Raises:
        TypeError: an option that the command does not have. ProbingError: see ``probing.errors``.
    """
    return call_job(DisplacementConfig, run, options)
