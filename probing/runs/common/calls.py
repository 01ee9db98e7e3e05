"""Jobs called from Python, with the options of their commands."""

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from probing.types import Report

Config = TypeVar("Config")


def call_job(config: Callable[..., Config], run: Callable[[Config], Report], options: dict[str, Any]) -> Report:
    """Run a job with these options, in a temporary folder where no ``out`` is among them.

    Raises:
        TypeError: an option that the command does not have.
        ProbingError: see ``probing.errors``.
    """
    with contextlib.ExitStack() as stack:
        if options.get("out") is None:
            options = options | {"out": Path(stack.enter_context(tempfile.TemporaryDirectory())) / "out"}
        return run(config(**options))
