"""States of texts: captured into the folder of a run, or from a store; joined by id."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probing.data.contents import content_of_row
from probing.data.places import expand_places
from probing.errors import DataInvalid, OutOfMemory, SourceMismatch, UsageError
from probing.models.devices import free_memory
from probing.models.load import LanguageModel
from probing.runs.common.about import RENDERED
from probing.runs.common.groups import text_units
from probing.runs.common.inputs import find_store
from probing.runs.common.models import load_model
from probing.runs.common.options import DEFAULT_PLACES, OneModelOptions
from probing.runs.common.record import find_changed_templates
from probing.store.activations import ActivationStore, open_store, row_problems
from probing.types import LabelledPrompt, Problem


def open_source(config: OneModelOptions) -> LanguageModel | ActivationStore:
    """The model that a job was given, or the store in its place."""
    if config.store is not None:
        return open_states(config.store)
    # The options were checked: either a model or a store is given.
    assert config.model is not None
    return load_model(config.model, config, config.revision)


def open_states(path: Path | str) -> ActivationStore:
    """The store in a folder, or that of the run which the folder holds.

    Raises:
        SourceMismatch: the folder has no states, or states of every token.
    """
    store = open_store(find_store(path))
    if store.pooling == "tokens":
        raise SourceMismatch(f"{store.path}: holds the states of every token; capture one state a text")
    return store


def choose_places(store: ActivationStore, given: str | Sequence[str]) -> list[str]:
    """The requested places of a store: all of them, where the option was not given.

    Raises:
        UsageError: a requested place was not captured.
    """
    there = list(map(str, store.places))
    if given == DEFAULT_PLACES:
        return there
    wanted = list(map(str, expand_places(given, int(store.facts["layers"]))))
    missing = [place for place in wanted if place not in there]
    if missing:
        raise UsageError(f"{store.path}: {missing[0]} was not captured; there are {', '.join(there)}")
    return wanted


def check_memory(needed: int, device: torch.device, what: str) -> None:
    """Raise unless so many bytes are free.

    Raises:
        OutOfMemory: fewer bytes are free; says how many are needed and what to do.
    """
    free = free_memory(device)
    if free is not None and needed > free:
        raise OutOfMemory(
            f"{what} needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free on the {device.type}; take "
            f"fewer rows or --folds, or a machine with more memory"
        )


@dataclass(frozen=True, eq=False)
class Prompts:
    """Labelled rows that have states.

    Attributes:
        rows: rows that are ok.
        labels: label of each row, as the job calls them.
        units: rows of one unit have the same text.
        problems: problems of the other rows.
        store: store that holds the states.
        index: number of each row in the store.
    """

    rows: list[LabelledPrompt]
    labels: NDArray[Any]
    units: list[int]
    problems: dict[str, Problem]
    store: ActivationStore
    index: list[int]

    def states(self, place: str, device: torch.device) -> torch.Tensor:
        """[row width], in float32."""
        return self.store.read(place)[self.index].to(device).float()


def join_states(
    store: ActivationStore, path: str, prompts: Sequence[LabelledPrompt], label_of: Callable[[LabelledPrompt], Any]
) -> Prompts:
    """The rows that have a label and states.

    Raises:
        SourceMismatch: the store was made from other rows.
        DataInvalid: no row is left.
    """
    known = store.rows
    content = dict(zip(known["id"], known["content"], strict=True))
    wrong = [prompt.id for prompt in prompts if content.get(prompt.id) != content_of_row(prompt)]
    if wrong:
        raise SourceMismatch(
            f"{store.path}: row '{wrong[0]}' of {path} is not in it, or with another text or label "
            f"({len(wrong)} of {len(prompts)} rows)"
        )
    problems = {problem.id: problem for problem in row_problems(known)}
    for prompt in prompts:
        if prompt.label is None:
            problems.setdefault(prompt.id, Problem(prompt.id, "no_label", "the row has no label"))
    at = {id: row for row, id in enumerate(store.ids)}
    kept = [prompt for prompt in prompts if prompt.id not in problems]
    ours = {prompt.id for prompt in prompts}
    if not kept:
        first = next(problem for problem in problems.values() if problem.id in ours)
        raise DataInvalid(f"{path}: no row could be read; the first: '{first.id}' ({first.status}, {first.detail})")
    units = text_units(kept)
    labels = np.array([label_of(prompt) for prompt in kept])
    mine = {id: problem for id, problem in problems.items() if id in ours}
    return Prompts(kept, labels, units, mine, store, [at[prompt.id] for prompt in kept])


def check_same_request(left: ActivationStore, right: ActivationStore) -> None:
    """Raise unless both stores hold the same states of the same model.

    Raises:
        SourceMismatch: the stores differ; names what differs.
    """
    for name in ("places", "request", "dtype", "width"):
        if left.facts[name] != right.facts[name]:
            raise SourceMismatch(f"{right.path}: {name} {right.facts[name]}, of {left.path}: {left.facts[name]}")
    if find_changed_templates(left.facts, right.facts.get("identity", {}).get(RENDERED, {})):
        raise SourceMismatch(
            f"{right.path}: the chat template wrote other text around the same conversation than for {left.path}, most "
            f"likely the date of another day; capture both on one day"
        )
    if left.source.weights_sha256 != right.source.weights_sha256:
        raise SourceMismatch(f"{right.path} was captured from another model than {left.path}")
