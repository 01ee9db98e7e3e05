"""The texts whose states are read."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from probing.data.lazy import pick
from probing.data.prompts import read_prompts
from probing.data.tables import Table
from probing.runs.capture.config import CaptureConfig
from probing.runs.common.datasets import read_labelled_sources, text_columns
from probing.types import LabelledPrompt


def read_data(config: CaptureConfig, held: ExitStack | None = None) -> tuple[Table, Sequence[LabelledPrompt]]:
    """The dataset as a table, and its rows. Args: see ``read_labelled_sources``."""
    table = read_labelled_sources(config, config.sources, config.part, held)
    columns = replace(text_columns(config), span=config.span_column)
    return table, read_prompts(table, columns, config.substring)


def choose_prompts(config: CaptureConfig, table: Table, prompts: Sequence[LabelledPrompt]) -> Sequence[LabelledPrompt]:
    """The rows of the shard that is asked for; all of them where none is.

    Args:
        config: the options.
        table: the whole dataset.
        prompts: its rows as texts; of a preference pair there are two, which stay together.
    """
    if config.num_shards is None:
        return prompts
    sides, chosen = len(prompts) // len(table.rows), config.choose_rows(len(table.rows))
    return pick(prompts, range(sides * chosen.start, sides * chosen.stop))
