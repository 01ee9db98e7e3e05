"""Models and tokenizers from a folder or a hub: loaded faithfully and safely, or refused with the reason."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from probing.data.bundled import BUNDLED, bundled_model
from probing.data.tokenize import template_sha256
from probing.errors import ModelInvalid
from probing.types import Source

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
HASH_CHUNK = 1 << 24


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model with the tokenizer it was trained with.

    Made by ``load``; or by hand from a model in memory: ``LanguageModel(model, tokenizer)``.

    Attributes:
        model: a transformers model with an output head. It runs in eval mode and leaves as it came.
        tokenizer: its tokenizer.
        source: what it was loaded from.

    Raises:
        ModelInvalid: the tokenizer can produce ids that the embedding does not hold.
    """

    model: Any
    tokenizer: Any
    source: Source = field(default_factory=lambda: Source(model="in memory"))

    def __post_init__(self) -> None:
        rows = self.model.get_input_embeddings().weight.shape[0]
        highest = max(self.tokenizer.get_vocab().values(), default=-1)
        if highest >= rows:
            raise ModelInvalid(
                f"the tokenizer of {self.source.model} has {highest + 1} ids, the model's embedding only {rows} rows: "
                f"they do not belong together, or the model must be resized and trained for the added tokens"
            )

    @property
    def device(self) -> torch.device:
        """Where inputs have to be."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the model has positions for; None if it has no limit."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return limit if isinstance(limit, int) and limit > 0 else None


def choose_device(device: str = "auto") -> torch.device:
    """The device to run on: "auto" is the first CUDA card, or the CPU where there is none.

    Raises:
        ModelInvalid: the device is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelInvalid(f"device '{device}' cannot be used here: {reason}") from error
    return torch.device(device)


def load(
    path_or_id: str,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a causal language model and its tokenizer, in eval mode.

    Args:
        path_or_id: a folder, a hub id, or "bundled" for the small model in this package.
        revision: branch, tag or commit of the hub.
        dtype: "float32", "bfloat16", "float16"; "auto" keeps the checkpoint's on an accelerator and takes float32 on
            the CPU.
        device: "cpu", "cuda", "cuda:1", ...; "auto" is the first CUDA card if there is one.
        trust_remote_code: run code that the checkpoint brings with it.

    Raises:
        ModelInvalid: nothing there; no tokenizer; no weights, or only pickled ones; damaged or incomplete weights;
            remote code that was not allowed; not a causal language model.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelInvalid(f"dtype '{dtype}' is none of auto, {', '.join(DTYPES)}")
    place = choose_device(device)
    name = str(bundled_model()) if path_or_id == BUNDLED else path_or_id
    if Path(name).exists():
        _check_folder(Path(name))
    branch = revision or "main"
    options = {"revision": branch, "trust_remote_code": trust_remote_code}
    with _explained(path_or_id):
        config = AutoConfig.from_pretrained(name, **options)
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        model, info = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=_dtype(dtype, place, config),
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelInvalid(
            f"{path_or_id}: the weights lack {len(missing)} tensors of the model ({', '.join(missing[:3])}, ...), "
            f"which would be filled with random numbers; the checkpoint is incomplete or of another architecture"
        )
    source = Source(
        model=path_or_id,
        revision=revision,
        weights_sha256=_weights_sha256(Path(name)) if Path(name).is_dir() else _hub_sha256(name, branch),
        tokenizer_sha256=_tokenizer_sha256(tokenizer),
        template_sha256=template_sha256(tokenizer),
    )
    return LanguageModel(model.to(place).eval(), tokenizer, source)


def _dtype(dtype: str, device: torch.device, config: Any) -> torch.dtype:
    if dtype in DTYPES:
        return DTYPES[dtype]
    stored = getattr(config, "dtype", None)
    return stored if device.type != "cpu" and isinstance(stored, torch.dtype) else torch.float32


def _check_folder(folder: Path) -> None:
    """Name what a local folder lacks, before the library does in its own words."""
    if not folder.is_dir():
        raise ModelInvalid(f"{folder}: is a file; give the model's folder")
    names = {path.name for path in folder.iterdir()}
    if "config.json" not in names:
        raise ModelInvalid(f"{folder}: no config.json, so this is not a model folder; it holds {_some(names)}")
    if not names.intersection(TOKENIZER_FILES):
        raise ModelInvalid(
            f"{folder}: no tokenizer ({', '.join(TOKENIZER_FILES)}); save the tokenizer beside the model"
        )
    if not any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")))
        if pickled:
            raise ModelInvalid(
                f"{folder}: the weights are pickled ({pickled[0]}), and loading a pickle can run any code; convert "
                f"them to safetensors: load them where you trust them and call model.save_pretrained(folder)"
            )
        raise ModelInvalid(f"{folder}: no weights (*.safetensors); it holds {_some(names)}")


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:8]) or "nothing"


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn the library's errors about one checkpoint into ours."""
    try:
        yield
    except SafetensorError as error:
        raise ModelInvalid(f"{name}: a weight file is damaged or cut short ({error}); fetch it again") from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        if "trust_remote_code" in str(error):
            raise ModelInvalid(
                f"{name}: the checkpoint needs code of its own, which is not run unless you say so; read it, then add "
                f"--trust-remote-code true"
            ) from error
        raise ModelInvalid(f"{name}: cannot be loaded as a causal language model: {reason}") from error


def _weights_sha256(folder: Path) -> str:
    """Over the content of all weight files, by name; read in parallel, since hashing releases the interpreter."""
    files = sorted(folder.glob("*.safetensors"))
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_file_sha256, files))
    if len(files) == 1:
        return digests[0]
    listing = "".join(f"{digest}  {path.name}\n" for path, digest in zip(files, digests, strict=True))
    return hashlib.sha256(listing.encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    real = path.resolve()
    if real.parent.name == "blobs" and len(real.name) == 64:
        return real.name  # the hub's cache names large files by this very hash
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _hub_sha256(name: str, revision: str) -> str | None:
    """The same for a checkpoint that the hub's library has just put into its cache."""
    from transformers.utils import cached_file

    config = cached_file(name, "config.json", revision=revision, local_files_only=True)
    return _weights_sha256(Path(config).parent) if config else None


def _tokenizer_sha256(tokenizer: Any) -> str:
    """Over the fast tokenizer's serialisation, or over vocabulary and special tokens where there is none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return hashlib.sha256(backend.to_str().encode()).hexdigest()
    content = [sorted(tokenizer.get_vocab().items()), sorted(map(str, tokenizer.all_special_tokens))]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
