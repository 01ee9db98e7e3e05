"""The statements with their opposites, and what their folds keep together."""

from probing.data.bundled import BUNDLED, bundled_data
from probing.data.columns import ColumnResolver, require_split_values
from probing.data.layouts import StatementColumns
from probing.data.statements import contrast_pairs_from_table
from probing.data.tables import Table, read_table
from probing.errors import UsageError
from probing.runs.ccs.config import PAIR, CCSConfig
from probing.types import ContrastPair


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


def values_to_split(config: CCSConfig, table: Table, pairs: list[ContrastPair]) -> list[str] | None:
    """For each pair, the value that must not be in two folds; None where pairs are split by themselves.

    Raises:
        UsageError: there is no such column, or it has no value of its own for every pair.
        DataInvalid: a pair has no value.
    """
    if config.split_by == PAIR:
        return None
    if config.split_by in ("category", "formulation"):
        values = [getattr(pair, config.split_by) for pair in pairs]
    else:
        ColumnResolver.of(table.rows, table.path).check(config.split_by, " to split by", "give 'pair' or one of")
        values = _values_of(config, table, pairs)
    return require_split_values(table, config.split_by, [pair.id for pair in pairs], values, "pair")


def _values_of(config: CCSConfig, table: Table, pairs: list[ContrastPair]) -> list[object]:
    if len(table.rows) != len(pairs):
        raise UsageError(
            f"{table.path}: splitting by '{config.split_by}' needs one row a pair; name it as --category-column and "
            f"split by category"
        )
    return [row.get(config.split_by) for row in table.rows]
