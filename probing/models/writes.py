"""What a block adds to the residual stream, and which of its modules it comes from: searched for, and proved by sums.

A norm after attention (Gemma 2 and later, OLMo 2) or a factor (Granite) stands between what the attention module
returns and what the residual stream receives. Names cannot tell. So one pass of a few tokens records what every module
inside a block returns, and the few whose sum is exactly the block's output minus its input are what it writes.
"""

import copy
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from probing.models.hooks import Tap, tap_modules

MOST_PARTS = 3
ROUNDINGS, ROUNDINGS_HALF = 16, 2
"""Largest error of the sum of the parts, element by element, in roundings of the largest term."""
HALF = (torch.bfloat16, torch.float16)
LARGEST_FACTOR = 100.0
NEAREST = 12
TIMES_WORSE = 4
MIXES_TOKENS = r"attn|attention|mixer|mamba|ssm|conv|recurrent|temporal|rwkv|time_mix|delta"
EACH_TOKEN = r"mlp|ffn|ff\b|feed_?forward|moe|expert|fc\d|dense_4h|channel_mix"


@dataclass(frozen=True, eq=False)
class Part:
    """A module whose output, times ``factor``, is added to the residual stream."""

    name: str
    module: nn.Module
    factor: float = 1.0

    def describe(self) -> str:
        """The part in words."""
        return self.name if self.factor == 1.0 else f"{self.factor:.4g} * {self.name}"


@dataclass(frozen=True, eq=False)
class BlockWrites:
    """Modules by which one block writes into the residual stream.

    Attributes:
        attention: parts that mix tokens (attention, or the mixer of a state-space block).
        mlp: parts that treat each token alone.
        form: "sum": output = input + parts; "norm after each sum": a norm stands between (BERT); "unknown".
        candidates: names of modules that were looked at.
    """

    attention: tuple[Part, ...] = ()
    mlp: tuple[Part, ...] = ()
    form: str = "unknown"
    candidates: tuple[str, ...] = field(default=(), repr=False)

    def detach(self) -> "BlockWrites":
        """The same by the names of the modules, without the modules."""
        return self._with_modules(lambda _: None)

    def attach_to(self, block: nn.Module) -> "BlockWrites":
        """The same with the modules of a block."""
        return self._with_modules(block.get_submodule)

    def _with_modules(self, find: Callable[[str], Any]) -> "BlockWrites":
        attention, mlp = (
            tuple(replace(part, module=find(part.name)) for part in parts) for parts in (self.attention, self.mlp)
        )
        return replace(self, attention=attention, mlp=mlp)

    def explain(self, layer: int) -> str:
        """A description of what was found in this block."""
        if self.form == "unknown":
            return (
                f"no modules of layer {layer} add up to what it adds to the residual stream (looked at: "
                f"{', '.join(self.candidates) or 'none of fitting shape'})"
            )
        parts = [part.name for part in (*self.attention, *self.mlp)]
        return f"layer {layer} writes only {' + '.join(parts)}"


@dataclass(frozen=True, eq=False)
class _Call:
    """What went through one module, as float64 [token width] on the CPU."""

    name: str
    module: nn.Module
    given: Tensor | None
    returned: Tensor | None


@dataclass(frozen=True, eq=False)
class _Record:
    """One pass through one block."""

    given: Tensor
    returned: Tensor
    calls: list[_Call]
    rounding: float

    @property
    def finite(self) -> bool:
        """Whether what went in and out is finite."""
        return bool(torch.isfinite(self.given).all() and torch.isfinite(self.returned).all())


def find_writes(blocks: Sequence[nn.Module], run: Callable[[], object]) -> tuple[BlockWrites, ...]:
    """Find the modules by which each block writes; ``run`` makes one pass of a few tokens through all of them.

    The modules are searched for in the first block of each kind; in the others the same ones are tried, and searched
    for anew where they do not add up.
    """
    kinds = [_kind(block) for block in blocks]
    first = {kind: kinds.index(kind) for kind in dict.fromkeys(kinds)}
    writes: dict[int, BlockWrites] = {}
    for layer, record in _record_modules(blocks, sorted(first.values()), run).items():
        if record.finite:
            writes[layer] = _search(record)
        else:
            # The weights are broken. If an intact block of this kind follows, its writes are in the same modules.
            writes[layer] = BlockWrites(candidates=tuple(call.name for call in record.calls))
    names = {kind: {part.name for part in _parts(writes[layer])} for kind, layer in first.items()}
    rest = [layer for layer in range(len(blocks)) if layer not in writes and writes[first[kinds[layer]]].form == "sum"]
    for layer, record in _record_modules(blocks, rest, run, lambda layer: names[kinds[layer]]).items():
        alike = _find_again(writes[first[kinds[layer]]], record)
        if alike is not None:
            writes[layer] = alike
    left = [layer for layer in range(len(blocks)) if layer not in writes]
    # One block at a time, since each record holds what every module of a block returned.
    for layer in left:
        record = _record_modules(blocks, [layer], run)[layer]
        writes[layer] = (
            _search(record) if record.finite else BlockWrites(candidates=writes[first[kinds[layer]]].candidates)
        )
    return tuple(writes[layer] for layer in range(len(blocks)))


def _kind(block: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name} {type(child).__name__}" for name, child in block.named_children())


def _parts(writes: BlockWrites) -> tuple[Part, ...]:
    return (*writes.attention, *writes.mlp)


def _record_modules(
    blocks: Sequence[nn.Module],
    layers: Sequence[int],
    run: Callable[[], object],
    wanted: Callable[[int], set[str]] | None = None,
) -> dict[int, _Record]:
    """One pass with everything that some blocks' modules take and return (or only the modules that are wanted)."""
    if not layers:
        return {}
    if any(parameter.dtype in HALF for parameter in blocks[layers[0]].parameters()):
        exact = _record_in_float32(blocks, layers, run, wanted)
        if exact is not None:
            return exact
    where = [side for layer in layers for side in _sides(layer, blocks[layer], wanted)]
    passed: list[tuple[int, Tensor]] = []
    with tap_modules([Tap(module, before) for _, _, module, before in where], _make_receiver(passed)):
        run()
    return {layer: _record(layer, passed, where) for layer in layers}


def _sides(
    layer: int, block: nn.Module, wanted: Callable[[int], set[str]] | None
) -> list[tuple[int, str, nn.Module, bool]]:
    """Both sides of a block and of its modules (or of those that are wanted): layer, name, module, whether before."""
    return [
        (layer, name, module, before)
        for name, module in block.named_modules()
        if not name or wanted is None or name in wanted(layer)
        for before in (True, False)
    ]


def _make_receiver(passed: list[tuple[int, Tensor]]) -> Callable[[int, Tensor | None], None]:
    def receive(index: int, tensor: Tensor | None) -> None:
        if tensor is not None and tensor.is_floating_point() and tensor.ndim >= 2:
            # Copied, since some blocks add to their input in place.
            passed.append((index, tensor.flatten(0, -2).clone()))

    return receive


def _record_in_float32(
    blocks: Sequence[nn.Module],
    layers: Sequence[int],
    run: Callable[[], object],
    wanted: Callable[[int], set[str]] | None,
) -> dict[int, _Record] | None:
    """Records of a float32 copy of each block on the same input; None where no copy can be run.

    In half precision rounding is so coarse that a wrong set of modules could add up.
    """
    fed: dict[int, tuple[Any, Any]] = {}
    handles = [
        blocks[layer].register_forward_pre_hook(
            lambda _, args, kwargs, layer=layer: fed.update({layer: (args, kwargs)}), with_kwargs=True
        )
        for layer in layers
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    records = {}
    for layer in layers:
        try:
            copied = copy.deepcopy(blocks[layer]).float()
            taps = [Tap(module, before) for _, _, module, before in _sides(layer, copied, wanted)]
            passed: list[tuple[int, Tensor]] = []
            args, kwargs = _to_float(fed[layer])
            with tap_modules(taps, _make_receiver(passed)):
                copied(*args, **kwargs)
            records[layer] = _record(layer, passed, _sides(layer, blocks[layer], wanted))
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError):
            # The weights lie elsewhere or are quantised, so the block cannot be copied.
            return None
    return records


def _to_float(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in HALF else value
    if isinstance(value, tuple | list):
        return type(value)(_to_float(part) for part in value)
    if isinstance(value, dict):
        return {name: _to_float(part) for name, part in value.items()}
    return value


def _record(
    layer: int, passed: Sequence[tuple[int, Tensor]], where: Sequence[tuple[int, str, nn.Module, bool]]
) -> _Record:
    given: dict[str, list[Tensor]] = {}
    returned: dict[str, list[Tensor]] = {}
    modules: dict[str, nn.Module] = {}
    for index, tensor in passed:
        at, name, module, before = where[index]
        if at == layer:
            (given if before else returned).setdefault(name, []).append(tensor)
            modules[name] = module
    shape = returned[""][0].shape
    once = {name: _pick_only(tensors, shape) for name, tensors in returned.items()}
    into = {name: _pick_only(tensors, shape) for name, tensors in given.items()}
    calls = [_Call(name, modules[name], into.get(name), once[name]) for name in returned if name]
    rounding = torch.finfo(returned[""][0].dtype).eps
    return _Record(_widen(given[""][0]), _widen(returned[""][0]), calls, rounding)


def _pick_only(tensors: Sequence[Tensor], shape: torch.Size) -> Tensor | None:
    """The tensor that passed, if there was one and it has the shape of the residual stream."""
    return _widen(tensors[0]) if len(tensors) == 1 and tensors[0].shape == shape else None


def _widen(tensor: Tensor) -> Tensor:
    return tensor.double().cpu()


def _search(record: _Record) -> BlockWrites:
    outputs = _different_outputs(record)
    names = tuple(call.name for call in outputs)
    for form, parts in (("sum", _sum_of(record, outputs)), ("norm after each sum", _norms_between(record, outputs))):
        if parts:
            return _sort_out(parts, form, names)
    return BlockWrites(candidates=names)


def _different_outputs(record: _Record) -> list[_Call]:
    """Calls whose output could be a write, the outermost of those that return the same, in the order they ended."""
    kept: list[_Call] = []
    order = {call.name: index for index, call in enumerate(record.calls)}
    for call in sorted(record.calls, key=lambda call: (call.name.count("."), order[call.name])):
        output = call.returned
        if output is None or not output.any() or any(torch.equal(output, other) for other in _list_seen(record, kept)):
            continue
        kept.append(call)
    return sorted(kept, key=lambda call: order[call.name])


def _list_seen(record: _Record, kept: Sequence[_Call]) -> list[Tensor]:
    return [record.given, record.returned, *(call.returned for call in kept if call.returned is not None)]


def _sum_of(record: _Record, outputs: Sequence[_Call]) -> list[Part]:
    """The fewest modules whose outputs, each times a factor, are what the block adds; nothing if there are none.

    Among sets of the same size the nearest counts, and only if it is plainly nearer than the next one.
    """
    added = record.returned - record.given
    vectors = torch.stack([added, *(_output(call) for call in outputs)]).flatten(1)
    gram = vectors @ vectors.T
    for size in range(1, min(MOST_PARTS, len(outputs)) + 1):
        for scaled in (False, True):
            fits = sorted(
                _fit(gram, subset, scaled) for subset in itertools.combinations(range(1, len(outputs) + 1), size)
            )
            good = [
                (error, subset, factors)
                for error, subset, factors in fits[:NEAREST]
                if _adds_up(record, [_output(outputs[index - 1]) for index in subset], factors)
            ]
            if good and (len(good) == 1 or good[1][0] > TIMES_WORSE * good[0][0]):
                _, subset, factors = good[0]
                calls = [outputs[index - 1] for index in subset]
                return [Part(call.name, call.module, factor) for call, factor in zip(calls, factors, strict=True)]
    return []


def find_terms(total: Tensor, outputs: Sequence[tuple[str, nn.Module, Tensor]]) -> list[Part]:
    """The fewest modules whose outputs, each times a factor, add up to ``total``; nothing if there are none.

    Args:
        total: [..., width].
        outputs: name, module and output of each module that could be one, in the order in which they ran. Those of
            another number of elements are left out; of several with the same output, the outermost counts.
    """
    size, kept = total.shape[-1], list[_Call]()
    alike = [entry for entry in outputs if entry[2].shape[-1:] == (size,) and entry[2].numel() == total.numel()]
    for name, module, output in sorted(alike, key=lambda entry: entry[0].count(".")):
        wide = _widen(output.reshape(-1, size))
        if wide.any() and not any(torch.equal(wide, _output(call)) for call in kept):
            kept.append(_Call(name, module, None, wide))
    whole = _widen(total.reshape(-1, size))
    return _sum_of(_Record(torch.zeros_like(whole), whole, [], torch.finfo(total.dtype).eps), kept)


def _output(call: _Call) -> Tensor:
    assert call.returned is not None
    return call.returned


def _fit(gram: Tensor, subset: tuple[int, ...], scaled: bool) -> tuple[float, tuple[int, ...], tuple[float, ...]]:
    """Squared distance of the block's addition (row 0) from a sum of outputs, with factor 1 or the best factors."""
    chosen = torch.tensor(subset)
    among, with_added = gram[chosen][:, chosen], gram[chosen, 0]
    factors = torch.ones(len(subset), dtype=gram.dtype)
    if scaled:
        factors = torch.linalg.lstsq(among, with_added[:, None]).solution[:, 0]
    error = gram[0, 0] - 2 * factors @ with_added + factors @ among @ factors
    return float(error.clamp_min(0)), subset, tuple(factors.tolist())


def _adds_up(record: _Record, parts: Sequence[Tensor], factors: Sequence[float]) -> bool:
    """Whether input + parts is the output, but for rounding, in every element."""
    if not all(1 / LARGEST_FACTOR < abs(factor) < LARGEST_FACTOR for factor in factors):
        return False
    written = [part * factor for part, factor in zip(parts, factors, strict=True)]
    total = record.given + torch.stack(written).sum(0)
    terms = torch.stack([record.given, record.returned, *written]).abs().amax(0)
    roundings = ROUNDINGS if record.rounding < torch.finfo(torch.float16).eps else ROUNDINGS_HALF
    return bool(((total - record.returned).abs() <= roundings * record.rounding * terms).all())


def _find_again(alike: BlockWrites, record: _Record) -> BlockWrites | None:
    """The writes of another block of the same kind here, if they add up here too."""
    calls = {call.name: call for call in record.calls}
    parts = _parts(alike)
    if any(part.name not in calls or calls[part.name].returned is None for part in parts):
        return None
    # Rows whose states are not finite are refused one by one, so nothing has to be proved for such a block.
    if record.finite and not _adds_up(
        record, [_output(calls[part.name]) for part in parts], [part.factor for part in parts]
    ):
        return None

    def locate(parts: Sequence[Part]) -> tuple[Part, ...]:
        return tuple(Part(part.name, calls[part.name].module, part.factor) for part in parts)

    return BlockWrites(locate(alike.attention), locate(alike.mlp), alike.form, alike.candidates)


def _norms_between(record: _Record, outputs: Sequence[_Call]) -> list[Part]:
    """The form of BERT: norm(input + a) is carried on, and the output is norm(that + b)."""
    for middle in record.calls:
        first = _goes_into(record, middle, record.given, outputs)
        if first is None or middle.returned is None:
            continue
        for last in record.calls:
            if last.returned is None or not torch.equal(last.returned, record.returned):
                continue
            second = _goes_into(record, last, middle.returned, outputs)
            if second is not None:
                return [Part(first.name, first.module), Part(second.name, second.module)]
    return []


def _goes_into(record: _Record, norm: _Call, carried: Tensor, outputs: Sequence[_Call]) -> _Call | None:
    """The module whose output, added to ``carried``, goes into this norm."""
    if norm.given is None:
        return None
    step = _Record(carried, norm.given, [], record.rounding)
    return next((call for call in outputs if _adds_up(step, [_output(call)], [1.0])), None)


def _sort_out(parts: Sequence[Part], form: str, candidates: tuple[str, ...]) -> BlockWrites:
    """Which parts mix tokens: by their names and classes; where those say nothing, the first does and others do not."""
    attention: list[Part] = []
    mlp: list[Part] = []
    for index, part in enumerate(parts):
        told = f"{part.name} {type(part.module).__name__}".lower()
        mixes, each = re.search(MIXES_TOKENS, told), re.search(EACH_TOKEN, told)
        first = index == 0 if bool(mixes) == bool(each) else bool(mixes)
        (attention if first else mlp).append(part)
    return BlockWrites(tuple(attention), tuple(mlp), form, candidates)
