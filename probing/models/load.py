"""Models and tokenizers from a folder or a hub: loaded faithfully and safely, or refused with the reason."""

import contextlib
import functools
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging as hf_logging

from probing.errors import ModelInvalid, OutOfMemory
from probing.kernels.dispatch import fall_back
from probing.models.checkpoints import (
    TENSOR_PARALLEL,
    adapter_config,
    base_of,
    check_checkpoint,
    find_checkpoint,
    is_adapter,
)
from probing.models.devices import BALANCED, choose_device
from probing.models.hashes import FilesHash, checkpoint_source, hash_weights
from probing.models.in_memory import as_language_model
from probing.models.language_model import LanguageModel
from probing.models.tensor_parallel import begin_sharing
from probing.ranks import current_ranks
from probing.types import SHORT_DTYPES, Source

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNUSED_PARTS = ("pooler.",)
"""Parts above the states that are read; an encoder that was saved with another head lacks them."""
REARRANGING = "automatic conversion of the weights"
"""Part of the library's message when it cannot make the tensors of a model from those of a checkpoint."""
IMAGES = ("ForConditionalGeneration", "ForImageTextToText")


# Weights that are made in inference mode take no gradients and cannot be moved, even outside of it.
@torch.inference_mode(False)
def load(
    path_or_id: Any,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    tokenizer: Any = None,
) -> LanguageModel:
    """Load a language model and its tokenizer, in eval mode.

    The folder of an adapter (LoRA and its like) loads the model that it names, with the adapter on.

    A checkpoint of an encoder (BERT and its like) is loaded without its head: hidden states can be captured, and scores
    that need a likelihood are refused.

    Args:
        path_or_id: a folder, a hub id, or "bundled" for the small model in this package, or "bundled-displaced". A
            model in memory is taken too, as it is: see ``as_language_model``.
        revision: branch, tag or commit of the hub.
        dtype: "float32", "bfloat16", "float16", or fp32, bf16, fp16 for short; "auto" keeps the checkpoint's on an
            accelerator and takes float32 on the CPU.
        device: "cpu", "cuda", "cuda:1", ...; "auto" is the first CUDA card if there is one. "balanced" spreads the
            layers over all cards, and over the memory of the host where they do not suffice; "tensor-parallel" splits
            every layer over the processes of a launch, and is for commands that run under torchrun.
        trust_remote_code: run code that the checkpoint brings with it.
        tokenizer: tokenizer to take in place of the one in the checkpoint, which then needs none.

    Raises:
        ModelInvalid: no such checkpoint; no tokenizer; no weights, or only pickled ones; damaged or incomplete weights;
            remote code that was not allowed; neither a causal language model nor an encoder.
        TypeError: an object that is no model, or one without a tokenizer.
    """
    if not isinstance(path_or_id, str | Path):
        if revision is not None or (dtype, device) != ("auto", "auto"):
            raise ModelInvalid("a model in memory stays as it is; leave out revision, dtype and device")
        return as_language_model(path_or_id, tokenizer)
    path_or_id, dtype = str(path_or_id), SHORT_DTYPES.get(dtype, dtype)
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelInvalid(f"dtype '{dtype}' is none of auto, {', '.join(DTYPES)}")
    place = choose_device(device)
    cached = check_checkpoint(path_or_id, revision, tokenizer is not None)
    name = find_checkpoint(path_or_id) if cached is None else str(cached)
    if cached is not None:
        log.warning("%s: taken from the cache, as it was fetched last, since the hub cannot be asked", path_or_id)
    if is_adapter(name):
        base, base_revision = base_of(name), adapter_config(name).get("revision")
        return load(base, base_revision, dtype, device, trust_remote_code, tokenizer).adapted(
            path_or_id, keep_tokenizer=tokenizer is not None
        )
    here = Path(name).exists()
    options = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    with _begin_hashing(name) as weights:
        with _explain_errors(path_or_id):
            config = AutoConfig.from_pretrained(name, **options)
            _check_sizes(config)
            tokenizer = AutoTokenizer.from_pretrained(name, **options) if tokenizer is None else tokenizer
            if not isinstance(tokenizer.model_max_length, int | float):
                raise ValueError("model_max_length of its tokenizer is no number")
            wanted = {"config": config, "dtype": _dtype(dtype, place, config), **options}
            with hide_bars() if here else contextlib.nullcontext():
                model, info = _from_pretrained(name, place, device, wanted)
        missing = [key for key in info["missing_keys"] if not key.startswith(UNUSED_PARTS)]
        _check_complete(path_or_id, missing, info["unexpected_keys"], model.state_dict())
        source = _tell_source(lambda: checkpoint_source(path_or_id, name, revision, model, tokenizer, weights))
    return LanguageModel(model.eval(), tokenizer, source)


def _begin_hashing(name: str) -> AbstractContextManager[FilesHash | None]:
    """``hash_weights``; of processes that load one model together only the first does so."""
    ranks = current_ranks()
    return hash_weights(name) if ranks.leads or not ranks.share_model else contextlib.nullcontext()


def _tell_source(make: Callable[[], Source]) -> Source:
    """The source of a checkpoint; of processes that load one model together the first tells all."""
    ranks = current_ranks()
    return Source(**ranks.share(lambda: asdict(make()))) if ranks.share_model else make()


@contextlib.contextmanager
def hide_bars() -> Iterator[None]:
    """No bars of transformers while a checkpoint is read from this machine; what is fetched from the hub shows them."""
    shown, fetching = hf_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()
        (enable_progress_bars if fetching else disable_progress_bars)()


def _from_pretrained(name: str, place: torch.device, device: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """The model on its device, and what the library tells of loading it.

    On a card every tensor goes there as it is read, without a copy of the model in the memory of the host; quantised
    weights could not be moved later.
    """
    kind = auto_class(options["config"])
    read = functools.partial(kind.from_pretrained, name, use_safetensors=True, output_loading_info=True, **options)
    if device == TENSOR_PARALLEL:
        return tuple(read(**begin_sharing(name, options["config"], place)))
    quantised = getattr(options["config"], "quantization_config", None) is not None
    if device == BALANCED or quantised:
        return tuple(read(device_map="auto" if device == BALANCED else {"": place}))
    if place.type == "cpu":
        return tuple(read())
    try:
        return tuple(read(device_map={"": place}))
    except RuntimeError as error:
        if REARRANGING not in str(error):
            raise
        # The library joins the weights of experts on the device, so its error need not mean that the model does not
        # fit.
        fall_back(f"{name} loaded on the CPU and moved", f"rearranging its weights on {place} failed")
    model, info = read()
    return model.to(place), info


def _check_sizes(config: Any) -> None:
    """Raise ``ValueError`` for a config that no model has: the library would build such a one for hours."""
    text = config.get_text_config()
    for name, most in (("num_hidden_layers", 10_000), ("hidden_size", 10**6), ("vocab_size", 10**8)):
        value = getattr(text, name, None)
        if isinstance(value, int) and not 0 <= value <= most:
            raise ValueError(f"{name} is {value} in its config, which no model has")


def auto_class(config: Any) -> Any:
    """The class of the library that loads a checkpoint for reading its states.

    The checkpoint's own config decides between the language model of a family and its bare encoder: BERT has both, and
    loaded as a language model it would get a head that was never trained.
    """
    kind, names = config.model_type, getattr(config, "architectures", None) or []
    causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not causal and not getattr(config, "is_decoder", False):
        return AutoModel
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not any(name.endswith(IMAGES) for name in names):
        return AutoModelForCausalLM
    return AutoModelForImageTextToText if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES else AutoModelForCausalLM


def _dtype(dtype: str, device: torch.device, config: Any) -> torch.dtype:
    if dtype in DTYPES:
        return DTYPES[dtype]
    stored = getattr(config, "dtype", None)
    return stored if device.type != "cpu" and isinstance(stored, torch.dtype) else torch.float32


def _check_complete(name: str, missing: Iterable[str], unexpected: Iterable[str], parts: Iterable[str]) -> None:
    """Refuse a checkpoint whose tensors and config do not describe the same model."""
    absent = sorted(missing)
    if absent:
        raise ModelInvalid(
            f"{name}: the weights lack {len(absent)} tensors of the model ({', '.join(absent[:3])}, ...), "
            f"which would be filled with random numbers; the checkpoint is incomplete or of another architecture"
        )
    # Weights of other parts (a value head, a vision tower) may be unused; those of further layers of this stack may
    # not.
    stacks = {_name_stack(part) for part in parts} - {None}
    surplus = sorted(part for part in unexpected if _name_stack(part) in stacks)
    if surplus:
        raise ModelInvalid(
            f"{name}: the weights hold {len(surplus)} tensors that the config has no place for ({surplus[0]}, ...); "
            f"the model would run without them"
        )


def _name_stack(part: str) -> str | None:
    """``model.layers`` for ``model.layers.3.mlp.up_proj.weight``; None for what belongs to no numbered layer."""
    match = re.match(r"(.*?)\.\d+\.", part)
    return match.group(1) if match else None


# What the libraries raise where a file holds values of other types than they expect, besides their own errors.
UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


class _PlainErrors:
    """Tokenizers raise the most general error there is, and of that kind nothing else is caught."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is Exception:
            raise ValueError(f"its tokenizer is damaged: {error}") from error


@contextlib.contextmanager
def _explain_errors(name: str) -> Iterator[None]:
    """Turn the library's errors about one checkpoint into ours."""
    try:
        with _PlainErrors():
            yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"{name}: the weights do not fit into the memory of the device; use a smaller --dtype"
        ) from error
    except SafetensorError as error:
        raise ModelInvalid(f"{name}: a weight file is damaged or cut short ({error}); fetch it again") from error
    except UNREADABLE as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        if "trust_remote_code" in str(error):
            raise ModelInvalid(
                f"{name}: the checkpoint needs code of its own, which is not run unless you say so; read it, then add "
                f"--trust-remote-code"
            ) from error
        raise ModelInvalid(f"{name}: cannot be loaded as a language model: {reason}") from error
