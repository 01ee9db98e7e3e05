"""States of the prompts that a direction was extracted from: to extract again under permuted labels, or less a kind."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probing.directions.extract import SAME, NoDirection, difference_in_means, find_direction
from probing.errors import DataInvalid, SourceMismatch
from probing.instruments.directions import split_positions
from probing.probes.evaluate import measure_auroc
from probing.runs.common.inputs import STATES
from probing.runs.common.record import check_files
from probing.runs.refusal.evaluate.config import EvaluateConfig
from probing.runs.refusal.evaluate.models import with_length_of
from probing.store.activations import ActivationStore, open_store
from probing.store.directions import DIRECTIONS_FILE, check_model
from probing.store.manifest import RunFolder, read_run
from probing.types import Direction, Place

PROMPTS_FILE = "prompts.parquet"
PERMUTED_STREAM, SPLIT_STREAM, COVARIANCE_STREAM = 17, 19, 29
LEAST_OF_CATEGORY = 2
"""Harmful prompts of a category with which it is left out, and evaluated."""


@dataclass(frozen=True, eq=False)
class Extracted:
    """A folder of ``probing refusal extract``.

    Attributes:
        store: states at the end of every prompt.
        prompts: one row a prompt that could be read, in the order of the store, with ``kind``, ``part`` and ``used``.
        direction: the direction that is evaluated.
    """

    store: ActivationStore
    prompts: pd.DataFrame
    direction: Direction

    def states(self, place: Place | str) -> Float[Tensor, "row width"]:
        """States at a place, at the direction's token, in float64."""
        values = split_positions(self.store.read(place), self.store.offsets.diff())
        return values[:, self.direction.position].double()

    def pick(self, kind: str, part: str | None = None, without: str | None = None) -> NDArray[np.bool_]:
        """Which prompts are used that are of a kind, on a side of the split, and not of a category."""
        table = self.prompts
        chosen = table["used"] & (table["kind"] == kind)
        if part is not None:
            chosen &= table["part"] == part
        if without is not None:
            chosen &= ~(table["category"] == without).fillna(False)
        picked: NDArray[np.bool_] = chosen.to_numpy(dtype=bool)
        return picked


@dataclass(frozen=True, eq=False)
class LeftOut:
    """A direction that was extracted without the harmful prompts of a category.

    Attributes:
        category: the category.
        direction: the direction; its layer was chosen without the category, too.
        auroc: of harmful prompts of the category against harmless ones that are held out, by the direction.
        prompts: number of these harmful prompts.
    """

    category: str
    direction: Direction
    auroc: float
    prompts: int


def open_extracted(config: EvaluateConfig, direction: Direction | None, width: int, layers: int) -> Extracted | None:
    """The folder of the extraction, if one is known.

    Raises:
        SourceMismatch: the folder is of another model, or holds no extraction.
        DataInvalid: its states do not go with its prompts.
    """
    path = config.extracted
    if direction is None:
        return None
    if path is None:
        path = config.direction if config.direction and _is_extraction(config.direction.expanduser()) else None
    if path is None:
        return None
    folder = path.expanduser()
    facts = read_run(folder)
    if facts["command"] != "refusal extract" or facts["status"] != "done":
        raise SourceMismatch(f"{folder}: holds no finished run of 'probing refusal extract'")
    check_files(RunFolder(folder, facts["command"]), {PROMPTS_FILE: facts["sha256"].get(PROMPTS_FILE, "")})
    store = open_store(folder / STATES)
    check_model(replace(direction, source=store.source), direction.source, width, layers)
    prompts = pd.read_parquet(folder / PROMPTS_FILE)
    prompts = prompts[prompts["status"] == "ok"].reset_index(drop=True)
    if list(prompts["id"]) != list(store.ids):
        raise DataInvalid(f"{folder}: its prompts are not those of its states; run 'probing refusal extract' again")
    counts = store.offsets.diff()
    if -direction.position > int(counts.min()):
        raise SourceMismatch(f"{folder}: has states of {int(counts.min())} tokens, none of token {direction.position}")
    return Extracted(store, prompts, direction)


def _is_extraction(path: Path) -> bool:
    return path.is_dir() and (path / DIRECTIONS_FILE).exists() and (path / STATES).is_dir()


def permute_labels_of(extracted: Extracted, count: int, seed: int) -> list[Direction]:
    """Differences in means under permuted labels of the prompts, at the length of the direction itself."""
    if not count:
        return []
    states, harmful = _read_training(extracted)
    generator = np.random.default_rng([seed, PERMUTED_STREAM])
    vectors = []
    for _ in range(count):
        drawn = torch.from_numpy(generator.permutation(harmful))
        vectors.append(difference_in_means(states[drawn], states[~drawn]).expand(extracted.direction.vector.shape))
    return _bring_to_length(extracted, vectors, states, "permuted labels")


def draw_by_covariance(extracted: Extracted, count: int, seed: int) -> list[Direction]:
    """Random directions with the covariance of the states within each kind, at the length of the direction itself.

    Each is a sum of the states of the prompts of the extraction, less the mean of their kind, with independent normal
    weights. A difference in means under permuted labels has the covariance of all states together: it differs from
    these in that the difference between the kinds, which is the direction itself, is part of that covariance.
    """
    if not count:
        return []
    states, harmful = _read_training(extracted)
    centred = states.clone()
    for kind in (torch.from_numpy(harmful), torch.from_numpy(~harmful)):
        centred[kind] -= states[kind].mean(dim=0)
    shape = (*extracted.direction.vector.shape[:-1], len(states))
    generator = np.random.default_rng([seed, COVARIANCE_STREAM])
    vectors = [torch.from_numpy(generator.standard_normal(shape)) @ centred for _ in range(count)]
    return _bring_to_length(extracted, vectors, states, "covariance of states")


def _bring_to_length(extracted: Extracted, vectors: list[Tensor], states: Tensor, method: str) -> list[Direction]:
    """Vectors as directions of the length of the direction itself; those that are zero but for rounding are left out.

    At the embedding, for one, prompts that end with the same token have the same state.
    """
    least = SAME * float(states.abs().max())
    return [
        with_length_of(extracted.direction, vector, f"{method} {number}")
        for number, vector in enumerate(vectors)
        if bool((vector.norm(dim=-1) > least).all())
    ]


def _read_training(extracted: Extracted) -> tuple[Float[Tensor, "row width"], NDArray[np.bool_]]:
    """States of the prompts that the direction was extracted from, at its place, and which of them are harmful."""
    harmful, harmless = (extracted.pick(kind, "train") for kind in ("harmful", "harmless"))
    states = extracted.states(extracted.direction.place)[torch.from_numpy(harmful | harmless)]
    return states, harmful[harmful | harmless]


def leave_categories_out(extracted: Extracted, seed: int) -> list[LeftOut]:
    """A direction for every category of harmful prompts, extracted without it, at a layer chosen without it.

    The layer is the one at which the direction of one half of the training prompts tells those of the other half apart
    best: by AUROC and, where this is as high at several, by the distance of the means in standard deviations. Harmless
    prompts of the held-out part stand against the category; they enter neither direction nor choice.
    """
    table = extracted.prompts
    harmful = table[table["used"] & (table["kind"] == "harmful")]
    counts = harmful["category"].dropna().value_counts()
    names = sorted(str(name) for name, count in counts.items() if count >= LEAST_OF_CATEGORY)
    if len(names) < 2:
        return []
    places = [place for place in extracted.store.places if place.kind == extracted.direction.place.kind]
    by_place = {place: extracted.states(place) for place in places}
    return [found for name in names if (found := _leave_out(extracted, by_place, name, seed)) is not None]


def _leave_out(extracted: Extracted, by_place: dict[Place, Tensor], category: str, seed: int) -> LeftOut | None:
    train = [np.flatnonzero(extracted.pick(kind, "train", category)) for kind in ("harmful", "harmless")]
    if min(map(len, train)) < 4:
        return None
    generator = np.random.default_rng([seed, SPLIT_STREAM])
    halves = [np.array_split(generator.permutation(rows), 2) for rows in train]
    scores = {place: _judge_layer(states, halves) for place, states in by_place.items()}
    place = max(scores, key=lambda each: scores[each])
    states = by_place[place]
    try:
        vector = find_direction(states[train[0]], states[train[1]])
    except NoDirection:
        return None
    own = (extracted.prompts["category"] == category).fillna(False).to_numpy(dtype=bool) & extracted.pick("harmful")
    against = extracted.pick("harmless", "validation")
    rows = np.concatenate([np.flatnonzero(own), np.flatnonzero(against)])
    auroc = measure_auroc((states[rows] @ vector).numpy(), np.arange(len(rows)) < own.sum())
    direction = replace(
        extracted.direction,
        vector=vector,
        place=place,
        harmless_mean=states[train[1]].mean(dim=0),
        method=f"difference in means, without {category}",
    )
    return LeftOut(category, direction, auroc, int(own.sum()))


def _judge_layer(states: Tensor, halves: list[list[NDArray[np.int64]]]) -> tuple[float, float]:
    """How well the direction of the first halves tells the second ones apart: AUROC, and distance of the means."""
    try:
        vector = find_direction(states[halves[0][0]], states[halves[1][0]])
    except NoDirection:
        return 0.0, 0.0
    sides = [states[half[1]] @ vector for half in halves]
    truth = np.arange(sum(map(len, sides))) < len(sides[0])
    spread = torch.cat([side - side.mean() for side in sides]).std().clamp_min(1e-30)
    auroc = measure_auroc(torch.cat(sides).numpy(), truth)
    return auroc, float((sides[0].mean() - sides[1].mean()) / spread)
