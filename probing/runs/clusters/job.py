"""The job ``probing clusters``: how far labelled prompts lie apart at every layer, of one model or several."""

from pathlib import Path

from probing.runs.clusters.config import ClustersConfig
from probing.runs.clusters.data import check_labels
from probing.runs.common.datasets import read_labelled
from probing.runs.common.inputs import check_models, check_prompt_templates, check_stores
from probing.store.manifest import claim
from probing.types import Report


def run(config: ClustersConfig) -> Report:
    """Compute the indices into ``config.out``, or go on where an interrupted run stopped.

    Raises:
        ProbingError: see ``probing.errors``; nothing that was there is written over.
    """
    check_models(config, config.models, config.revision, config.places)
    check_stores([*config.stores, *config.control_stores])
    table, prompts = read_labelled(config, config.data)
    control = None if config.control is None else read_labelled(config, config.control)
    for each in (table, prompts), *([] if control is None else [control]):
        check_prompt_templates(config.models, *each, config.chat)
    check_labels(config, table, prompts, control)
    with claim(Path(config.out).expanduser(), "clusters") as folder:
        # Imported only here, so that errors in the data or the folder are reported without waiting for torch to load.
        from probing.runs.clusters.stages import clusters_into

        return clusters_into(folder, config, table, prompts, control)
