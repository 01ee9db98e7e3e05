"""What a checkpoint is made of, by content."""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from probing.data.tokenize import template_sha256
from probing.store.files import file_sha256
from probing.types import Source

# Where a checkpoint came from, what wrote it and what dtype it is loaded in do not make it another model.
NOT_CONTENT = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation")


def checkpoint_source(given: str, name: str, revision: str | None, model: Any, tokenizer: Any) -> Source:
    """The source of a loaded checkpoint.

    Args:
        given: what the caller called it.
        name: folder or hub id that it was loaded from.
        revision: of the hub.
        model: the loaded model.
        tokenizer: its tokenizer.
    """
    folder = Path(name) if Path(name).is_dir() else _cache_folder(name, revision or "main")
    return Source(
        model=given,
        revision=revision,
        weights_sha256=_files_sha256(folder.glob("*.safetensors")),
        config_sha256=_config_sha256(model.config, folder),
        tokenizer_sha256=_tokenizer_sha256(tokenizer),
        template_sha256=template_sha256(tokenizer),
    )


def _cache_folder(name: str, revision: str) -> Path:
    """Where the hub's library has just put a checkpoint."""
    return Path(cached_file(name, "config.json", revision=revision, local_files_only=True)).parent


def _config_sha256(config: Any, folder: Path) -> str:
    """Over everything that shapes the computation, the checkpoint's own code included."""
    values = {key: value for key, value in config.to_dict().items() if key not in NOT_CONTENT}
    code = _files_sha256(folder.glob("*.py")) if getattr(config, "auto_map", None) else None
    return _text_sha256(json.dumps([values, code], sort_keys=True, default=str))


def _tokenizer_sha256(tokenizer: Any) -> str:
    """Over the fast tokenizer's serialisation (the vocabulary, where there is none) and the special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    core = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return _text_sha256(json.dumps([core, special], sort_keys=True))


def _files_sha256(paths: Iterable[Path]) -> str:
    """Over the content of files, by name; read in parallel, since hashing releases the interpreter."""
    files = sorted(paths)
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_one_sha256, files))
    if len(files) == 1:
        return digests[0]
    return _text_sha256("".join(f"{digest}  {path.name}\n" for path, digest in zip(files, digests, strict=True)))


def _one_sha256(path: Path) -> str:
    real = path.resolve()
    if real.parent.name == "blobs" and len(real.name) == 64:
        return real.name  # the hub's cache names large files by this very hash
    return file_sha256(path)


def _text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
