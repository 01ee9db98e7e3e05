"""The job ``probing refusal evaluate``: what an edit of a model changes, on harmful and on harmless prompts."""

from pathlib import Path

from probing.runs.refusal.common.models import check_chat_models
from probing.runs.refusal.evaluate.config import EvaluateConfig
from probing.runs.refusal.evaluate.data import read_data
from probing.store.manifest import claim
from probing.types import Report


def run(config: EvaluateConfig) -> Report:
    """Measure the edit into ``config.out``, or go on where an interrupted run stopped.

    Raises:
        ProbingError: see ``probing.errors``; nothing that was there is written over.
    """
    check_chat_models(config, [config.model], config.revision)
    data = read_data(config)
    with claim(Path(config.out).expanduser(), "refusal evaluate") as folder:
        # Imported only here, so that errors in the data or the folder are reported without waiting for torch to load.
        from probing.runs.refusal.evaluate.stages import evaluate_into

        return evaluate_into(folder, config, data)
