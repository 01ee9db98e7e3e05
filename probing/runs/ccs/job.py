"""The job ``probing ccs``: contrast-consistent probes of every layer, beside their ceilings, floors and controls."""

from pathlib import Path

from probing.data.bundled import BUNDLED, bundled_data
from probing.data.statements import StatementColumns, contrast_pairs_from_table
from probing.data.tables import Table, is_empty, read_table
from probing.errors import DataInvalid, UsageError
from probing.runs.ccs.config import PAIR, CCSConfig
from probing.store.manifest import claim
from probing.types import ContrastPair, Report


def run(config: CCSConfig) -> Report:
    """Train and judge the probes into ``config.out``, or go on where an interrupted run stopped.

    Raises:
        ProbingError: see ``probing.errors``; nothing that was there is written over.
    """
    table, pairs = read_statements(config)
    split_values = _split_values(config, table, pairs)
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


def _split_values(config: CCSConfig, table: Table, pairs: list[ContrastPair]) -> list[str] | None:
    """For each pair, the value that must not be in two folds; None where pairs are split by themselves."""
    if config.split_by == PAIR:
        return None
    if config.split_by in ("category", "formulation"):
        values = [getattr(pair, config.split_by) for pair in pairs]
    elif config.split_by in table.columns:
        values = _values_of(config, table, pairs)
    else:
        raise UsageError(
            f"{table.path}: there is no column '{config.split_by}' to split by; give 'pair' or one of "
            f"{', '.join(map(str, table.columns))}"
        )
    missing = [pair.id for pair, value in zip(pairs, values, strict=True) if is_empty(value)]
    if missing:
        raise DataInvalid(f"{table.path}: pair '{missing[0]}' has no {config.split_by} to split by")
    return [str(value) for value in values]


def _values_of(config: CCSConfig, table: Table, pairs: list[ContrastPair]) -> list[object]:
    if len(table.rows) != len(pairs):
        raise UsageError(
            f"{table.path}: splitting by '{config.split_by}' needs one row a pair; name it as --category-column and "
            f"split by category"
        )
    return [row.get(config.split_by) for row in table.rows]
