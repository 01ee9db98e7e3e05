"""A fixed set of prompts, whose states before the answer are read again and again while a model is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probing.data.bundled import BUNDLED, bundled_data
from probing.data.memory import table_from_memory
from probing.data.prompts import Columns, label_name, prompts_from_table
from probing.data.tables import read_table
from probing.errors import DataInvalid, SourceMismatch
from probing.instruments.capture import Capturer
from probing.instruments.directions import LAST_STATE
from probing.instruments.reading import set_up
from probing.kernels.output_head import Unembedding
from probing.models.heads import find_head
from probing.models.language_model import LanguageModel
from probing.models.layers import find_stack
from probing.models.stack import Stack
from probing.store.directions import open_direction
from probing.tokens.templates import template_sha256
from probing.training.processes import gather_all, take_own_rows
from probing.types import Capture, Direction, LabelledPrompt, Place

LAST = -1


@dataclass(frozen=True)
class PromptSet:
    """Prompts, each with its label.

    Attributes:
        prompts: the prompts.
        labels: label of each; None where they have none.
        name: where they came from.
    """

    prompts: list[LabelledPrompt]
    labels: list[str] | None
    name: str

    @classmethod
    def read(cls, given: Any, columns: Columns | None = None) -> "PromptSet":
        """Prompts from whatever a caller has them in.

        Args:
            given: a path, a hub id or "bundled"; a list of texts or mappings, a ``datasets.Dataset`` or a
                ``pandas.DataFrame``; or a mapping from labels to these.
            columns: the columns of texts and labels, where they have other names than usual.

        Raises:
            DataInvalid: no rows, an invalid row, or only some rows with a label; names the row.
            TypeError: it holds no rows.
        """
        if isinstance(given, Mapping):
            return cls._join({str(label): cls.read(own, columns) for label, own in given.items()})
        if isinstance(given, str | Path):
            table = read_table(str(bundled_data("prompts")) if given == BUNDLED else str(given))
        else:
            rows = [{"text": row} for row in given] if all(isinstance(row, str) for row in given) else given
            table = table_from_memory(rows, "the prompts of the callback")
        prompts = prompts_from_table(table, columns or Columns())
        known = [prompt for prompt in prompts if prompt.label is not None]
        if known and len(known) < len(prompts):
            bare = next(prompt for prompt in prompts if prompt.label is None)
            raise DataInvalid(f"{table.path}: row '{bare.id}' has no label, and others have one")
        return cls(prompts, [label_name(prompt) for prompt in prompts] if known else None, table.path)

    @classmethod
    def _join(cls, parts: Mapping[str, "PromptSet"]) -> "PromptSet":
        labels = [label for label, part in parts.items() for _ in part.prompts]
        prompts = [prompt for part in parts.values() for prompt in part.prompts]
        renamed = [
            LabelledPrompt(f"{label}-{number}", prompt.text, label)
            for number, (label, prompt) in enumerate(zip(labels, prompts, strict=True))
        ]
        return cls(renamed, labels, ", ".join(part.name for part in parts.values()))


@dataclass(frozen=True)
class PromptReader:
    """What is read of a set of prompts: states at some places and positions, and what the output head multiplies.

    Attributes:
        prompts: the prompts.
        wanted: places with the positions there, counted from the end of the prompt.
        with_head: whether the states that predict the first token of the answer are read, too.
    """

    prompts: PromptSet
    wanted: tuple[tuple[Place, int], ...]
    with_head: bool = False

    def read(self, model: LanguageModel) -> dict[tuple[Place, int], Tensor]:
        """States [prompt width] on the CPU by place and position; in a distributed run all processes share the work.

        Raises:
            DataInvalid, NotFinite: a prompt cannot be read; names it.
            LayerNotFound: there is no such place.
        """
        shares = gather_all(lambda: self._read(model))
        processes, count = len(shares), len(self.prompts.prompts)
        return {spot: _interleave([share[spot] for share in shares], count, processes) for spot in shares[0]}

    def _spots(self, stack: Stack) -> tuple[tuple[Place, int], ...]:
        return (*self.wanted, *([(_last_place(stack), LAST)] if self.with_head else []))

    def _read(self, model: LanguageModel) -> dict[tuple[Place, int], Tensor]:
        with set_up(model):
            stack = find_stack(model)
        spots = self._spots(stack)
        places = list(dict.fromkeys(place for place, _ in spots))
        own = take_own_rows(self.prompts.prompts)
        if not own:
            return {spot: torch.empty((0, stack.width)) for spot in spots}
        only_last = all(position == LAST for _, position in spots)
        capturer = Capturer(model, Capture(tuple(places), "last" if only_last else "tokens", "prompt", chat=True))
        block = capturer.read(capturer.tokenize(own))
        if block.problems:
            first = next(iter(block.problems.values()))
            raise DataInvalid(
                f"{self.prompts.name}: the prompt '{first.id}' cannot be read: {first.status}, {first.detail}; leave "
                f"such prompts out"
            )
        ends = block.counts.cumsum(0)
        found = {}
        for place, position in spots:
            values = block.values[places.index(place)]
            if not only_last:
                if bool((block.counts < -position).any()):
                    raise DataInvalid(f"{self.prompts.name}: a prompt has fewer than {-position} tokens")
                values = values[ends + position]
            found[place, position] = values.float().cpu()
        return found

    def head(self, model: LanguageModel) -> tuple[tuple[Place, int], Unembedding]:
        """Where the states lie that the output head multiplies, and the head, proved."""
        with set_up(model):
            stack = find_stack(model)
            return (_last_place(stack), LAST), find_head(stack)


def _last_place(stack: Stack) -> Place:
    return LAST_STATE if stack.normed else stack.resolve(Place("resid_post", -1))


def _interleave(shares: Sequence[Tensor], count: int, processes: int) -> Tensor:
    """Rows that were dealt out one by one, in their order again."""
    whole = torch.empty((count, shares[0].shape[1]), dtype=shares[0].dtype)
    for rank, share in enumerate(shares):
        whole[rank::processes] = share
    return whole


def name_directions(given: Any) -> dict[str, Direction]:
    """Directions by name.

    Args:
        given: a direction, or the path of its file or folder; a list of these; or a mapping from names to these.
            Without names they are called by their files or folders.

    Raises:
        SourceMismatch, StoreCorrupt: a path that holds no direction.
        DataInvalid: two of the same name.
    """
    if isinstance(given, Mapping):
        return {str(name): _open(direction) for name, direction in given.items()}
    listed = [given] if isinstance(given, str | Path | Direction) else list(given)
    named: dict[str, Direction] = {}
    for number, each in enumerate(listed):
        name = f"direction-{number + 1}" if isinstance(each, Direction) else _name_of(Path(each))
        if name in named:
            raise DataInvalid(f"two directions are called '{name}'; give them as a mapping from names of your own")
        named[name] = _open(each)
    return named


def _name_of(path: Path) -> str:
    return path.parent.name if path.name == "direction.safetensors" and path.parent.name else path.stem


def _open(direction: Any) -> Direction:
    return direction if isinstance(direction, Direction) else open_direction(direction)


def check_directions(model: LanguageModel, directions: Mapping[str, Direction]) -> dict[str, Direction]:
    """The directions with their places as this model numbers them.

    The weights may be others than those that a direction was found in, since they are trained; and collators write
    settings of their own into tokenizers, so that these cannot be compared as a whole.

    Raises:
        SourceMismatch: a direction of another width or of another chat template, so that it belongs to another model.
        LayerNotFound: the model has no such place.
    """
    with set_up(model):
        stack = find_stack(model)
    own = template_sha256(model.tokenizer)
    for name, direction in directions.items():
        if direction.width != stack.width:
            raise SourceMismatch(
                f"the direction '{name}' has a width of {direction.width}, and the states of the model that is trained "
                f"have {stack.width}: it belongs to another model ({direction.source.model})"
            )
        if direction.source.template_sha256 not in (None, own):
            raise SourceMismatch(
                f"the direction '{name}' was found in {direction.source.model}, whose chat template is not that of the "
                f"model that is trained: positions before the answer are others there"
            )
    return {name: replace(each, place=stack.resolve(each.place)) for name, each in directions.items()}
