"""Adapters (LoRA and its like) on a model in memory: loaded with PEFT onto a copy that shares the model's weights."""

import copy
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from probing.errors import ModelInvalid
from probing.kernels.dispatch import fall_back
from probing.models.checkpoints import ADAPTER_WEIGHTS, adapter_config, check_adapter
from probing.store.files import file_sha256

NOT_CONTENT = ("base_model_name_or_path", "revision", "inference_mode", "peft_version")
PEFT_PREFIX = "base_model.model."
TRIAL_TOKENS = 12
CLOSE = 2e-2
HARMLESS_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
"""Values of ``init_lora_weights`` that leave the weights of the base as they are; "pissa" gives a layer another weight,
and others write over it."""
SHARING = frozenset(
    "LORA ADALORA ADAMSS BOFT ADAPTION_PROMPT IA3 BEFT LILY LOHA LOKR OFT LN_TUNING VERA FROD PVERA FOURIERFT GLORA "
    "HRA VBLORA UNILORA MISS RANDLORA ROAD TRAINABLE_TOKENS HIRA SHIRA C3A WAVEFT OSF DELORA GRALORA TINYLORA PSOFT "
    "PEANUT SUPERTUNING DEFT".split()
)
"""Kinds of adapters that were tested to leave the memory alone that their copy shares with the model."""
OWN_PASS = ("XLORA", "POLY", "SHADOW")


def adapter_sha256(path: str | Path) -> str:
    """Hash of the weights and the config of an adapter."""
    config = {key: value for key, value in adapter_config(path).items() if key not in NOT_CONTENT}
    weights = file_sha256(Path(path).expanduser() / ADAPTER_WEIGHTS)
    return hashlib.sha256(json.dumps([config, weights], sort_keys=True).encode()).hexdigest()


def attach(model: nn.Module, path: str | Path) -> Any:
    """Put an adapter onto a copy of a transformers model; the model itself stays as it is.

    The copy has modules of its own, so that PEFT may replace, repeat and rewrite them; it shares the weights. Those
    that the adapter replaces in place (embeddings, biases) are copied too, and so are all of them under a kind of
    adapter of which it was not tested which ones it changes.

    Args:
        model: a transformers model without adapters.
        path: folder of the adapter.

    Returns:
        PEFT's wrapper around the copy, with the adapter on.

    Raises:
        ModelInvalid: PEFT is not installed, pickled weights, an adapter for another model or for another adapter, or
            one that cannot be read without PEFT's own pass.
    """
    folder = Path(path).expanduser()
    check_adapter(folder)
    try:
        import peft
    except ImportError as error:
        raise ModelInvalid(f"{path}: an adapter needs peft: pip install 'model-probing[train]'") from error
    before = _sum_bits(model)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        check_readable(config)
        wrapped = _load_onto(_copy_for(model, config, folder), config, folder)
        _check_forward(wrapped)
    except (AttributeError, OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ModelInvalid(f"{path}: the adapter does not fit the model: {' '.join(lines[:2])}") from error
    finally:
        changed = [name for name, total in _sum_bits(model).items() if total != before[name]]
    if changed:
        # The model in memory is of no use any more, and no caller may go on with it.
        raise RuntimeError(f"{path}: PEFT {peft.__version__} changed {len(changed)} weights of the base ({changed[0]})")
    return wrapped


def check_readable(config: Any) -> None:
    """Raise ``ValueError`` for adapters that act outside of the modules of the model, in PEFT's own pass."""
    kind = getattr(config.peft_type, "value", config.peft_type)
    if config.is_prompt_learning:
        raise ValueError(f"adapters that put tokens before the input ({kind}) are not supported")
    if getattr(config, "alora_invocation_tokens", None):
        raise ValueError(
            "an activated LoRA (alora_invocation_tokens) acts only behind the tokens that call it, which is not "
            "supported"
        )
    if str(getattr(config, "init_lora_weights", "")).startswith("pissa_niter"):
        raise ValueError(
            "init_lora_weights='pissa_niter_...' splits the weights of the base at random, and so in another way each "
            "time it is loaded; save it with path_initial_model_for_weight_conversion of PEFT"
        )
    if kind in OWN_PASS:
        raise ValueError(f"adapters of the kind {kind} need a pass of PEFT's own, which is not supported")


def check_active_adapters(wrapped: Any) -> None:
    """Raise ``ModelInvalid`` where a model that was wrapped by hand has an adapter that acts outside of its modules."""
    try:
        for name in active_adapters(wrapped):
            check_readable(wrapped.peft_config[name])
    except ValueError as error:
        raise ModelInvalid(f"the adapter of the model in memory cannot be read: {error}") from error


def _copy_for(model: nn.Module, config: Any, folder: Path) -> nn.Module:
    """A copy of the model to put the adapter onto; warns where its weights are in memory twice."""
    kind, start = config.peft_type.value, getattr(config, "init_lora_weights", True)
    if kind not in SHARING or start not in (*HARMLESS_STARTS, "pissa"):
        how = f"{kind}, init_lora_weights={start}"
        fall_back("weights are in memory twice", f"an adapter of this kind may change those of its base ({how})")
        return copy_model(model, lambda _: False)
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        written = {key.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".") for key in file.keys()}  # noqa: SIM118
    return copy_model(model, lambda name: name not in written)


def copy_model(model: nn.Module, shared: Callable[[str], bool]) -> Any:
    """A copy of a model with modules and parameters of its own, some of which share their memory with the original.

    Args:
        model: any model.
        shared: whether a parameter or buffer of this name shares its memory.
    """
    memo: dict[int, Any] = {}
    named: list[Iterable[tuple[str, Tensor]]] = [
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    ]
    tensors = [entry for group in named for entry in group]
    own = {id(tensor) for name, tensor in tensors if not shared(name)}
    # Parameters that were made in inference mode could not be trained or rewritten.
    with torch.inference_mode(False):
        for _, tensor in tensors:
            if id(tensor) not in own and type(tensor) in (nn.Parameter, Tensor):
                view = tensor.detach()
                memo[id(tensor)] = view if type(tensor) is Tensor else nn.Parameter(view, tensor.requires_grad)
            elif id(tensor) not in own:
                memo[id(tensor)] = tensor
        return copy.deepcopy(model, memo)


def _load_onto(model: nn.Module, config: Any, folder: Path) -> Any:
    """PEFT's wrapper around the model, with all tensors of the adapter in it."""
    from peft import PeftModel

    config.inference_mode = True
    # Some kinds draw random numbers on the way, from which the weights that they load do not always follow alone.
    with warnings.catch_warnings(), torch.random.fork_rng(), torch.inference_mode(False):
        torch.manual_seed(0)
        # These warnings are between PEFT and transformers and do not concern the user.
        warnings.simplefilter("ignore")
        wrapped = PeftModel(model, config)
        load_result = wrapped.load_adapter(str(folder), adapter_name="default")
    # VB-LoRA has one bank of vectors, which every layer names.
    lacking = [key for key in load_result.missing_keys if "default" in key and "vblora_vector_bank" not in key]
    if lacking or load_result.unexpected_keys:
        raise ValueError(
            f"{len(lacking)} of its tensors are missing and {len(load_result.unexpected_keys)} have no place "
            f"({', '.join([*lacking, *load_result.unexpected_keys][:2])}, ...)"
        )
    return wrapped.eval()


def _check_forward(wrapped: Any) -> None:
    """Raise unless the model inside of PEFT's wrapper computes by itself what the wrapper does."""
    inner = wrapped.get_base_model()
    table = inner.get_input_embeddings().weight
    if any(parameter.device.type == "meta" for parameter in inner.parameters()):
        return
    ids = (torch.arange(TRIAL_TOKENS, device=table.device) * 7 + 1)[None] % table.shape[0]
    with torch.inference_mode(), torch.autocast(table.device.type, enabled=False):
        theirs, ours = (_first(run(input_ids=ids, use_cache=False)).float() for run in (wrapped, inner))
    if not torch.allclose(theirs, ours, rtol=CLOSE, atol=CLOSE * float(theirs.abs().max()), equal_nan=True):
        raise ValueError("the adapter acts in PEFT's own pass, outside of the modules of the model; not supported")


def _first(output: Any) -> Tensor:
    tensor: Tensor = output[0]
    return tensor


def _sum_bits(model: nn.Module) -> dict[str, int]:
    """The sum of the bits of each weight, read as whole numbers: any change by rewriting shows in it."""
    sums = {}
    for name, tensor in model.named_parameters():
        if tensor.device.type != "meta":
            flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
            wide = flat.view(torch.int64) if flat.numel() % 8 == 0 and flat.data_ptr() % 8 == 0 else flat
            sums[name] = int(wide.sum(dtype=torch.int64))
    return sums


def plain_base(wrapped: Any) -> Any:
    """The model that PEFT was wrapped around by hand, without its adapters, sharing its weights.

    Raises:
        ModelInvalid: its own weights were changed by an adapter, and cannot be had any more.
    """
    for name, config in wrapped.peft_config.items():
        start = getattr(config, "init_lora_weights", True)
        if config.peft_type.value not in SHARING or start not in HARMLESS_STARTS:
            raise ModelInvalid(
                f"adapter '{name}' of the model in memory may have changed its base ({config.peft_type.value}, "
                f"{start}); load the base by itself and put the other adapter onto that"
            )
    if any(getattr(module, "merged_adapters", None) for module in wrapped.modules()):
        raise ModelInvalid("an adapter of the model in memory is merged into its base; unmerge it first")
    return copy_model(wrapped, lambda _: True).unload()


def merged_copy(wrapped: Any) -> Any:
    """A copy of the model inside of PEFT's wrapper with its active adapters merged into weights of its own.

    Raises:
        NotImplementedError, ValueError: PEFT cannot merge them.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuned = [name for name, module in wrapped.named_modules() if isinstance(module, BaseTunerLayer)]
    clone = copy_model(wrapped, lambda name: not name.startswith(tuple(f"{part}." for part in tuned)))
    return clone.merge_and_unload()


def adds_to_weights(wrapped: Any) -> bool:
    """Whether all active adapters only add to weights, so that gradients of the weights are those of merged ones."""
    configs = [wrapped.peft_config[name] for name in active_adapters(wrapped)]
    return all(config.peft_type.value == "LORA" and not getattr(config, "use_dora", False) for config in configs)


def active_adapters(wrapped: Any) -> list[str]:
    """The names of the adapters that are active in PEFT's wrapper."""
    names = wrapped.active_adapters if hasattr(wrapped, "active_adapters") else wrapped.active_adapter
    return [names] if isinstance(names, str) else list(names)
