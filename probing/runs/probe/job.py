"""The job ``probing probe``: supervised probes of every layer on labelled prompts, and whether they hold up."""

from pathlib import Path

from probing.runs.common.datasets import read_labelled
from probing.runs.common.inputs import check_prompt_templates, check_source
from probing.runs.probe.config import ProbeConfig
from probing.runs.probe.data import check_rows
from probing.store.manifest import claim
from probing.types import Report


def run(config: ProbeConfig) -> Report:
    """Fit and judge the probes into ``config.out``, or go on where an interrupted run stopped.

    Raises:
        ProbingError: see ``probing.errors``; nothing that was there is written over.
    """
    check_source(config)
    table, prompts = read_labelled(config, config.data)
    fresh = None if config.fresh is None else read_labelled(config, config.fresh)
    check_rows(config, (table, prompts), fresh)
    for each in (table, prompts), *([] if fresh is None else [fresh]):
        check_prompt_templates([] if config.model is None else [config.model], *each, config.chat)
    with claim(Path(config.out).expanduser(), "probe") as folder:
        # Imported only here, so that errors in the data or the folder are reported without waiting for torch to load.
        from probing.runs.probe.stages import probe_into

        return probe_into(folder, config, table, prompts, fresh)
