"""The two models that are compared: loaded, checked to belong together, told apart by content."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from probing.errors import ModelInvalid, ProbingError
from probing.models.hashes import find_weight_files
from probing.models.load import LanguageModel
from probing.runs.common.models import load_against, load_model
from probing.runs.displacement.config import DisplacementConfig
from probing.store.files import file_sha256

log = logging.getLogger(__name__)


CHECKPOINT_FILES = (
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
)


def load_reference(config: DisplacementConfig) -> LanguageModel:
    """The model before training, with its adapter if one makes it."""
    base = load_model(config.reference, config, config.reference_revision)
    return base if config.reference_adapter is None else base.adapted(config.reference_adapter)


def find_policy(
    config: DisplacementConfig, steps: Sequence[tuple[int, Path]] | None, reference: LanguageModel
) -> tuple[LanguageModel, int | None, list[dict[str, Any]]]:
    """The model to compare with; for a folder of checkpoints the last readable one, its step, and the broken ones."""
    broken: list[dict[str, Any]] = []
    if steps is None:
        return load_policy(config, reference, config.policy or config.adapter or ""), None, []
    for step, path in reversed(steps):
        try:
            return load_policy(config, reference, str(path)), step, broken
        except ProbingError as error:
            broken.append(note_broken_step(step, path, error))
    raise ModelInvalid(f"{config.steps}: no checkpoint in it can be read; the last: {broken[0]['why']}")


def load_policy(config: DisplacementConfig, reference: LanguageModel, name: str) -> LanguageModel:
    """A model to compare with the reference; see ``load_against``."""
    revision, adapter = config.policy_revision, config.adapter is not None
    return load_against(reference, config.reference, name, config, revision, adapter=adapter)


def note_broken_step(step: int, path: Path, error: Exception) -> dict[str, Any]:
    """Warn that a checkpoint is left out; returns what the record says of it."""
    log.warning("step %d (%s) is left out: %s", step, path.name, error)
    return {"step": step, "folder": path.name, "why": str(error)}


def hash_checkpoint(folder: Path) -> str:
    """Hash of the files that a checkpoint is loaded from, without those that a trainer leaves beside them."""
    files = {path for pattern in CHECKPOINT_FILES for path in folder.glob(pattern)} | {*find_weight_files(folder)}
    lines = [f"{file_sha256(path)} {path.relative_to(folder).as_posix()}\n" for path in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
