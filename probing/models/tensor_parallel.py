"""Tensor parallel: a model whose weights are split over the processes of a launch, and the proof that they add up.

Every process holds a share of each large matrix, by the library's own plan for the family, and all run the same rows.
The states between blocks are whole in every process, so that whatever reads them need not know.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, distributed, nn
from transformers.distributed import DistributedConfig

from probing.errors import ModelInvalid
from probing.models.checkpoints import TENSOR_PARALLEL
from probing.models.differences import difference, tolerance
from probing.models.hooks import first_tensor
from probing.models.passes import TRIAL_STARTS, run_backbone, trial_ids, use_eval_mode
from probing.models.proofs import recall, remember
from probing.models.shares import count_shares, gather, is_split
from probing.ranks import current_ranks

if TYPE_CHECKING:
    from probing.models.stack import Stack

BACKENDS = {"cuda": "nccl", "cpu": "gloo"}
HEADS = ("num_attention_heads", "num_key_value_heads")
SPLIT_BY_HEADS = "colwise"
"""How a plan calls the split of a matrix whose products stay split: in attention, whole heads go to each process."""


def begin_sharing(name: str, config: Any, place: torch.device) -> dict[str, Any]:
    """Join the processes of the launch; returns the arguments with which the library loads the share of this one.

    Args:
        name: name of the model, as it was given.
        config: config of the checkpoint.
        place: device of this process.

    Raises:
        ModelInvalid: the family has no plan, its attention heads cannot be split over so many processes, the weights
            are quantised, the cards differ, or the library is too old.
    """
    ranks = current_ranks()
    _check_config(name, config, ranks.size)
    on_card = place.type == "cuda"
    ranks.open_group(BACKENDS[place.type], place if on_card else None)
    kind = [torch.cuda.get_device_name(place), torch.cuda.get_device_properties(place).total_memory] if on_card else []
    if ranks.share(lambda: kind) != kind:
        raise ModelInvalid(
            f"{name}: in tensor parallel all cards have to be alike, and {place} is another than the first"
        )
    return {"distributed_config": DistributedConfig(tp_plan="auto", tp_size=ranks.size)}


def _check_config(name: str, config: Any, size: int) -> None:
    if not {"tp_plan", "tp_size"} <= {entry.name for entry in dataclasses.fields(DistributedConfig)}:
        raise ModelInvalid(
            f"{name}: --device {TENSOR_PARALLEL} needs a newer transformers than {transformers.__version__}, whose "
            f"DistributedConfig takes a tp_plan"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ModelInvalid(
            f"{name}: quantised weights are not split over processes; give another --device, or weights that are not "
            f"quantised"
        )
    text = config.get_text_config()
    plan: Mapping[str, str] = getattr(text, "base_model_tp_plan", None) or {}
    if not plan:
        raise ModelInvalid(
            f"{name}: transformers {transformers.__version__} has no plan how to split a model of the type "
            f"'{text.model_type}' over processes; give --device balanced, or another model"
        )
    if any("att" in part and how == SPLIT_BY_HEADS for part, how in plan.items()):
        counts = [getattr(text, attribute, None) for attribute in HEADS]
        _check_heads(name, [count for count in counts if isinstance(count, int)], size)


def _check_heads(name: str, counts: Sequence[int], size: int) -> None:
    if any(count % size for count in counts):
        most = math.gcd(*counts)
        fitting = [str(number) for number in range(2, most + 1) if most % number == 0]
        advice = f"launch {' or '.join(fitting)}" if fitting else "no number of processes can; give another --device"
        raise ModelInvalid(
            f"{name}: {size} processes cannot split its attention, of {' and '.join(map(str, counts))} heads (queries, "
            f"and keys and values); {advice}"
        )


def take_least(number: int, device: torch.device) -> int:
    """The least of the numbers that the processes of a shared model found."""
    least = torch.tensor(number, device=device)
    distributed.all_reduce(least, op=distributed.ReduceOp.MIN)
    return int(least)


def prove_shares(stack: "Stack") -> None:
    """Raise unless every part of a shared model computes from its shares what it computes from whole weights.

    A few tokens are run. Each part is then run once more on what reached it, with its weights gathered, one part after
    the other, so that the whole model is never in one place. Nothing is done where the weights are not split.

    Raises:
        ModelInvalid: names the part that differs.
    """
    model = stack.language_model.model
    if count_shares(model) == 1 or recall(model, "shares") is not None:
        return
    parts = _list_parts(stack)
    with torch.inference_mode(), use_eval_mode(model):
        for start in TRIAL_STARTS:
            ids = trial_ids(stack.language_model, start)
            with _record_calls(parts) as calls:
                run_backbone(stack.backbone, ids)
            # Where no trial gives finite states the weights are broken, which is reported row by row.
            if all(torch.isfinite(output).all() for _, _, _, output in calls):
                for part, args, kwargs, output in calls:
                    _compare(stack, part, args, kwargs, output)
                remember(model, "shares", True)
                return


def _list_parts(stack: "Stack") -> list[nn.Module]:
    """The blocks of a model, and every other module of its backbone that has split weights itself."""
    inside = {module for block in stack.blocks for module in block.modules()}
    others = [
        module
        for module in stack.backbone.modules()
        if module not in inside and any(is_split(weight) for weight in module.parameters(recurse=False))
    ]
    return [*others, *stack.blocks]


Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any], Tensor]


@contextlib.contextmanager
def _record_calls(parts: Sequence[nn.Module]) -> Iterator[list[Call]]:
    """Collect what each part was called with and the first tensor that it returned."""
    calls: list[Call] = []

    def receive(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is not None:
            calls.append((module, args, kwargs, tensor))

    handles = [part.register_forward_hook(receive, with_kwargs=True) for part in parts]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _compare(stack: "Stack", part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
    with _gathered(part):
        whole = first_tensor(part(*args, **kwargs))
    off = math.inf if whole is None or whole.shape != output.shape else difference(whole, output)
    if not off <= tolerance(output.dtype):
        raise ModelInvalid(
            f"in tensor parallel over {count_shares(stack.language_model.model)} processes, '{stack.name_of(part)}' of "
            f"{stack.family} does not compute what it computes with whole weights (it differs by {off:.1e}); this "
            f"family cannot be split in this way, give another --device"
        )


@contextlib.contextmanager
def _gathered(part: nn.Module) -> Iterator[None]:
    """Run a part with whole weights and with the ``forward`` of its class inside the block."""
    before = [(module, vars(module).get("forward"), dict(module._parameters)) for module in part.modules()]
    try:
        for module, _, weights in before:
            vars(module).pop("forward", None)
            for name, weight in weights.items():
                if weight is not None and is_split(weight):
                    module._parameters[name] = nn.Parameter(gather(weight), requires_grad=False)
        yield
    finally:
        for module, forward, weights in before:
            if forward is not None:
                vars(module)["forward"] = forward
            module._parameters.update(weights)
