"""The dataset that an option names, as typed rows."""

from probing.data.bundled import BUNDLED, bundled_data
from probing.data.columns import ColumnResolver
from probing.data.pairs import pairs_from_table
from probing.data.prompts import Columns, prompts_from_table
from probing.data.tables import Table, read_table
from probing.errors import DataInvalid
from probing.runs.common.options import TEXT, LabelledOptions
from probing.types import LabelledPrompt, PreferencePair


def read_pairs(data: str, split: str | None, id_column: str | None) -> tuple[Table, list[PreferencePair]]:
    """The dataset as a table, and its rows as pairs."""
    table = read_table(str(bundled_data()) if data == BUNDLED else data, split)
    return table, pairs_from_table(table, id_column)


def read_labelled(config: LabelledOptions, source: str) -> tuple[Table, list[LabelledPrompt]]:
    """A dataset as a table, and its rows.

    Args:
        config: a job's options of splits and columns.
        source: the dataset.

    Raises:
        DataInvalid: no row has a label.
    """
    table = read_table(str(bundled_data("prompts")) if source == BUNDLED else source, config.split)
    columns = Columns(
        config.id_column, config.text_column, config.response_column, config.label_column, config.category_column
    )
    prompts = prompts_from_table(table, columns)
    if all(prompt.label is None for prompt in prompts):
        raise DataInvalid(f"{table.path}: no row has a label; name their column with --label-column")
    if config.split_by not in (TEXT, "category"):
        ColumnResolver.of(table.rows, table.path).check(config.split_by, " to split by", "give 'text' or one of")
    return table, prompts
