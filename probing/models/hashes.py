"""Hashes of the content of a checkpoint."""

import hashlib
import json
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from transformers.utils import cached_file

from probing.errors import ModelInvalid
from probing.report.progress import open_bar
from probing.tokens.templates import template_sha256
from probing.types import Source

# Entries that do not make a checkpoint another model: its origin, the program that wrote it, and the dtype to load.
NOT_CONTENT = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation")


PIECE = 1 << 20
"""Bytes that are hashed between two checks whether to go on; pieces that fit into a core's cache are hashed fastest."""
POLLED_SECONDS = 0.1


class FilesHash:
    """sha256 over files, which threads compute in the background: hashing releases the interpreter.

    Each file is one chain of blocks that a single core has to walk, so that the largest file sets the time. Used as a
    context manager: the threads end with the block, whatever became of it.

    Args:
        paths: files; their order does not matter.
        folder: where they lie; those in folders inside of it are named by their path from there.
    """

    def __init__(self, paths: Iterable[Path], folder: Path | None = None) -> None:
        self._paths = sorted(paths)
        self._folder = folder
        # Each thread counts in an entry of its own.
        self._read = [0] * len(self._paths)
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor()
        self._digests = [self._pool.submit(self._one, index) for index in range(len(self._paths))]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._pool.shutdown()

    def digest(self) -> str:
        """Hash of the content of all files, by name; waits for it, and shows a bar after two seconds."""
        size = sum(path.stat().st_size for path in self._paths)
        done = sum(self._read)
        with open_bar(desc="hashing the weights", total=size, initial=done, unit="B", unit_scale=True) as bar:
            while wait(self._digests, timeout=POLLED_SECONDS).not_done:
                bar.update(sum(self._read) - bar.n)
            bar.update(sum(self._read) - bar.n)
        digests = [digest.result() for digest in self._digests]
        if len(digests) == 1:
            return digests[0]
        lines = [f"{digest}  {self._name(path)}\n" for path, digest in zip(self._paths, digests, strict=True)]
        return _text_sha256("".join(lines))

    def _name(self, path: Path) -> str:
        inside = self._folder is not None and path.is_relative_to(self._folder)
        return path.relative_to(self._folder).as_posix() if inside and self._folder is not None else path.name

    def _one(self, index: int) -> str:
        # The hub's cache names large files by this hash, but what is loaded is what stands in them now.
        real = self._paths[index].resolve()
        digest = hashlib.sha256()
        with real.open("rb", buffering=0) as file:
            while not self._stopped.is_set() and (piece := file.read(PIECE)):
                digest.update(piece)
                self._read[index] += len(piece)
        if self._stopped.is_set():
            raise RuntimeError(f"{real}: was not read to its end")
        return digest.hexdigest()


def hash_weights(name: str) -> AbstractContextManager[FilesHash | None]:
    """Begin to hash the weights in a folder; None where they have yet to be fetched from a hub."""
    folder = Path(name)
    return FilesHash(find_weight_files(folder), folder) if folder.is_dir() else nullcontext()


def find_weight_files(folder: Path) -> list[Path]:
    """The files that the weights in a folder are loaded from, and any other safetensors files beside them.

    Those that an index or the config names may lie in folders inside of it.
    """
    names = {path.name for path in folder.glob("*.safetensors")}
    indices = {path.name for path in folder.glob("*.safetensors.index.json")}
    explicit = _read_object(folder / "config.json").get("transformers_weights")
    if isinstance(explicit, str):
        (indices if explicit.endswith(".json") else names).add(explicit)
    for index in indices:
        shards = _read_object(folder / index).get("weight_map")
        names |= {name for name in shards.values() if isinstance(name, str)} if isinstance(shards, dict) else set()
    return [folder / name for name in names if (folder / name).is_file()]


def _read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none, which the library reports in its own words."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def checkpoint_source(
    given: str, name: str, revision: str | None, model: Any, tokenizer: Any, weights: FilesHash | None
) -> Source:
    """The source of a loaded checkpoint.

    Args:
        given: the name that the caller gave for the model.
        name: folder or hub id that it was loaded from.
        revision: revision of the hub.
        model: the loaded model.
        tokenizer: tokenizer of the model.
        weights: hash of the weights, from ``hash_weights``.

    Raises:
        ModelInvalid: there are no files of weights, so that other weights could not be told from these.
    """
    folder = Path(name) if Path(name).is_dir() else cache_folder(name, revision or "main")
    files = find_weight_files(folder)
    if not files:
        raise ModelInvalid(f"{given}: the files that its weights were loaded from were not found in {folder}")
    return Source(
        model=given,
        revision=revision,
        weights_sha256=_files_sha256(files, folder) if weights is None else weights.digest(),
        config_sha256=_config_sha256(model.config, folder),
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        template_sha256=template_sha256(tokenizer),
    )


def cache_folder(name: str, revision: str) -> Path:
    """Folder in which the hub's library has just put a checkpoint."""
    return Path(cached_file(name, "config.json", revision=revision, local_files_only=True)).parent


def _config_sha256(config: Any, folder: Path) -> str:
    """Hash of every setting that shapes the computation, the checkpoint's own code included."""
    values = {key: value for key, value in config.to_dict().items() if key not in NOT_CONTENT}
    code = _files_sha256(folder.glob("*.py")) if getattr(config, "auto_map", None) else None
    return _text_sha256(json.dumps([values, code], sort_keys=True, default=str))


def tokenizer_sha256(tokenizer: Any) -> str:
    """Hash of the fast tokenizer's serialisation (the vocabulary, where there is none) and the special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    core = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return _text_sha256(json.dumps([core, special], sort_keys=True))


def _files_sha256(paths: Iterable[Path], folder: Path | None = None) -> str:
    with FilesHash(paths, folder) as files:
        return files.digest()


def _text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
