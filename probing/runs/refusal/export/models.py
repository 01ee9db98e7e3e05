"""Each form of an export: written into a folder, loaded back, proved."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from probing.engine.export_guard import ExportGuard
from probing.engine.low_rank import Factors, find_low_rank_removal
from probing.engine.orthogonalization import orthogonalize
from probing.engine.weight_bias import AdditionGuard, add_to_weights
from probing.errors import EditRefused, UsageError
from probing.models.adapter_files import write_lora
from probing.models.adapters import ADAPTER_WEIGHTS
from probing.models.bias_settings import complete_biases
from probing.models.edited_checkpoints import WrittenTensor, find_dtype, find_model_folder, write_like
from probing.models.language_model import LanguageModel
from probing.models.load import load
from probing.models.writers import WRITER_KINDS, WriterKind
from probing.runs.refusal.export.config import ExportConfig
from probing.store.activations import tensor_sha256
from probing.store.control_vectors import CONTROL_VECTOR_FILE, ControlVector, read_control_vector, write_control_vector
from probing.store.directions import check_model
from probing.types import Direction, Source


@dataclass(frozen=True, eq=False)
class Exported:
    """What was written, and what of it was proved.

    Attributes:
        source: the model that was edited.
        dtype: in which it was loaded to be edited and proved.
        proof: what was found, edited and proved, in one line.
        tensors: of the files that were written.
        based_on: tensors of the model that an adapter changes when it is on; they stay as they are.
        notes: what else has to be said.
    """

    source: Source
    dtype: str
    proof: str
    tensors: list[WrittenTensor]
    based_on: dict[str, str]
    notes: list[str]


def export_edit(folder: Path, config: ExportConfig, direction: Direction) -> Exported:
    """Write the form that was asked for into an empty folder, and prove it.

    Raises:
        SourceMismatch: the direction is of another model.
        EditRefused: the edit, or what was written, cannot be proved.
    """
    # The edit is made in the dtype of the checkpoint, since that is what will run.
    model = _load(config, config.dtype)
    origin = (
        None if model.base is not None or model.peft is not None else find_model_folder(config.model, config.revision)
    )
    if origin is not None and config.dtype == "auto":
        stored = find_dtype(origin)
        model = model if str(model.dtype).endswith(stored) else _load(config, stored)
    check_model(direction, model.source, model.model.config.get_text_config().hidden_size, model.layers)
    if config.format == "gguf":
        return _export_control_vector(folder, config, direction, model)
    if origin is None:
        raise UsageError(
            f"{config.model}: is an adapter; merge it into its model (merge_and_unload of PEFT), save the result, "
            f"extract the direction from that, and export it"
        )
    if config.format == "lora":
        return _export_lora(folder, config, direction, model, origin)
    make = _export_model if config.edit == "project" else _export_addition
    return make(folder, config, direction, model, origin)


def _load(config: ExportConfig, dtype: str) -> LanguageModel:
    return load(config.model, config.revision, dtype, config.device, config.trust_remote_code)


def _choose_kinds(config: ExportConfig) -> tuple[WriterKind, ...]:
    return tuple(kind for kind in WRITER_KINDS if config.embedding == "untie" or kind != "embedding")


def _export_model(
    folder: Path, config: ExportConfig, direction: Direction, model: LanguageModel, origin: Path
) -> Exported:
    source, dtype, stored = model.source, str(model.dtype), getattr(torch, find_dtype(origin))
    guard = ExportGuard.measure(model, direction, _choose_kinds(config))
    edit = orthogonalize(model, direction, embedding=config.embedding, norm_preserving=config.norm_preserving)
    edit.forget()
    tensors = write_like(model, origin, folder)
    edited = _hash_state(model, stored)
    notes = [*edit.writers.notes, f"{len(edit.tensors)} tensors of {edit.parameters:,} parameters were edited"]
    # The memory of the first model is needed for the second one.
    del model, edit
    back = _load_back(folder, config, stored, edited)
    proved = guard.check(back)
    return Exported(source, dtype, proved.describe(), tensors, {}, notes)


def _export_addition(
    folder: Path, config: ExportConfig, direction: Direction, model: LanguageModel, origin: Path
) -> Exported:
    source, dtype, stored = model.source, str(model.dtype), getattr(torch, find_dtype(origin))
    # What is loaded back runs in the dtype of the checkpoint, in which states are others than in a wider one.
    same = model if model.dtype == stored else _load(config, str(stored).removeprefix("torch."))
    guard = AdditionGuard.measure(same, direction, config.coefficient)
    del same
    edit = add_to_weights(model, direction, config.coefficient)
    settings, added = complete_biases(model, edit.created) if edit.created else ({}, [])
    edit.forget()
    tensors = write_like(model, origin, folder, added, settings)
    edited, proof = _hash_state(model, stored), edit.describe()
    notes = list(edit.notes)
    if added:
        notes.append(
            f"{', '.join(settings)} is on in config.json now: {len(added)} biases are new, all but one of them zero"
        )
    del model, edit
    guard.check(_load_back(folder, config, stored, edited))
    return Exported(source, dtype, proof, tensors, {}, notes)


def _load_back(folder: Path, config: ExportConfig, stored: torch.dtype, edited: dict[str, str]) -> LanguageModel:
    """What was written, loaded as a model.

    Raises:
        EditRefused: its tensors are not those that were edited.
    """
    back = load(str(folder), None, str(stored).removeprefix("torch."), config.device, config.trust_remote_code)
    found = _hash_state(back, stored)
    other = [name for name in edited.keys() | found.keys() if edited.get(name) != found.get(name)]
    if other:
        raise EditRefused(
            f"{len(other)} tensors are not those that were edited when they are loaded back: {min(other)}"
        )
    return back


def _hash_state(model: LanguageModel, dtype: torch.dtype) -> dict[str, str]:
    """Hash of every tensor of a model, in the dtype of its checkpoint."""
    state = model.model.state_dict()
    return {
        name: tensor_sha256((each.to(dtype) if each.is_floating_point() else each).detach().cpu().contiguous())
        for name, each in state.items()
    }


def _export_lora(
    folder: Path, config: ExportConfig, direction: Direction, model: LanguageModel, origin: Path
) -> Exported:
    guard = ExportGuard.measure(model, direction, _choose_kinds(config))
    removal = find_low_rank_removal(model, direction, config.embedding)
    base = str(origin.resolve()) if origin.resolve() == _as_folder(config.model) else config.model
    tensors = write_lora(folder, base, config.revision, [dataclasses.astuple(each) for each in removal.factors])
    based_on = {f"{each.module}.weight": _hash_weight(model, each) for each in removal.factors}
    proved = guard.check(model.adapted(str(folder)))
    if {f"{each.module}.weight": _hash_weight(model, each) for each in removal.factors} != based_on:
        raise EditRefused("loading the adapter changed weights of the model; nothing was written")
    notes = [*removal.writers.notes, f"rank {direction.rank}, {len(removal.factors)} modules"]
    written = [WrittenTensor(name, ADAPTER_WEIGHTS, None, tensor_sha256(each)) for name, each in tensors.items()]
    return Exported(model.source, str(model.dtype), proved.describe(), written, based_on, notes)


def _as_folder(model: str) -> Path:
    return Path(model).expanduser().resolve()


def _hash_weight(model: LanguageModel, factors: Factors) -> str:
    weight = model.model.get_submodule(factors.module).weight
    return tensor_sha256(weight.detach().cpu().contiguous())


def _export_control_vector(folder: Path, config: ExportConfig, direction: Direction, model: LanguageModel) -> Exported:
    if direction.rank > 1:
        raise UsageError(
            f"a subspace of rank {direction.rank} has no length, so that it cannot be added; give one vector"
        )
    block = _find_block(direction, model.layers)
    vectors = torch.zeros(model.layers - 1, direction.width)
    vectors[block - 1] = (config.coefficient * direction.vector.double().reshape(-1)).float()
    if not vectors.isfinite().all() or not vectors.any():
        raise UsageError(f"the direction times {config.coefficient:g} has no length that float32 can hold")
    hint = str(model.model.config.get_text_config().model_type)
    path = folder / CONTROL_VECTOR_FILE
    write_control_vector(path, ControlVector(vectors, hint))
    back = read_control_vector(path, model.layers, direction.width)
    if not torch.equal(back.vectors, vectors) or back.model_hint != hint:
        raise EditRefused("the control vector is another one when it is read back; nothing was written")
    written = [
        WrittenTensor(f"direction.{number}", CONTROL_VECTOR_FILE, None, tensor_sha256(vector.contiguous()))
        for number, vector in enumerate(vectors, start=1)
    ]
    proof = f"direction.{block} holds the direction times {config.coefficient:g}, the others are zero; read back equal"
    notes = [
        "a control vector adds; it cannot remove a direction",
        f"model_hint is '{hint}', the name of the architecture in transformers, which llama.cpp may spell otherwise",
    ]
    return Exported(model.source, str(model.dtype), proof, written, {}, notes)


def _find_block(direction: Direction, layers: int) -> int:
    """The block, counted from 0, to whose output llama.cpp adds the direction.

    Raises:
        UsageError: the direction was read elsewhere than in the residual stream, or where no control vector acts.
    """
    place = direction.place
    if place.kind not in ("resid_pre", "resid_post") or place.layer is None:
        raise UsageError(f"the direction was read at {place}; a control vector is added to the residual stream")
    block = place.layer - 1 if place.kind == "resid_pre" else place.layer
    if not 1 <= block < layers:
        raise UsageError(
            f"the direction was read at {place}: llama.cpp adds vectors to the outputs of blocks 1 to {layers - 1} "
            f"(counted from 0), and not there"
        )
    return block
