"""The job ``probing refusal trace``: where in depth and where in the text a model decides to refuse."""

from pathlib import Path

from probing.runs.refusal.common.models import check_chat_models
from probing.runs.refusal.trace.config import TraceConfig
from probing.runs.refusal.trace.data import read_data
from probing.store.manifest import claim
from probing.types import Report


def run(config: TraceConfig) -> Report:
    """Trace the refusal into ``config.out``, or go on where an interrupted run stopped.

    Raises:
        ProbingError: see ``probing.errors``; nothing that was there is written over.
    """
    check_chat_models(config, [config.model], config.revision, config.places)
    data = read_data(config)
    with claim(Path(config.out).expanduser(), "refusal trace") as folder:
        # Imported only here, so that errors in the data or the folder are reported without waiting for torch to load.
        from probing.runs.refusal.trace.stages import trace_into

        return trace_into(folder, config, data)
