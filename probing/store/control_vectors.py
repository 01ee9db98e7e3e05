"""Control vectors for llama.cpp: a GGUF file with a vector that is added to the output of each block but the first."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probing.errors import SourceMismatch, StoreCorrupt, UsageError

ARCHITECTURE = "controlvector"
HINT, COUNT, VECTOR = f"{ARCHITECTURE}.model_hint", f"{ARCHITECTURE}.layer_count", "direction."
CONTROL_VECTOR_FILE = "direction.gguf"


@dataclass(frozen=True, eq=False)
class ControlVector:
    """What is added to the output of each block.

    Attributes:
        vectors: [layer - 1, width], float32: row n - 1 is ``direction.n``, which llama.cpp adds to the output of block
            n, counted from 0. The output of the first block cannot be changed.
        model_hint: architecture of the model.
    """

    vectors: Float[Tensor, "layer_minus_one width"]
    model_hint: str


def write_control_vector(path: Path, control: ControlVector) -> None:
    """Write a control vector.

    Raises:
        UsageError: the package gguf is not installed.
    """
    gguf = _import_gguf()
    writer = gguf.GGUFWriter(str(path), ARCHITECTURE)
    try:
        writer.add_string(HINT, control.model_hint)
        writer.add_uint32(COUNT, len(control.vectors))
        for number, vector in enumerate(control.vectors.float().cpu(), start=1):
            writer.add_tensor(f"{VECTOR}{number}", vector.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read_control_vector(path: Path, layers: int, width: int) -> ControlVector:
    """Read a control vector for a model.

    Args:
        path: the GGUF file.
        layers: blocks of the model.
        width: width of its states.

    Raises:
        SourceMismatch: the file holds no control vector, or one for a model with other layers or of another width.
        StoreCorrupt: the file is damaged. UsageError: the package gguf is not installed.
    """
    gguf = _import_gguf()
    try:
        reader = gguf.GGUFReader(str(path))
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise StoreCorrupt(f"{path}: damaged, or no GGUF file ({error})") from error
    known = {
        name: reader.fields[name].contents() for name in ("general.architecture", HINT, COUNT) if name in reader.fields
    }
    if known.get("general.architecture") != ARCHITECTURE:
        raise SourceMismatch(
            f"{path}: holds no control vector, but {known.get('general.architecture', 'something else')}"
        )
    tensors = {each.name: torch.from_numpy(each.data.copy()) for each in reader.tensors}
    wanted = [f"{VECTOR}{number}" for number in range(1, layers)]
    if sorted(tensors) != sorted(wanted) or known.get(COUNT) != layers - 1:
        raise SourceMismatch(
            f"{path}: holds vectors for {len(tensors)} layers, and a model of {layers} layers takes {layers - 1}"
        )
    vectors = torch.stack([tensors[name] for name in wanted])
    if vectors.shape[1] != width:
        raise SourceMismatch(f"{path}: holds vectors of width {vectors.shape[1]}, and the model has states of {width}")
    return ControlVector(vectors, str(known.get(HINT, "")))


def _import_gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise UsageError("a control vector needs the package gguf: pip install 'model-probing[gguf]'") from error
    return gguf
