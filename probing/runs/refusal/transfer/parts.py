"""A direction judged in one other model: as it is, through maps, and beside their nulls; kept measure by measure."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probing.directions.extract import cosine, difference_in_means
from probing.directions.transfer import StateMap, draw_like, fit_least_squares, fit_maps, fit_orthogonal, to_length
from probing.errors import DataInvalid
from probing.instruments.direction_transfer import measure_effects
from probing.instruments.directions import refusal_log_odds
from probing.models.language_model import LanguageModel
from probing.probes.evaluate import measure_auroc
from probing.runs.common.layers import Arrays
from probing.runs.refusal.common.kept import complete_named
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
        own: the model's own direction.
        random: random directions through that map, at the length of the own one.
        best: that map.
        rows: one a direction: the model's own, and the given one through each map.
    """

    direction: Direction
    own: Direction
    random: list[Direction]
    best: StateMap
    rows: list[dict[str, Any]]


def judge_model(config: TransferConfig, shared: Shared, given: Direction, model: LanguageModel, folder: Path) -> Judged:
    """Carry a direction over to a model, and judge it there.

    Args:
        config: the job's options.
        shared: prompts of both models.
        given: the direction.
        model: the model.
        folder: where what was measured in it is kept until the run ends.

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
    carried = [_Carried(OWN, own, None, None)]
    carried += [_Carried(each.name, to_length(each.carry(given.vector), length), each, error) for each, error in maps]
    judge = _Judge(config, shared, given, model, folder, mean)
    best, error = maps[0]
    facts = {
        "transferred_from": given.source.model,
        "from_place": str(given.place),
        "map": best.name,
        "held_out_error_of_map": error,
        "cosine_to_own_direction": float(cosine(carried[1].vector, own)),
        "refusal_tokens": shared.tokens,
        "prompts": {"fitted": len(fit), "held_out": int(shared.held_out.sum())},
    }
    direction = judge.make(carried[1].vector, f"{given.method}, transferred ({best.name})", facts)
    random = [judge.make(each, "random", {}) for each in judge.draw_edits(carried[1], length)]
    return Judged(direction, judge.make(own, OWN, {}), random, best, judge.describe_all(carried, length))


def pick_prompts(shared: Shared, harmful: bool) -> list[Any]:
    """The held-out prompts of one kind."""
    return [shared.prompts[at] for at in shared.pick(harmful, held_out=True)]


@dataclass(frozen=True, eq=False)
class _Carried:
    """A direction in the model, with the map that it came through and its error; none for the model's own."""

    name: str
    vector: Tensor
    through: StateMap | None
    error: float | None


@dataclass(frozen=True, eq=False)
class _Judge:
    """What every direction in one model is measured by."""

    config: TransferConfig
    shared: Shared
    given: Direction
    model: LanguageModel
    folder: Path
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

    def describe_all(self, carried: Sequence[_Carried], length: float) -> list[dict[str, Any]]:
        """One row of the results a direction; everything that needs the model, or takes long, is kept."""
        edits = {each.name: [each.vector, *self.draw_edits(each, length)] for each in carried}
        makers: dict[str, Callable[[], Arrays]] = {"plain": self._measure_plain}
        for vectors in edits.values():
            makers |= {name_vector(vector): functools.partial(self._measure, vector) for vector in vectors}
        known = complete_named(self.folder / "effects", makers, "measuring effects", "directions")
        refitted: dict[str, Callable[[], Arrays]] = {
            each.name: functools.partial(self._measure_refitted, each.through)
            for each in carried
            if each.through is not None and each.name != "as it is"
        }
        permuted = complete_named(self.folder / "refitted", refitted, "fitting maps of permuted prompts", "maps")
        rows = []
        for each in carried:
            changes = [self._summarize(known[name_vector(vector)], known["plain"]) for vector in edits[each.name]]
            row = self._describe(each, edits[OWN][0]) | changes[0]
            if each.through is not None:
                row |= self._compare(each.through, row["auroc"], changes[1:])
            if each.name in permuted:
                row |= _band("permuted", permuted[each.name]["auroc"])
            rows.append(row)
        return rows

    def draw_edits(self, each: _Carried, length: float) -> list[Tensor]:
        """The random directions through a map whose effects are measured."""
        if each.through is None:
            return []
        return [to_length(vector, length) for vector in self._draw(each.through)[: self.config.random_edits]]

    def _draw(self, through: StateMap) -> Float[Tensor, "direction width"]:
        generator = torch.Generator().manual_seed(self.config.seed + RANDOM_STREAM)
        return through.carry(draw_like(self.given.vector, self.config.permutations, generator))

    def _describe(self, each: _Carried, own: Tensor) -> dict[str, Any]:
        held = np.flatnonzero(self.shared.held_out)
        harmful = self.shared.harmful[held]
        projected = (self.shared.after[torch.from_numpy(held)].double() @ each.vector).numpy()
        low, high = self._bound(projected, harmful)
        return {
            "direction": each.name,
            "map_error": each.error,
            "cosine_to_own": float(cosine(each.vector, own)),
            "auroc": measure_auroc(projected, harmful),
            "auroc_low": low,
            "auroc_high": high,
        }

    def _bound(self, projected: NDArray[np.float64], harmful: NDArray[np.bool_]) -> tuple[float, float]:
        units = np.arange(len(harmful))
        _, low, high = measure_separation(projected, harmful, units, self.config.resamples, self.config.seed)
        return low, high

    def _measure_plain(self) -> Arrays:
        """Refusal log-odds of the held-out prompts of the model as it is."""
        found = {
            name: refusal_log_odds(self.model, pick_prompts(self.shared, kind), self.shared.tokens)
            for name, kind in (("removed", True), ("added", False))
        }
        return {name: values.double().numpy() for name, values in found.items()}

    def _measure(self, vector: Tensor) -> Arrays:
        """The same with a direction removed from the harmful ones, and added to the harmless ones."""
        removed, added = measure_effects(
            self.model,
            self.make(vector, "trial", {}),
            pick_prompts(self.shared, True),
            pick_prompts(self.shared, False),
            self.shared.tokens,
        )
        return {"removed": removed.double().numpy(), "added": added.double().numpy()}

    def _summarize(self, after: Arrays, before: Arrays) -> dict[str, float]:
        """Change of the refusal log-odds by a direction, with an interval over prompts."""
        row: dict[str, float] = {}
        for what in ("removed", "added"):
            estimate = bootstrap_mean(after[what] - before[what], self.config.resamples, self.config.seed)
            row |= {what: estimate.value, f"{what}_low": estimate.low, f"{what}_high": estimate.high}
        return row

    def _compare(self, through: StateMap, auroc: float, effects: Sequence[dict[str, float]]) -> dict[str, float]:
        """The same of random directions through the map."""
        random = self._measure_null(self._draw(through))
        row = _band("random", random)
        # With either sign: a random direction has none.
        far = int((np.abs(random - 0.5) >= abs(auroc - 0.5) - 1e-12).sum())
        row["random_p"] = (1 + far) / (1 + len(random))
        for what in ("removed", "added"):
            values = [each[what] for each in effects]
            row |= {f"random_{what}_low": min(values), f"random_{what}_high": max(values)}
        return row

    def _measure_null(self, vectors: Float[Tensor, "direction width"]) -> NDArray[np.float64]:
        held = np.flatnonzero(self.shared.held_out)
        projected = (self.shared.after[torch.from_numpy(held)].double() @ vectors.T).numpy()
        return np.array([measure_auroc(column, self.shared.harmful[held]) for column in projected.T])

    def _measure_refitted(self, through: StateMap) -> Arrays:
        return {"auroc": self._measure_null(torch.stack(self._permute(through)))}

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


def name_vector(vector: Tensor) -> str:
    """A name of a direction that no other has."""
    return hashlib.sha256(vector.double().contiguous().numpy().tobytes()).hexdigest()
