"""A direction added for good: a constant vector in a bias that writes to the residual stream, or in the embedding.

What a block returns is the sum of what it takes and of its writes. So a vector that is added to what the MLP writes
moves the output of its block, and nothing inside it, by that vector at every token: the same as adding it at the next
place of the residual stream while the model runs. Which parameter does that, and how far the stream moves with it, is
found by running the model.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from probing.engine.edit_guard import LEFT, LEFT_HALF, ROUNDINGS, ROUNDINGS_HALF, ROWS, TOKENS, guard_ids
from probing.engine.edit_points import is_edited
from probing.engine.edit_requests import read_request
from probing.engine.guard import LeaveAsFound
from probing.engine.stream import ONE_AT_A_TIME
from probing.engine.weight_edits import WeightEdit, check_heads, untie
from probing.errors import EditRefused, UsageError
from probing.models.hooks import Tap, tap_modules
from probing.models.in_memory import as_language_model
from probing.models.layers import find_stack
from probing.models.passes import run_backbone, use_eval_mode
from probing.models.stack import Stack
from probing.models.writers import Writer, find_writers
from probing.models.writing_tensors import TensorFinder, WritingTensor

LEAST_GAIN = 1e-3
"""Where the stream moves by less than this share of what is added to a parameter, that is not where one adds."""
INSTEAD = "add it while the model runs (probing.ablate, mode='add') or as a control vector (--format gguf)"


@dataclass(eq=False, kw_only=True)
class Addition(WeightEdit):
    """Weights that add a direction to the residual stream.

    Attributes:
        places: where the stream moves.
        created: names of biases that the model did not have before.
        notes: what else has to be said of the edit.
    """

    places: list[str] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """The edit in one line: where, through which parameters, and what was proved."""
        names = [f"{each.name}{' (new)' if each.name in self.created else ''}" for each in self.tensors]
        line = (
            f"weights: the direction is added at {', '.join(self.places)} through {', '.join(names)}; proved: the "
            f"residual stream moves there by the same vector at every token"
        )
        return "; ".join([line, *self.notes])


def add_to_weights(
    model: Any,
    direction: Any,
    coefficient: float | Sequence[float] = 1.0,
    *,
    layers: int | Sequence[int] | None = None,
) -> Addition:
    """Add a direction to the residual stream of a model by its weights, in place: x + c r at every token.

        edit = probing.add_to_weights(model, direction)
        print(edit.describe())
        edit.undo()

    The logits are those under ``probing.ablate(model, direction, "add")``. The vector goes into the bias of what the
    block before the place writes last (its MLP), into the shift of a norm behind it, or, at the input of the first
    block, into every row of an embedding. A linear layer without a bias gets one; what is saved of such a model can be
    loaded only where the config has a setting for that bias, as ``probing refusal export`` finds out. A guard measures
    the residual stream of a batch before and after: unless it moves by the vector at every token, everything is undone.

    An affine edit has no such form: what it adds depends on the state, and no weight of one block multiplies the whole
    state.

    Args:
        model: see ``probing.ablate``.
        direction: a ``Direction``, or its vector [width].
        coefficient: c, one number or one for each of the layers; below zero it takes away.
        layers: blocks at whose inputs (or outputs, where the direction was read there) it is added; by default the
            direction's own layer.

    Returns:
        The edit: ``undo()`` puts the weights back bit for bit, and so does the end of a ``with`` block; ``forget()``
        frees the memory of the originals.

    Raises:
        UsageError: options that contradict each other, a direction of another width, a subspace.
        EditRefused: the model has no parameter that moves the stream there by a constant vector, the weights cannot be
            edited in place, or the stream did not move as it should; the weights are then as they were.
        LayerNotFound: the blocks of the model were not found.
    """
    language_model = as_language_model(model)
    whole = language_model.model
    if is_edited(whole):
        raise UsageError("the model is under probing.ablate; leave that block before its weights are edited")
    with ONE_AT_A_TIME, LeaveAsFound(whole), LeaveAsFound(whole):
        request = read_request(find_stack(language_model), direction, "add", layers, coefficient)
        if request.several:
            raise UsageError("weights add one direction, the same for all rows of a batch")
        edit = Addition()
        try:
            for layer in request.layers:
                point = StreamPoint(request.stack, layer if request.side == "resid_post" else layer - 1)
                _add(point, request.shift(layer), edit)
                edit.places.append(f"{request.side}:{layer}")
        except BaseException:
            edit.undo()
            raise
    return edit


@dataclass(frozen=True, eq=False)
class StreamPoint:
    """The residual stream behind a block, or behind the embedding where the block is -1."""

    stack: Stack
    block: int

    def measure(self) -> tuple[Tensor, Tensor | None]:
        """States of a batch at the point, and what the block took, [token width] in float64.

        Raises:
            EditRefused: no states pass there.
        """
        at = Tap(self.stack.blocks[max(self.block, 0)], before=self.block < 0)
        taps = [at] if self.block < 0 else [at, Tap(self.stack.blocks[self.block], before=True)]
        found: dict[int, Tensor] = {}

        def receive(index: int, tensor: Tensor | None) -> None:
            if tensor is not None:
                # Copied, since some blocks add to their input in place.
                found[index] = tensor.reshape(-1, tensor.shape[-1]).double().cpu().clone()

        ids = guard_ids(self.stack, ROWS, TOKENS)
        with torch.no_grad(), use_eval_mode(self.stack.language_model.model), tap_modules(taps, receive):
            run_backbone(self.stack.backbone, ids)
        if len(found) < len(taps):
            raise EditRefused(f"the states behind block {self.block} of {self.stack.family} could not be read")
        return found[0], found.get(1)

    def check(self, before: tuple[Tensor, Tensor | None], after: tuple[Tensor, Tensor | None], shift: Tensor) -> None:
        """Raise unless every token moved by a vector, and what the block took did not.

        Raises:
            EditRefused: it did not.
        """
        if before[1] is not None and after[1] is not None and not torch.equal(before[1], after[1]):
            raise EditRefused(f"the edit changed what block {self.block} of {self.stack.family} takes; it was undone")
        dtype = self.stack.language_model.dtype
        roundings = ROUNDINGS if dtype in LEFT else ROUNDINGS_HALF
        lengths = before[0].norm(dim=1).maximum(after[0].norm(dim=1))
        allowed = LEFT.get(dtype, LEFT_HALF) * shift.norm() + roundings * torch.finfo(dtype).eps * lengths
        off = (after[0] - before[0] - shift).norm(dim=1)
        if not bool((off <= allowed).all()):
            worst = int((off / allowed).nan_to_num(torch.inf).argmax())
            raise EditRefused(
                f"the stream behind block {self.block} of {self.stack.family} is off by {float(off[worst]):.2e} from "
                f"where it should have moved, and {float(allowed[worst]):.1e} is allowed; the edit was undone"
            )


@dataclass(frozen=True, eq=False)
class AdditionGuard:
    """States of a model before a direction is added, for the proof of what is loaded back; holds no part of the model.

    Attributes:
        block: behind which the stream has to move.
        shift: by what.
        before: what was measured.
    """

    block: int
    shift: Tensor
    before: tuple[Tensor, Tensor | None]

    @classmethod
    def measure(cls, model: Any, direction: Any, coefficient: float) -> "AdditionGuard":
        """Measure a model that is not edited yet, at the direction's own place.

        Raises:
            UsageError: see ``add_to_weights``.
        """
        with ONE_AT_A_TIME, LeaveAsFound(model.model), LeaveAsFound(model.model):
            request = read_request(find_stack(model), direction, "add", None, coefficient)
            (layer,) = request.layers
            point = StreamPoint(request.stack, layer if request.side == "resid_post" else layer - 1)
            return cls(point.block, request.shift(layer), point.measure())

    def check(self, exported: Any) -> None:
        """Raise unless the stream of an export moves by the vector at every token.

        Raises:
            EditRefused: it does not.
        """
        with ONE_AT_A_TIME, LeaveAsFound(exported.model), LeaveAsFound(exported.model):
            point = StreamPoint(find_stack(exported), self.block)
            point.check(self.before, point.measure(), self.shift)


def _add(point: StreamPoint, shift: Tensor, edit: Addition) -> None:
    """Add a vector at one point, and prove it."""
    before = point.measure()
    tensor, gain = _find_tensor(point, edit)
    own = Addition(tensors=(tensor,))
    edit.tensors = (*edit.tensors, tensor)
    heads = untie(point.stack.language_model.model, own, edit.notes)
    own.keep()
    # Undone in the reverse order, the bias that was made for this included.
    edit.back += own.back
    edit.parameters, edit.kept_bytes = edit.parameters + own.parameters, edit.kept_bytes + own.kept_bytes
    add_along(tensor.parameter.detach(), tensor.axis, shift / gain)
    point.check(before, point.measure(), shift)
    check_heads(heads)


def add_along(tensor: Tensor, axis: int, vector: Tensor) -> None:
    """Add a vector to every vector of a tensor along one axis, in place, in float32 (float64 for float64)."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    added = vector.to(tensor.device, wide).reshape([-1 if at == axis else 1 for at in range(tensor.ndim)])
    tensor.copy_((tensor.to(wide) + added).to(tensor.dtype))


def _find_tensor(point: StreamPoint, edit: Addition) -> tuple[WritingTensor, float]:
    """The parameter to which a vector is added, and by how much the stream moves for it.

    Raises:
        EditRefused: there is none; says what was looked at.
    """
    writers = _choose_writers(find_writers(point.stack), point.block)
    finder = TensorFinder(point.stack, writers)
    known = [(writer, tensor) for writer in writers for tensor in finder.find(writer)]
    looked = [tensor.name for _, tensor in known]
    tied = _addresses_of_head(point.stack.language_model.model)
    # What nothing else shares comes first: no copy of it has to be made.
    for writer, tensor in sorted(known, key=lambda pair: pair[1].parameter.data_ptr() in tied):
        gain = finder.measure_gain(writer, tensor) if _could_add(tensor) else None
        if gain is not None and abs(gain) >= LEAST_GAIN:
            return tensor, gain
    for writer, tensor in known:
        if writer.norm is None and _lacks_bias(tensor):
            bias = _make_bias(tensor, edit)
            gain = finder.measure_gain(writer, bias)
            if gain is not None and abs(gain) >= LEAST_GAIN:
                edit.created.append(bias.name)
                return bias, gain
            edit.back.pop()()
    behind = [writer.norm.name for writer in writers if writer.norm is not None]
    why = f" (a norm without a shift stands behind: {', '.join(behind)})" if behind else ""
    raise EditRefused(
        f"{point.stack.family} has no bias through which a direction could be added behind "
        f"{'the embedding' if point.block < 0 else f'block {point.block}'}{why}; looked at: {', '.join(looked)}. "
        f"Instead, {INSTEAD}"
    )


def _choose_writers(found: Sequence[Writer], block: int) -> tuple[Writer, ...]:
    """Writers behind which nothing in the block reads the stream: the MLP's, or the mixer's where there is no MLP."""
    if block < 0:
        return tuple(each for each in found if each.kind == "embedding")
    own = [each for each in found if each.layer == block]
    return tuple(each for each in own if each.kind == "mlp") or tuple(own)


def _could_add(tensor: WritingTensor) -> bool:
    """Whether a parameter is a vector for every token, or one row a word."""
    return tensor.shift or tensor.parameter.ndim == 1 or tensor.key.endswith("bias") or _is_embedding(tensor)


def _lacks_bias(tensor: WritingTensor) -> bool:
    linear = tensor.owner
    return isinstance(linear, nn.Linear) and linear.bias is None and tensor.key == "weight" and tensor.axis == 0


def _is_embedding(tensor: WritingTensor) -> bool:
    return isinstance(tensor.owner, nn.Embedding) and tensor.axis == 1


def _addresses_of_head(whole: Any) -> set[int]:
    head = whole.get_output_embeddings() if hasattr(whole, "get_output_embeddings") else None
    return set() if head is None else {parameter.data_ptr() for parameter in head.parameters()}


def _make_bias(tensor: WritingTensor, edit: Addition) -> WritingTensor:
    """Give a linear layer a bias of zeros, which changes nothing yet."""
    linear = tensor.owner
    weight = tensor.parameter
    linear._parameters["bias"] = nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=weight.requires_grad)
    edit.back.append(functools.partial(linear._parameters.__setitem__, "bias", None))
    return WritingTensor(f"{tensor.name.removesuffix('weight')}bias", linear, "bias", 0)
