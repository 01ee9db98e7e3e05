"""The arrays of one place: what is trained on which pairs."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.data.forms import FORMS
from probing.errors import DataInvalid, OutOfMemory
from probing.metrics.norms import measure_norms
from probing.models.devices import free_memory
from probing.probes.ccs_options import CCSOptions
from probing.probes.closed_form import STEPS
from probing.probes.contrast import fit_layer
from probing.probes.contrast_states import ContrastOptions, Rows, have_same_states
from probing.runs.ccs.config import CCSConfig
from probing.runs.ccs.data import NAMES
from probing.runs.ccs.states import DISTRACTOR, MARKER, FormStates, Variants, check_contrast
from probing.runs.common.groups import folds_of
from probing.runs.common.layers import Arrays
from probing.runs.common.norms import describe_extremes
from probing.runs.common.states import check_memory, choose_places
from probing.statistics.folds import LEAST_FOLDS, Splits
from probing.types import ContrastPair, Problem

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Material:
    """The pairs that are probed, with their states.

    Attributes:
        pairs: pairs that are ok.
        rows: labels, units and splits of these pairs.
        forms: states of their forms.
        variants: variants of all pairs.
        index: number of each of these pairs among all pairs.
        places: places whose states can be probed.
        skipped: other places, and why they cannot be.
        extremes: one row a place where the norms of the states of some pairs are far above those of the others.
    """

    pairs: list[ContrastPair]
    rows: Rows
    forms: FormStates
    variants: Variants
    index: list[int]
    places: list[str]
    skipped: dict[str, str]
    extremes: Sequence[Mapping[str, Any]] = ()

    @property
    def ids(self) -> list[str]:
        """Ids of the pairs."""
        return [pair.id for pair in self.pairs]


def training_options(config: CCSConfig) -> ContrastOptions:
    """Options of what is trained at every place."""
    ccs = CCSOptions(
        loss=config.loss,
        restarts=config.restarts,
        epochs=config.epochs,
        optimizer=config.optimizer,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        supervision=config.supervision,
        seed=config.seed,
    )
    return ContrastOptions(
        ccs=ccs,
        normalization=config.normalization,
        centering=config.centering,
        random=config.random,
        pairings=config.pairings,
        refits=config.refits,
        inverse_penalty=config.inverse_penalty,
    )


def gather_material(
    config: CCSConfig,
    pairs: Sequence[ContrastPair],
    groups: Sequence[int],
    split_values: Sequence[str] | None,
    forms: FormStates,
    variants: Variants,
) -> tuple[Material, dict[str, Problem]]:
    """Find the pairs and places that can be probed, and the problems of the other pairs.

    Raises:
        DataInvalid: too few pairs, or no place.
    """
    problems = _find_unread(forms, pairs, variants)
    readable = [pair for pair in pairs if pair.id not in problems]
    if not readable:
        first = next(iter(problems.values()))
        raise DataInvalid(f"no pair could be read; the first: '{first.id}' ({first.status}, {first.detail})")
    asked = choose_places(forms.store, config.places)
    same, skipped = _find_alike(forms, readable, asked)
    check_contrast(forms, readable, same)
    for at in np.flatnonzero(same):
        detail = f"the yes and the no form have the same state everywhere; what is read is {forms.token}"
        problems[readable[at].id] = Problem(readable[at].id, "same_state", detail)
    index = [at for at, pair in enumerate(pairs) if pair.id not in problems]
    places = [place for place in asked if place not in skipped]
    if not places:
        raise DataInvalid(f"no place can be probed; the first: {', '.join(next(iter(skipped.items())))}")
    for place, why in skipped.items():
        log.warning("%s is left out: %s", place, why)
    kept = [pairs[at] for at in index]
    units = [groups[at] for at in index]
    values = None if split_values is None else [split_values[at] for at in index]
    folds, units = folds_of(config, units, values, *NAMES)
    rows = Rows(np.array([pair.label for pair in kept]), np.array(units), Splits.of(folds))
    material = Material(
        pairs=kept,
        rows=rows,
        forms=forms,
        variants=variants,
        index=index,
        places=places,
        skipped=skipped,
        extremes=_find_extremes(forms, kept, places),
    )
    return material, problems


def _find_unread(forms: FormStates, pairs: Sequence[ContrastPair], variants: Variants) -> dict[str, Problem]:
    """Find the pairs of which a form has no states."""
    problems = {}
    for at, pair in enumerate(pairs):
        names = ["", *([DISTRACTOR] if variants.distracted[at] else []), *([MARKER] if at in variants.marker else [])]
        for name in names:
            if not forms.has([pair.id], name):
                # The store does not have this control.
                continue
            problem = forms.problem(pair.id, name)
            if problem is not None:
                problems[pair.id] = problem
                break
    return problems


def _find_extremes(forms: FormStates, pairs: Sequence[ContrastPair], places: Sequence[str]) -> list[Mapping[str, Any]]:
    """One row a place where the norms of some forms are far above those of the others."""
    ids = [pair.id for pair in pairs]
    found = (
        describe_extremes(place, measure_norms(forms.of(forms.store.read(place), ids)).reshape(-1), ids * len(FORMS))
        for place in places
    )
    return [row for row in found if row is not None]


def _find_alike(
    forms: FormStates, pairs: Sequence[ContrastPair], places: Sequence[str]
) -> tuple[NDArray[np.bool_], dict[str, str]]:
    """Find pairs whose forms have the same states at every place, and places where this holds for all pairs."""
    same = np.ones(len(pairs), dtype=bool)
    skipped = {}
    for place in places:
        states = forms.of(forms.store.read(place), [pair.id for pair in pairs])
        here = have_same_states(states).cpu().numpy()
        same &= here
        if bool((states == states[:, :1]).all()):
            skipped[place] = "the states of all pairs are the same there"
        elif here.all():
            skipped[place] = "yes and no forms have the same states there"
    return same, skipped


def count_places_at_once(material: Material, options: ContrastOptions, device: torch.device) -> int | None:
    """The number of places that are probed at once on a CPU; None on a card, which one place fills.

    One for every thread, where there are as many places and they fit into half of the memory: threads that have a place
    of their own never wait for each other. Otherwise one, whose trainings the threads share. Either way no byte
    depends on it.
    """
    if device.type != "cpu":
        return None
    threads, free = torch.get_num_threads(), free_memory(device)
    width = int(material.forms.store.facts["width"])
    needed = _estimate_bytes(len(material.pairs), width, options, len(material.rows.splits.left_out))
    enough = free is None or threads * needed <= free / 2
    return threads if enough and len(material.places) >= threads else 1


def train_place(
    material: Material,
    place: str,
    options: ContrastOptions,
    device: torch.device,
    report: Callable[[float], None],
    threads: int,
) -> Arrays:
    """The arrays of one place."""
    stored = material.forms.store.read(place)
    needed = _estimate_bytes(len(material.pairs), stored.shape[1], options, len(material.rows.splits.left_out))
    check_memory(needed, device, f"probing {place} ({len(material.pairs)} pairs of width {stored.shape[1]})")
    states = material.forms.of(stored, material.ids).to(device)
    try:
        readings = fit_layer(
            states,
            material.rows,
            options,
            marker=_mark(material, stored, device),
            distracted=_distract(material, stored, device),
            report=report,
            threads=threads,
        )
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"probing {place} does not fit on the {device}; take fewer pairs, fewer --restarts or --folds"
        ) from error
    return readings.to_arrays()


def _estimate_bytes(pairs: int, width: int, options: ContrastOptions, splits: int) -> int:
    """Bytes that training a layer takes, roughly, with the distractor.

    Counted are the states of the pairs and of those with the distractor, each as given, normalised, about an origin and
    by folds, and in float64 for the closed forms, which come after training; every probe with its gradient, AdamW's two
    moments and a copy (L-BFGS keeps ten steps and changes of the gradient); and the logits of one fold with what their
    gradient needs.
    """
    columns = splits * options.ccs.restarts * (2 + options.pairings)
    states = 8 * (4 * pairs * width) + 4 * (4 * pairs * width)
    probes = (5 if options.ccs.optimizer == "adamw" else 30) * width * columns
    logits = 8 * 4 * pairs * columns // LEAST_FOLDS
    lanczos = 2 * splits * STEPS * width
    return 4 * (states + probes + logits + lanczos)


def _mark(material: Material, stored: Tensor, device: torch.device) -> tuple[Tensor, NDArray[np.int64]] | None:
    """States of the pairs with the word of the marker control replaced, and the indices of these pairs."""
    which = [at for at, number in enumerate(material.index) if number in material.variants.marker]
    ids = [material.pairs[at].id for at in which]
    if not ids or not material.forms.has(ids, MARKER):
        return None
    return material.forms.of(stored, ids, MARKER).to(device), np.array(which)


def _distract(material: Material, stored: Tensor, device: torch.device) -> tuple[Tensor, NDArray[np.bool_]] | None:
    """States of all pairs, half of them with the distractor appended, and whether each pair has it."""
    has = material.variants.distracted[material.index]
    ids = [pair.id for pair, yes in zip(material.pairs, has, strict=True) if yes]
    if not ids or len(ids) == len(has) or not material.forms.has(ids, DISTRACTOR):
        return None
    names = [DISTRACTOR if yes else "" for yes in has]
    return material.forms.of(stored, material.ids, names).to(device), has
