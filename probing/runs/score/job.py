"""The job ``probing score``: a whole dataset, in shards, resumable, every row accounted for."""

import logging
from contextlib import ExitStack
from pathlib import Path

from probing.runs.common.inputs import check_models, check_pair_templates
from probing.runs.score.config import ScoreConfig
from probing.runs.score.data import read_data
from probing.store.manifest import claim
from probing.types import Report

log = logging.getLogger(__name__)


def run(config: ScoreConfig) -> Report:
    """Score the dataset into ``config.out``, or go on where an interrupted run stopped.

    Raises:
        ProbingError: see ``probing.errors``; nothing that was there is written over.
    """
    check_models(config, [config.model], config.revision)
    with ExitStack() as held:
        table, pairs = read_data(config, held)
        check_pair_templates([config.model], table, pairs)
        if config.unused_loss:
            log.warning(
                "none of the columns depends on the loss, so that its options change nothing; --columns regime has "
                "those that do"
            )
        folder = held.enter_context(claim(Path(config.out).expanduser(), "score"))
        # Imported only here, so that errors in the data or the folder are reported without waiting for torch to load.
        from probing.runs.score.stages import score_into

        return score_into(folder, config, table, pairs)
