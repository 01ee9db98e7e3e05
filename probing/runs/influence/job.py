"""The job ``probing influence``: first-order effects of training on pairs, in shards, resumable."""

from pathlib import Path

from probing.runs.common.inputs import check_models, check_pair_templates, check_prompt_templates
from probing.runs.influence.config import InfluenceConfig
from probing.runs.influence.data import read_inputs
from probing.store.manifest import claim
from probing.types import Report


def run(config: InfluenceConfig) -> Report:
    """Measure the influences into ``config.out``, or go on where an interrupted run stopped.

    Raises:
        ProbingError: see ``probing.errors``; nothing that was there is written over.
    """
    check_models(config, [config.model], config.revision)
    inputs = read_inputs(config)
    check_pair_templates([config.model], inputs.table, inputs.pairs)
    if inputs.target is not None:
        check_pair_templates([config.model], inputs.target.table, inputs.target.pairs)
        chat = config.quantity == "refusal"
        check_prompt_templates([config.model], inputs.target.table, inputs.target.prompts, chat)
    with claim(Path(config.out).expanduser(), "influence") as folder:
        # Imported only here, so that errors in the data or the folder are reported without waiting for torch to load.
        from probing.runs.influence.stages import measure_into

        return measure_into(folder, config, inputs)
