"""Probes without labels in closed form: the leading contrast (CRC-TPC) and VINC; of all splits of the rows at once."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probing.kernels.dispatch import fall_back

TOLERANCE = 1e-9
"""Largest residual of an eigenvector, relative to the norm of the matrix."""
STEPS = 256
"""Lanczos steps after which the whole matrix is decomposed; a space of fewer dimensions is exhausted before."""
EVERY = 8
"""Steps between two checks of the residuals."""
EXHAUSTED = 1e-12
"""A remainder below this share of the norm is rounding: the vectors so far span the whole space."""

Product = Callable[[Tensor], Tensor]
"""Multiplies the symmetric matrix of every split with a vector of every split, [split width]."""


@dataclass(frozen=True)
class VincWeights:
    """Weights of VINC's three covariances; the usual ones leave the first out.

    Attributes:
        variance: weight of the spread between claims.
        contrast: weight of the covariance of a claim with its denial; the spread within a claim has one minus it.
    """

    variance: float = 0.0
    contrast: float = 0.5


def crc_direction(yes: Float[Tensor, "row width"], no: Float[Tensor, "row width"]) -> Float[Tensor, " width"]:
    """The leading principal component of the differences of both forms (Burns et al. 2022, "CRC-TPC"), of length one.

    Args:
        yes: centred states of the yes forms, statements first, then their opposites.
        no: centred states of the no forms, in the same order.
    """
    return crc_directions(torch.stack([yes, no]), torch.ones_like(yes[:, :1], dtype=torch.bool))[:, 0]


def crc_directions(
    states: Float[Tensor, "2 row width"], train: Bool[Tensor, "row split"]
) -> Float[Tensor, "width split"]:
    """``crc_direction`` of the rows that each split trains on; computed in float64.

    Args:
        states: states of the yes and the no forms; a centre is of no consequence.
        train: training rows of each split.
    """
    contrast, kept = states[0].double() - states[1].double(), train.T.double()
    means = kept @ contrast / kept.sum(dim=1, keepdim=True)

    def product(vectors: Tensor) -> Tensor:
        spots = (vectors @ contrast.T - (vectors * means).sum(dim=1, keepdim=True)) * kept
        return spots @ contrast - spots.sum(dim=1, keepdim=True) * means

    sizes = kept @ contrast.square().sum(dim=1) - kept.sum(dim=1) * means.square().sum(dim=1)
    return _leading(product, sizes, _start(contrast, len(kept))).T.to(states)


def vinc_direction(
    yes: Float[Tensor, "row width"],
    no: Float[Tensor, "row width"],
    label: Float[Tensor, " width"],
    weights: VincWeights | None = None,
) -> Float[Tensor, " width"]:
    """VINC: the direction that separates claims from their denials and agrees on both ways to put a claim.

    The leading eigenvector of ``v C_between - (1 - w) C_within - w X`` among the directions that are orthogonal to the
    one that tells yes forms from no forms. A claim is put in two ways, "A: yes" and "not A: no", and denied in two.
    ``C_between`` is the covariance of the claims' means, ``C_within`` that of the two ways about their mean, and ``X``
    the symmetric covariance between a claim's mean and its denial's.

    Args:
        yes: centred states of the yes forms: all statements, then all opposites in the same order.
        no: centred states of the no forms, in the same order.
        label: mean of the yes forms less that of the no forms, before centring.
        weights: v and w.
    """
    everything = torch.ones_like(yes[:, :1], dtype=torch.bool)
    states = torch.stack([yes, no])
    return vinc_directions(states, torch.zeros_like(states[:, :1]), everything, label[None], weights)[:, 0]


def vinc_directions(
    states: Float[Tensor, "2 row width"],
    centers: Float[Tensor, "2 split width"],
    train: Bool[Tensor, "row split"],
    labels: Float[Tensor, "split width"],
    weights: VincWeights | None = None,
) -> Float[Tensor, "width split"]:
    """``vinc_direction`` of the pairs that each split trains on; computed in float64.

    Args:
        states: states of the yes and the no forms: all statements, then all opposites in the same order.
        centers: centre of each split and form.
        train: training rows of each split; a statement goes with its opposite.
        labels: the direction from no forms to yes forms, which is left out, in every split.
        weights: v and w.
    """
    given = weights or VincWeights()
    half = states.shape[1] // 2
    (a1, n1), (a0, n0) = (form.double().split(half) for form in states)
    # Twice the mean of the two ways to put a claim, of "A" and of "not A", and the differences of the two ways.
    parts = torch.cat([a1 + n0, n1 + a0, a1 - n0, n1 - a0])
    kept, gap = train[:half].T.double()[:, None], (centers[0] - centers[1]).double()
    count = kept.sum(dim=2, keepdim=True)
    away = torch.nn.functional.normalize(labels.double(), dim=1)
    lengths = parts.square().sum(dim=1).view(1, 4, half)
    sizes = (kept * lengths / (8 * count)).sum(dim=(1, 2)) + gap.square().sum(dim=1)
    sizes = (abs(given.variance) + 1) * sizes

    def product(vectors: Tensor) -> Tensor:
        along = (vectors * away).sum(dim=1, keepdim=True)
        inside = vectors - along * away
        claims, ways = (inside @ parts.T).view(len(inside), 4, half).split(2, dim=1)
        claims = (claims - (claims * kept).sum(dim=2, keepdim=True) / count) * kept
        ways = (ways - (gap * inside).sum(dim=1)[:, None, None]) * kept
        by_claim = given.variance * claims - given.contrast * claims.flip(1)
        by_way = (given.contrast - 1) * ways
        image = torch.cat([by_claim, by_way], dim=1).flatten(1) @ parts - by_way.sum(dim=(1, 2))[:, None] * gap
        image = image / (8 * count[:, 0])
        # The direction from no to yes would have eigenvalue 0 where all others may be negative, so it gets a smaller
        # one.
        return image - (image * away).sum(dim=1, keepdim=True) * away - 2 * sizes[:, None] * along * away

    found = _leading(product, sizes, _start(parts, len(kept)))
    # With more dimensions than rows a direction in which no row differs has eigenvalue 0, which may be the largest.
    values = (found * product(found)).sum(dim=1)
    for split in (values <= TOLERANCE * sizes).nonzero().flatten().tolist():
        claims = parts[: 2 * half].view(2, half, -1)[:, train[:half, split]]
        ways = parts[2 * half :].view(2, half, -1)[:, train[:half, split]] - gap[split]
        seen = torch.cat([(claims - claims.mean(dim=1, keepdim=True)).flatten(0, 1), ways.flatten(0, 1)])
        seen = seen - (seen @ away[split])[:, None] * away[split]
        found[split] = _leading_within(product, split, seen, found)
    return found.T.to(states)


def _leading_within(
    product: Product, split: int, seen: Float[Tensor, "row width"], found: Float[Tensor, "split width"]
) -> Float[Tensor, " width"]:
    """The leading eigenvector of one matrix among the directions in which its rows differ; ``found`` where none do.

    Args:
        product: multiplies every matrix with a vector of its own.
        split: number of the matrix.
        seen: rows that the matrix is made of.
        found: leading eigenvectors of all matrices among all directions.
    """
    _, lengths, axes = torch.linalg.svd(seen, full_matrices=False)
    axes = axes[lengths > lengths[:1] * max(seen.shape) * torch.finfo(seen.dtype).eps]
    if not len(axes):
        return found[split]
    images = torch.stack([product(axis.expand_as(found))[split] for axis in axes])
    vector = torch.linalg.eigh(axes @ images.T).eigenvectors[:, -1] @ axes
    return torch.nn.functional.normalize(vector, dim=0) * vector[vector.abs().argmax()].sign()


def _start(like: Float[Tensor, "row width"], splits: int) -> Float[Tensor, "split width"]:
    drawn = np.random.default_rng(0).standard_normal(like.shape[1])
    return torch.from_numpy(drawn).to(like).expand(splits, -1)


def _leading(
    product: Product, sizes: Float[Tensor, " split"], start: Float[Tensor, "split width"]
) -> Float[Tensor, "split width"]:
    """Eigenvector of the largest eigenvalue of each matrix, of length one; its largest entry is positive.

    Args:
        product: multiplies every matrix with a vector of its own.
        sizes: number of about the norm of each matrix, or larger; the tolerance on residuals is relative to it.
        start: vectors that the iteration begins with.
    """
    vectors, residuals = _lanczos(product, sizes, start, min(STEPS, start.shape[1]))
    for split in (residuals > TOLERANCE).nonzero().flatten().tolist():
        why = f"{STEPS} Lanczos steps leave a residual of {residuals[split]:.0e}"
        fall_back("closed forms by decomposing the whole matrix", why)
        vectors[split] = _decompose_whole(product, split, start)
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return torch.nn.functional.normalize(vectors, dim=1) * largest.sign()


def _lanczos(
    product: Product, sizes: Float[Tensor, " split"], start: Float[Tensor, "split width"], steps: int
) -> tuple[Float[Tensor, "split width"], Float[Tensor, " split"]]:
    """Leading eigenvectors of all matrices and their residuals; each new vector is made orthogonal to all before."""
    splits, width = start.shape
    sizes = sizes.clamp_min(torch.finfo(start.dtype).tiny)
    basis, inner = start.new_empty(splits, steps, width), start.new_zeros(splits, steps, steps)
    vector = torch.nn.functional.normalize(start, dim=1)
    for at in range(steps):
        known = basis[:, : at + 1]
        known[:, at] = vector
        rest, parts = product(vector), start.new_zeros(splits, 1, at + 1)
        # A second orthogonalisation removes what rounding leaves of the first.
        for _ in range(2):
            part = rest[:, None] @ known.transpose(1, 2)
            rest, parts = rest - (part @ known)[:, 0], parts + part
        # Once the space is exhausted, all further vectors are zero, with an eigenvalue below all others.
        dead = (vector == 0).all(dim=1)
        inner[:, at, at] = torch.where(dead, -4 * sizes, parts[:, 0, at])
        length = rest.norm(dim=1)
        length = torch.where(length > EXHAUSTED * sizes, length, 0)
        if (at + 1) % EVERY == 0 or at + 1 == steps:
            leading = torch.linalg.eigh(inner[:, : at + 1, : at + 1]).eigenvectors[:, :, -1]
            residuals = length * leading[:, -1].abs() / sizes
            if at + 1 == steps or not (residuals > TOLERANCE).any():
                break
        inner[:, at, at + 1] = inner[:, at + 1, at] = length
        vector = torch.where(length[:, None] > 0, rest / length[:, None], 0)
    return (leading[:, None] @ known)[:, 0], residuals


def _decompose_whole(product: Product, split: int, start: Float[Tensor, "split width"]) -> Float[Tensor, " width"]:
    """The eigenvector from all columns of the matrix."""
    axes = torch.eye(start.shape[1]).to(start)
    columns = [product(axis.expand_as(start))[split] for axis in axes]
    return torch.linalg.eigh(torch.stack(columns)).eigenvectors[:, -1]
