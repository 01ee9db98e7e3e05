"""The parameters through which a module writes, and along which of their axes: shown by changing them and running it.

A name or a shape cannot tell: fused experts are [experts in out] in one family and [experts out in] in another, and
a square matrix looks the same both ways. So each parameter is changed along each axis that has the width of the
residual stream, by a random direction. Where the module's output moves along that direction and nowhere else, the
parameter writes, along that axis. At last all of them are projected together, and the output has to be what it was,
without its component along the direction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from probing.directions.edits import remove_from_vectors
from probing.errors import EditRefused
from probing.models.hooks import first_tensor
from probing.models.passes import TRIAL_STARTS, run_backbone, trial_ids, use_eval_mode
from probing.models.stack import Stack
from probing.models.writers import Writer

EDITABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MOVED = 1e-3
"""Least change of the output, relative to the output, by which a parameter counts as having an effect."""
ALONG = 1e-3
"""Largest part of that change off the direction, relative to the change, of a parameter that writes."""
EXACT = 1e-4
"""Largest difference, relative to the output, of the output after the projection of all parameters."""
SEED = 1
VECTORS = 4096
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32)


@dataclass(frozen=True, eq=False)
class WritingTensor:
    """A parameter that writes, and the axis along which a direction is removed from it.

    Attributes:
        name: path within the model.
        owner: the module that holds it.
        key: its name there.
        axis: the axis of the residual stream.
        shift: whether it is the shift of a norm behind the write, which is edited against the direction itself.
    """

    name: str
    owner: nn.Module
    key: str
    axis: int
    shift: bool = False

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as it is now."""
        parameter: nn.Parameter = getattr(self.owner, self.key)
        return parameter


@dataclass(frozen=True, eq=False)
class _Call:
    """What a module was called with."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class TensorFinder:
    """Finds the parameters of writers; those of alike modules are searched for once.

    Args:
        stack: the model.
        writers: the writers whose parameters are asked for.

    Raises:
        EditRefused: weights that cannot be edited, or a module whose output is not understood; names it.
    """

    def __init__(self, stack: Stack, writers: Sequence[Writer]) -> None:
        self._stack = stack
        self._known: dict[object, list[tuple[str, int]]] = {}
        self._calls = _record_calls(stack, [module for writer in writers for _, module in writer.edited])

    def find(self, writer: Writer) -> list[WritingTensor]:
        """The parameters of one writer."""
        found = [tensor for name, module in writer.edited for tensor in self._find_in(name, module)]
        if writer.norm is not None and bool(writer.norm.shift.any()):
            found.append(self._find_shift(writer))
        return found

    def measure_gain(self, writer: Writer, tensor: WritingTensor) -> float | None:
        """What a vector becomes in the write when it is added to a parameter: a multiple, the same for every token.

        Args:
            writer: a writer.
            tensor: one of its parameters, to every vector of which, along its axis, the vector is added.

        Returns:
            The multiple; None where it differs between tokens, or the write changes in another way.
        """
        if tensor.shift:
            return writer.factor
        if writer.norm is not None:
            return None
        trial = _Trial(writer.module, self._calls[id(writer.module)], self._stack.width)
        gain = trial.measure_gain(tensor.name.removeprefix(f"{writer.name}."), tensor.axis)
        return None if gain is None else gain * writer.factor

    def _find_in(self, name: str, module: nn.Module) -> list[WritingTensor]:
        _check_weights(self._stack, name, module)
        shapes = tuple((key, tuple(value.shape)) for key, value in module.named_parameters())
        kind = (type(module), shapes)
        if kind not in self._known:
            self._known[kind] = self._search(name, module)
        return [_locate(name, module, path, axis) for path, axis in self._known[kind]]

    def _search(self, name: str, module: nn.Module) -> list[tuple[str, int]]:
        """Path and axis of every parameter that writes, proved together."""
        if id(module) not in self._calls:
            raise EditRefused(f"{name} of {self._stack.family} did not run once in a pass of a few tokens")
        trial = _Trial(module, self._calls[id(module)], self._stack.width)
        pairs = [
            (path, axis)
            for path, value in trial.values.items()
            for axis in range(value.ndim)
            if value.shape[axis] == self._stack.width
        ]
        effects = {pair: trial.judge(*pair) for pair in pairs}
        found = [pair for pair, effect in effects.items() if effect == "writes"]
        alike = {(_without_numbers(path), axis) for path, axis in found}
        # Experts that no token of the trial reached, each in a module of its own, are as those that were reached.
        found += [
            (path, axis)
            for (path, axis), effect in effects.items()
            if effect == "silent" and (_without_numbers(path), axis) in alike
        ]
        problem = trial.prove(found)
        if problem is not None:
            raise EditRefused(
                f"the weights through which {name} of {self._stack.family} writes are not understood: {problem} "
                f"(found: {', '.join(f'{path} along axis {axis}' for path, axis in found) or 'none'})"
            )
        return found

    def _find_shift(self, writer: Writer) -> WritingTensor:
        """The parameter of a norm that is its shift."""
        norm = writer.norm
        assert norm is not None
        for key, value in norm.module.named_parameters():
            moved = value.detach().double().cpu()
            if moved.shape == norm.shift.shape and torch.allclose(moved, norm.shift, rtol=1e-3, atol=1e-5):
                return _locate(norm.name, norm.module, key, 0, shift=True)
        raise EditRefused(f"the norm {norm.name} of {self._stack.family} adds a vector that is none of its parameters")


class _Trial:
    """One module, run in float32 with what it was called with once, its parameters replaced for the time."""

    def __init__(self, module: nn.Module, call: _Call, width: int) -> None:
        self._module = module
        self._args, self._kwargs = _widen(call.args), _widen(call.kwargs)
        self.values = {path: _widen(value.detach()) for path, value in module.named_parameters()}
        self._buffers = {path: _widen(value) for path, value in module.named_buffers()}
        tensors = (*self.values.values(), *self._buffers.values())
        self._device = tensors[0].device.type if tensors else "cpu"
        self._generator = torch.Generator().manual_seed(SEED)
        direction = torch.randn(width, generator=self._generator)
        self._direction = direction / direction.norm()
        self._plain = self._run({})

    def _run(self, changed: Mapping[str, Tensor]) -> Tensor:
        """Output, [token width], in float64."""
        values = {**self.values, **self._buffers, **changed}
        with torch.no_grad(), torch.autocast(self._device, enabled=False):
            output = functional_call(self._module, values, _copy(self._args), _copy(self._kwargs), tie_weights=False)
        tensor = first_tensor(output)
        assert tensor is not None
        return tensor.reshape(-1, tensor.shape[-1]).double().cpu()

    def judge(self, path: str, axis: int) -> str:
        """What changing one parameter along one axis does: it "writes", does nothing ("silent"), or something else."""
        value = self.values[path]
        along = self._direction.to(value.device).reshape([-1 if at == axis else 1 for at in range(value.ndim)])
        size = float(value.square().mean().sqrt()) or float(self._plain.square().mean().sqrt()) or 1.0
        others = [1 if at == axis else length for at, length in enumerate(value.shape)]
        noise = torch.randn(others, generator=self._generator).to(value.device)
        moved = self._run({path: value + along * noise * size * len(self._direction) ** 0.5}) - self._plain
        if moved.norm() <= MOVED * EXACT * self._plain.norm():
            return "silent"
        component = moved @ self._direction.double()
        off = moved - component[:, None] * self._direction.double()
        return "writes" if off.norm() <= ALONG * moved.norm() else "something else"

    def measure_gain(self, path: str, axis: int) -> float | None:
        """How far the output moves with a direction that is added to a parameter; None unless alike at every token."""
        value = self.values[path]
        size = float(self._plain.norm(dim=1).mean()) or 1.0
        along = (size * self._direction).to(value.device)
        moved = self._run({path: value + along.reshape([-1 if at == axis else 1 for at in range(value.ndim)])})
        moved = (moved - self._plain) / size
        gains = moved @ self._direction.double()
        off = (moved - gains.mean() * self._direction.double()).norm(dim=1).max()
        return float(gains.mean()) if float(off) <= ALONG * abs(float(gains.mean())) else None

    def prove(self, pairs: Sequence[tuple[str, int]]) -> str | None:
        """What is wrong with the output when all these parameters are projected; None if it is as it should be."""
        direction = self._direction.double()
        changed: dict[str, Tensor] = {}
        for path, axis in pairs:
            changed[path] = project_tensor(changed.get(path, self.values[path]).clone(), axis, self._direction[None])
        output = self._run(changed)
        wanted = self._plain - (self._plain @ direction)[:, None] * direction
        off = float((output - wanted).norm() / self._plain.norm().clamp_min(1e-300))
        if not off <= EXACT:
            return f"with them projected its output is off by {off:.1e} of its length"
        return None


def project_tensor(tensor: Tensor, axis: int, basis: Tensor, keep_norms: bool = False) -> Tensor:
    """Remove a subspace from a tensor along one axis, in place, in float32 (float64 for float64); returns the tensor.

    Args:
        tensor: any floating dtype.
        axis: the axis of the residual stream.
        basis: [rank width], orthonormal.
        keep_norms: whether each vector along that axis keeps its length.
    """
    basis = basis.to(device=tensor.device, dtype=torch.promote_types(tensor.dtype, torch.float32))
    for matrix in _matrices(tensor.movedim(axis, -1)):
        # Wide copies are made of some vectors at a time.
        for vectors in matrix.split(VECTORS):
            vectors.copy_(remove_from_vectors(vectors, basis, keep_norms))
    return tensor


def _matrices(tensor: Tensor) -> list[Tensor]:
    """Views [vector width] that make up a tensor [..., width], without copying any of it."""
    if tensor.ndim <= 2:
        return [tensor.reshape(1, -1) if tensor.ndim == 1 else tensor]
    return [matrix for part in tensor for matrix in _matrices(part)]


def _record_calls(stack: Stack, modules: Sequence[nn.Module]) -> dict[int, _Call]:
    """What each module was called with in a pass of a few tokens; without those that ran more than once."""
    calls: dict[int, list[_Call]] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Copied, since a model may change its states in place afterwards.
        calls.setdefault(id(module), []).append(_Call(_copy(args), _copy(kwargs)))

    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in dict.fromkeys(modules)]
    try:
        with torch.no_grad(), use_eval_mode(stack.language_model.model):
            run_backbone(stack.backbone, trial_ids(stack.language_model, TRIAL_STARTS[0]))
    finally:
        for handle in handles:
            handle.remove()
    return {key: own[0] for key, own in calls.items() if len(own) == 1}


def _check_weights(stack: Stack, name: str, module: nn.Module) -> None:
    """Raise if a module has weights that are quantised or lie elsewhere."""
    for path, value in (*module.named_parameters(), *module.named_buffers()):
        if value.device.type == "meta":
            raise EditRefused(f"{name}.{path} of {stack.family} is not in memory (offloaded), and cannot be edited")
        packed = value.dtype in INTEGERS and value.numel() > stack.width
        # A quantised weight may be an object of a class of its own that gives itself out for half precision.
        plain = type(value) is nn.Parameter and value.dtype in EDITABLE
        if packed or (isinstance(value, nn.Parameter) and not plain):
            kind = f"{type(value).__name__}, {str(value.dtype).removeprefix('torch.')}"
            raise EditRefused(
                f"{name}.{path} of {stack.family} is quantised, or spread over machines ({kind}), and cannot be edited "
                f"in place; load the model in bfloat16 or float32"
            )


def _locate(name: str, module: nn.Module, path: str, axis: int, shift: bool = False) -> WritingTensor:
    owner, _, key = path.rpartition(".")
    return WritingTensor(f"{name}.{path}", module.get_submodule(owner), key, axis, shift)


def _without_numbers(path: str) -> str:
    return ".".join("#" if part.isdigit() else part for part in path.split("."))


def _widen(value: Any) -> Any:
    """Half precision as float32, in whatever holds the tensors."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if isinstance(value, tuple | list):
        return type(value)(_widen(part) for part in value)
    return {key: _widen(part) for key, part in value.items()} if isinstance(value, dict) else value


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple | list):
        return type(value)(_copy(part) for part in value)
    return {key: _copy(part) for key, part in value.items()} if isinstance(value, dict) else value
