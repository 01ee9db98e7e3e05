"""What can be known to be wrong of the models, stores and devices of a run before torch is imported."""

from collections.abc import Sequence
from pathlib import Path

from probing.data.pairs import LazyPairs
from probing.data.tables import Table
from probing.errors import SourceMismatch, UsageError
from probing.models.checkpoints import (
    TENSOR_PARALLEL,
    check_checkpoint,
    check_device,
    check_layers,
    check_template_files,
)
from probing.runs.common.held import InMemory
from probing.runs.common.options import DeviceOptions, OneModelOptions
from probing.store.manifest import MANIFEST
from probing.store.records import read_run
from probing.tokens.rendering import is_rendered
from probing.types import LabelledPrompt, PreferencePair

STATES = "states"
"""Folder in which a run keeps the states that it captured."""
CHAT = "--chat puts texts into the chat template"


def check_models(
    config: DeviceOptions, names: Sequence[str], revision: str | None = None, places: str | Sequence[str] | None = None
) -> None:
    """Raise for a device, models or layers that there are not.

    Args:
        config: options of devices.
        names: folders or hub ids; models in memory are passed over.
        revision: revision of the hub.
        places: places that are read in every one of the models.

    Raises:
        ModelInvalid, LayerNotFound: names what is wrong.
    """
    check_device(config.device)
    for name in list_on_disk(names):
        check_checkpoint(name, revision)
        if places is not None:
            check_layers(name, places)


def check_source(config: OneModelOptions) -> None:
    """The same of the one model of a job, or of the store in its place."""
    if config.store is not None:
        if config.device == TENSOR_PARALLEL:
            raise UsageError(
                f"--device {TENSOR_PARALLEL} splits a model, and the states of a store need none; give another --device"
            )
        check_device(config.device)
        check_stores([config.store])
    else:
        check_models(config, [config.model or ""], config.revision, config.places)


def check_stores(paths: Sequence[str | Path]) -> None:
    """Raise ``ProbingError`` where there is no folder, or none with the whole record of a store."""
    for path in paths:
        folder = find_store(path)
        if not folder.exists():
            raise SourceMismatch(f"{folder}: no such folder")
        read_run(folder, MANIFEST)


def find_store(path: Path | str) -> Path:
    """The folder of a store: the one that is named, or that within the run which it holds."""
    folder = Path(path).expanduser()
    within = folder / STATES
    return within if not (folder / MANIFEST).exists() and (within / MANIFEST).exists() else folder


def check_templates(names: Sequence[str], why: str) -> None:
    """Raise ``ModelInvalid`` for a model in a folder that has no chat template; ``why`` says what needs one."""
    for name in list_on_disk(names):
        check_template_files(name, why)


def check_prompt_templates(names: Sequence[str], table: Table, prompts: Sequence[LabelledPrompt], chat: bool) -> None:
    """The same, where a text is put into a template."""
    first = next((prompt for prompt in prompts if is_rendered(prompt, chat)), None)
    if first is not None:
        check_templates(names, CHAT if chat else f"{table.path}: row '{first.id}' is made of messages")


def check_pair_templates(names: Sequence[str], table: Table, pairs: Sequence[PreferencePair]) -> None:
    """The same, where a preference pair is a conversation."""
    if isinstance(pairs, LazyPairs):
        first = pairs.facts.first_conversation
    else:
        first = next((index for index, pair in enumerate(pairs) if pair.conversational), None)
    if first is not None:
        check_templates(names, f"{table.where(first)} (id '{pairs[first].id}'): the pair is made of messages")


def list_on_disk(names: Sequence[str]) -> list[str]:
    """The models that are not in memory."""
    return [name for name in names if not isinstance(name, InMemory)]
