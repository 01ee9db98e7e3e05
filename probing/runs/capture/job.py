"""The job ``probing capture``: states of a whole dataset on disk, in shards, resumable, repairable, appendable."""

from contextlib import ExitStack
from pathlib import Path

from probing.runs.capture.config import CaptureConfig
from probing.runs.capture.data import read_data
from probing.runs.common.inputs import check_models, check_prompt_templates
from probing.store.manifest import MANIFEST, claim
from probing.types import Report


def run(config: CaptureConfig) -> Report:
    """Capture the dataset into ``config.out``, or go on where an interrupted run stopped.

    Raises:
        ProbingError: see ``probing.errors``; nothing that was there is written over.
    """
    check_models(config, [config.model], config.revision, config.places)
    with ExitStack() as held:
        table, prompts = read_data(config, held)
        check_prompt_templates([config.model], table, prompts, config.chat)
        folder = held.enter_context(claim(Path(config.out).expanduser(), "capture", MANIFEST))
        # Imported only here, so that errors in the data or the folder are reported without waiting for torch to load.
        from probing.runs.capture.stages import capture_into

        return capture_into(folder, config, table, prompts)
