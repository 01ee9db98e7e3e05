"""A changed model written as its checkpoint was: the same shards and dtypes, and every other file beside them."""

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from probing.data.bundled import BUNDLED_MODELS
from probing.errors import EditRefused, ModelInvalid
from probing.models.hashes import cache_folder
from probing.models.language_model import LanguageModel
from probing.models.load import hide_bars
from probing.store.activations import tensor_sha256

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model", "*.py", "*.tiktoken", "LICENSE*", "NOTICE*", "USE_POLICY*")
"""Files that belong to a model besides its weights: its configs, tokenizer, template, code and licence."""
NOT_COPIED = ("manifest.json", "run.json", "trainer_state.json")
TEMPLATES = "additional_chat_templates"
SAVED = ".saved"


@dataclass(frozen=True)
class WrittenTensor:
    """One tensor of a checkpoint, before and after.

    Attributes:
        name: in the checkpoint.
        file: that holds it now.
        before: sha256 of its bytes; None for a tensor that the checkpoint did not have.
        after: the same of what was written.
    """

    name: str
    file: str
    before: str | None
    after: str

    @property
    def changed(self) -> bool:
        """Whether it is another one than before, or new."""
        return self.before != self.after


def find_model_folder(model: str, revision: str | None) -> Path:
    """The folder that a model was just loaded from.

    Args:
        model: its name, as it was given to ``load``.
        revision: revision of the hub.
    """
    if model in BUNDLED_MODELS:
        return Path(BUNDLED_MODELS[model]())
    folder = Path(model).expanduser()
    return folder if folder.is_dir() else cache_folder(model, revision or "main")


def list_shards(folder: Path) -> list[str]:
    """Names of the files that the weights in a folder are loaded from.

    Raises:
        ModelInvalid: they have other names than usual.
    """
    if (folder / INDEX).is_file():
        return sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    raise ModelInvalid(f"{folder}: has neither {INDEX} nor {WEIGHTS}, so that it cannot be written in the same shards")


def find_dtype(folder: Path) -> str:
    """The dtype of the weights of a checkpoint, as ``load`` takes it; the widest where there are several."""
    kinds = set()
    for name in list_shards(folder):
        with safe_open(folder / name, framework="pt") as file:
            kinds |= {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    names = {"BF16": "bfloat16", "F16": "float16"}
    halves = kinds & set(names)
    return names[halves.pop()] if len(halves) == 1 and "F32" not in kinds and "F64" not in kinds else "float32"


def write_like(
    model: LanguageModel,
    origin: Path,
    folder: Path,
    added: Collection[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> list[WrittenTensor]:
    """Write a model into a folder in the shards, names and dtypes of the checkpoint that it was loaded from.

    A tensor that did not change is copied bit for bit. An output head that was untied from the embedding, and other
    tensors that are new, stand in the last shard.

    Args:
        model: the changed model, in the dtype of the checkpoint or a wider one.
        origin: folder of the checkpoint.
        folder: an empty folder.
        added: names, in the model, of tensors that the checkpoint does not have.
        settings: of the config of the (text) model that are other than those in the checkpoint.

    Raises:
        EditRefused: the tensors of the model do not have the names and shapes of those in the checkpoint.
        ModelInvalid: the files of the weights have other names than usual.
    """
    saved = folder / SAVED
    # The library knows how the tensors of a model are named, split and transposed in a checkpoint.
    with hide_bars():
        model.model.save_pretrained(saved)
    source = _Saved(saved, model.model.base_model_prefix)
    written, shards = [], list_shards(origin)
    for name in shards:
        written += _write_shard(source, origin, folder, name, added if name == shards[-1] else None)
    if source.left:
        raise EditRefused(f"{len(source.left)} tensors of the model have no place in its checkpoint: {source.left[0]}")
    shutil.rmtree(saved)
    _copy_index(origin, folder, written)
    _copy_companions(origin, folder, model.model.config, settings or {})
    return written


class _Saved:
    """Tensors that the library wrote, by the names that they have in the checkpoint."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder, self._prefix = folder, prefix
        self._files: dict[str, str] = {}
        for name in list_shards(folder):
            with safe_open(folder / name, framework="pt") as file:
                self._files |= dict.fromkeys(file.keys(), name)
        self.left = list(self._files)

    def take(self, name: str) -> Tensor | None:
        """The tensor of this name; None where the model has none, as of a head that is tied."""
        # Checkpoints of bare models leave the prefix of the language model out.
        known = next((each for each in (name, f"{self._prefix}.{name}") if each in self._files), None)
        if known is None:
            return None
        self.left.remove(known)
        with safe_open(self._folder / self._files[known], framework="pt") as file:
            tensor: Tensor = file.get_tensor(known)
        return tensor


def _write_shard(
    source: _Saved, origin: Path, folder: Path, name: str, added: Collection[str] | None
) -> list[WrittenTensor]:
    """Write one shard; the last one gets what is new, of which the names are known then."""
    tensors: dict[str, Tensor] = {}
    written = []
    with safe_open(origin / name, framework="pt") as file:
        metadata = file.metadata()
        for key in file.keys():  # noqa: SIM118
            before = file.get_tensor(key)
            tensors[key] = _choose(key, before, source.take(key))
            written.append(WrittenTensor(key, name, tensor_sha256(before), tensor_sha256(tensors[key])))
    new = [] if added is None else [key for key in source.left if any(_is_name_of(key, each) for each in added)]
    # What is left then can only be a head that shared the weights of the embedding.
    if added is not None and len(source.left) == len(new) + 1:
        new = list(source.left)
    for key in new:
        tensors[key] = _narrow(source.take(key), tensors)
        written.append(WrittenTensor(key, name, None, tensor_sha256(tensors[key])))
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name, metadata)
    # The library makes files that nobody else may read.
    shutil.copymode(origin / name, folder / name)
    return written


def _choose(name: str, before: Tensor, saved: Tensor | None) -> Tensor:
    """What is written under a name: the tensor of the checkpoint itself, unless the model has another one now."""
    if saved is None:
        return before
    if saved.shape != before.shape:
        raise EditRefused(f"{name} is {list(before.shape)} in the checkpoint and {list(saved.shape)} in the model")
    return before if torch.equal(before.to(saved.dtype), saved) else saved.to(before.dtype)


def _is_name_of(saved: str, name: str) -> bool:
    """Whether a name in a checkpoint, in which a prefix may be left out, is that of a tensor of the model."""
    return saved == name or name.endswith(f".{saved}") or saved.endswith(f".{name}")


def _narrow(new: Tensor | None, others: Mapping[str, Tensor]) -> Tensor:
    """A new tensor in the dtype of the other matrices of its shard."""
    assert new is not None
    return new.to(next((each.dtype for each in others.values() if each.ndim > 1), new.dtype))


def _copy_index(origin: Path, folder: Path, written: list[WrittenTensor]) -> None:
    if not (origin / INDEX).is_file():
        return
    index = json.loads((origin / INDEX).read_text(encoding="utf-8"))
    index["weight_map"] = {tensor.name: tensor.file for tensor in written}
    if "total_size" in index.get("metadata", {}):
        index["metadata"]["total_size"] = sum(map(_count_bytes, sorted({folder / each.file for each in written})))
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _count_bytes(file: Path) -> int:
    with safe_open(file, framework="pt") as opened:
        return sum(tensor.numel() * tensor.element_size() for tensor in map(opened.get_tensor, opened.keys()))


def _copy_companions(origin: Path, folder: Path, config: Any, settings: Mapping[str, Any]) -> None:
    """Copy every file that belongs to the model; its config says whether the head is tied now, and what else is new."""
    for path in sorted({path for pattern in COMPANIONS for path in origin.glob(pattern)}):
        if path.is_file() and path.name not in NOT_COPIED and not path.name.endswith(".safetensors.index.json"):
            shutil.copyfile(path, folder / path.name)
    if (origin / TEMPLATES).is_dir():
        shutil.copytree(origin / TEMPLATES, folder / TEMPLATES)
    values = json.loads((origin / "config.json").read_text(encoding="utf-8"))
    before = json.dumps(values)
    text = values["text_config"] if isinstance(values.get("text_config"), dict) else values
    text.update(settings)
    if getattr(config, "tie_word_embeddings", None) is False and values.get("tie_word_embeddings") is not False:
        values["tie_word_embeddings"] = text["tie_word_embeddings"] = False
    if json.dumps(values) != before:
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
