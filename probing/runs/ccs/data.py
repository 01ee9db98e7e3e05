"""The statements with their opposites."""

from probing.data.layouts import StatementColumns
from probing.data.statements import contrast_pairs_from_table
from probing.data.tables import Table
from probing.errors import UsageError
from probing.runs.ccs.config import CCSConfig
from probing.runs.common.datasets import read_sources
from probing.types import ContrastPair


def read_statements(config: CCSConfig) -> tuple[Table, list[ContrastPair]]:
    """The dataset as a table, and its pairs."""
    if config.layout == "halves" and not (config.part.is_whole and len(config.sources) == 1):
        raise UsageError("a part of a file has other halves than the whole; read one whole file with --layout halves")
    table = read_sources(config, "statements")
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
