"""Edits of a model's states while it runs: a direction removed, moved or added, by hooks that are always taken off."""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probing.directions.edits import Change, affine_target, pull_back
from probing.engine.edit_guard import EditGuard
from probing.engine.edit_points import FEW_TOKENS, Check, Point, install, prove_points
from probing.engine.edit_requests import EditRequest, Mode, read_kinds, read_request
from probing.engine.edited_tokens import EditedTokens, Tokens
from probing.engine.guard import LeaveAsFound
from probing.engine.stream import ONE_AT_A_TIME
from probing.errors import UsageError
from probing.models.in_memory import as_language_model
from probing.models.layers import find_stack
from probing.models.writers import Writer, Writers, find_writers


@dataclass(frozen=True, eq=False)
class Ablation:
    """An edit that is on.

    Attributes:
        mode: "project", "affine" or "add".
        points: where states are changed.
        writers: account of the writers; those that are not edited at their writes are not listed in it.
    """

    mode: Mode
    points: tuple[Point, ...]
    writers: Writers
    _tokens: EditedTokens

    def assign(self, rows: Sequence[int] | Tensor) -> None:
        """Say which direction each row of the next batches is edited by, -1 for none.

        Raises:
            UsageError: there is one direction for all rows, or an index of none.
        """
        given = torch.as_tensor(rows, dtype=torch.long)
        known = next((len(each) for point in self.points if (each := _several(point.change)) is not None), None)
        if known is None:
            raise UsageError("there is one direction for all rows; give a list of directions to assign them to rows")
        if given.ndim != 1 or not len(given) or int(given.min()) < -1 or int(given.max()) >= known:
            raise UsageError(
                f"rows are indices from -1 to {known - 1}, one for each row of a batch, not {given.tolist()}"
            )
        self._tokens.rows = given

    @property
    def rows(self) -> Tensor | None:
        """Index of the direction of each row of a batch; None where there is one direction for all."""
        return self._tokens.rows

    def describe(self) -> str:
        """The edit in one line: its writers, or its places."""
        if self.writers.found:
            return f"{self.mode}: {self.writers.describe()}"
        return f"{self.mode} at {', '.join(point.name for point in self.points)}"


def _several(change: Change) -> Tensor | None:
    """The tensor of a change that has one entry a direction, where it has several."""
    if change.basis is not None:
        return change.basis if change.basis.ndim == 3 else None
    return change.shift if change.shift is not None and change.shift.ndim == 2 else None


@contextlib.contextmanager
def ablate(
    model: Any,
    direction: Any,
    mode: Mode = "project",
    *,
    where: str | Collection[str] | None = None,
    layers: int | Sequence[int] | None = None,
    tokens: Tokens = "all",
    coefficient: float | Sequence[float] | None = None,
    rows: Sequence[int] | Tensor | None = None,
    prompt_tokens: int | Sequence[int] | None = None,
) -> Iterator[Ablation]:
    """Edit what a model's residual stream holds of a direction, as long as the block lasts.

        with probing.ablate(model, direction) as edit:
            print(edit.describe())
            model.generate(...)

    The weights stay as they are; hooks change the states, in float32 or better, and are taken off whatever ends the
    block. A guard runs a small batch first and proves every edited point.

    Args:
        model: a model with its tokenizer, in whatever holds them: see ``as_language_model``.
        direction: a ``Direction``, or its vectors [width] or [rank width] (any lengths: the subspace counts). A list of
            directions (or a tensor [direction rank width]) edits each row of a batch by its own: see ``rows``.
        mode: "project" removes the component, x - c proj_r x. "affine" (ACE, 2411.09003) puts the harmless mean in its
            place, x - proj_r x + proj_r mu_harmless + c r; it needs the direction's ``harmless_mean``. "add" adds the
            direction at its natural length, x + c r.
        where: of mode "project". "writes" (the default): every write to the residual stream, before a norm that stands
            behind the write; "embedding", "attention" or "mlp", or several of them: those writes alone; "resid": the
            residual stream at the input of each block.
        layers: blocks whose writes or inputs are edited, all by default (of writes, the embedding counts with layer 0);
            of "affine" and "add" by default the direction's own layer. Counted from the end where negative.
        tokens: "all"; "last", the last token of each row in every pass; or "response", the tokens from
            ``prompt_tokens`` on. The latter two need an ``attention_mask`` with each pass.
        coefficient: c, one number or one for each of the layers; by default 1, and 0 for "affine".
        rows: with several directions, the index of the direction of each row of a batch, -1 for a row that stays as it
            is; by default row b is edited by direction b. ``assign`` of the result changes it between batches.
        prompt_tokens: of tokens="response": the number of tokens of the prompt, or one for each row. Where it is None,
            the first pass of a generation with a cache is the prompt, and what follows the response.

    Yields:
        The edit: ``describe()`` says in one line which writers were found, edited and proved.

    Raises:
        UsageError: options that contradict each other, a direction of another width, a layer that is not there.
        EditRefused: a write of this family that is not understood, or an edit that did not do what it should.
        LayerNotFound: the blocks of the model were not found.
    """
    language_model = as_language_model(model)
    whole = language_model.model
    state = EditedTokens(tokens, prompt_tokens)
    with ONE_AT_A_TIME, LeaveAsFound(whole), LeaveAsFound(whole):
        request = read_request(find_stack(language_model), direction, mode, layers, coefficient)
        ablation = _plan(request, where, state)
        if request.several:
            ablation.assign(range(len(request.vectors)) if rows is None else rows)
        elif rows is not None:
            raise UsageError("rows assign several directions to the rows of a batch, and one was given")
        guard = _guard_of(request, ablation)
        before = guard.measure() if guard is not None else {}
    handles: list[Any] = []
    checks = [Check(point) for point in ablation.points]
    try:
        handles.extend(install(request.stack, state, checks))
        with ONE_AT_A_TIME, LeaveAsFound(whole), LeaveAsFound(whole):
            after = prove_points(checks, request.stack, state, guard)
            if guard is not None:
                guard.check(before, after)
                ablation.writers.proved = ablation.writers.edited
        for check in checks:
            check.remove()
        yield ablation
    finally:
        for each in (*checks, *handles):
            each.remove()


def _plan(request: EditRequest, where: str | Collection[str] | None, state: EditedTokens) -> Ablation:
    """The points of an edit, with the account of the writers where it is made at these."""
    if request.mode != "project" and where is not None:
        raise UsageError(f"where is for mode 'project'; mode {request.mode!r} changes the residual stream at a layer")
    kinds = read_kinds(where) if request.mode == "project" else ()
    if not kinds:
        return Ablation(request.mode, _points_at_layers(request), Writers(()), state)
    found = find_writers(request.stack)
    edited = request.choose(found, kinds)
    basis = request.basis()
    points = [point for writer in edited for point in _points_of(writer, basis, request.coefficient_of(writer))]
    writers = Writers(found, edited)
    if not request.removes:
        writers.notes.append("some of the direction stays, as the coefficient says, so no write is proved free of it")
    return Ablation(request.mode, tuple(points), writers, state)


def _guard_of(request: EditRequest, ablation: Ablation) -> EditGuard | None:
    """The guard that proves the edited writers, where the edit is a removal."""
    found, edited = ablation.writers.found, ablation.writers.edited
    if not edited or not request.removes:
        return None
    complete = len(edited) == len(found)
    return EditGuard(request.stack, edited, request.basis(), ablation.rows, complete, FEW_TOKENS)


def _points_of(writer: Writer, basis: Tensor, coefficient: float) -> Iterator[Point]:
    """Where one write is edited: itself, or what goes into a norm behind it, and the shift that the norm adds."""
    if writer.norm is None:
        yield Point(writer.name, writer.module, Change(basis, coefficient))
        return
    norm = writer.norm
    inner = pull_back(basis, norm.scale, norm.centred)
    for name, module in writer.edited:
        yield Point(name, module, Change(inner, coefficient))
    if bool(norm.shift.any()):
        added = torch.einsum("...k,...kw->...w", basis @ norm.shift, basis)
        yield Point(norm.name, norm.module, Change(None, shift=-coefficient * added))


def _points_at_layers(request: EditRequest) -> tuple[Point, ...]:
    """The residual stream at the chosen layers, on the side of the blocks at which the direction was read."""
    kind = request.side
    return tuple(
        Point(
            f"{kind}:{layer}",
            request.stack.blocks[layer],
            _change_at_layer(request, layer),
            before=kind == "resid_pre",
        )
        for layer in request.layers
    )


def _change_at_layer(request: EditRequest, layer: int) -> Change:
    coefficient = request.coefficients[layer]
    if request.mode == "project":
        return Change(request.basis(), coefficient)
    if request.mode == "add":
        return Change(None, shift=request.shift(layer))
    means = [each.harmless_mean for each in request.directions]
    if not means or any(mean is None for mean in means):
        raise UsageError("mode 'affine' needs the mean of the harmless states, and the direction has no harmless_mean")
    return Change(
        request.basis(),
        shift=request.stacked(lambda at: affine_target(request.vectors[at], _given(means[at]), coefficient)),
    )


def _given(mean: Tensor | None) -> Tensor:
    assert mean is not None
    return mean
