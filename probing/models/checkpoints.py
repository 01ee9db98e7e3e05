"""Folders and names of models, as far as they can be judged without torch: in a moment, before anything is loaded."""

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from probing.data.bundled import BUNDLED_MODELS
from probing.data.hub import find_hub_problem
from probing.data.places import expand_places
from probing.errors import LayerNotFound, ModelInvalid, UsageError
from probing.ranks import current_ranks
from probing.tokens.tokenizer_files import TEMPLATE_FILE, TOKENIZER_FILES, brings_tokenizer, lacks_template

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BALANCED, TENSOR_PARALLEL = "balanced", "tensor-parallel"
DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "npu", "mtia", "xla")
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers")
"""Settings under which configs have the number of layers."""


def is_adapter(path: str | Path) -> bool:
    """Whether a folder holds an adapter."""
    return (Path(path).expanduser() / ADAPTER_CONFIG).is_file()


def base_of(path: str | Path) -> str:
    """The model that an adapter was trained on, as its config names it.

    Raises:
        ModelInvalid: the config names no base model, or another adapter.
    """
    name = adapter_config(path).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelInvalid(f"{path}: the adapter does not say which model it belongs to; name the model yourself")
    check_base(path)
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


def check_base(path: str | Path) -> None:
    """Raise ``ModelInvalid`` for an adapter that was trained on top of another one."""
    name = adapter_config(path).get("base_model_name_or_path")
    if not isinstance(name, str) or not name or not is_adapter(name):
        return
    if Path(name).expanduser().resolve() == Path(path).expanduser().resolve():
        raise ModelInvalid(f"{path}: the adapter names itself as its base model; name the model yourself")
    raise ModelInvalid(
        f"{path}: the adapter names another adapter, {name}, as its base model; merge that one into its model "
        f"(merge_and_unload of PEFT), save the result, and put this one onto it"
    )


def check_adapter(path: str | Path) -> None:
    """Raise ``ModelInvalid`` unless a folder holds an adapter that can be put onto a model."""
    check_base(path)
    if not (Path(path).expanduser() / ADAPTER_WEIGHTS).is_file():
        raise ModelInvalid(f"{path}: no {ADAPTER_WEIGHTS} (a pickled adapter is not loaded)")


def find_checkpoint(path_or_id: str) -> str:
    """The folder of a model, or its id on the hub.

    Raises:
        ModelInvalid: it can be neither.
    """
    if not path_or_id.strip():
        raise ModelInvalid("no model was named; give a folder, a hub id or 'bundled'")
    bundled = BUNDLED_MODELS.get(path_or_id)
    name = str(bundled()) if bundled is not None else os.path.expanduser(path_or_id)
    if not Path(name).exists():
        _check_name(path_or_id, name)
    return name


def check_checkpoint(path_or_id: str, revision: str | None = None, tokenized: bool = False) -> Path | None:
    """Raise for what can be seen to be wrong of a model without loading it.

    Args:
        path_or_id: folder, hub id, or "bundled".
        revision: revision of the hub.
        tokenized: whether its tokenizer comes from elsewhere.

    Returns:
        The folder in the cache of the hub, where it must be loaded from there since the hub cannot be asked.

    Raises:
        ModelInvalid: no such folder, files are missing in it, or a revision of a folder; neither in the cache nor to be
            fetched.
    """
    name = find_checkpoint(path_or_id)
    if not Path(name).exists():
        return _find_cached(name, revision)
    if revision is not None:
        raise ModelInvalid(f"{path_or_id}: is a folder, which has no revision '{revision}'; leave out --revision")
    if is_adapter(name):
        check_adapter(name)
        check_checkpoint(base_of(name), adapter_config(name).get("revision"), tokenized)
    else:
        _check_folder(Path(name), tokenized)
    return None


def _find_cached(name: str, revision: str | None) -> Path | None:
    """The folder of the cache from which a model must be loaded; None where the hub can be asked."""
    from huggingface_hub import try_to_load_from_cache

    problem = find_hub_problem()
    if problem is None:
        return None
    config = try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(config, str):
        raise ModelInvalid(f"{name}: no such folder, not in the cache of the hub, and {problem}")
    return Path(config).parent


def check_device(device: str) -> None:
    """Raise for a device that there is not, as far as that can be known without torch.

    Raises:
        ModelInvalid: there is no such device. UsageError: no other processes are there to hold a share of the model.
    """
    if device == TENSOR_PARALLEL and not current_ranks().share_model:
        raise UsageError(
            f"--device {TENSOR_PARALLEL} splits a model over the processes of a launch, and there is one process; "
            f"launch the command with torchrun --standalone --nproc_per_node 2 --no-python (or more processes, one a "
            f"card)"
        )
    if device in ("auto", BALANCED, TENSOR_PARALLEL, "meta"):
        return
    kind, colon, number = device.partition(":")
    if kind not in DEVICES or (colon and re.fullmatch(r"\d{1,4}", number) is None):
        raise ModelInvalid(
            f"device '{device}' cannot be used here: there is none of this name; say auto, cpu, cuda:1, {BALANCED} or "
            f"{TENSOR_PARALLEL}"
        )
    if kind == "cuda" and _is_built_without_cards():
        raise ModelInvalid(
            f"device '{device}' cannot be used here: the torch that is installed was built without CUDA; leave out "
            f"--device, or install a torch with CUDA"
        )


def _is_built_without_cards() -> bool:
    """Whether the file in which torch says what it was built for names neither CUDA nor ROCm."""
    spec = find_spec("torch")
    try:
        said = (Path(str(spec.origin)).parent / "version.py").read_text(encoding="utf-8") if spec else ""
    except OSError:
        return False
    return all(re.search(rf"^{kind}\b[^=\n]*= None$", said, flags=re.MULTILINE) for kind in ("cuda", "hip"))


def check_template_files(path_or_id: str, why: str) -> None:
    """Raise ``ModelInvalid`` for a model without a chat template; ``why`` says what needs one."""
    folder = Path(find_checkpoint(path_or_id))
    if is_adapter(folder) and not brings_tokenizer(folder) and not (folder / TEMPLATE_FILE).is_file():
        check_template_files(base_of(folder), why)
    elif lacks_template(folder):
        raise ModelInvalid(
            f"{why}, but the tokenizer has no chat template; use a chat model in place of {path_or_id}, or save its "
            f"tokenizer with a template"
        )


def check_layers(path_or_id: str, places: str | Sequence[str]) -> None:
    """Raise ``LayerNotFound`` for a place in a layer that a model in a folder does not have, by its config."""
    folder = Path(find_checkpoint(path_or_id))
    if is_adapter(folder):
        check_layers(base_of(folder), places)
        return
    config = _read_config(folder)
    text = config.get("text_config", config)
    layers = next((text[key] for key in LAYER_COUNTS if key in text), None) if isinstance(text, Mapping) else None
    if not isinstance(layers, int) or layers < 1:
        return
    expanded = expand_places(places, layers)
    wrong = next((place for place in expanded if place.layer is not None and not 0 <= place.layer < layers), None)
    if wrong is not None:
        raise LayerNotFound(
            f"{path_or_id} has {layers} layers, 0 to {layers - 1} (or -{layers} to -1 from the end), and no {wrong}"
        )


def _read_config(folder: Path) -> dict[str, Any]:
    """The config of a model in a folder; empty where it cannot be read, which loading tells in its own words."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _check_name(path_or_id: str, name: str) -> None:
    """Refuse what can be no id of the hub, before it is looked for there."""
    if name.startswith((".", os.sep, "~")) or name.count("/") > 1 or "\\" in name:
        raise ModelInvalid(f"{path_or_id}: no such folder")
    close = difflib.get_close_matches(name, BUNDLED_MODELS, n=1, cutoff=0.8)
    if close:
        raise ModelInvalid(f"{path_or_id}: no such folder or model; did you mean {close[0]}?")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ModelInvalid(f"{path_or_id}: no such folder, and no name that a model of the hub can have") from error


def _check_folder(folder: Path, tokenized: bool) -> None:
    """Name what a local folder lacks, before the library does in its own words."""
    if not folder.is_dir():
        raise ModelInvalid(f"{folder}: is a file; give the model's folder")
    names = {path.name for path in folder.iterdir()}
    if "config.json" not in names:
        raise ModelInvalid(f"{folder}: no config.json, so this is not a model folder; it holds {_join_some(names)}")
    if not tokenized and not names.intersection(TOKENIZER_FILES):
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
        raise ModelInvalid(f"{folder}: no weights (*.safetensors); it holds {_join_some(names)}")


def _join_some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:8]) or "nothing"
