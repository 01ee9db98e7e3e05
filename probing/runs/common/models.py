"""The model that an option names: loaded, or in memory already."""

from typing import Any

from probing.models.load import LanguageModel, load
from probing.runs.common.held import InMemory
from probing.runs.common.options import DeviceOptions


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
