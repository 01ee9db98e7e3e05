"""The job ``probing probe``: supervised probes of every layer on labelled prompts, and whether they hold up."""

from pathlib import Path

from probing.runs.common.datasets import read_labelled
from probing.runs.probe.config import ProbeConfig
from probing.store.manifest import claim
from probing.types import Report


def run(config: ProbeConfig) -> Report:
    """Fit and judge the probes into ``config.out``, or go on where an interrupted run stopped.

    Raises:
        ProbingError: see ``probing.errors``; nothing that was there is written over.
    """
    table, prompts = read_labelled(config, config.data)
    fresh = None if config.fresh is None else read_labelled(config, config.fresh)
    with claim(Path(config.out).expanduser(), "probe") as folder:
        # Imported only here, so that errors in the data or the folder are reported without waiting for torch to load.
        from probing.runs.probe.stages import probe_into

        return probe_into(folder, config, table, prompts, fresh)
