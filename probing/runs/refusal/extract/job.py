"""The job ``probing refusal extract``: directions between harmful and harmless prompts, and how far they hold."""

from pathlib import Path

from probing.runs.refusal.common.models import check_chat_models
from probing.runs.refusal.common.prompts import read_kinds
from probing.runs.refusal.extract.config import ExtractConfig
from probing.store.manifest import claim
from probing.types import Report


def run(config: ExtractConfig) -> Report:
    """Find and judge the directions into ``config.out``, or go on where an interrupted run stopped.

    Raises:
        ProbingError: see ``probing.errors``; nothing that was there is written over.
    """
    check_chat_models(config, [config.model], config.revision, config.places)
    kinds = read_kinds(config)
    with claim(Path(config.out).expanduser(), "refusal extract") as folder:
        # Imported only here, so that errors in the data or the folder are reported without waiting for torch to load.
        from probing.runs.refusal.extract.stages import extract_into

        return extract_into(folder, config, kinds)
