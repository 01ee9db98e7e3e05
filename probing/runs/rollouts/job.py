"""The job ``probing rollouts``: what one step on each group of responses does to the correct ones."""

from pathlib import Path

from probing.runs.common.datasets import read_rollouts
from probing.runs.common.inputs import check_models
from probing.runs.rollouts.config import RolloutsConfig
from probing.runs.rollouts.data import check_group_templates
from probing.store.manifest import claim
from probing.types import Report


def run(config: RolloutsConfig) -> Report:
    """Measure the groups into ``config.out``, or go on where an interrupted run stopped.

    Raises:
        ProbingError: see ``probing.errors``; nothing that was there is written over.
    """
    check_models(config, [config.model], config.revision)
    table, groups = read_rollouts(config)
    check_group_templates(config, table, groups)
    with claim(Path(config.out).expanduser(), "rollouts") as folder:
        # Imported only here, so that errors in the data or the folder are reported without waiting for torch to load.
        from probing.runs.rollouts.stages import measure_into

        return measure_into(folder, config, table, groups)
