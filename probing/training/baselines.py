"""What was measured before training, kept with the run so that a resumed run compares with the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from probing.errors import SourceMismatch, StoreCorrupt
from probing.store.activations import tensor_sha256
from probing.store.described import read_described, write_described
from probing.store.records import SEAL, check_seal

BASELINE_FILE = "baseline.safetensors"
FORMAT = "probing.baseline"


def save_baseline(folder: Path, tensors: Mapping[str, Tensor], identity: Mapping[str, Any]) -> None:
    """Keep tensors of a model before training in a folder, which is made.

    Args:
        folder: the callback's folder within the output folder of the run.
        tensors: by name.
        identity: what they were measured on, which has to be the same when they are read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_described(folder / BASELINE_FILE, FORMAT, tensors, {"measured_on": dict(identity)})


def open_baseline(folder: Path, identity: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors that ``save_baseline`` kept.

    Raises:
        SourceMismatch: there are none, or they were measured on something else; names what differs.
        StoreCorrupt: the file is damaged.
    """
    file = folder / BASELINE_FILE
    if not file.is_file():
        raise SourceMismatch(
            f"{file}: there is no baseline, which a resumed run compares with; resume with the output folder of the "
            f"run that began it"
        )
    known, tensors = read_described(file, FORMAT, "baseline of a callback")
    try:
        if SEAL not in known:
            raise ValueError("it has no hash of its own")
        check_seal(known)
    except ValueError as error:
        raise StoreCorrupt(f"{file}: damaged, or written by another version ({error})") from error
    if known.get("sha256") != {name: tensor_sha256(tensor) for name, tensor in tensors.items()}:
        raise StoreCorrupt(f"{file}: the baseline was changed since it was written")
    other = sorted(key for key, value in identity.items() if known["measured_on"].get(key) != value)
    if other:
        raise SourceMismatch(
            f"{file}: the baseline there has other {' and '.join(other)}; resume with those that the run began with"
        )
    return tensors
