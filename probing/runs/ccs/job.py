"""The job ``probing ccs``: contrast-consistent probes of every layer, beside their ceilings, floors and controls."""

from pathlib import Path

from probing.runs.ccs.config import CCSConfig
from probing.runs.ccs.data import check_groups, read_statements
from probing.runs.common.groups import PAIRS, values_to_split
from probing.runs.common.inputs import CHAT, check_source, check_templates
from probing.store.manifest import claim
from probing.types import Report


def run(config: CCSConfig) -> Report:
    """Train and judge the probes into ``config.out``, or go on where an interrupted run stopped.

    Raises:
        ProbingError: see ``probing.errors``; nothing that was there is written over.
    """
    check_source(config)
    if config.model is not None and config.chat:
        check_templates([config.model], CHAT)
    table, pairs = read_statements(config)
    split_values = values_to_split(config, table, pairs, PAIRS)
    check_groups(config, pairs, split_values)
    with claim(Path(config.out).expanduser(), "ccs") as folder:
        # Imported only here, so that errors in the data or the folder are reported without waiting for torch to load.
        from probing.runs.ccs.stages import probe_into

        return probe_into(folder, config, table, pairs, split_values)
