"""The layers of a model, found by its structure and tested before they are used."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from probing.errors import LayerNotFound, ModelInvalid
from probing.models.differences import allowed_difference, channelwise_difference, difference, tolerance
from probing.models.hooks import Tap, record_taps
from probing.models.load import LanguageModel, auto_class
from probing.models.passes import TRIAL_STARTS, last_hidden_state, trial_ids, use_eval_mode
from probing.models.proofs import recall, remember
from probing.models.stack import FoundStack, Stack
from probing.models.tensor_parallel import prove_shares

SHOWN = 8
CAUSAL = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Largest change of states, channel by channel, when later tokens are others; in half precision there may be none."""
UNUSABLE = (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)
SELECTS_TOKENS = ("index_topk", "keep_window_size")
"""Settings of attention to the highest-ranked tokens only, among which padding and later tokens may be."""


def find_stack(language_model: LanguageModel) -> Stack:
    """Find the blocks of a model and the module that runs them, and try them.

    The blocks are a list of as many modules as the config has layers, which run once each, in order, on
    [row token width] states. The module that runs them is the innermost model around that list. What was found is kept
    with the model.

    Raises:
        LayerNotFound: the model has no such list of modules; lists what was found.
        ModelInvalid: it is split over processes, and its shares do not compute what the whole does.
    """
    stack = _find_stack(language_model)
    prove_shares(stack)
    return stack


def _find_stack(language_model: LanguageModel) -> Stack:
    model = language_model.model
    if getattr(model.config, "is_encoder_decoder", False):
        raise LayerNotFound(f"{type(model).__name__} has an encoder and a decoder, which is not supported yet")
    config = model.config.get_text_config()
    selecting = [name for name in SELECTS_TOKENS if getattr(config, name, None)]
    if selecting:
        raise LayerNotFound(
            f"{type(model).__name__} attends to selected tokens only ({selecting[0]}), in a way that depends on how it "
            f"is run; this is not supported yet"
        )
    known = recall(model, "stack")
    if known is not None:
        return known.attach_to(language_model)
    lists = _block_lists(model)
    problems = []
    with torch.inference_mode(), use_eval_mode(model):
        for name, blocks in lists:
            backbone = _runner(model, name)
            if backbone is None:
                problems.append(f"nothing around '{name}' takes input_ids")
                continue
            try:
                outcome = _try_blocks(language_model, backbone, blocks)
            except torch.OutOfMemoryError:
                raise
            except UNUSABLE as error:
                outcome = f"a pass of a few tokens fails with {type(error).__name__}: {error}"
            if isinstance(outcome, Stack):
                return outcome
            problems.append(f"'{name}': {outcome}")
    raise LayerNotFound(
        f"the layers of {type(model).__name__} were not found: {'; '.join(problems) or _list_parts(model)}"
    )


def find_backbone(language_model: LanguageModel) -> Stack:
    """The stack of a causal language model, proved to end where its output head begins.

    A few tokens are run to prove that (1) what the backbone returns is exactly what the output head multiplies, so it
    is the state after the final norm, and (2) a state does not depend on later tokens, so padding on the right and
    leaving out the last token change nothing.

    Raises:
        LayerNotFound: no stack or no output head was found, or the states are not what the head multiplies.
        ModelInvalid: the model looks at later tokens, as encoders do.
    """
    model = language_model.model
    head = model.get_output_embeddings()
    if head is None:
        kinds = ", ".join(name for name, _ in model.named_children())
        raise LayerNotFound(
            f"{type(model).__name__} has no output head, so it has no response likelihood; its parts are {kinds}"
        )
    stack = find_stack(language_model)
    if recall(model, "input of the head") is None:
        _prove_input_of_head(language_model, stack)
    if not stack.causal:
        raise ModelInvalid(
            f"{type(model).__name__} is not causal: states depend on later tokens, so it has no response likelihood"
        )
    return stack


def _prove_input_of_head(language_model: LanguageModel, stack: Stack) -> None:
    """Raise unless the backbone returns what the output head multiplies."""
    model = language_model.model
    with torch.inference_mode(), use_eval_mode(model):
        for start in TRIAL_STARTS:
            ids = trial_ids(language_model, start)
            states = last_hidden_state(stack.backbone, ids)
            # Where no trial gives finite states the weights are broken, which is reported pair by pair.
            if torch.isfinite(states).all():
                _judge_head(language_model, stack, states, _input_of(model.get_output_embeddings(), model, ids))
                remember(model, "input of the head", True)
                break


def _block_lists(model: Any) -> list[tuple[str, nn.ModuleList]]:
    """Lists with one module a layer: those of the text part first, the others (a vision tower's) after."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    text = model.get_decoder() if hasattr(model, "get_decoder") else model
    inside = set(text.modules()) if text is not model and isinstance(text, nn.Module) else set(model.modules())
    candidates = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    return sorted(candidates, key=lambda entry: entry[1] not in inside)


def _runner(model: Any, name: str) -> nn.Module | None:
    """The innermost model around a list of blocks that takes token ids."""
    parts = name.split(".")
    for length in range(len(parts) - 1, -1, -1):
        module = model.get_submodule(".".join(parts[:length]))
        if hasattr(module, "config") and "input_ids" in inspect.signature(module.forward).parameters:
            return module
    return None


def _try_blocks(language_model: LanguageModel, backbone: nn.Module, blocks: nn.ModuleList) -> Stack | str:
    """The stack, or what speaks against it."""
    taps = [Tap(block, before) for block in blocks for before in (True, False)]
    inside = {module for block in blocks for module in block.modules()}
    others = [module for module in backbone.modules() if module is not backbone and module not in inside]
    for start in TRIAL_STARTS:
        with record_taps(taps) as seen, record_taps([Tap(module) for module in others]) as returned:
            # Two rows, since one row alone would not show whether rows or tokens are the first dimension.
            ids = torch.cat([trial_ids(language_model, start + other) for other in (0, 5)])
            states = last_hidden_state(backbone, ids)
        if [index for index, _ in seen] != list(range(len(taps))):
            return f"its {len(blocks)} modules do not run once each, in order"
        shapes = {None if tensor is None else tuple(tensor.shape) for _, tensor in seen}
        if len(shapes) > 1 or None in shapes or (next(iter(shapes)) or ())[:-1] != tuple(ids.shape):
            return f"what goes in and out of its modules is not [row token width] throughout but {shapes}"
        if torch.isfinite(states).all():
            break
    first, last = seen[1][1], seen[-1][1]
    assert first is not None and last is not None  # noqa: PT018 (for the type checker)
    causal = _is_causal(language_model, backbone, blocks[0], ids, first, states)
    normed = not _equal(last, states)
    same = [others[index] for index, tensor in returned if tensor is not None and _equal(tensor, states)]
    norm = same[-1] if normed and same else None
    stack = Stack(
        language_model,
        backbone,
        tuple(blocks),
        width=last.shape[-1],
        causal=causal,
        normed=normed,
        final_norm=norm,
    )
    # Broken weights prove nothing.
    if torch.isfinite(states).all():
        remember(language_model.model, "stack", FoundStack.detach(stack))
    return stack


def _is_causal(
    language_model: LanguageModel, backbone: nn.Module, block: nn.Module, ids: Tensor, first: Tensor, states: Tensor
) -> bool:
    """Whether states stay the same when later tokens are others, or none: the backbone's, or the first block's.

    Where broken weights leave neither finite, the model counts as its family does.
    """
    changed = _read_both(backbone, block, torch.cat([ids[:, :-3], ids[:, -3:].roll(1, dims=1)], dim=1))
    shorter = _read_both(backbone, block, ids[:, :-3])
    for whole, other, part in zip((states, first), changed, shorter, strict=True):
        if other is None or part is None:
            continue
        if all(torch.isfinite(seen).all() for seen in (whole, other, part)):
            return _keeps_states_before_changes(backbone, ids, whole, other) and _keeps_states_when_cut(whole, part)
    return auto_class(language_model.model.config) is not AutoModel


def _read_both(backbone: nn.Module, block: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """States of the backbone and of a block."""
    with record_taps([Tap(block)]) as seen:
        states = last_hidden_state(backbone, ids)
    return states, seen[0][1]


def _keeps_states_before_changes(backbone: nn.Module, ids: Tensor, whole: Tensor, other: Tensor) -> bool:
    """Whether other tokens at the end leave the states before them alone.

    The shape of every product stays the same, and so does each bit of a causal model, in half precision too. Only
    experts add up a token's numbers in another order when they are handed other tokens beside it; as much as they do so
    when the tokens of another row change is allowed.
    """
    change, limit = _measure_before_the_end(whole, other), CAUSAL.get(whole.dtype, 0.0)
    if change <= limit:
        return True
    neighbours = torch.cat([ids[:1], ids[1:].roll(1, dims=1)])
    rows = (last_hidden_state(backbone, batch)[0] for batch in (ids, neighbours))
    return change <= allowed_difference(limit, channelwise_difference(*rows))


def _keeps_states_when_cut(whole: Tensor, part: Tensor) -> bool:
    """Whether the states are the same without the last tokens.

    Attention over another length adds up in another order, too, and in half precision a deep model then differs by as
    much as a model that reads its length. There the model is assumed not to read its length, as its family does not.
    """
    limit = CAUSAL.get(whole.dtype)
    return limit is None or _measure_before_the_end(whole, part) <= limit


def _measure_before_the_end(whole: Tensor, part: Tensor) -> float:
    """Difference of the states before the last three tokens of ``whole``."""
    before = whole.shape[1] - 3
    return channelwise_difference(whole[:, :before].flatten(0, 1), part[:, :before].flatten(0, 1))


def _equal(tensor: Tensor, states: Tensor) -> bool:
    return tensor.shape == states.shape and torch.equal(tensor.to(states), states)


def _list_parts(model: Any) -> str:
    lists = [
        f"'{name}' of {len(module)}" for name, module in model.named_modules() if isinstance(module, nn.ModuleList)
    ]
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    return f"the config names {count} layers, and the lists of modules are {', '.join(lists[:SHOWN]) or 'none'}"


def _judge_head(language_model: LanguageModel, stack: Stack, states: Tensor, multiplied: Tensor) -> None:
    """Raise unless the head multiplies what the backbone returns."""
    if multiplied.shape != states.shape or difference(states, multiplied) > tolerance(states.dtype):
        raise LayerNotFound(
            f"what {type(stack.backbone).__name__} returns is not what the output head of "
            f"{type(language_model.model).__name__} multiplies "
            f"(shapes {tuple(states.shape)} and {tuple(multiplied.shape)}); this family is not supported yet"
        )


def _input_of(module: nn.Module, model: Any, ids: Tensor) -> Tensor:
    """What reaches ``module`` when the whole model runs."""
    with record_taps([Tap(module, before=True)]) as seen:
        model(input_ids=ids, use_cache=False)
    if len(seen) != 1 or seen[0][1] is None:
        raise LayerNotFound(f"the output head of {type(model).__name__} ran {len(seen)} times in one pass, not once")
    return seen[0][1]
