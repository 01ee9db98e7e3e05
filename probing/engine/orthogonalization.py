"""Edits of weights: a direction removed for good from everything that writes to the residual stream; undone at will."""

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from probing.directions.edits import pull_back
from probing.engine.edit_guard import ROUNDINGS, EditGuard
from probing.engine.edit_requests import EditRequest, read_kinds, read_request
from probing.engine.guard import LeaveAsFound
from probing.engine.stream import ONE_AT_A_TIME
from probing.errors import EditRefused, UsageError
from probing.models.hooks import Tap, record_taps
from probing.models.in_memory import as_language_model
from probing.models.layers import find_stack
from probing.models.writers import Writer, Writers, find_writers
from probing.models.writing_tensors import TensorFinder, WritingTensor, project_tensor

Embedding = Literal["untie", "skip"]
EMBEDDING: tuple[Embedding, ...] = ("untie", "skip")
EDITED_BY_HOOKS = "probing.engine.edit_points"


@dataclass(eq=False)
class Orthogonalization:
    """Weights that were edited.

    Attributes:
        writers: account of the writers.
        tensors: the parameters that were changed, with the axis.
        parameters: number of elements in them.
        kept_bytes: memory that the originals take, which are kept until ``undo`` or ``forget``.
    """

    writers: Writers
    tensors: tuple[WritingTensor, ...]
    parameters: int = 0
    kept_bytes: int = 0
    _back: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def describe(self) -> str:
        """The edit in one line."""
        return f"weights: {self.writers.describe()}; {len(self.tensors)} tensors of {self.parameters:,} parameters"

    def undo(self) -> None:
        """Put every weight back as it was, bit for bit; a second time does nothing."""
        while self._back:
            self._back.pop()()
        self.kept_bytes = 0

    def forget(self) -> None:
        """Give up the originals, so that the edit stays and their memory is free."""
        self._back.clear()
        self.kept_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def orthogonalize(
    model: Any,
    direction: Any,
    *,
    where: str | Collection[str] | None = None,
    layers: int | Sequence[int] | None = None,
    embedding: Embedding = "untie",
    norm_preserving: bool = False,
) -> Orthogonalization:
    """Remove a direction from the weights of a model, in place, so that nothing it writes has a component along it.

        edit = probing.orthogonalize(model, direction)
        print(edit.describe())
        edit.undo()

    The weights are those of the embeddings, of the outputs of attention (or of other mixers) and of MLPs, routed and
    shared experts among them, and biases; where a norm stands behind a write, they are edited against what becomes the
    direction behind it. The logits are those under ``probing.ablate(model, direction)``. A guard measures the writes of
    a batch before and after: if one of them still holds of the direction, everything is undone.

    Args:
        model: see ``probing.ablate``.
        direction: a ``Direction``, or its vectors [width] or [rank width].
        where: "writes" (all of them, the default), or some of "embedding", "attention" and "mlp".
        layers: blocks whose writes are edited, all by default; the embedding counts with layer 0.
        embedding: "untie": an embedding that shares its weights with the output head is separated from it first, so
            that the head stays as it is (this takes the memory of one more such matrix); "skip": the embedding is not
            edited.
        norm_preserving: whether each vector of a weight along the axis of the residual stream keeps its length.

    Returns:
        The edit, which keeps the originals of what it changed: ``undo()`` puts them back bit for bit, and so does the
        end of a ``with`` block; ``forget()`` frees their memory.

    Raises:
        UsageError: options that contradict each other, or a direction of another width.
        EditRefused: a write that is not understood, weights that cannot be edited in place (quantised, offloaded), or
            an edit that left some of the direction; the weights are then as they were.
        LayerNotFound: the blocks of the model were not found.
    """
    language_model = as_language_model(model)
    whole = language_model.model
    if embedding not in EMBEDDING:
        raise UsageError(f"embedding is one of {', '.join(EMBEDDING)}, not {embedding!r}")
    _check_hooks(whole)
    with ONE_AT_A_TIME, LeaveAsFound(whole), LeaveAsFound(whole):
        request = read_request(find_stack(language_model), direction, "project", layers, None)
        kinds = read_kinds(where)
        if request.several or not kinds:
            raise UsageError("weights are edited at the writes, along one direction or subspace")
        if embedding == "skip":
            kinds = tuple(kind for kind in kinds if kind != "embedding")
        found = find_writers(request.stack)
        edited = request.choose(found, kinds)
        finder = TensorFinder(request.stack, edited)
        tensors = {writer: finder.find(writer) for writer in edited}
        edit = Orthogonalization(Writers(found, edited), tuple(each for own in tensors.values() for each in own))
        if embedding == "skip":
            edit.writers.notes.append("the embedding is not edited, as was asked for")
        guard = EditGuard(request.stack, edited, request.basis(), residual=len(edited) == len(found))
        before = guard.measure()
        try:
            heads = _untie(whole, edit)
            _keep(edit)
            _edit(request, tensors, norm_preserving)
            with record_taps([Tap(tensor.owner) for tensor in edit.tensors]) as ran:
                guard.check(before, guard.measure())
            _check_idle(request, tensors, {index for index, _ in ran})
            _check_heads(heads)
        except BaseException:
            edit.undo()
            raise
        edit.writers.proved = edited
    return edit


def _check_hooks(whole: nn.Module) -> None:
    """Raise where ``ablate`` edits the states of the model, which would hide what its weights write."""
    for module in whole.modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if any(getattr(hook, "__module__", "") == EDITED_BY_HOOKS for hook in hooks):
            raise UsageError("the model is under probing.ablate; leave that block before its weights are edited")


def _untie(whole: Any, edit: Orthogonalization) -> list[tuple[str, nn.Parameter, Tensor]]:
    """Give whatever else uses an edited parameter one of its own; returns these with what they have to stay.

    Raises:
        EditRefused: something other than the output head uses it.
    """
    mine = {(id(tensor.owner), tensor.key) for tensor in edit.tensors}
    places = {_place(tensor.parameter): tensor for tensor in edit.tensors}
    head = whole.get_output_embeddings() if hasattr(whole, "get_output_embeddings") else None
    kept = []
    for name, module in whole.named_modules(remove_duplicate=False):
        for key, parameter in list(module._parameters.items()):
            if parameter is None or _place(parameter) not in places or (id(module), key) in mine:
                continue
            tensor = places[_place(parameter)]
            if head is None or module not in set(head.modules()):
                raise EditRefused(f"{tensor.name} cannot be edited alone: {name}.{key} uses the same weights")
            _separate(whole, module, key, parameter, edit)
            kept.append((f"{name}.{key}", module, key, parameter.detach().clone()))
            edit.writers.notes.append(
                f"{name}.{key} was tied to {tensor.name}, and was untied first: it stays as it was"
            )
    return [(name, getattr(module, key), own) for name, module, key, own in kept]


def _place(parameter: Tensor) -> tuple[Any, ...]:
    """Where the elements of a parameter lie; equal for two that share them."""
    return (parameter.device, parameter.data_ptr(), tuple(parameter.shape))


def _separate(whole: nn.Module, module: nn.Module, key: str, parameter: nn.Parameter, edit: Orthogonalization) -> None:
    """Replace a shared parameter of one module by a copy, and say so in the configs."""
    configs = [each for each in _configs_of(whole) if getattr(each, "tie_word_embeddings", False)]

    def back() -> None:
        module._parameters[key] = parameter
        for config in configs:
            config.tie_word_embeddings = True

    edit._back.append(back)
    module._parameters[key] = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
    for config in configs:
        config.tie_word_embeddings = False


def _configs_of(whole: Any) -> Iterator[PretrainedConfig]:
    """The config of a model and that of its text part."""
    yield whole.config
    if whole.config.get_text_config() is not whole.config:
        yield whole.config.get_text_config()


def _keep(edit: Orthogonalization) -> None:
    """Keep a copy of every parameter that will be edited."""
    for parameter in {id(tensor.parameter): tensor.parameter for tensor in edit.tensors}.values():
        original = parameter.detach().clone()
        edit._back.append(functools.partial(_restore, parameter, original))
        edit.parameters += parameter.numel()
        edit.kept_bytes += parameter.numel() * parameter.element_size()


def _restore(parameter: nn.Parameter, original: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(original)


def _with_bases(
    request: EditRequest, tensors: dict[Writer, list[WritingTensor]]
) -> Iterator[tuple[WritingTensor, Tensor]]:
    """Each tensor with the vectors that are removed from it: behind a norm, or before it."""
    basis = request.basis()
    for writer, own in tensors.items():
        inner = basis if writer.norm is None else pull_back(basis, writer.norm.scale, writer.norm.centred)
        for tensor in own:
            yield tensor, basis if tensor.shift else inner


def _edit(request: EditRequest, tensors: dict[Writer, list[WritingTensor]], norm_preserving: bool) -> None:
    done = set()
    for tensor, basis in _with_bases(request, tensors):
        # Blocks may share their weights.
        if _place(tensor.parameter) not in done:
            done.add(_place(tensor.parameter))
            project_tensor(tensor.parameter.detach(), tensor.axis, basis, norm_preserving)


def _check_idle(request: EditRequest, tensors: dict[Writer, list[WritingTensor]], ran: set[int]) -> None:
    """Raise unless weights that no token of the guard's batch used (experts) hold nothing of the direction either."""
    for index, (tensor, basis) in enumerate(_with_bases(request, tensors)):
        if index in ran:
            continue
        vectors = tensor.parameter.detach().movedim(tensor.axis, -1).reshape(-1, basis.shape[1])
        along = (vectors.double() @ basis.T.to(vectors.device)).norm()
        spread = (basis.shape[0] / basis.shape[1]) ** 0.5
        if not along <= ROUNDINGS * torch.finfo(vectors.dtype).eps * spread * vectors.double().norm():
            raise EditRefused(f"{tensor.name} still holds {float(along):.2e} along the direction; the edit was undone")


def _check_heads(heads: Sequence[tuple[str, nn.Parameter, Tensor]]) -> None:
    """Raise if what was untied did not stay as it was."""
    for name, parameter, original in heads:
        if not torch.equal(parameter, original):
            raise EditRefused(
                f"{name} was changed by the edit of the embedding that it was tied to; the edit was undone"
            )
