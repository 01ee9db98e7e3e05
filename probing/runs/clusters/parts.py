"""The parts of ``probing clusters``: every view of every place, what is held out, and how far models have drifted."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probing.errors import DataInvalid, OutOfMemory
from probing.metrics.clusters import ALL_INDICES
from probing.metrics.clusters.draws import Kept, measure_clusters
from probing.metrics.clusters.indices import alignment_quality_index
from probing.metrics.clusters.preparation import prepare
from probing.metrics.clusters.readings import DriftReadings, HeldOutReadings, IndexReadings, PlaceReadings
from probing.metrics.drift import bures_wasserstein, centroid_shift, linear_cka, principal_angles
from probing.metrics.layer_pooling import difference_grams, fit_layer_weights, pool_layers, sample_pairs
from probing.metrics.norms import find_extreme_norms, measure_norms
from probing.runs.clusters.config import LEAST_ROWS
from probing.runs.clusters.rows import DRIFT, HELD_OUT, Material, Part, Rows, View, categories_of
from probing.runs.common.layers import Arrays, Pieces
from probing.runs.common.results import ALL, CHOSEN, Array
from probing.statistics.permutation import permute_labels

PAIRS = 1024
"""Pairs of rows that the weights of layers are learned from, in every fold."""
LEARNED, EQUAL = "learned weights", "equal weights"
SPACES = (CHOSEN, LEARNED, EQUAL)
"""Spaces in which rows are held out: one layer, or layers pooled with weights."""
OF_TRAINING = ("xie_beni", "calinski_harabasz")
ArraysOf = Callable[[Part], Arrays]
"""The arrays of a part that was made before, from its file."""


log = logging.getLogger(__name__)


def make_part(
    material: Material, part: Part, arrays_of: ArraysOf, report: Callable[[float], None], pieces: Pieces
) -> Arrays:
    """The arrays of one part.

    Args:
        material: rows, states and options of the run.
        part: which part.
        arrays_of: gives the arrays of parts that were made before.
        report: told what share of the part is done.
        pieces: keeps what the part is made of.

    Raises:
        OutOfMemory: the part does not fit.
    """
    model, kind, place = part
    try:
        if kind == HELD_OUT:
            readings = [PlaceReadings.from_arrays(arrays_of((model, "", each))) for each in material.places[model]]
            return hold_out(material, model, readings, report, pieces).to_arrays()
        if kind == DRIFT:
            return _measure_drift(material, model, place).to_arrays()
        return describe_place(material, material.states(model, place), report, pieces).to_arrays()
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"{place or kind} of {material.names[model]} does not fit on the {material.device}; take fewer rows, "
            f"--resamples or --permutations"
        ) from error


def describe_place(
    material: Material, states: torch.Tensor, report: Callable[[float], None], pieces: Pieces | None = None
) -> PlaceReadings:
    """Every view of the states of a place, [row width]."""
    rows, pieces = material.rows, Pieces() if pieces is None else pieces
    views, silhouettes = [], []
    sizes = np.array([len(view.index) ** 2 for view in rows.views], dtype=np.float64)
    ends = np.cumsum(sizes) / sizes.sum()
    for number, view in enumerate(rows.views):
        start, stop = (ends[number - 1] if number else 0.0), ends[number]
        name = f"view {number}"
        known = pieces.find(name)
        if known is None:
            readings, widths = _describe_view(
                material,
                states[view.index],
                view,
                material.relabelings(number),
                material.weights[view.index],
                report=partial(_report_between, report, start, stop),
                kept=pieces.within(name),
            )
            known = readings.to_arrays("view") | {"silhouettes": widths}
            pieces.put(name, known)
        views.append(IndexReadings.from_arrays(known, "view"))
        silhouettes.append(known["silhouettes"])
        report(stop)
    first = rows.views[0]
    points = states[first.index]
    train = None if rows.folds is None else _score_without_folds(material, points, first)
    norms = measure_norms(points)
    return PlaceReadings(views, silhouettes[0], train, norms, _score_without_extremes(material, points, first, norms))


def _score_without_extremes(material: Material, points: torch.Tensor, view: View, norms: Array) -> Array:
    """Indices without the rows of extreme norm, [index]; NaN where there are none, or a label has no rows left."""
    extreme = find_extreme_norms(norms)
    kept = np.setdiff1d(np.arange(len(norms)), extreme)
    least = np.bincount(view.codes[kept], minlength=len(view.clusters)).min()
    if not len(extreme) or least < LEAST_ROWS:
        return np.full(len(ALL_INDICES), np.nan)
    part = View(view.kind, view.name, kept, view.codes[kept], view.clusters)
    nothing = np.zeros((len(kept), 0), dtype=np.int16)
    return _describe_view(material, points[kept], part, nothing, nothing)[0].values


def _report_between(report: Callable[[float], None], start: float, stop: float, share: float) -> None:
    report(start + (stop - start) * share)


def _describe_view(
    material: Material,
    points: torch.Tensor,
    view: View,
    relabelings: NDArray[Any],
    weights: NDArray[np.int16],
    report: Callable[[float], None] = lambda share: None,
    kept: Kept | None = None,
) -> tuple[IndexReadings, Array]:
    """Indices of the points of a view, and the silhouette of every point, [row]."""
    config, device = material.config, material.device
    try:
        codes = torch.from_numpy(view.codes.astype(np.int64))
        grouped = prepare(points, codes, len(view.clusters), config.metric, config.scaling)
    except ValueError as error:
        log.debug("%s", error)
        nothing = IndexReadings.of_nothing(relabelings.shape[1], weights.shape[1])
        return nothing, np.full(len(view.index), np.nan)
    order = grouped.order.cpu().numpy()
    codes, counted = (torch.from_numpy(np.ascontiguousarray(each[order])).to(device) for each in (relabelings, weights))
    readings = measure_clusters(grouped, ALL_INDICES, codes, counted, report, kept=kept)
    if not material.rows.can_resample(view):
        for draws in readings.draws.values():
            draws.fill_(torch.nan)
    silhouettes = np.empty(len(order))
    silhouettes[order] = readings.silhouettes.numpy()
    return IndexReadings.of(readings), silhouettes


def _score_without_folds(material: Material, points: torch.Tensor, view: View) -> Array:
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


def hold_out(
    material: Material,
    model: int,
    readings: Sequence[PlaceReadings],
    report: Callable[[float], None] = lambda share: None,
    pieces: Pieces | None = None,
) -> HeldOutReadings:
    """The place that is best without a fold, and layers pooled by weights learned without it, judged on the fold.

    Args:
        material: rows, states and options of the run.
        model: number of the model.
        readings: readings of every place of the model.
        report: told what share of the folds is done.
        pieces: keeps every fold.

    Raises:
        DataInvalid: at no place do the rows of a label differ.
    """
    config, folds = material.config, material.rows.folds
    places = material.places[model]
    assert folds is not None
    trained = np.stack([each.train for each in readings if each.train is not None])  # [place fold]
    if np.isnan(trained).all(axis=0).any():
        raise explain_nothing_varies(material.names[model])
    chosen = np.where(np.isnan(trained), -np.inf, trained).argmax(axis=0)
    usable = [number for number in range(len(places)) if not np.isnan(trained[number]).any()]
    pieces = Pieces() if pieces is None else pieces
    readings_of: dict[str, list[IndexReadings]] = {name: [] for name in SPACES}
    weights = np.zeros((config.folds, len(places)))
    for fold in range(config.folds):
        known = pieces.complete(
            f"fold {fold}",
            partial(_hold_out_fold, material, model, fold, places[chosen[fold]], [places[at] for at in usable]),
        )
        weights[fold, usable] = known["weights"]
        for name in SPACES:
            readings_of[name].append(IndexReadings.from_arrays(known, name))
        report((fold + 1) / config.folds)
    return HeldOutReadings(
        chosen=chosen.astype(np.float64),
        layer_weights=weights,
        rows=np.bincount(folds).astype(np.float64),
        spaces={name: IndexReadings.stack(each) for name, each in readings_of.items()},
    )


def _hold_out_fold(material: Material, model: int, fold: int, chosen: str, usable: Sequence[str]) -> Arrays:
    """The indices of one fold in every space, and the weights of layers that were learned without it.

    Args:
        material: rows, states and options of the run.
        model: number of the model.
        fold: number of the fold.
        chosen: place that is best without the fold.
        usable: places that are pooled.
    """
    config, rows, view = material.config, material.rows, material.rows.views[0]
    held = np.flatnonzero(rows.folds == fold)
    part = View(view.kind, view.name, held, view.codes[held], view.clusters)
    codes = permute_labels(part.codes, rows.units[held], config.permutations, config.seed + 1 + fold).T
    spaces = {CHOSEN: material.states(model, chosen, control=False)[held]}
    learned, scales = _learn_layer_weights(material, model, usable, fold)
    arrays = {"weights": learned.numpy()}
    even = torch.full_like(learned, 1 / len(learned))
    for name, pooling in ((LEARNED, learned), (EQUAL, even)):
        part_of = pooling.nonzero()[:, 0]
        layers = (material.states(model, usable[at], control=False)[held] for at in part_of.tolist())
        spaces[name] = pool_layers(layers, pooling[part_of], scales[part_of])
    for name, points in spaces.items():
        arrays |= _describe_view(material, points, part, codes, material.weights[held])[0].to_arrays(name)
    return arrays


def explain_nothing_varies(name: str) -> DataInvalid:
    """The error for a model in which the rows of no label differ at any place."""
    return DataInvalid(
        f"{name}: the states of every label are the same at all places; read another token with --pooling or --over"
    )


def _learn_layer_weights(
    material: Material, model: int, places: Sequence[str], fold: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Learn weights over places and their scales from pairs of rows that are not in the fold."""
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
    # A place where only rows that were not drawn differ has no part in either weighting.
    if differ.any():
        grams, scales[differ] = difference_grams([layers[at] for at in differ.nonzero()[:, 0].tolist()], positions)
        weights[differ] = fit_layer_weights(grams, same).weights
    else:
        weights[0], scales[0] = 1.0, 1.0
    return weights, scales


def _measure_drift(material: Material, model: int, place: str) -> DriftReadings:
    """Measure the drift of a place from the same place of the first model."""
    before, after = (material.states(number, place, control=False) for number in (0, model))
    alike = [_measure_or_none(linear_cka, before, after, debiased) for debiased in (False, True)]
    subsets = drift_subsets(material.rows)
    width = after.shape[1]
    labels = sorted(set(material.rows.labels.tolist()))
    # Subspaces that fill the whole space would always be equal.
    most = max(1, min(width, len(before) - 1) // 2)
    readings = DriftReadings(
        cka=np.array(alike, dtype=np.float64),  # None becomes NaN
        shifts=np.full((len(subsets), width), np.nan),
        shift=np.full((len(subsets), 3), np.nan),
        angles=np.full(min(material.config.components, most), np.nan),
        bures=np.full((len(labels), 2), np.nan),
    )
    if before.shape != after.shape:
        return readings
    for at, (_, _, index) in enumerate(subsets):
        shift = _measure_or_none(centroid_shift, before[index], after[index])
        if shift is not None:
            readings.shifts[at] = shift.vector.cpu().numpy()
            readings.shift[at] = shift.norm, shift.relative, shift.noise
    for at, label in enumerate(labels):
        index = np.flatnonzero(material.rows.labels[: len(before)] == label)
        distance = _measure_or_none(bures_wasserstein, before[index], after[index])
        if distance is not None:
            readings.bures[at] = distance.distance, distance.conflict
    angles = _measure_or_none(principal_angles, before, after, len(readings.angles))
    if angles is not None:
        readings.angles[:] = angles.cpu().numpy()
    return readings


def _measure_or_none(measure: Callable[..., Any], *arguments: Any) -> Any:
    """Value of a measure; None where it is not defined for these states."""
    try:
        return measure(*arguments)
    except ValueError as error:
        log.debug("%s", error)
        return None


def drift_subsets(rows: Rows) -> list[tuple[str, str, NDArray[np.int64]]]:
    """Rows of the data whose mean is followed: all, those of a label, those of a category; kind, name, rows."""
    subsets = [(ALL, "", np.arange(rows.of_data))]
    labels = rows.labels[: rows.of_data]
    subsets += [("label", str(name), np.flatnonzero(labels == name)) for name in np.unique(labels)]
    categories = categories_of(rows.prompts[: rows.of_data])
    subsets += [("category", str(name), np.flatnonzero(categories == name)) for name in np.unique(categories) if name]
    return subsets
