"""The pairs that are scored."""

from collections.abc import Sequence
from contextlib import ExitStack

from probing.data.tables import Table
from probing.errors import UsageError
from probing.instruments.columns import REF_LOGPS
from probing.runs.common.datasets import read_pairs
from probing.runs.score.config import ScoreConfig
from probing.types import PreferencePair


def read_data(config: ScoreConfig, held: ExitStack | None = None) -> tuple[Table, Sequence[PreferencePair]]:
    """The dataset as a table, and its rows as pairs. Args: see ``read_pairs``.

    Raises:
        UsageError: log-probabilities are to be written beside the pairs, which have such columns already.
    """
    table, pairs = read_pairs(config, held)
    there = [name for name in REF_LOGPS if name in table.columns] if config.write_ref_logps else []
    if there:
        raise UsageError(f"{table.path}: has a column {' and '.join(there)} already; remove it first")
    return table, pairs
