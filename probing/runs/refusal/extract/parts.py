"""The directions of one place, and how far they hold: held-out separation, its null, the angle of replicates."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from probing.directions.extract import bootstrap_angles, cosine, difference_in_means, find_at_positions, project_off
from probing.errors import DataInvalid
from probing.probes.evaluate import rank_within_folds
from probing.runs.refusal.common.separation import measure_separation
from probing.runs.refusal.extract.config import ExtractConfig
from probing.runs.refusal.extract.rows import Material
from probing.statistics.bootstrap import draw_bootstrap_weights
from probing.statistics.intervals import null_interval

Array = NDArray[np.float64]
WITHIN = 0.95
"""Share of the bootstrap replicates that lie within the angle that is told."""
NULL_STREAM = 11


def judge_place(
    material: Material, config: ExtractConfig, place: str, report: Callable[[float], None]
) -> dict[str, Array]:
    """Directions and numbers of one place, [position ...] each.

    Raises:
        DataInvalid: no direction can be fitted.
    """
    states = material.states(place).double()
    train = [material.pick(kind, held_out=False) for kind in (True, False)]
    harmful, harmless = (states[rows] for rows in train)
    try:
        vectors = find_at_positions(
            harmful, harmless, method=config.method, rank=config.rank, winsorized=config.winsorize
        )
    except ValueError as error:
        raise DataInvalid(f"{place}: {error}") from error
    means = [side.mean(dim=0) for side in (harmful, harmless)]
    if config.off_harmless_mean:
        vectors = project_off(vectors, means[1] if vectors.ndim == 2 else means[1][:, None])
    out = np.concatenate([material.pick(kind, held_out=True) for kind in (True, False)])
    first = vectors if vectors.ndim == 2 else vectors[:, 0]
    rows: list[dict[str, float]] = []
    for position in range(states.shape[1]):
        rows.append(_judge_position(material, config, states[:, position], first[position], train, out))
        report((position + 1) / states.shape[1])
    numbers = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    tensors = {"vectors": vectors, "harmful_mean": means[0], "harmless_mean": means[1]}
    return {**{name: tensor.numpy() for name, tensor in tensors.items()}, **numbers}


def _judge_position(
    material: Material,
    config: ExtractConfig,
    states: torch.Tensor,
    vector: torch.Tensor,
    train: list[NDArray[np.int64]],
    out: NDArray[np.int64],
) -> dict[str, float]:
    """Length, separation of held-out prompts with interval and null, and the angle of replicates at one position."""
    if not bool(vector.isfinite().all()):
        return dict.fromkeys(NUMBERS, float("nan"))
    harmful = material.harmful[out]
    auroc, low, high = measure_separation(
        (states[out] @ vector).numpy(), harmful, material.units[out], config.resamples, config.seed
    )
    null = _draw_null(config, states, train, out, harmful)
    sides = [states[rows] for rows in train]
    angles = bootstrap_angles(*sides, *(_draw_weights(material, config, rows) for rows in train)).numpy()
    plain = difference_in_means(*sides)
    return dict(
        zip(
            NUMBERS,
            (
                float(vector.norm()),
                float(cosine(vector, plain)),
                auroc,
                low,
                high,
                *null_interval(null),
                float(np.quantile(angles, WITHIN)),
            ),
            strict=True,
        )
    )


NUMBERS = (
    "length",
    "cosine_to_difference_in_means",
    "auroc",
    "auroc_low",
    "auroc_high",
    "labels_low",
    "labels_median",
    "labels_high",
    "angle",
)
"""Columns of the results, one value a position."""


def _draw_null(
    config: ExtractConfig,
    states: torch.Tensor,
    train: list[NDArray[np.int64]],
    out: NDArray[np.int64],
    harmful: NDArray[np.bool_],
) -> Array:
    """Held-out AUROC of differences in means under permuted labels of the training prompts, [permutation]."""
    generator = np.random.default_rng([config.seed, NULL_STREAM])
    rows = np.concatenate(train)
    labels = np.arange(len(rows)) < len(train[0])
    drawn = np.stack([generator.permutation(labels) for _ in range(config.permutations)])
    weights = drawn / len(train[0]) - ~drawn / len(train[1])
    projected = (states[out] @ (torch.from_numpy(weights) @ states[rows]).T).numpy()
    ones, folds = np.ones((1, len(out))), np.zeros(len(out), dtype=np.int64)
    return np.array([rank_within_folds(own, harmful[None], ones, folds)["auroc"][0] for own in projected.T])


def _draw_weights(material: Material, config: ExtractConfig, rows: NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(draw_bootstrap_weights(material.units[rows], config.resamples, config.seed))
