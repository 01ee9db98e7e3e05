"""The models before and after the edit, the direction, and how it is put into a model."""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch

from probing.engine.ablation import ablate
from probing.errors import SourceMismatch
from probing.models.language_model import LanguageModel
from probing.models.layers import find_stack
from probing.runs.common.models import load_model
from probing.runs.refusal.common.directions import read_direction
from probing.runs.refusal.evaluate.config import EvaluateConfig
from probing.store.directions import check_model
from probing.types import Direction

RANDOM_STREAM = 13


@dataclass(frozen=True, eq=False)
class Models:
    """The models, and the direction.

    Attributes:
        before: the model as it is.
        edited: the model as somebody edited it; None where the edit is made while the model runs.
        direction: the direction; None where only an edited model was given.
        config: options of the run.
    """

    before: LanguageModel
    edited: LanguageModel | None
    direction: Direction | None
    config: EvaluateConfig

    def edit(self, direction: Direction) -> AbstractContextManager[Any]:
        """The edit that the options name, by a direction, in the model as it is."""
        config, chosen = self.config, self.config.layers
        layers: Sequence[int] | None = None
        if chosen == "all":
            layers = list(range(self.before.layers))
        elif chosen is not None:
            layers = list(map(int, chosen.split(",")))
        where = config.where.split(",") if config.where and "," in config.where else config.where
        return ablate(self.before, direction, config.mode, where=where, layers=layers, coefficient=config.coefficient)

    def describe_edit(self) -> str:
        """What the edit changes, and that it was proved; made once, and taken off again.

        Raises:
            UsageError: options that do not fit the model or the direction. EditRefused: it cannot be proved.
        """
        if self.edited is not None:
            return f"the weights of {self.edited.source.model}, as they were given"
        assert self.direction is not None
        with self.edit(self.direction) as edit:
            return str(edit.describe())

    @contextlib.contextmanager
    def edit_found(self) -> Iterator[LanguageModel]:
        """The model after the edit: the one that was given, or the one with the direction's edit on it."""
        if self.edited is not None:
            yield self.edited
            return
        assert self.direction is not None
        with self.edit(self.direction):
            yield self.before


def open_models(config: EvaluateConfig) -> Models:
    """Load the models and the direction, and check that they belong together.

    Raises:
        SourceMismatch: the direction is of another model, or the edited model has another tokenizer.
        UsageError: a place or layers that are not there.
    """
    before = load_model(config.model, config, config.revision)
    direction = (
        None
        if config.direction is None
        else read_direction(config.direction.expanduser(), config.place, config.position)
    )
    if direction is not None:
        stack = find_stack(before)
        check_model(direction, before.source, stack.width, len(stack.blocks))
    edited = None
    if config.edited_model is not None:
        edited = load_model(config.edited_model, config)
        if edited.source.tokenizer_sha256 != before.source.tokenizer_sha256:
            raise SourceMismatch(
                f"{config.edited_model} has another tokenizer than {config.model}, so that their tokens cannot be "
                f"compared; give the model that it was made from"
            )
    return Models(before, edited, direction, config)


def with_length_of(direction: Direction, vector: torch.Tensor, method: str) -> Direction:
    """Another vector, or subspace, at the length of a direction's own, in its place."""
    own = direction.vector.double()
    scaled = vector.double() / vector.double().norm(dim=-1, keepdim=True) * own.norm(dim=-1, keepdim=True)
    return replace(direction, vector=scaled, method=method)


def draw_random_directions(direction: Direction, count: int, seed: int) -> list[Direction]:
    """Directions drawn from all with equal chance, of the length and rank of a given one, at its place."""
    generator = torch.Generator().manual_seed(seed + (RANDOM_STREAM << 32))
    drawn = torch.randn((count, *direction.vector.shape), generator=generator, dtype=torch.float64)
    return [with_length_of(direction, vector, f"random {number}") for number, vector in enumerate(drawn)]
