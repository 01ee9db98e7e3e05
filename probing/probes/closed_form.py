"""Probes without labels in closed form: the leading contrast (CRC-TPC) and VINC."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

TOLERANCE = 1e-7
LEAST_WIDTH = 16
"""Below it the whole matrix is decomposed."""
PATIENCE = 100
"""Restarts of the Lanczos iteration; where the leading eigenvalues are the same to rounding it may need forever."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class VincWeights:
    """Weights of VINC's three covariances; the usual ones leave the first out.

    Attributes:
        variance: of the spread between claims.
        contrast: of the covariance of a claim with its denial; the spread within a claim has one minus it.
    """

    variance: float = 0.0
    contrast: float = 0.5


def crc_direction(yes: Float[Tensor, "row width"], no: Float[Tensor, "row width"]) -> Float[Tensor, " width"]:
    """The leading principal component of the differences of both forms (Burns et al. 2022, "CRC-TPC"), of length one.

    Args:
        yes: centred states of the yes forms, statements first, then their opposites.
        no: of the no forms.
    """
    contrast = _array(yes) - _array(no)
    contrast -= contrast.mean(axis=0)
    return _leading(lambda vectors: contrast.T @ (contrast @ vectors), np.square(contrast).sum(), yes)


def vinc_direction(
    yes: Float[Tensor, "row width"],
    no: Float[Tensor, "row width"],
    label: Float[Tensor, " width"],
    weights: VincWeights | None = None,
) -> Float[Tensor, " width"]:
    """VINC: the direction that tells claims from their denials and says the same of both ways to put a claim.

    The leading eigenvector of ``v C_between - (1 - w) C_within - w X``, after the direction that tells yes forms from
    no forms is projected out. A claim is put in two ways, "A: yes" and "not A: no", and denied in two. ``C_between`` is
    the covariance of the claims' means, ``C_within`` that of the two ways about their mean, and ``X`` the symmetric
    covariance between a claim's mean and its denial's.

    Args:
        yes: centred states of the yes forms: all statements, then all opposites in the same order.
        no: of the no forms.
        label: mean of the yes forms less that of the no forms, before centring.
        weights: v and w.
    """
    given = weights or VincWeights()
    first, second = _array(yes), _array(no)
    half = len(first) // 2
    away = _array(label)
    length = np.linalg.norm(away)
    away = away / length if length > 0 else away

    def project(states: Array) -> Array:
        kept: Array = states - np.outer(states @ away, away)
        return kept

    a1, n1, a0, n0 = (project(part) for part in (first[:half], first[half:], second[:half], second[half:]))
    claims = [(a1 + n0) / 2, (n1 + a0) / 2]  # "A" and "not A"
    claims = [claim - claim.mean(axis=0) for claim in claims]
    within = np.concatenate([(a1 - n0) / 2, (n1 - a0) / 2])

    def product(vectors: Array) -> Array:
        between = sum(claim.T @ (claim @ vectors) for claim in claims) / (2 * half)
        spread = within.T @ (within @ vectors) / (2 * half)
        crossed = claims[0].T @ (claims[1] @ vectors) + claims[1].T @ (claims[0] @ vectors)
        result: Array = given.variance * between - (1 - given.contrast) * spread - given.contrast * crossed / (2 * half)
        return result

    size = sum(float(np.square(part).sum()) for part in (a1, n1, a0, n0)) / (2 * half)
    found = _leading(product, (abs(given.variance) + 1) * size, yes)
    found = found - (found @ label.to(found)) * label.to(found) / max(float(length) ** 2, np.finfo(float).tiny)
    return torch.nn.functional.normalize(found, dim=0)


def _array(states: Tensor) -> Array:
    array: Array = states.double().cpu().numpy()
    return array


def _leading(product: Callable[[Array], Array], size: float, like: Tensor) -> Tensor:
    """Eigenvector of the largest eigenvalue of a symmetric matrix that is given by its products; its sign is fixed.

    ``size`` is of the order of the matrix or larger. It is added to the eigenvalues, so that one near zero is found to
    a part of it rather than to a part of itself.
    """
    width = like.shape[1]
    vector = None
    if width >= LEAST_WIDTH:
        start = np.random.default_rng(0).standard_normal(width)

        def shifted(vectors: Array) -> Array:
            return product(vectors) + size * vectors

        operator = LinearOperator((width, width), matvec=shifted, matmat=shifted, dtype=np.float64)
        with contextlib.suppress(ArpackError):
            vector = eigsh(operator, k=1, which="LA", v0=start, tol=TOLERANCE, maxiter=PATIENCE)[1][:, 0]
    if vector is None:
        vector = np.linalg.eigh(product(np.eye(width)))[1][:, -1]
    vector = vector * (1.0 if vector[np.abs(vector).argmax()] > 0 else -1.0)
    return torch.from_numpy(vector / np.linalg.norm(vector)).to(like)
