"""Edits of weights: a direction removed for good from everything that writes to the residual stream; undone at will."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from probing.directions.edits import pull_back
from probing.engine.edit_guard import ROUNDINGS, EditGuard
from probing.engine.edit_points import is_edited
from probing.engine.edit_requests import EditRequest, read_kinds, read_request
from probing.engine.guard import LeaveAsFound
from probing.engine.stream import ONE_AT_A_TIME
from probing.engine.weight_edits import WeightEdit, check_heads, place_of, untie
from probing.errors import EditRefused, UsageError
from probing.models.hooks import Tap, record_taps
from probing.models.in_memory import as_language_model
from probing.models.layers import find_stack
from probing.models.writers import Writer, Writers, find_writers
from probing.models.writing_tensors import TensorFinder, WritingTensor, project_tensor

Embedding = Literal["untie", "skip"]
EMBEDDING: tuple[Embedding, ...] = ("untie", "skip")


@dataclass(eq=False, kw_only=True)
class Orthogonalization(WeightEdit):
    """Weights from which a direction was removed.

    Attributes:
        writers: account of the writers.
    """

    writers: Writers

    def describe(self) -> str:
        """The edit in one line."""
        return f"weights: {self.writers.describe()}; {len(self.tensors)} tensors of {self.parameters:,} parameters"


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
    if is_edited(whole):
        raise UsageError("the model is under probing.ablate; leave that block before its weights are edited")
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
        edited_tensors = tuple(each for own in tensors.values() for each in own)
        edit = Orthogonalization(writers=Writers(found, edited), tensors=edited_tensors)
        if embedding == "skip":
            edit.writers.notes.append("the embedding is not edited, as was asked for")
        guard = EditGuard(request.stack, edited, request.basis(), residual=len(edited) == len(found))
        before = guard.measure()
        try:
            heads = untie(whole, edit, edit.writers.notes)
            edit.keep()
            _edit(request, tensors, norm_preserving)
            with record_taps([Tap(tensor.owner) for tensor in edit.tensors]) as ran:
                guard.check(before, guard.measure())
            _check_idle(request, tensors, {index for index, _ in ran})
            check_heads(heads)
        except BaseException:
            edit.undo()
            raise
        edit.writers.proved = edited
    return edit


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
        if place_of(tensor.parameter) not in done:
            done.add(place_of(tensor.parameter))
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
