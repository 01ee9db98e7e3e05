"""The places of a model, found by its structure and tested before they are used."""

import contextlib
import functools
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig

from probing.errors import LayerNotFound, ModelInvalid
from probing.models.hooks import Tap, record_taps
from probing.models.load import LanguageModel, auto_class
from probing.models.proofs import OF_A_PASS, recall, remember
from probing.models.writes import BlockWrites, Part, find_writes
from probing.types import Place

TRIAL_TOKENS = 12
TRIAL_STARTS = (1, 2, 3)
"""First ids of the twelve tokens that a model is tried on; the next ones serve if some of the first have broken
embeddings."""
SHOWN = 8
CAUSAL = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Largest change of states, channel by channel, when later tokens are others; in half precision there may be none."""
NOISE = 3.0
"""Two ways to the same states may differ by so many times the difference that rounding alone is measured to cause."""
MOST_NOISE = 0.4
"""Upper limit of that difference: states of other tokens differ by about 1."""
UNUSABLE = (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)
SELECTS_TOKENS = ("index_topk", "keep_window_size")
"""Settings of attention to the highest-ranked tokens only, among which padding and later tokens may be."""


@dataclass(frozen=True, eq=False)
class Site:
    """Modules that the states of one place pass: the sum, over ``taps``, of what passes there times its factor."""

    place: Place
    taps: tuple[Tap, ...]
    factors: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Stack:
    """The residual stream of one model: its blocks in order, and the module that runs them.

    Attributes:
        language_model: the model.
        backbone: takes ``input_ids``; everything below the output head.
        blocks: the layers.
        width: width of the residual stream.
        causal: whether a state depends on earlier tokens only.
        normed: whether the backbone changes the last block's output (by a final norm) before it returns it.
        final_norm: the module that does, if it is a single one.
    """

    language_model: LanguageModel
    backbone: nn.Module
    blocks: tuple[nn.Module, ...]
    width: int
    causal: bool
    normed: bool
    final_norm: nn.Module | None

    def name_of(self, module: nn.Module) -> str:
        """Path of a module within the model."""
        return next((name for name, candidate in self.language_model.model.named_modules() if candidate is module), "?")

    @functools.cached_property
    def writes(self) -> tuple[BlockWrites, ...]:
        """The writes of each block into the residual stream; found, and proved to add up, when first asked for."""
        model = self.language_model.model
        known = recall(model, "writes")
        if known is not None:
            return tuple(writes.attach_to(block) for writes, block in zip(known, self.blocks, strict=True))
        ids = trial_ids(self.language_model, TRIAL_STARTS[0])
        with torch.inference_mode(), use_eval_mode(model):
            found = find_writes(self.blocks, lambda: run_backbone(self.backbone, ids))
        if all(writes.form != "unknown" for writes in found):
            remember(model, "writes", [writes.detach() for writes in found])
        return found

    def sites(self, places: Sequence[Place]) -> list[Site]:
        """The site of each place.

        Raises:
            LayerNotFound: no such layer, or this family has no such place; lists those it has.
        """
        return [self._site(place) for place in places]

    def resolve(self, place: Place) -> Place:
        """The same place with its layer counted from 0.

        Raises:
            LayerNotFound: no such layer.
        """
        if place.layer is None:
            return place
        layers = len(self.blocks)
        if not -layers <= place.layer < layers:
            raise LayerNotFound(
                f"{place}: {self.family} has {layers} layers, 0 to {layers - 1} (or -{layers} to -1 from the end)"
            )
        return Place(place.kind, place.layer % layers)

    @property
    def family(self) -> str:
        """Name of the model's class."""
        return type(self.language_model.model).__name__

    def _site(self, place: Place) -> Site:
        if place.kind == "final_norm":
            if not self.normed:
                raise LayerNotFound(
                    f"{self.family} has no final norm: its states end with resid_post:{len(self.blocks) - 1}"
                )
            return Site(place, (Tap(self.backbone),), (1.0,))
        place = self.resolve(place)
        layer = place.layer or 0
        if place.kind in ("resid_pre", "resid_post"):
            return Site(place, (Tap(self.blocks[layer], before=place.kind == "resid_pre"),), (1.0,))
        written = self.writes[layer]
        parts: tuple[Part, ...] = written.attention if place.kind == "attn_out" else written.mlp
        if not parts:
            raise LayerNotFound(f"{place}: not found in {self.family}; {written.explain(layer)}")
        return Site(place, tuple(Tap(part.module) for part in parts), tuple(part.factor for part in parts))


@dataclass(frozen=True)
class _FoundStack:
    """A stack by the names of its modules, which holds no part of the model."""

    backbone: str
    blocks: tuple[str, ...]
    width: int
    causal: bool
    normed: bool
    final_norm: str | None

    @classmethod
    def detach(cls, stack: Stack) -> "_FoundStack":
        """The stack by names."""
        norm = None if stack.final_norm is None else stack.name_of(stack.final_norm)
        blocks = tuple(stack.name_of(block) for block in stack.blocks)
        return cls(stack.name_of(stack.backbone), blocks, stack.width, stack.causal, stack.normed, norm)

    def attach_to(self, language_model: LanguageModel) -> Stack:
        """The stack of the model from which it came."""
        part = language_model.model.get_submodule
        return Stack(
            language_model,
            part(self.backbone),
            tuple(map(part, self.blocks)),
            width=self.width,
            causal=self.causal,
            normed=self.normed,
            final_norm=None if self.final_norm is None else part(self.final_norm),
        )


def output_site(stack: Stack) -> Site:
    """What the backbone returns: the state after the final norm, or the last block's where there is none."""
    place = Place("final_norm") if stack.normed else Place("resid_post", len(stack.blocks) - 1)
    return Site(place, (Tap(stack.backbone),), (1.0,))


def find_stack(language_model: LanguageModel) -> Stack:
    """Find the blocks of a model and the module that runs them, and try them.

    The blocks are a list of as many modules as the config has layers, which run once each, in order, on
    [row token width] states. The module that runs them is the innermost model around that list. What was found is kept
    with the model.

    Raises:
        LayerNotFound: the model has no such list of modules; lists what was found.
    """
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


@contextlib.contextmanager
def use_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and each part back afterwards: in training, dropout would be in the states.

    Meanwhile its configs ask for the last states alone. Arguments of a call cannot do that: a language model does not
    pass ``return_dict`` on to its backbone, and fails on the tuple that a config made it return.
    """
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with _return_last_states(model), _leave_out_accelerate(model):
            yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _leave_out_accelerate(model: nn.Module) -> Iterator[None]:
    """Run a model as it is itself where accelerate, for training in mixed precision, put another ``forward`` on it."""
    own = vars(model)
    before = own.get("forward")
    try:
        if "_original_forward" in own:
            own["forward"] = own["_original_forward"]
        yield
    finally:
        if before is not None:
            own["forward"] = before


@contextlib.contextmanager
def _return_last_states(model: nn.Module) -> Iterator[None]:
    """Have configs that ask for tuples, states of every layer or attention maps not ask for them inside the block."""
    configs = [vars(module).get("config") for module in model.modules()]
    # Set in their dictionaries, since the setter of ``output_attentions`` refuses the values that were there before.
    known = {id(config): vars(config) for config in configs if isinstance(config, PretrainedConfig)}
    before = [(values, {name: values[name] for name in OF_A_PASS if name in values}) for values in known.values()]
    try:
        for values, own in before:
            values.update({name: OF_A_PASS[name] for name in own})
        yield
    finally:
        for values, own in before:
            values.update(own)


def run_backbone(backbone: nn.Module, ids: Tensor, **options: Any) -> Any:
    """One pass. No attention mask is passed unless it is among the options.

    Padding on the right comes after every real token, and without a mask attention takes its fast causal form and
    builds no [token token] tensor. There is no cache: it costs memory, and it lets packed sequences see each other.
    """
    wanted = {"use_cache": False, "return_dict": True}
    return backbone(
        input_ids=ids, **{name: value for name, value in wanted.items() if accepts(backbone, name)}, **options
    )


def accepts(module: nn.Module, option: str) -> bool:
    """Whether a module's forward takes this keyword."""
    parameters = inspect.signature(module.forward).parameters
    return option in parameters or any(entry.kind is entry.VAR_KEYWORD for entry in parameters.values())


def last_hidden_state(backbone: nn.Module, ids: Tensor) -> Tensor:
    """What the backbone returns, [row token width], for right-padded or unpadded ids."""
    output = run_backbone(backbone, ids)
    # Code that a checkpoint brings may return a tuple whatever its config says.
    states: Tensor | None = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", None)
    if states is None or states.ndim != 3:
        returned = "no last_hidden_state" if states is None else f"states of shape {tuple(states.shape)}"
        raise LayerNotFound(f"{type(backbone).__name__} returns {returned} where [row token width] was expected")
    return states


def logits_of(model: nn.Module, ids: Tensor, **options: Any) -> Tensor:
    """The logits of a whole causal language model, [row token vocab]."""
    output = model(input_ids=ids, use_cache=False, **options)
    logits: Tensor = output[0] if isinstance(output, tuple) else output.logits
    return logits


def trial_ids(language_model: LanguageModel, start: int, tokens: int = TRIAL_TOKENS) -> Tensor:
    """A few different token ids, [1 token], whose embeddings are finite where that can be seen."""
    weight = language_model.model.get_input_embeddings().weight
    ids = (torch.arange(tokens) * 7 + start) % weight.shape[0]
    readable = weight.device.type != "meta" and weight.is_floating_point()
    if readable and not torch.isfinite(weight[ids.to(weight.device)].sum(dim=1)).all():
        good = torch.isfinite(weight.sum(dim=1)).cpu().nonzero()[:, 0]
        if len(good):
            ids = good[ids % len(good)]
    return ids[None].to(language_model.device)


def difference(states: Tensor, others: Tensor) -> float:
    """Largest difference relative to the largest state."""
    states, others = states.float().cpu(), others.float().cpu()
    scale = states.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float((states - others).abs().max() / scale)


def channelwise_difference(states: Tensor, others: Tensor) -> float:
    """Difference of [token channel] states from others, as one number.

    The root mean square, over channels, of the largest difference relative to the channel's largest value.
    Relative to the largest value of all, one massive channel would hide any difference in the others.
    """
    states, others = (tensor.double().cpu() for tensor in (states, others))
    if not torch.isfinite(others).all():
        return float("inf")
    scale = states.abs().amax(0).clamp_min(torch.finfo(torch.float32).tiny)
    return float(((states - others).abs().amax(0) / scale).square().mean().sqrt())


def tolerance(dtype: torch.dtype) -> float:
    """Largest difference allowed between two ways of computing the same states, relative to the largest."""
    return 3e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-4


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
        remember(language_model.model, "stack", _FoundStack.detach(stack))
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


def allowed_difference(limit: float, noise: float) -> float:
    """Difference allowed between two ways to the same states where rounding alone makes them differ by ``noise``."""
    return max(limit, min(NOISE * noise, MOST_NOISE))


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
