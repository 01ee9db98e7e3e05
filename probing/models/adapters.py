"""Adapters (LoRA and its like) on a model in memory: loaded with PEFT, switched on only while they are read."""

import contextlib
import hashlib
import itertools
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from probing.errors import ModelInvalid
from probing.store.files import file_sha256

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
NOT_CONTENT = ("base_model_name_or_path", "revision", "inference_mode", "peft_version")


def is_adapter(path: str | Path) -> bool:
    """Whether a folder holds an adapter."""
    return (Path(path).expanduser() / ADAPTER_CONFIG).is_file()


def base_of(path: str | Path) -> str:
    """The model that an adapter was trained on, as its config names it.

    Raises:
        ModelInvalid: the config names no base model.
    """
    name = adapter_config(path).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelInvalid(f"{path}: the adapter does not say which model it belongs to; name the model yourself")
    return name


def adapter_config(path: str | Path) -> dict[str, Any]:
    """The config of an adapter.

    Raises:
        ModelInvalid: the config is missing or damaged.
    """
    file = Path(path).expanduser() / ADAPTER_CONFIG
    if not file.is_file():
        raise ModelInvalid(f"{path}: no {ADAPTER_CONFIG}, so this is not the folder of an adapter")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelInvalid(f"{file}: damaged ({error})") from error
    if not isinstance(config, dict):
        raise ModelInvalid(f"{file}: damaged (not an object)")
    return config


def adapter_sha256(path: str | Path) -> str:
    """Hash of the weights and the config of an adapter."""
    config = {key: value for key, value in adapter_config(path).items() if key not in NOT_CONTENT}
    weights = file_sha256(Path(path).expanduser() / ADAPTER_WEIGHTS)
    return hashlib.sha256(json.dumps([config, weights], sort_keys=True).encode()).hexdigest()


def attach(model: Any, path: str | Path) -> tuple[Any, str]:
    """Put an adapter onto a transformers model, in place, beside those it has.

    Args:
        model: a transformers model, or what this function returned for it before.
        path: folder of the adapter.

    Returns:
        PEFT's wrapper around the model, and the name of the adapter in it.

    Raises:
        ModelInvalid: PEFT is not installed, pickled weights, an adapter for another model, or one that changes the
            input rather than the weights.
    """
    folder = Path(path).expanduser()
    adapter_config(folder)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelInvalid(f"{path}: no {ADAPTER_WEIGHTS} (a pickled adapter is not loaded)")
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ModelInvalid(f"{path}: an adapter needs peft: pip install 'model-probing[train]'") from error
    known = getattr(model, "peft_config", {}) if isinstance(model, PeftModel) else {}
    name = next(name for name in map("adapter{}".format, itertools.count()) if name not in known)
    wrapped = model if known else None
    try:
        config = PeftConfig.from_pretrained(str(folder))
        if config.is_prompt_learning:
            raise ValueError("adapters that put tokens before the input are not supported")
        if getattr(config, "bias", "none") != "none" and any(n.endswith("bias") for n, _ in model.named_parameters()):
            raise ValueError(
                f"it brings biases (bias='{config.bias}') that PEFT writes into the base, where switching the adapter "
                f"off does not take them out again; merge it into the model and compare with that"
            )
        with warnings.catch_warnings():
            # These warnings are between PEFT and transformers and do not concern the user.
            warnings.simplefilter("ignore", FutureWarning)
            if wrapped is None:
                config.inference_mode = True
                wrapped = PeftModel(model, config, adapter_name=name)
            load_result = wrapped.load_adapter(str(folder), adapter_name=name)
        lacking = [key for key in load_result.missing_keys if name in key]
        if lacking or load_result.unexpected_keys:
            raise ValueError(
                f"{len(lacking)} of its tensors are missing and {len(load_result.unexpected_keys)} have no place "
                f"({', '.join([*lacking, *load_result.unexpected_keys][:2])}, ...)"
            )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        if wrapped is not None:
            detach(wrapped, name)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ModelInvalid(f"{path}: the adapter does not fit the model: {' '.join(lines[:2])}") from error
    return wrapped, name


def detach(wrapped: Any, name: str) -> bool:
    """Take an adapter off again; with the last one PEFT's layers go too, and the answer is that none is left."""
    if name not in wrapped.peft_config:
        return False
    if len(wrapped.peft_config) > 1:
        with warnings.catch_warnings():
            # PEFT warns that another adapter is active now; each one is switched on when it is read.
            warnings.simplefilter("ignore", UserWarning)
            wrapped.delete_adapter(name)
        return False
    wrapped.unload()
    return True


@contextlib.contextmanager
def switch_adapter(wrapped: Any, name: str | None) -> Iterator[None]:
    """Switch one adapter on, or all off, inside the block; ``wrapped`` is None for a model that has none."""
    if wrapped is None:
        yield
        return
    before = wrapped.active_adapter
    wanted = [(parameter, parameter.requires_grad) for parameter in wrapped.parameters()]
    try:
        if name is None:
            with wrapped.disable_adapter():
                yield
        else:
            wrapped.set_adapter(name)
            yield
    finally:
        wrapped.set_adapter(before)
        # PEFT turns gradients on for every adapter that it activates.
        for parameter, required in wanted:
            parameter.requires_grad_(required)
