"""The job ``probing displacement``: what changed between two models, pair by pair and token by token."""

from pathlib import Path

from probing.data.columns import column_values
from probing.runs.common.datasets import read_pairs
from probing.runs.displacement.config import DisplacementConfig
from probing.runs.displacement.data import find_steps, rater_shares
from probing.store.manifest import claim
from probing.types import Report


def run(config: DisplacementConfig) -> Report:
    """Compare the models into ``config.out``, or go on where an interrupted run stopped.

    Raises:
        ProbingError: see ``probing.errors``; nothing that was there is written over.
    """
    table, pairs = read_pairs(config.data, config.split, config.id_column)
    groups = column_values(table, config.group_column) if config.group_column else None
    shares = rater_shares(table, config.rater_share_column) if config.rater_share_column else None
    steps = find_steps(Path(config.steps).expanduser()) if config.steps is not None else None
    with claim(Path(config.out).expanduser(), "displacement") as folder:
        # Only now: the data or the folder can be found wrong without waiting for torch to load.
        from probing.runs.displacement.stages import compare_into

        return compare_into(folder, config, table, pairs, groups, shares, steps)
