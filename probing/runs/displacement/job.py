"""The job ``probing displacement``: what changed between two models, pair by pair and token by token."""

from contextlib import ExitStack
from pathlib import Path

from probing.runs.common.inputs import check_pair_templates
from probing.runs.displacement.config import DisplacementConfig
from probing.runs.displacement.data import check_compared, read_inputs
from probing.store.manifest import claim
from probing.types import Report


def run(config: DisplacementConfig) -> Report:
    """Compare the models into ``config.out``, or go on where an interrupted run stopped.

    Raises:
        ProbingError: see ``probing.errors``; nothing that was there is written over.
    """
    check_compared(config)
    with ExitStack() as held:
        inputs = read_inputs(config, held)
        check_pair_templates([config.reference], inputs.table, inputs.pairs)
        folder = held.enter_context(claim(Path(config.out).expanduser(), "displacement"))
        # Imported only here, so that errors in the data or the folder are reported without waiting for torch to load.
        from probing.runs.displacement.stages import compare_into

        return compare_into(folder, config, inputs)
