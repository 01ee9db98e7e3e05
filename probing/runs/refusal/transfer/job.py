"""The job ``probing refusal transfer``: a direction of one model used in others, with its controls."""

from pathlib import Path

from probing.data.phrases import read_phrases
from probing.errors import UsageError
from probing.runs.refusal.common.models import check_chat_models
from probing.runs.refusal.common.prompts import read_kinds
from probing.runs.refusal.transfer.config import TransferConfig
from probing.store.directions import open_direction
from probing.store.manifest import claim
from probing.types import Report


def run(config: TransferConfig) -> Report:
    """Judge the direction in every model, into ``config.out``.

    Raises:
        ProbingError: see ``probing.errors``; nothing that was there is written over.
    """
    check_chat_models(config, config.models, config.revision, None if config.place is None else [config.place])
    direction = open_direction(config.from_direction)
    if direction.rank > 1:
        raise UsageError(f"{config.from_direction}: a subspace of rank {direction.rank}; one vector is transferred")
    kinds = read_kinds(config)
    phrases = read_phrases(config.phrases) if config.texts else None
    with claim(Path(config.out).expanduser(), "refusal transfer") as folder:
        # Imported only here, so that errors in the data or the folder are reported without waiting for torch to load.
        from probing.runs.refusal.transfer.stages import transfer_into

        return transfer_into(folder, config, kinds, direction, phrases)
