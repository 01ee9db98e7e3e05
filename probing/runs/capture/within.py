"""States captured into the folder of another job."""

from pathlib import Path
from typing import Any, Literal, Protocol

from probing.data.tables import Table
from probing.models.load import LanguageModel
from probing.runs.capture.config import CaptureConfig
from probing.runs.capture.stages import capture_into
from probing.store.activations import ActivationStore, open_store
from probing.store.manifest import MANIFEST, claim
from probing.types import LabelledPrompt


class CapturingOptions(Protocol):
    """Options of a job that says of which places states are captured, and how the model is run."""

    @property
    def places(self) -> str | list[str]: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def dtype(self) -> Literal["auto", "float32", "bfloat16", "float16"]: ...
    @property
    def device(self) -> str: ...
    @property
    def batch_tokens(self) -> int | None: ...
    @property
    def max_length(self) -> int | None: ...
    @property
    def compile(self) -> bool: ...
    @property
    def trust_remote_code(self) -> bool: ...


def capture_states(
    folder: Path,
    config: CapturingOptions,
    model: str,
    table: Table,
    prompts: list[LabelledPrompt],
    source: LanguageModel | ActivationStore,
    **request: Any,
) -> ActivationStore:
    """The states of the prompts: captured into a folder, unless there is a store already.

    Args:
        folder: within that of the run.
        config: of the run, with the options of a model.
        model: as it was named.
        table: where the prompts come from.
        prompts: what is read.
        source: the model, or the store.
        request: which state is read: ``pooling``, ``over`` and other options of a capture.
    """
    if isinstance(source, ActivationStore):
        return source
    options: dict[str, Any] = {"data": table.path, "eos": False, **request}
    capture_config = CaptureConfig(
        model=model,
        places=config.places,
        out=folder,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        batch_tokens=config.batch_tokens,
        max_length=config.max_length,
        compile=config.compile,
        trust_remote_code=config.trust_remote_code,
        repair=True,  # what an interrupted run left is read again, and made anew where it is damaged
        **options,
    )
    with claim(folder, "capture", MANIFEST) as inner:
        capture_into(inner, capture_config, table, prompts, source)
    return open_store(folder)
