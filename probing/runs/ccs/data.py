"""The statements with their opposites."""

from probing.data.bundled import BUNDLED, bundled_data
from probing.data.layouts import StatementColumns
from probing.data.statements import contrast_pairs_from_table
from probing.data.tables import Table, read_table
from probing.runs.ccs.config import CCSConfig
from probing.types import ContrastPair


def read_statements(config: CCSConfig) -> tuple[Table, list[ContrastPair]]:
    """The dataset as a table, and its pairs."""
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
