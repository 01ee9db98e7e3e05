"""A direction judged in one other model: as it is, through maps, and beside their nulls."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probing.directions.extract import cosine, difference_in_means
from probing.directions.transfer import (
    StateMap,
    draw_like,
    fit_least_squares,
    fit_maps,
    fit_orthogonal,
    measure_auroc,
    to_length,
)
from probing.errors import DataInvalid
from probing.instruments.direction_transfer import measure_effects
from probing.instruments.directions import refusal_log_odds
from probing.models.language_model import LanguageModel
from probing.runs.refusal.common.separation import measure_separation
from probing.runs.refusal.transfer.config import TransferConfig
from probing.runs.refusal.transfer.rows import Shared
from probing.statistics.bootstrap import bootstrap_mean
from probing.statistics.intervals import null_interval
from probing.types import Direction

OWN = "own direction"
RANDOM_STREAM, PERMUTED_STREAM = 22, 23
MOST_REFITS = 50
"""Of maps to permuted prompts, each of which is fitted anew."""


@dataclass(frozen=True, eq=False)
class Judged:
    """What was found in one model.

    Attributes:
        direction: the transferred direction, through the map of least held-out error.
        rows: one a direction: the model's own, and the given one through each map.
        categories: AUROC of held-out prompts by category of the harmful ones.
    """

    direction: Direction
    rows: list[dict[str, Any]]
    categories: list[dict[str, Any]]


def judge_model(config: TransferConfig, shared: Shared, given: Direction, model: LanguageModel) -> Judged:
    """Carry a direction over to a model, and judge it there.

    Raises:
        DataInvalid: the states of harmful and harmless prompts do not differ in the model.
    """
    sides = [shared.after[shared.pick(kind, held_out=False)] for kind in (True, False)]
    own = difference_in_means(*sides)
    if not float(own.norm()) > 0:
        raise DataInvalid(f"harmful and harmless prompts have the same mean state at {shared.place}")
    fit = shared.fitted
    maps = fit_maps(shared.before[fit], shared.after[fit], shared.map_rows)
    # All directions have the length of the model's own, so that adding each moves the states as far.
    length, mean = float(own.norm()), sides[1].double().mean(dim=0)
    carried = {each.name: to_length(each.carry(given.vector), length) for each, _ in maps}
    plain = [refusal_log_odds(model, _prompts(shared, kind), shared.tokens) for kind in (True, False)]
    judge = _Judge(config, shared, given, model, plain, mean)
    rows = [judge.describe(OWN, own, own, None, None)]
    rows += [judge.describe(each.name, carried[each.name], own, each, error) for each, error in maps]
    best, error = maps[0]
    facts = {
        "transferred_from": given.source.model,
        "from_place": str(given.place),
        "map": best.name,
        "held_out_error_of_map": error,
        "cosine_to_own_direction": float(cosine(carried[best.name], own)),
        "refusal_tokens": shared.tokens,
        "prompts": {"fitted": len(fit), "held_out": int(shared.held_out.sum())},
    }
    direction = judge.make(carried[best.name], f"{given.method}, transferred ({best.name})", facts)
    return Judged(direction, rows, _judge_categories(shared, carried[best.name]))


def _prompts(shared: Shared, harmful: bool) -> list[Any]:
    return [shared.prompts[at] for at in shared.pick(harmful, held_out=True)]


@dataclass(frozen=True, eq=False)
class _Judge:
    """What every direction in one model is measured by."""

    config: TransferConfig
    shared: Shared
    given: Direction
    model: LanguageModel
    plain: Sequence[Tensor]
    harmless_mean: Tensor

    def make(self, vector: Tensor, method: str, facts: dict[str, Any]) -> Direction:
        """A direction of this model."""
        return Direction(
            vector=vector,
            place=self.shared.place,
            position=self.given.position,
            source=self.model.source,
            method=method,
            harmless_mean=self.harmless_mean,
            facts=facts,
        )

    def describe(
        self, name: str, vector: Tensor, own: Tensor, through: StateMap | None, error: float | None
    ) -> dict[str, Any]:
        """One row of the results."""
        held = np.flatnonzero(self.shared.held_out)
        harmful = self.shared.harmful[held]
        projected = self.shared.after[torch.from_numpy(held)].double() @ vector
        auroc = float(measure_auroc(projected[:, None], harmful.tolist())[0])
        low, high = self._bound(projected, harmful)
        row: dict[str, Any] = {
            "direction": name,
            "map_error": error,
            "cosine_to_own": float(cosine(vector, own)),
            "auroc": auroc,
            "auroc_low": low,
            "auroc_high": high,
        }
        row |= self._measure(vector)
        return row | self._compare(name, through, float(vector.norm()), auroc)

    def _bound(self, projected: Tensor, harmful: NDArray[np.bool_]) -> tuple[float, float]:
        units = np.arange(len(harmful))
        _, low, high = measure_separation(
            projected.double().numpy(), harmful, units, self.config.resamples, self.config.seed
        )
        return low, high

    def _measure(self, vector: Tensor) -> dict[str, float]:
        """Change of the refusal log-odds by the direction, with an interval over prompts."""
        direction = self.make(vector, "trial", {})
        changed = measure_effects(
            self.model, direction, _prompts(self.shared, True), _prompts(self.shared, False), self.shared.tokens
        )
        row: dict[str, float] = {}
        for what, after, before in zip(("removed", "added"), changed, self.plain, strict=True):
            estimate = bootstrap_mean((after - before).numpy(), self.config.resamples, self.config.seed)
            row |= {what: estimate.value, f"{what}_low": estimate.low, f"{what}_high": estimate.high}
        return row

    def _compare(self, name: str, through: StateMap | None, length: float, auroc: float) -> dict[str, float]:
        """The same of random directions through the map, and of the direction through maps to permuted prompts."""
        if through is None:
            return {}
        generator = torch.Generator().manual_seed(self.config.seed + RANDOM_STREAM)
        drawn = through.carry(draw_like(self.given.vector, self.config.permutations, generator))
        random = self._measure_null(drawn)
        row = _band("random", random)
        # With either sign: a random direction has none.
        far = int((np.abs(random - 0.5) >= abs(auroc - 0.5) - 1e-12).sum())
        row["random_p"] = (1 + far) / (1 + len(random))
        effects = [self._measure(to_length(each, length)) for each in drawn[: self.config.random_edits]]
        for what in ("removed", "added"):
            values = [each[what] for each in effects]
            row |= {f"random_{what}_low": min(values), f"random_{what}_high": max(values)}
        if name == "as it is":
            return row
        return row | _band("permuted", self._measure_null(torch.stack(self._permute(through))))

    def _measure_null(self, vectors: Float[Tensor, "direction width"]) -> NDArray[np.float64]:
        held = np.flatnonzero(self.shared.held_out)
        projected = self.shared.after[torch.from_numpy(held)].double() @ vectors.T
        return np.asarray(measure_auroc(projected, self.shared.harmful[held].tolist()).numpy())

    def _permute(self, through: StateMap) -> list[Tensor]:
        """The direction through maps whose prompts do not belong together."""
        generator = torch.Generator().manual_seed(self.config.seed + PERMUTED_STREAM)
        before, after = (states[self.shared.fitted] for states in (self.shared.before, self.shared.after))
        vectors = []
        for _ in range(min(self.config.permutations, MOST_REFITS)):
            other = after[torch.randperm(len(after), generator=generator)]
            refitted = (
                fit_orthogonal(before, other)
                if through.penalty is None
                else fit_least_squares(before, other, through.penalty)
            )
            vectors.append(refitted.carry(self.given.vector))
        return vectors


def _band(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip((f"{name}_low", f"{name}_median", f"{name}_high"), null_interval(values), strict=True))


def _judge_categories(shared: Shared, carried: Tensor) -> list[dict[str, Any]]:
    """For each category: the transferred direction, and the model's own one that was made without this category."""
    named = [prompt.category for prompt in shared.prompts]
    names = sorted({str(each) for each, harmful in zip(named, shared.harmful, strict=True) if harmful and each})
    if len(names) < 2:
        return []
    flags, categories = shared.harmful, np.array([str(each) for each in named])
    harmless = np.flatnonzero(~flags & shared.held_out)
    fitted = shared.after[shared.pick(False, held_out=False)]
    rows = []
    for name in names:
        inside = np.flatnonzero(flags & (categories == name) & shared.held_out)
        others = np.flatnonzero(flags & (categories != name) & ~shared.held_out)
        if not len(inside) or not len(others):
            continue
        without = difference_in_means(shared.after[torch.from_numpy(others)], fitted)
        both = shared.after[torch.from_numpy(np.concatenate([inside, harmless]))].double()
        values = measure_auroc(both @ torch.stack([carried, without]).T, [True] * len(inside) + [False] * len(harmless))
        rows.append(
            {
                "category": name,
                "held out": len(inside),
                "AUROC of the transferred direction": float(values[0]),
                "AUROC of the own direction of the other categories": float(values[1]),
            }
        )
    return rows
