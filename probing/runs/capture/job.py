"""The job ``probing capture``: states of a whole dataset on disk, in shards, resumable, repairable, appendable."""

from pathlib import Path

from probing.data.bundled import BUNDLED, bundled_data
from probing.data.prompts import Columns, prompts_from_table
from probing.data.tables import Table, read_table
from probing.runs.capture.config import CaptureConfig
from probing.store.manifest import MANIFEST, claim
from probing.types import LabelledPrompt, Report


def run(config: CaptureConfig) -> Report:
    """Capture the dataset into ``config.out``, or go on where an interrupted run stopped.

    Raises:
        ProbingError: see ``probing.errors``; nothing that was there is written over.
    """
    table, prompts = read_prompts(config)
    with claim(Path(config.out).expanduser(), "capture", MANIFEST) as folder:
        # Only now: the data or the folder can be found wrong without waiting for torch to load.
        from probing.runs.capture.stages import capture_into

        return capture_into(folder, config, table, prompts)


def read_prompts(config: CaptureConfig) -> tuple[Table, list[LabelledPrompt]]:
    """The dataset as it lies there, and its rows."""
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
