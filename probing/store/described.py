"""Tensors on disk with a description in the file's metadata, sealed: probes and directions are kept so."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from probing.errors import SourceMismatch, StoreCorrupt
from probing.store.activations import tensor_sha256, write_states
from probing.store.plain_json import parse_json
from probing.store.records import SEAL, refuse_link, seal

DESCRIPTION = "probing"
"""Entry of the metadata that holds the description."""


def write_described(path: Path, format: str, tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> None:
    """Write tensors with a description, which also gets their hashes and its own.

    Args:
        path: the file; what is there is replaced.
        format: name of the format, by which a reader knows the file.
        tensors: the tensors.
        described: the description.
    """
    known = {"format": format, **described}
    known["sha256"] = {name: tensor_sha256(tensor) for name, tensor in tensors.items()}
    known[SEAL] = seal(known)
    write_states(path, tensors, {DESCRIPTION: json.dumps(known, default=str)})


def read_described(file: Path, format: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a file, of which nothing but the format was checked.

    Args:
        file: the file.
        format: name of the format.
        what: what a file of this format holds, for messages.

    Raises:
        SourceMismatch: there is no such file, or it is of another format.
        StoreCorrupt: the file is a link, or no safetensors file.
    """
    refuse_link(file)
    if not file.is_file():
        raise SourceMismatch(f"{file}: no such file")
    try:
        with safe_open(file, framework="pt") as opened:
            known = parse_json((opened.metadata() or {}).get(DESCRIPTION, "{}"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise StoreCorrupt(f"{file}: damaged, or no safetensors file ({error})") from error
    if not isinstance(known, dict) or known.get("format") != format:
        raise SourceMismatch(f"{file}: holds no {what}")
    return known, tensors
