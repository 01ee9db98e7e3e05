"""Options of ``probing refusal export``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from probing.runs.common.options import DeviceOptions, HubOptions, option


@dataclass(frozen=True, kw_only=True)
class ExportConfig(DeviceOptions, HubOptions):
    """Write the edit that removes a direction as a model or an adapter, or that adds it as a model or a control vector.

    What was written is loaded back and proved before the folder appears: a batch through the model shows that none of
    the writes that were edited holds of the direction any more, or that every token moves by it. manifest.json holds
    the hash of every tensor before and after, README.md says what was done to the model and how it is undone.

    Args:
        model: folder or hub id of the model that the direction is of, or "bundled" for the one in this package.
        direction: folder of 'probing refusal select', or a direction.safetensors.
        format: "model" (the edited model, in the dtype, shards and names of its checkpoint), "lora" (an adapter of PEFT
            whose rank is that of the direction), or "gguf" (a control vector of llama.cpp: it adds, and cannot remove).
        out: folder that is written; it must not exist.
        mode: "project" removes the direction (model and lora; the default there), "add" adds it at its layer (model
            and gguf). "affine" cannot be written as weights and is refused.
        coefficient: times which the direction is added, of mode add; below zero it takes away.
        embedding: "untie" edits the embedding; an output head that shares its weights is separated from it and stays as
            it is. "skip" leaves the embedding as it is.
        norm_preserving: keep the length of each vector of a weight along the axis of the residual stream (model only).
    """

    model: str = option(identity=False)
    direction: Path = option(identity=False)
    format: Literal["model", "lora", "gguf"]
    out: Path = option(identity=False)
    mode: Literal["project", "affine", "add"] | None = None
    coefficient: float = 1.0
    embedding: Literal["untie", "skip"] = "untie"
    norm_preserving: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_mode()
        if self.edit == "project" and self.coefficient != 1:
            raise ValueError(f"a coefficient is for mode 'add'; '{self.format}' removes the whole component")
        if not self.coefficient or abs(self.coefficient) == float("inf") or self.coefficient != self.coefficient:
            raise ValueError(f"coefficient must be finite and not 0, not {self.coefficient}")
        if self.norm_preserving and self.format != "model":
            raise ValueError(
                f"norm_preserving is for format 'model'; with it the edit is not of low rank ({self.format})"
            )
        if self.edit == "add" and (self.norm_preserving or self.embedding == "skip"):
            raise ValueError("norm_preserving and embedding are for mode 'project'; mode 'add' adds one vector")

    @property
    def edit(self) -> Literal["project", "add"]:
        """What the export does to a model."""
        return "add" if self.mode == "add" or self.format == "gguf" else "project"

    def _check_mode(self) -> None:
        if self.mode == "affine":
            raise ValueError(
                "mode 'affine' has no form in weights: it replaces the component of the whole state at one layer, and "
                "no weight multiplies the whole state there; run it with probing.ablate(model, direction, 'affine')"
            )
        if self.mode == "project" and self.format == "gguf":
            raise ValueError("mode 'project' of format 'gguf': it adds and cannot remove")
        if self.mode == "add" and self.format == "lora":
            raise ValueError(
                "mode 'add' of format 'lora': it removes and cannot add, since an adapter holds matrices and no vector "
                "that is added at every token; use format 'model' or 'gguf'"
            )
