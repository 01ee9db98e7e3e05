"""The texts whose states are read."""

from dataclasses import replace

from probing.data.prompts import prompts_from_table
from probing.data.tables import Table
from probing.runs.capture.config import CaptureConfig
from probing.runs.common.datasets import read_labelled_sources, text_columns
from probing.types import LabelledPrompt


def read_prompts(config: CaptureConfig) -> tuple[Table, list[LabelledPrompt]]:
    """The dataset as a table, and its rows."""
    table = read_labelled_sources(config, config.sources, config.part)
    columns = replace(text_columns(config), span=config.span_column)
    return table, prompts_from_table(table, columns, config.substring)
