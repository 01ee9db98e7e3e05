"""The job ``probing refusal select``: one direction of many, by what happens when it is taken out or added."""

from pathlib import Path

from probing.runs.refusal.common.models import check_chat_models
from probing.runs.refusal.common.prompts import read_kinds
from probing.runs.refusal.select.config import SelectConfig
from probing.runs.refusal.select.data import read_held_out
from probing.store.manifest import claim
from probing.types import Report


def run(config: SelectConfig) -> Report:
    """Select a direction into ``config.out``, or go on where an interrupted run stopped.

    Raises:
        ProbingError: see ``probing.errors``; nothing that was there is written over.
    """
    check_chat_models(config, [config.model], config.revision)
    held_out = read_held_out(config, read_kinds(config))
    with claim(Path(config.out).expanduser(), "refusal select") as folder:
        # Imported only here, so that errors in the data or the folder are reported without waiting for torch to load.
        from probing.runs.refusal.select.stages import select_into

        return select_into(folder, config, held_out)
