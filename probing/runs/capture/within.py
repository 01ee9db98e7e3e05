"""States captured into the folder of another job."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from probing.data.tables import Table
from probing.models.load import LanguageModel
from probing.runs.capture.config import CaptureConfig
from probing.runs.capture.stages import capture_into
from probing.runs.common.options import RunOptions, StatesOptions
from probing.store.activations import ActivationStore, open_store
from probing.store.manifest import MANIFEST, claim
from probing.store.records import refuse_link
from probing.types import LabelledPrompt


def capture_states(
    folder: Path,
    config: StatesOptions,
    model: str,
    table: Table,
    prompts: list[LabelledPrompt],
    source: LanguageModel | ActivationStore,
    **request: Any,
) -> ActivationStore:
    """The states of the prompts: captured into a folder, unless there is a store already.

    Args:
        folder: within that of the run.
        config: options of the run.
        model: name of the model, as it was given.
        table: table that the prompts come from.
        prompts: prompts that are read.
        source: the model, or the store.
        request: which state is read: ``pooling``, ``over`` and other options of a capture.
    """
    if isinstance(source, ActivationStore):
        return source
    how: dict[str, Any] = {entry.name: getattr(config, entry.name) for entry in fields(RunOptions)}
    how |= {"places": config.places, "revision": config.revision, "eos": False, "data": table.path, **request}
    # Shards that an interrupted run left are checked, and made anew where they are damaged.
    capture_config = CaptureConfig(model=model, out=folder, repair=True, **how)
    refuse_link(folder)
    with claim(folder, "capture", MANIFEST) as inner:
        capture_into(inner, capture_config, table, prompts, source)
    return open_store(folder)
