"""The parts of ``probing clusters``: every view of every place, what is held out, and how far models have drifted."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probing.errors import DataInvalid, OutOfMemory
from probing.metrics.clusters import ALL_INDICES
from probing.metrics.clusters.draws import IndexDraws, measure_clusters
from probing.metrics.clusters.indices import alignment_quality_index
from probing.metrics.clusters.preparation import prepare
from probing.metrics.drift import bures_wasserstein, centroid_shift, linear_cka, principal_angles
from probing.metrics.layer_pooling import difference_grams, fit_layer_weights, pool_layers, sample_pairs
from probing.models.devices import choose_device
from probing.runs.clusters.config import ClustersConfig
from probing.runs.clusters.rows import Rows, View, categories_of
from probing.runs.common.parts import Arrays
from probing.runs.common.states import Prompts, places_of
from probing.statistics.permutation import permute_labels

PAIRS = 1024
"""Pairs of rows that the weights of layers are learned from, in every fold."""
KEPT_BYTES = 2**28
"""Permutations that are kept from one place to the next."""
HELD_OUT = "held out"
DRIFT = "drift"


CHOSEN, LEARNED, EQUAL = "chosen inside folds", "learned weights", "equal weights"


OF_TRAINING = ("xie_beni", "calinski_harabasz")


log = logging.getLogger(__name__)


class Material:
    """What the parts of a run are made of.

    Attributes:
        config: the options.
        device: where the indices are computed.
        rows: what is compared.
        seen: states of the data, of each model.
        controls: of the control, of each model; empty without one.
        names: of the models.
        places: of each model.
    """

    def __init__(
        self,
        config: ClustersConfig,
        rows: Rows,
        seen: Sequence[Prompts],
        controls: Sequence[Prompts],
        names: Sequence[str],
    ) -> None:
        self.config, self.rows, self.seen, self.controls, self.names = config, rows, seen, controls, names
        self.device = choose_device(config.device)
        self.places = [places_of(each.store, config.places) for each in seen]
        ids = [prompt.id for prompt in rows.prompts]
        self._index = [_index(each, ids[: rows.of_data]) for each in seen]
        self._relabelings: dict[int, NDArray[np.integer[Any]]] = {}
        self._control_index = [_index(each, ids[rows.of_data :]) for each in controls]

    def states(self, model: int, place: str, control: bool = True) -> torch.Tensor:
        """[row width] of all rows, or of those of the data, in the dtype that they were captured in."""
        states = self.seen[model].store.read(place)[self._index[model]]
        if control and self.controls:
            others = self.controls[model].store.read(place)[self._control_index[model]]
            states = torch.cat((states, others))
        return states.to(self.device)

    @cached_property
    def weights(self) -> NDArray[np.int16]:
        """Resamples of all rows."""
        return self.rows.weights(self.config.resamples, self.config.seed)

    def relabelings(self, number: int) -> NDArray[np.integer[Any]]:
        """Permutations of the labels of a view; kept for the next place while there is room."""
        if number in self._relabelings:
            return self._relabelings[number]
        view = self.rows.views[number]
        drawn = self.rows.relabelings(view, self.config.permutations, self.config.seed)
        narrow: NDArray[np.integer[Any]] = drawn.astype(np.int8 if len(view.clusters) < 128 else np.int16)
        if narrow.nbytes + sum(each.nbytes for each in self._relabelings.values()) <= KEPT_BYTES:
            self._relabelings[number] = narrow
        return narrow

    @property
    def parts(self) -> list[tuple[int, str, str]]:
        """Everything that is computed on its own: number of the model, kind, place."""
        found: list[tuple[int, str, str]] = []
        for model, places in enumerate(self.places):
            found += [(model, "", place) for place in places]
            if self.rows.folds is not None:
                found.append((model, HELD_OUT, ""))
            if model:
                found += [(model, DRIFT, place) for place in places if place in self.places[0]]
        return found


def _index(seen: Prompts, ids: Sequence[str]) -> list[int]:
    at = {prompt.id: index for prompt, index in zip(seen.rows, seen.index, strict=True)}
    return [at[id] for id in ids]


def make_part(
    material: Material,
    part: tuple[int, str, str],
    arrays_of: Callable[[tuple[int, str, str]], Mapping[str, NDArray[np.float64]]],
    report: Callable[[float], None],
) -> Arrays:
    """The arrays of one part.

    Raises:
        OutOfMemory: it does not fit.
    """
    model, kind, place = part
    try:
        if kind == HELD_OUT:
            trained = [arrays_of((model, "", each))["train"] for each in material.places[model]]
            return _held_out(material, model, np.stack(trained))
        if kind == DRIFT:
            return _drift(material, model, place)
        return _place(material, material.states(model, place), report)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"{place or kind} of {material.names[model]} does not fit on the {material.device}; take fewer rows, "
            f"--resamples or --permutations"
        ) from error


def _place(material: Material, states: torch.Tensor, report: Callable[[float], None]) -> Arrays:
    """Every view of the states of a place.

    Returns:
        ``N.values`` [index], ``N.null`` [index draw], ``N.draws`` [index draw] and ``N.sizes`` [draw] of view number N,
        NaN where the states of every label are the same; ``silhouettes`` [row] of the first view, and ``train`` [fold]:
        the index by which a place is chosen, without the fold.
    """
    rows = material.rows
    arrays: dict[str, NDArray[np.float64]] = {}
    sizes = np.array([len(view.index) ** 2 for view in rows.views], dtype=np.float64)
    ends = np.cumsum(sizes) / sizes.sum()
    for number, view in enumerate(rows.views):
        start, stop = (ends[number - 1] if number else 0.0), ends[number]
        arrays |= _view(
            material,
            str(number),
            states[view.index],
            view,
            material.relabelings(number),
            material.weights[view.index],
            partial(_between, report, start, stop),
        )
    first = rows.views[0]
    if rows.folds is not None:
        arrays["train"] = _train_scores(material, states[first.index], first)
    return arrays


def _between(report: Callable[[float], None], start: float, stop: float, share: float) -> None:
    report(start + (stop - start) * share)


def _view(
    material: Material,
    name: str,
    points: torch.Tensor,
    view: View,
    relabelings: NDArray[Any],
    weights: NDArray[np.int16],
    report: Callable[[float], None] = lambda share: None,
) -> dict[str, NDArray[np.float64]]:
    config, device = material.config, material.device
    try:
        codes = torch.from_numpy(view.codes.astype(np.int64))
        grouped = prepare(points, codes, len(view.clusters), config.metric, config.scaling)
    except ValueError as error:
        log.debug("%s", error)
        return _nothing(name, len(view.index), relabelings.shape[1], weights.shape[1])
    order = grouped.order.cpu().numpy()
    codes, counted = (torch.from_numpy(np.ascontiguousarray(each[order])).to(device) for each in (relabelings, weights))
    found = measure_clusters(grouped, ALL_INDICES, codes, counted, report)
    if not material.rows.can_resample(view):
        for draws in found.draws.values():
            draws.fill_(torch.nan)
    silhouettes = np.empty(len(order))
    silhouettes[order] = found.silhouettes.numpy()
    return _arrays(name, found) | ({"silhouettes": silhouettes} if name == "0" else {})


def _arrays(name: str, found: IndexDraws) -> dict[str, NDArray[np.float64]]:
    kinds = {"values": found.values, "null": found.null, "draws": found.draws}
    arrays = {
        f"{name}.{kind}": torch.stack([some[index] for index in ALL_INDICES]).double().numpy()
        for kind, some in kinds.items()
    }
    return arrays | {f"{name}.values": arrays[f"{name}.values"][:, 0], f"{name}.sizes": found.sizes.numpy()}


def _nothing(name: str, rows: int, permutations: int, resamples: int) -> dict[str, NDArray[np.float64]]:
    """Of states that have no index."""
    size = len(ALL_INDICES)
    shapes = {"values": (size,), "null": (size, permutations), "draws": (size, resamples), "sizes": (resamples,)}
    arrays = {f"{name}.{kind}": np.full(shape, np.nan) for kind, shape in shapes.items()}
    return arrays | ({"silhouettes": np.full(rows, np.nan)} if name == "0" else {})


def _train_scores(material: Material, points: torch.Tensor, view: View) -> NDArray[np.float64]:
    """The size-free index of all rows but those of each fold; NaN where only that fold tells rows of a label apart."""
    config, folds = material.config, material.rows.folds
    codes = torch.from_numpy(view.codes.astype(np.int64))
    scores = np.full(config.folds, np.nan)
    for fold in range(config.folds):
        kept = np.flatnonzero(folds != fold)
        try:
            grouped = prepare(points[kept], codes[kept], len(view.clusters), config.metric, config.scaling)
        except ValueError as error:
            log.debug("%s", error)
            return np.full(config.folds, np.nan)
        values = measure_clusters(grouped, OF_TRAINING).values
        scores[fold] = float(alignment_quality_index(values, "size_free", config.weight, len(kept), len(view.clusters)))
    return scores


def _held_out(material: Material, model: int, trained: NDArray[np.float64]) -> Arrays:
    """The place that is best without a fold, and layers pooled by weights learned without it, judged on the fold.

    Args:
        material: of the run.
        model: which.
        trained: score of every place without each fold, [place fold].

    Returns:
        ``chosen`` [fold]: numbers of places; ``layer_weights`` [fold place]; ``rows`` [fold]; and for CHOSEN, LEARNED
        and EQUAL what ``_place`` has for a view, of every fold.

    Raises:
        DataInvalid: at no place do the rows of a label differ.
    """
    config, rows, folds = material.config, material.rows, material.rows.folds
    places = material.places[model]
    assert folds is not None
    if np.isnan(trained).all(axis=0).any():
        raise nothing_varies(material.names[model])
    chosen = np.where(np.isnan(trained), -np.inf, trained).argmax(axis=0)
    usable = [number for number in range(len(places)) if not np.isnan(trained[number]).any()]
    view = rows.views[0]
    found: dict[str, list[dict[str, NDArray[np.float64]]]] = {CHOSEN: [], LEARNED: [], EQUAL: []}
    weights = np.zeros((config.folds, len(places)))
    for fold in range(config.folds):
        held = np.flatnonzero(folds == fold)
        part = View(view.kind, view.name, held, view.codes[held], view.clusters)
        codes = permute_labels(part.codes, rows.units[held], config.permutations, config.seed + 1 + fold).T
        spaces = {CHOSEN: material.states(model, places[chosen[fold]], control=False)[held]}
        learned, scales = _layer_weights(material, model, [places[number] for number in usable], fold)
        weights[fold, usable] = learned.numpy()
        even = torch.full_like(learned, 1 / len(learned))
        for name, pooling in ((LEARNED, learned), (EQUAL, even)):
            part_of = pooling.nonzero()[:, 0]
            layers = (material.states(model, places[usable[at]], control=False)[held] for at in part_of.tolist())
            spaces[name] = pool_layers(layers, pooling[part_of], scales[part_of])
        for name, points in spaces.items():
            found[name].append(_view(material, name, points, part, codes, material.weights[held]))
    arrays: dict[str, NDArray[np.float64]] = {"chosen": chosen.astype(np.float64), "layer_weights": weights}
    arrays["rows"] = np.bincount(folds).astype(np.float64)
    for parts in found.values():
        arrays |= {key: np.stack([each[key] for each in parts]) for key in parts[0]}
    return arrays


def nothing_varies(name: str) -> DataInvalid:
    """The error of a model whose states say nothing anywhere."""
    return DataInvalid(
        f"{name}: the states of every label are the same at all places; read another token with --pooling or --over"
    )


def _layer_weights(
    material: Material, model: int, places: Sequence[str], fold: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights over places and their scales, learned from pairs of rows that are not in the fold."""
    folds, view = material.rows.folds, material.rows.views[0]
    assert folds is not None
    train = np.flatnonzero(folds != fold)
    codes = torch.from_numpy(view.codes[train].astype(np.int64))
    pairs, same = sample_pairs(codes, PAIRS, material.config.seed)
    used, positions = pairs.unique(return_inverse=True)
    rows = train[used.numpy()]
    layers = [material.states(model, place, control=False)[rows].cpu() for place in places]
    differ = torch.tensor([bool((layer[positions[:, 0]] != layer[positions[:, 1]]).any()) for layer in layers])
    weights, scales = torch.zeros(len(layers), dtype=torch.float64), torch.full((len(layers),), torch.inf).double()
    if differ.any():  # a place that differs in rows alone that were not drawn has no part in either weighting
        grams, scales[differ] = difference_grams([layers[at] for at in differ.nonzero()[:, 0].tolist()], positions)
        weights[differ] = fit_layer_weights(grams, same).weights
    else:
        weights[0], scales[0] = 1.0, 1.0
    return weights, scales


def _drift(material: Material, model: int, place: str) -> Arrays:
    """What a place of another model has come to be, against the first model's.

    Returns:
        ``shifts`` [subset width], ``shift`` [subset 3]: norm, relative, noise; ``cka`` [2]: as published and debiased;
        ``angles`` [component] in degrees; ``bures`` [label 2]: distance and conflict. NaN where something cannot be
        compared, as in spaces of different width.
    """
    before, after = (material.states(number, place, control=False) for number in (0, model))
    alike = [_tried(linear_cka, before, after, debiased) for debiased in (False, True)]
    arrays = {"cka": np.array(alike, dtype=np.float64)}  # None becomes NaN
    subsets = drift_subsets(material.rows)
    width = after.shape[1]
    shifts, told = np.full((len(subsets), width), np.nan), np.full((len(subsets), 3), np.nan)
    labels = sorted(set(material.rows.labels.tolist()))
    bures = np.full((len(labels), 2), np.nan)
    most = max(1, min(width, len(before) - 1) // 2)  # spans of the whole space are the same whatever is in it
    angles = np.full(min(material.config.components, most), np.nan)
    if before.shape == after.shape:
        for at, (_, _, index) in enumerate(subsets):
            shift = _tried(centroid_shift, before[index], after[index])
            if shift is not None:
                shifts[at], told[at] = shift.vector.cpu().numpy(), (shift.norm, shift.relative, shift.noise)
        for at, label in enumerate(labels):
            index = np.flatnonzero(material.rows.labels[: len(before)] == label)
            found = _tried(bures_wasserstein, before[index], after[index])
            if found is not None:
                bures[at] = found.distance, found.conflict
        spans = _tried(principal_angles, before, after, len(angles))
        if spans is not None:
            angles[:] = spans.cpu().numpy()
    return arrays | {"shifts": shifts, "shift": told, "angles": angles, "bures": bures}


def _tried(measure: Callable[..., Any], *arguments: Any) -> Any:
    """What a measure answers; None where these states have none."""
    try:
        return measure(*arguments)
    except ValueError as error:
        log.debug("%s", error)
        return None


def drift_subsets(rows: Rows) -> list[tuple[str, str, NDArray[np.int64]]]:
    """Rows of the data whose mean is followed: all, those of a label, those of a category; kind, name, rows."""
    found = [("all", "", np.arange(rows.of_data))]
    labels = rows.labels[: rows.of_data]
    found += [("label", str(name), np.flatnonzero(labels == name)) for name in np.unique(labels)]
    categories = categories_of(rows.prompts[: rows.of_data])
    found += [("category", str(name), np.flatnonzero(categories == name)) for name in np.unique(categories) if name]
    return found
