"""The texts whose states are read."""

from probing.data.bundled import BUNDLED, bundled_data
from probing.data.prompts import Columns, prompts_from_table
from probing.data.tables import Table, read_table
from probing.runs.capture.config import CaptureConfig
from probing.types import LabelledPrompt


def read_prompts(config: CaptureConfig) -> tuple[Table, list[LabelledPrompt]]:
    """The dataset as a table, and its rows."""
    table = read_table(str(bundled_data("prompts")) if config.data == BUNDLED else config.data, config.split)
    columns = Columns(
        config.id_column,
        config.text_column,
        config.response_column,
        config.label_column,
        config.category_column,
        config.span_column,
    )
    return table, prompts_from_table(table, columns, config.substring)
