"""The model that an option names: loaded, or in memory already."""

import logging
from pathlib import Path
from typing import Any

from probing.data.bundled import BUNDLED_MODELS
from probing.errors import ModelInvalid, UsageError
from probing.instruments.pair_changes import check_same_vocabulary
from probing.models.checkpoints import base_of, is_adapter
from probing.models.load import LanguageModel, load
from probing.runs.common.held import InMemory
from probing.runs.common.options import DeviceOptions
from probing.runs.common.record import dtype_name
from probing.tokens.tokenizer_files import brings_tokenizer

log = logging.getLogger(__name__)


def load_model(
    name: str,
    config: DeviceOptions,
    revision: str | None = None,
    dtype: str | None = None,
    tokenizer: Any = None,
) -> LanguageModel:
    """The model that an option names.

    Args:
        name: folder, hub id, or a model in memory, which stays as it is.
        config: options of devices.
        revision: revision of the hub.
        dtype: in place of that among the options.
        tokenizer: in place of the one in the checkpoint.

    Raises:
        ProbingError: see ``probing.models.load.load``.
    """
    if isinstance(name, InMemory):
        model: LanguageModel = name.held
        return model
    return load(name, revision, dtype or config.dtype, config.device, config.trust_remote_code, tokenizer)


def load_against(
    reference: LanguageModel,
    reference_name: str,
    name: str,
    config: DeviceOptions,
    revision: str | None = None,
    adapter: bool = False,
) -> LanguageModel:
    """A model to compare with another one, in its dtype, or as an adapter on its weights.

    Args:
        reference: the other one, in memory.
        reference_name: as an option names it.
        name: folder, hub id, adapter, or a model in memory.
        config: options of devices.
        revision: revision of the hub.
        adapter: whether it is an adapter, also where that does not show.

    Raises:
        SourceMismatch: the vocabularies differ. ModelInvalid, UsageError: the model cannot be loaded.
    """
    if adapter or is_adapter(name):
        if revision is not None:
            raise UsageError(f"{name}: is a folder, which has no revision; leave out --policy-revision")
        _warn_of_another_base(reference_name, name)
        return reference.adapted(name)
    tokenizer = None if brings_tokenizer(name) else reference.tokenizer
    dtype = dtype_name(reference.dtype) if config.dtype == "auto" else config.dtype
    policy = load_model(name, config, revision, dtype, tokenizer)
    if policy.model is reference.model:
        raise UsageError(
            "the reference and the policy are the same model in memory, with or without an adapter on it, so that "
            "nothing can differ; load the reference anew, by its path"
        )
    check_same_vocabulary(reference, policy)
    return policy


def _warn_of_another_base(reference: str, name: str) -> None:
    """Warn where an adapter names another base than the one it is put onto."""
    if isinstance(reference, InMemory):
        return
    try:
        said = base_of(name)
        used = base_of(reference) if is_adapter(reference) else reference
    except ModelInvalid:
        return
    bundled = BUNDLED_MODELS.get(used)
    if Path(said).name != (Path(used) if bundled is None else bundled()).name:
        log.warning("%s says that it was trained on %s; it is put onto %s", name, said, used)
