"""The job ``probing ccs``: contrast-consistent probes of every layer, beside their ceilings, floors and controls."""

from pathlib import Path

from probing.data.bundled import BUNDLED, bundled_data
from probing.data.statements import StatementColumns, contrast_pairs_from_table
from probing.data.tables import Table, read_table
from probing.runs.ccs.config import CCSConfig
from probing.runs.common.groups import PAIRS, values_to_split
from probing.store.manifest import claim
from probing.types import ContrastPair, Report


def run(config: CCSConfig) -> Report:
    """Train and judge the probes into ``config.out``, or go on where an interrupted run stopped.

    Raises:
        ProbingError: see ``probing.errors``; nothing that was there is written over.
    """
    table, pairs = read_statements(config)
    split_values = values_to_split(config, table, pairs, PAIRS)
    with claim(Path(config.out).expanduser(), "ccs") as folder:
        # Only now: the data or the folder can be found wrong without waiting for torch to load.
        from probing.runs.ccs.stages import probe_into

        return probe_into(folder, config, table, pairs, split_values)


def read_statements(config: CCSConfig) -> tuple[Table, list[ContrastPair]]:
    """The dataset as it lies there, and its pairs."""
    table = read_table(str(bundled_data("statements")) if config.data == BUNDLED else config.data, config.split)
    columns = StatementColumns(
        id=config.id_column,
        statement=config.statement_column,
        opposite=config.opposite_column,
        label=config.label_column,
        category=config.category_column,
        formulation=config.formulation_column,
        pair=config.pair_column,
        polarity=config.polarity_column,
    )
    return table, contrast_pairs_from_table(table, columns, config.layout)
