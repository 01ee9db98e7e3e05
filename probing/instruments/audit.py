"""What an edit or a fine-tune did to the weights of everything that writes to the residual stream."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probing.directions.audit import (
    ABSENT,
    IN_PART,
    LEFT,
    Along,
    Spectrum,
    State,
    as_matrices,
    common_directions,
    join_states,
    measure_along,
    measure_spectrum,
    refine_direction,
    share_of_directions,
)
from probing.directions.edits import orthonormal_rows, pull_back
from probing.engine.guard import LeaveAsFound
from probing.engine.stream import ONE_AT_A_TIME
from probing.errors import EditRefused, SourceMismatch, UsageError
from probing.instruments.pair_changes import check_same_vocabulary
from probing.models.adapters import copy_model
from probing.models.in_memory import as_language_model
from probing.models.layers import find_stack
from probing.models.load import LanguageModel
from probing.models.norms import Norm
from probing.models.stack import Stack
from probing.models.writers import Writer, find_writers
from probing.models.writing_tensors import TensorFinder
from probing.types import Direction

CANDIDATES = 8
"""Common directions of the changes that are tried; the one that most writers have lost is taken."""
LISTED_NAMES = 3


@dataclass(frozen=True, eq=False)
class TensorPair:
    """A writing tensor in both models.

    Attributes:
        writer: the writer in the reference.
        name: path of the tensor.
        axis: the axis of the residual stream.
        before: the tensor of the reference.
        after: the tensor of the policy.
        norms: the norm between it and the residual stream in each model, or None.
    """

    writer: Writer
    name: str
    axis: int
    before: Tensor
    after: Tensor
    norms: tuple[Norm | None, Norm | None]

    @property
    def parts(self) -> int:
        """Number of matrices."""
        return len(as_matrices(self.before.detach(), self.axis))

    def matrices(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Number and both sides, [residual column] in float64, of the matrices of the tensor, one after another."""
        sides = (as_matrices(side.detach(), self.axis) for side in (self.before, self.after))
        for part, (before, after) in enumerate(zip(*sides, strict=True)):
            yield part, _to_double(before), _to_double(after)

    def bases(self, basis: Float[Tensor, "rank width"]) -> tuple[Tensor, Tensor]:
        """What an edit removes from the tensor of each model so that nothing along a basis is written."""
        before, after = (basis if norm is None else pull_back(basis, norm.scale, norm.centred) for norm in self.norms)
        return before, after


@dataclass(frozen=True)
class MatrixSpectrum:
    """The change of one matrix, whatever the direction.

    Attributes:
        tensor: path of the writing tensor.
        part: number of the expert in a fused tensor, else 0.
        norm: Frobenius norm of the matrix of the reference.
        change: spectrum of the difference.
        leading_before: [residual], leading left singular vector of the matrix of the reference.
    """

    tensor: str
    part: int
    norm: float
    change: Spectrum
    leading_before: Tensor


@dataclass(frozen=True)
class MatrixAudit:
    """One matrix of a writer: its change, and what that did along the direction.

    Attributes:
        writer: path of the writer.
        kind: "embedding", "attention" or "mlp".
        layer: its block; None for an embedding.
        tensor: path of the writing tensor.
        part: number of the expert in a fused tensor, else 0.
        relative_norm: Frobenius norm of the change over that of the matrix.
        change: spectrum of the change.
        alignment: |u1 . v|: length of the leading left singular vector of the change within the direction.
        alignment_before: the same of the untouched matrix, as a reference.
        along: what the change did along the direction.
    """

    writer: str
    kind: str
    layer: int | None
    tensor: str
    part: int
    relative_norm: float
    change: Spectrum
    alignment: float
    alignment_before: float
    along: Along


@dataclass(frozen=True)
class WriterAudit:
    """What became of one writer: its matrices, and the worst of them.

    Attributes:
        matrices: every matrix through which it writes.
        main: the one that changed most.
        state: what became of the component of all of them.
        left: the largest share of the component that is left in a matrix; NaN where none held anything.
    """

    matrices: tuple[MatrixAudit, ...]

    @property
    def main(self) -> MatrixAudit:
        return max(self.matrices, key=lambda each: each.change.norm)

    @property
    def state(self) -> State:
        return join_states([each.along.state for each in self.matrices])

    @property
    def left(self) -> float:
        return max((each.along.left for each in self.matrices if each.along.state != "absent"), default=math.nan)


@dataclass(frozen=True, eq=False)
class EditAudit:
    """What an edit or a fine-tune did to the writers of a model.

    Attributes:
        writers: one entry a writer; those that share their weights count once.
        basis: [rank width], the direction along which all was measured, orthonormal.
        found: [width], the direction that was found from the changes; None where nothing changed.
        given: whether ``basis`` is a direction that was given.
    """

    writers: tuple[WriterAudit, ...]
    basis: Tensor
    found: Tensor | None
    given: bool

    @property
    def counts(self) -> dict[State, int]:
        """Number of writers by what became of them."""
        return dict(Counter(each.state for each in self.writers))

    @property
    def unchanged(self) -> bool:
        """Whether no writer changed at all."""
        return not any(each.main.change.norm for each in self.writers)

    @property
    def consistent(self) -> bool:
        """Whether a direction was removed from at least one writer."""
        return self.counts.get("removed", 0) > 0

    def describe(self) -> str:
        """The finding in one line."""
        return describe_audit(self)


def describe_audit(audit: EditAudit) -> str:
    """From how many writers one direction was removed, in one line."""
    counts, count = audit.counts, len(audit.writers)
    which = "the given direction" if audit.given else "one direction"
    if audit.unchanged:
        return f"not consistent with removal of {which}: all {count} writers are the same in both models, bit for bit"
    removed, in_part = counts.get("removed", 0), [each.left for each in audit.writers if each.state == "in part"]
    if not removed:
        lefts = [each.left for each in audit.writers if not math.isnan(each.left)]
        least = f"{min(lefts):.2f}" if lefts else "nothing to begin with"
        part = f"from {len(in_part)} of {count} writers it was removed in part; " if in_part else ""
        return (
            f"not consistent with removal of {which}: {part}in every one of {count} writers more than {LEFT:g} of the "
            f"component along it is left (least: {least})"
        )
    said = [f"consistent with removal of {which} from {removed} of {count} writers"]
    if in_part:
        said.append(f"from {len(in_part)} more it was removed in part ({min(in_part):.2f} to {max(in_part):.2f} left)")
    others: dict[State, str] = {
        "kept": "kept it",
        "absent": "held nothing of it to begin with",
        "unchanged": "are unchanged",
    }
    said += [f"{counts[state]} {what}" for state, what in others.items() if counts.get(state)]
    return "; ".join(said)


def audit_edit(reference: Any, policy: Any, *, direction: Any = None) -> EditAudit:
    """Compare the writers of two models: is the difference the removal of one direction, and from which writers?

        audit = probing.audit_edit("original", "edited")
        print(audit.describe())

    Both models are in memory; of their weights one tensor of each at a time is copied to float64.

    Args:
        reference: the model before: language model from ``load``, or a model in memory with its tokenizer.
        policy: the model after. An adapter that is on it is merged into a copy first.
        direction: a ``Direction``, or its vectors [width] or [rank width]; found from the changes where it is None.

    Raises:
        SourceMismatch: the models differ in their vocabulary, their writers or the shapes of their weights.
        EditRefused: the writes of the model are not understood, or its weights are quantised.
        UsageError: a direction of another width.
    """
    pairs = pair_tensors(as_language_model(reference), as_language_model(policy))
    shares, spectra = gather_changes(pairs)
    return judge_changes(pairs, shares, spectra, direction)


def merge_adapter(model: LanguageModel) -> LanguageModel:
    """The model with its adapter merged into weights of its own; a model without one as it is."""
    if model.peft is None:
        return model
    merged = copy_model(model.peft, lambda _: False).merge_and_unload()
    return replace(model, model=merged, peft=None, base=None)


def pair_tensors(reference: LanguageModel, policy: LanguageModel) -> list[TensorPair]:
    """The writing tensors of both models side by side; what several writers share stands there once.

    Raises:
        SourceMismatch, EditRefused: see ``audit_edit``.
    """
    check_same_vocabulary(reference, policy)
    reference, policy = merge_adapter(reference), merge_adapter(policy)
    _check_same_weights(reference, policy)
    with ONE_AT_A_TIME, LeaveAsFound(reference.model), LeaveAsFound(policy.model):
        stacks = (find_stack(reference), find_stack(policy))
        before, after = (find_writers(stack) for stack in stacks)
        _check_same_writers(before, after, policy)
        return list(_pair_writers(stacks[0], before, after, policy.model))


def _check_same_weights(reference: LanguageModel, policy: LanguageModel) -> None:
    """Raise unless both models have parameters of the same names and shapes."""
    shapes = [
        {name: tuple(value.shape) for name, value in model.model.named_parameters(remove_duplicate=False)}
        for model in (reference, policy)
    ]
    names = sorted(name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name))
    if names:
        shown = ", ".join(
            f"{name} ({shapes[0].get(name, 'missing')} and {shapes[1].get(name, 'missing')})"
            for name in names[:LISTED_NAMES]
        )
        raise SourceMismatch(
            f"{policy.source.model} is of another architecture than the reference {reference.source.model}: "
            f"{len(names)} weights differ in name or shape, such as {shown}"
        )


def _check_same_writers(before: Sequence[Writer], after: Sequence[Writer], policy: LanguageModel) -> None:
    theirs, own = ([each.describe() for each in writers] for writers in (before, after))
    if theirs != own:
        other = sorted(set(theirs) ^ set(own))[:LISTED_NAMES]
        raise SourceMismatch(
            f"{policy.source.model} writes to the residual stream through other modules than the reference: "
            f"{', '.join(other)}"
        )


def _pair_writers(
    stack: Stack, before: Sequence[Writer], after: Sequence[Writer], policy: nn.Module
) -> Iterator[TensorPair]:
    finder, seen = TensorFinder(stack, before), set()
    others = dict(policy.named_parameters(remove_duplicate=False))
    for mine, its in zip(before, after, strict=True):
        for tensor in finder.find(mine):
            parameter = tensor.parameter
            place = (parameter.device, parameter.data_ptr(), tuple(parameter.shape))
            if place in seen:
                continue
            seen.add(place)
            other = others[tensor.name]
            if not other.is_floating_point():
                raise EditRefused(f"{tensor.name} of the policy is quantised; load it in bfloat16 or float32")
            norms = (None, None) if tensor.shift else (mine.norm, its.norm)
            yield TensorPair(mine, tensor.name, tensor.axis, parameter, other, norms)


def gather_changes(pairs: Sequence[TensorPair]) -> tuple[Float[Tensor, "width width"], list[MatrixSpectrum]]:
    """Spectra of the changes of some tensors, and the sum of their shares of directions."""
    total: Tensor | float = 0.0
    spectra = []
    for pair in pairs:
        norm = pair.norms[0]
        for part, before, after in pair.matrices():
            own, change = measure_spectrum(before), after - before
            spectra.append(MatrixSpectrum(pair.name, part, own.norm, measure_spectrum(change), own.leading))
            if norm is None or not norm.centred:
                shares = share_of_directions(change, own.norm, None if norm is None else norm.scale.to(change.device))
                total = total + shares.cpu()
            else:
                # Behind a norm that subtracts the mean, the direction is known from the matrix up to a constant only.
                total = total + torch.zeros(len(change), len(change), dtype=torch.float64)
    assert isinstance(total, Tensor)
    return total, spectra


def judge_changes(
    pairs: Sequence[TensorPair],
    shares: Float[Tensor, "width width"],
    spectra: Sequence[MatrixSpectrum],
    direction: Any = None,
) -> EditAudit:
    """The audit from what ``gather_changes`` found, along a given direction or the one that the changes have in common.

    Raises:
        UsageError: a direction of another width.
    """
    found = _find_direction(pairs, shares) if bool(shares.trace() > 0) else None
    if direction is not None:
        basis = _read_basis(direction, len(shares))
    else:
        basis = torch.eye(1, len(shares), dtype=torch.float64) if found is None else found[None]
    known = iter(spectra)
    rows: dict[str, list[MatrixAudit]] = {}
    for pair in pairs:
        before_basis, after_basis = pair.bases(basis)
        for part, before, after in pair.matrices():
            along = measure_along(before, after, before_basis.to(before), after_basis.to(before))
            row = _describe_matrix(pair, part, next(known), before_basis, along)
            rows.setdefault(pair.writer.name, []).append(row)
    return EditAudit(tuple(WriterAudit(tuple(own)) for own in rows.values()), basis, found, direction is not None)


def _read_basis(direction: Any, width: int) -> Tensor:
    vector = torch.as_tensor(direction.vector if isinstance(direction, Direction) else direction)
    if vector.ndim not in (1, 2) or vector.shape[-1] != width:
        raise UsageError(f"a direction of shape {list(vector.shape)}, and the models have states of width {width}")
    return orthonormal_rows(vector)


def _describe_matrix(pair: TensorPair, part: int, spectrum: MatrixSpectrum, basis: Tensor, along: Along) -> MatrixAudit:
    assert (spectrum.tensor, spectrum.part) == (pair.name, part)
    return MatrixAudit(
        writer=pair.writer.name,
        kind=pair.writer.kind,
        layer=pair.writer.layer,
        tensor=pair.name,
        part=part,
        relative_norm=spectrum.change.norm / spectrum.norm if spectrum.norm else math.nan,
        change=spectrum.change,
        alignment=float((basis @ spectrum.change.leading).norm()),
        alignment_before=float((basis @ spectrum.leading_before).norm()),
        along=along,
    )


def _find_direction(pairs: Sequence[TensorPair], shares: Tensor) -> Tensor:
    """The common direction of the changes that most tensors lost, refined by what is left; the leading one if none."""
    candidates = common_directions(shares, CANDIDATES)
    lefts = _measure_lefts(pairs, candidates)
    best = _choose_most_removed(lefts)
    lost = [pair for pair, left in zip(pairs, lefts[:, best].tolist(), strict=True) if left <= IN_PART]
    if not lost:
        return candidates[0]
    refined = refine_direction(*_sum_squares(lost, shares.shape[0]), candidates[best])
    both = torch.stack([candidates[best], refined])
    return both[_choose_most_removed(_measure_lefts(pairs, both))]


def _measure_lefts(
    pairs: Sequence[TensorPair], vectors: Float[Tensor, "direction width"]
) -> Float[Tensor, "tensor direction"]:
    """The largest share of each component that is left in a matrix of each tensor; NaN where none holds anything."""
    rows = []
    for pair in pairs:
        bases, parts = [basis[:, 0] for basis in pair.bases(vectors[:, None])], []
        for _, *sides in pair.matrices():
            held, left = ((basis.to(side) @ side).norm(dim=1).cpu() for basis, side in zip(bases, sides, strict=True))
            random = float(sides[0].norm()) / sides[0].shape[0] ** 0.5
            parts.append(torch.where(held > ABSENT * random, left / held, torch.nan))
        known = torch.stack(parts)
        worst = known.nan_to_num(nan=-1.0).amax(dim=0)
        rows.append(torch.where(worst < 0, torch.nan, worst))
    return torch.stack(rows)


def _choose_most_removed(lefts: Float[Tensor, "tensor direction"]) -> int:
    """The direction that most tensors lost; of several the one of which least is left in all."""
    removed, rest = (lefts <= LEFT).sum(dim=0).tolist(), lefts.nan_to_num(nan=1.0).clamp_max(1).sum(dim=0).tolist()
    return max(range(len(removed)), key=lambda at: (removed[at], -rest[at]))


def _sum_squares(pairs: Sequence[TensorPair], width: int) -> tuple[Tensor, Tensor]:
    """Sums of X X' / |W|^2 in both models, X being what a matrix W becomes behind its norm."""
    totals = [torch.zeros(width, width, dtype=torch.float64) for _ in range(2)]
    for pair in pairs:
        for _, *sides in pair.matrices():
            size = sides[0].square().sum().clamp_min(torch.finfo(torch.float64).tiny)
            for total, side, norm in zip(totals, sides, pair.norms, strict=True):
                behind = side if norm is None else _pass_norm(side, norm)
                total += (behind @ behind.T / size).cpu()
    return totals[0], totals[1]


def _pass_norm(matrix: Tensor, norm: Norm) -> Tensor:
    """Columns as a norm passes them on, up to a number for each token."""
    centred = matrix - matrix.mean(dim=0, keepdim=True) if norm.centred else matrix
    return norm.scale.to(matrix)[:, None] * centred


def _to_double(matrix: Tensor) -> Tensor:
    """In float64, on the host where a device has none."""
    return (matrix.cpu() if matrix.device.type == "mps" else matrix).double()
