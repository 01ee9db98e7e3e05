"""Shared prompts of two models: their states in both, which of them are held out, and the tokens of refusal."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probing.instruments.direction_transfer import choose_place
from probing.instruments.directions import resolve_tokens
from probing.models.language_model import LanguageModel
from probing.runs.refusal.common.prompts import Kinds, check_counts, hold_out
from probing.runs.refusal.transfer.config import TransferConfig
from probing.runs.refusal.transfer.states import read_kept_refusals, read_kept_states
from probing.types import Direction, LabelledPrompt, Place

HELD_OUT = 0.4
"""Share of the prompts of each kind by which a direction is judged."""
MAP_HELD_OUT = 0.25
"""Share of the others by which the maps are compared."""
LEAST = 4
"""Prompts of each kind on either side."""
MAP_STREAM = 21


@dataclass(frozen=True, eq=False)
class Shared:
    """Prompts that both models can read.

    Attributes:
        prompts: the prompts.
        harmful: whether each is harmful.
        held_out: whether each is held out of all fits.
        before: states in the model that the direction is of.
        after: states in the other.
        place: place of the latter.
        tokens: ids of the refusal tokens of the other model.
        map_rows: numbers, within the rows that are not held out, of those by which maps are compared.
    """

    prompts: list[LabelledPrompt]
    harmful: NDArray[np.bool_]
    held_out: NDArray[np.bool_]
    before: Float[Tensor, "row from_width"]
    after: Float[Tensor, "row to_width"]
    place: Place
    tokens: list[int]
    map_rows: Tensor

    def pick(self, harmful: bool, held_out: bool) -> list[int]:
        """Numbers of the prompts of one kind on one side."""
        return np.flatnonzero((self.harmful == harmful) & (self.held_out == held_out)).tolist()

    def category_rows(self, category: str, held_out: bool) -> list[int]:
        """Numbers of the harmful prompts of a category on one side."""
        return [row for row in self.pick(True, held_out) if str(self.prompts[row].category) == category]

    @property
    def categories(self) -> list[str]:
        """Categories of the harmful prompts, in order."""
        return sorted(
            {str(self.prompts[row].category) for row in np.flatnonzero(self.harmful) if self.prompts[row].category}
        )

    @property
    def fitted(self) -> list[int]:
        """Numbers of the prompts that maps and directions are fitted to."""
        return np.flatnonzero(~self.held_out).tolist()


def check_split(config: TransferConfig, kinds: Kinds) -> None:
    """Raise if there are too few prompts even if all can be read.

    Raises:
        DataInvalid: there are.
    """
    out = hold_out(kinds, HELD_OUT, config.seed)
    check_counts(np.array(kinds.harmful), np.array(out), LEAST, "to fit with", "are there")


def share_prompts(
    config: TransferConfig,
    kinds: Kinds,
    direction: Direction,
    layers: int,
    before: Mapping[str, Tensor],
    model: LanguageModel,
    folder: Path,
) -> Shared:
    """Read the prompts in the other model.

    Args:
        config: the job's options.
        kinds: the prompts.
        direction: the direction.
        layers: number of layers of its model.
        before: states of the prompts in its model, by id.
        model: the other model.
        folder: where its states are kept until the run ends.

    Raises:
        DataInvalid: too few prompts that both models can read, or no refusal token.
    """
    place = choose_place(direction.place, layers, model.layers) if config.place is None else Place.parse(config.place)
    after = read_kept_states(folder / "states", "after", model, kinds, place, direction.position)
    tokens, passes = read_refusals_of(config, kinds, direction, model, folder)
    out = hold_out(kinds, HELD_OUT, config.seed)
    kept = [
        at
        for at, prompt in enumerate(kinds.prompts)
        if prompt.id in before and prompt.id in after and (not config.filter_by_sign or passes[at])
    ]
    prompts = [kinds.prompts[at] for at in kept]
    harmful, held = (np.array([values[at] for at in kept], dtype=bool) for values in (kinds.harmful, out))
    check_counts(harmful, held, LEAST, "to fit with", "can be read by both models")
    count = int((~held).sum())
    order = np.random.default_rng([config.seed, MAP_STREAM]).permutation(count)
    return Shared(
        prompts,
        harmful,
        held,
        before=torch.stack([before[prompt.id] for prompt in prompts]),
        after=torch.stack([after[prompt.id] for prompt in prompts]),
        place=place,
        tokens=tokens,
        map_rows=torch.from_numpy(order[: max(round(MAP_HELD_OUT * count), 1)]),
    )


def read_refusals_of(
    config: TransferConfig, kinds: Kinds, direction: Direction, model: LanguageModel, folder: Path
) -> tuple[list[int], NDArray[np.bool_]]:
    """Refusal tokens of a model, and whether it treats each prompt as its label says; kept in the folder of the model.

    Raises:
        DataInvalid: no refusal token can be found.
    """
    return read_kept_refusals(folder / "refusals", model, kinds, _find_tokens(config, direction, model))


def _find_tokens(config: TransferConfig, direction: Direction, model: LanguageModel) -> list[int] | None:
    """Refusal tokens that were given, or those of the direction where the tokenizer is the same; None to find some."""
    if config.tokens is not None:
        return resolve_tokens(model, config.tokens)
    known = direction.facts.get("refusal_tokens")
    same = direction.source.tokenizer_sha256 == model.source.tokenizer_sha256
    plain = isinstance(known, list) and known and all(isinstance(each, int) for each in known)
    return known if same and plain else None
