"""Projections on directions and refusal log-odds of a fixed set of prompts, while a model is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.errors import UsageError
from probing.instruments.directions import resolve_tokens, score_states
from probing.models.language_model import LanguageModel
from probing.statistics.bootstrap import bootstrap_mean
from probing.training.prompt_set import PromptReader, PromptSet, check_directions, name_directions
from probing.types import Direction, Estimate, Place

Spot = tuple[Place, int]
LOG_ODDS = "refusal_log_odds"
PROJECTION = "projection"


def open_probe(prompts: Any, directions: Any, tokens: Sequence[int | str] | None) -> "DirectionProbe | None":
    """What is read of prompts, from a caller's arguments; None where there are no prompts.

    Raises:
        UsageError: directions or tokens without prompts, or prompts of which nothing is asked.
    """
    named = name_directions(directions)
    if prompts is None:
        if named or tokens is not None:
            raise UsageError("directions and refusal_tokens are measured on prompts; give prompts, too")
        return None
    probe = DirectionProbe(PromptSet.read(prompts), named, tokens)
    if not probe.columns():
        raise UsageError("nothing is measured on the prompts: give directions, or refusal_tokens")
    return probe


@dataclass
class DirectionProbe:
    """Reads how far the states of prompts lie along directions, and how likely the answer begins with a refusal.

    Args:
        prompts: the prompts.
        directions: directions by name; none for log-odds alone.
        tokens: refusal tokens, as ids or texts of one token each; by default those that the first direction knows.
        places: further places whose states are read at the last token before the answer.
    """

    prompts: PromptSet
    directions: Mapping[str, Direction]
    tokens: Sequence[int | str] | None = None
    places: Sequence[Place] = ()

    def __post_init__(self) -> None:
        ranks = {name: direction.rank for name, direction in self.directions.items() if direction.rank > 1}
        if ranks:
            name, rank = next(iter(ranks.items()))
            raise UsageError(f"the direction '{name}' is a subspace of {rank}; a projection needs one vector")

    def columns(self) -> list[str]:
        """Names of the numbers that are measured, each with an interval: of all prompts, and of those of each label."""
        names = [*(f"{PROJECTION}/{name}" for name in self.directions), *([LOG_ODDS] if self._known_tokens() else [])]
        return [*names, *(f"{name}/{label}" for label in sorted(set(self.prompts.labels or [])) for name in names)]

    def _known_tokens(self) -> Sequence[int | str]:
        if self.tokens is not None:
            return self.tokens
        known = (direction.facts.get("refusal_tokens") for direction in self.directions.values())
        return next((tokens for tokens in known if tokens), [])

    def prepare(self, model: LanguageModel) -> None:
        """Check directions and tokens against the model.

        Raises:
            SourceMismatch, LayerNotFound: see ``check_directions``.
            UsageError: see ``resolve_tokens``.
        """
        self.directions = check_directions(model, self.directions)
        tokens = self._known_tokens()
        self._ids = resolve_tokens(model, tokens) if tokens else []
        spots = [(direction.place, direction.position) for direction in self.directions.values()]
        spots += [(place, -1) for place in self.places]
        self._reader = PromptReader(self.prompts, tuple(dict.fromkeys(spots)), with_head=bool(self._ids))

    def read(self, model: LanguageModel) -> tuple[dict[str, NDArray[np.float64]], dict[Spot, Tensor]]:
        """Values of every prompt by the name of the number, and the states that were read."""
        states = self._reader.read(model)
        values: dict[str, NDArray[np.float64]] = {}
        for name, direction in self.directions.items():
            unit = direction.vector.double().cpu() / direction.vector.double().norm().cpu()
            values[f"{PROJECTION}/{name}"] = (states[direction.place, direction.position].double() @ unit).numpy()
        if self._ids:
            spot, head = self._reader.head(model)
            with torch.inference_mode():
                values[LOG_ODDS] = score_states(states[spot].to(head.weight.dtype), head, self._ids).numpy()
        return values, states

    def estimate(self, values: Mapping[str, NDArray[np.float64]]) -> dict[str, Estimate]:
        """Means over prompts with intervals; again for each label, as ``NAME/LABEL``, where prompts have labels."""
        found = {name: bootstrap_mean(own) for name, own in values.items()}
        for label in sorted(set(self.prompts.labels or [])):
            chosen = np.array(self.prompts.labels) == label
            found |= {f"{name}/{label}": bootstrap_mean(own[chosen]) for name, own in values.items()}
        return found
