"""The guard of exports: the writes of a model that was loaded back, against those of the model that was edited."""

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from probing.directions.edits import orthonormal_rows
from probing.engine.edit_guard import Component, EditGuard
from probing.engine.guard import LeaveAsFound
from probing.engine.stream import ONE_AT_A_TIME
from probing.errors import EditRefused
from probing.models.language_model import LanguageModel
from probing.models.layers import find_stack
from probing.models.writers import Writer, WriterKind, Writers, find_writers
from probing.types import Direction


@dataclass(frozen=True, eq=False)
class ExportGuard:
    """What the writes of a model held of a direction before it was edited.

    Attributes:
        basis: orthonormal rows of the direction.
        kinds: kinds of writers that are edited.
        writers: (kind, layer) of every writer of the model, in order.
        before: what was measured.
    """

    basis: Tensor
    kinds: tuple[WriterKind, ...]
    writers: tuple[tuple[WriterKind, int | None], ...]
    before: tuple[Component, ...]

    @classmethod
    def measure(cls, model: LanguageModel, direction: Direction, kinds: Collection[WriterKind]) -> "ExportGuard":
        """Measure a model that is not edited yet; keeps nothing of the model.

        Raises:
            EditRefused: a write that is not understood.
        """
        basis = orthonormal_rows(direction.vector)
        found, _, guard = _look(model, basis, kinds)
        with ONE_AT_A_TIME, LeaveAsFound(model.model):
            before = tuple(guard.measure().values())
        return cls(basis, tuple(kinds), tuple((each.kind, each.layer) for each in found), before)

    def check(self, exported: LanguageModel) -> Writers:
        """The account of the writers of an export, all of them proved.

        Raises:
            EditRefused: it has other writers, or one of those that were edited still holds of the direction.
        """
        found, edited, guard = _look(exported, self.basis, self.kinds)
        if tuple((each.kind, each.layer) for each in found) != self.writers:
            raise EditRefused("what was exported has other writers than the model; nothing was written")
        with ONE_AT_A_TIME, LeaveAsFound(exported.model):
            after = guard.measure()
        if len(after) != len(self.before):
            raise EditRefused("not every write of what was exported could be measured; nothing was written")
        guard.check(dict(zip(after, self.before, strict=True)), after)
        return Writers(found, edited, edited)


def _look(
    model: LanguageModel, basis: Tensor, kinds: Collection[WriterKind]
) -> tuple[tuple[Writer, ...], tuple[Writer, ...], EditGuard]:
    with ONE_AT_A_TIME, LeaveAsFound(model.model), LeaveAsFound(model.model):
        stack = find_stack(model)
        found = find_writers(stack)
    edited = tuple(each for each in found if each.kind in kinds)
    return found, edited, EditGuard(stack, edited, basis, residual=len(edited) == len(found))
