"""The statements with their opposites, and whether there are enough of them."""

from collections.abc import Sequence

from probing.data.layouts import StatementColumns
from probing.data.statements import contrast_pairs_from_table, text_groups
from probing.data.tables import Table
from probing.errors import UsageError
from probing.runs.ccs.config import CCSConfig
from probing.runs.common.datasets import read_sources
from probing.runs.common.groups import folds_of
from probing.types import ContrastPair

NAMES = ("pairs", "text")
"""Words for the rows of this job, and for what those of one group share."""


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


def check_groups(config: CCSConfig, pairs: Sequence[ContrastPair], values: Sequence[str] | None) -> None:
    """Raise ``DataInvalid`` for too few groups before anything is captured."""
    folds_of(config, text_groups(pairs), values, *NAMES)
