"""What an edit or a fine-tune did to a writing matrix: spectrum of the difference, and what it left of a direction.

A matrix is [residual column]: its columns are vectors that are added to the residual stream.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import scipy.linalg
import scipy.stats
import torch
from jaxtyping import Float
from torch import Tensor

from probing.directions.edits import remove_from_vectors

LEFT = 0.05
"""Largest share of a component, relative to before, that a removal leaves. Rounding to bfloat16 leaves about .002, to 8
bits about .01; a fine-tune leaves about 1."""
IN_PART = 0.5
"""A component of which more than this is left was not removed, not even in part."""
ABSENT = 0.02
"""A matrix holds nothing of a direction where its component is below this share of that of a random direction."""
OFF = 0.05
"""Largest distance of a change from that of a projection, relative to the change."""
ROUNDING = 2.0**-8
"""Largest distance relative to the matrix that rounding to bfloat16, whose rounding unit this is, can explain."""
LISTED = 4
LEAST_SCALE = 1e-3
RIDGE = 1e-6
NEAR = 0.9
"""Least cosine of a refined direction with the one that it started from."""

State = Literal["unchanged", "absent", "removed", "in part", "kept"]
STATES: tuple[State, ...] = ("removed", "in part", "kept", "absent", "unchanged")
Form = Literal["projection", "projection, lengths kept", "projection and more", "other"]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of a matrix, summed up.

    Attributes:
        norm: Frobenius norm.
        values: the largest singular values, in descending order.
        effective_rank: exponential of the entropy of the squared singular values, each over their sum; 0 for zero.
        stable_rank: the sum of the squared singular values over the largest; 0 for zero.
        leading: [residual], left singular vector of the largest; zero for a zero matrix.
    """

    norm: float
    values: tuple[float, ...]
    effective_rank: float
    stable_rank: float
    leading: Tensor


def measure_spectrum(matrix: Float[Tensor, "residual column"]) -> Spectrum:
    """Singular values through the Gram matrix of the smaller side, in float64.

    Singular values below about 1e-8 of the largest are lost, which no number here depends on.
    """
    wide = matrix.double()
    tall = wide.shape[0] > wide.shape[1]
    squares, vectors = torch.linalg.eigh(wide.T @ wide if tall else wide @ wide.T)
    squares, total = squares.clamp_min(0).flip(0), float(wide.square().sum())
    if total == 0:
        return Spectrum(0.0, (0.0,) * min(LISTED, len(squares)), 0.0, 0.0, torch.zeros(len(wide), dtype=torch.float64))
    leading = wide @ vectors[:, -1] if tall else vectors[:, -1]
    shares = squares / squares.sum()
    entropy = -float(torch.special.xlogy(shares, shares).sum())
    return Spectrum(
        norm=math.sqrt(total),
        values=tuple(squares[:LISTED].sqrt().tolist()),
        effective_rank=math.exp(entropy),
        stable_rank=float(squares.sum() / squares[0]),
        leading=(leading / leading.norm()).cpu(),
    )


@dataclass(frozen=True)
class Along:
    """What a change did along a direction.

    Attributes:
        before: norm of the component before, see ``measure_component``.
        left: norm of the component after, over before; NaN where there was none.
        share: share of the squared norm of the change that lies along the direction; NaN without a change.
        off: distance of the change from that of removing the direction, relative to the change.
        off_lengths: the same from a removal that keeps the length of every column.
        state: what became of the component.
        form: which of these removals the change is.
    """

    before: float
    left: float
    share: float
    off: float
    off_lengths: float
    state: State
    form: Form


def measure_along(
    before: Float[Tensor, "residual column"],
    after: Float[Tensor, "residual column"],
    basis: Float[Tensor, "rank residual"],
    basis_after: Float[Tensor, "rank residual"] | None = None,
) -> Along:
    """Compare a matrix before and after along a direction or subspace, in float64.

    Args:
        before: the matrix of the reference.
        after: the matrix of the policy.
        basis: orthonormal vectors.
        basis_after: the same behind another norm, where the policy has another one.
    """
    before, after, basis = before.double(), after.double(), basis.double()
    basis_after = basis if basis_after is None else basis_after.double()
    change, size = after - before, float(before.norm())
    moved, held = float(change.norm()), measure_component(before, basis)
    left = measure_component(after, basis_after) * float(after.norm()) / size / held if held else math.nan
    state = _judge(moved, held, left)
    if moved == 0:
        nan = math.nan
        return Along(held, left, share=nan, off=nan, off_lengths=nan, state=state, form="other")
    expected = remove_from_vectors(before.T.contiguous(), basis, keep_norms=True).T
    off = float((change + basis.T @ (basis @ before)).norm())
    off_lengths = float((after - expected).norm())
    return Along(
        before=held,
        left=left,
        share=float((basis @ change).norm()) ** 2 / moved**2,
        off=off / moved,
        off_lengths=off_lengths / moved,
        state=state,
        form=_name_form(state, off, off_lengths, max(OFF * moved, ROUNDING * size)),
    )


def measure_component(matrix: Float[Tensor, "residual column"], basis: Float[Tensor, "rank residual"]) -> float:
    """Norm of what a matrix holds along a basis, relative to what it holds along a random one; 0 for a zero matrix."""
    random = float(matrix.norm()) * math.sqrt(len(basis) / basis.shape[1])
    return float((basis @ matrix).norm()) / random if random else 0.0


def _judge(moved: float, held: float, left: float) -> State:
    if held <= ABSENT:
        return "absent"
    if moved == 0:
        return "unchanged"
    if left <= max(LEFT, ROUNDING / held):
        return "removed"
    return "in part" if left <= IN_PART else "kept"


def _name_form(state: State, off: float, off_lengths: float, limit: float) -> Form:
    if state != "removed":
        return "other"
    if min(off, off_lengths) > limit:
        return "projection and more"
    return "projection" if off <= off_lengths else "projection, lengths kept"


def join_states(states: Sequence[State]) -> State:
    """What became of a writer, by what became of its matrices; those that held nothing of it do not count."""
    known = {state for state in states if state != "absent"}
    if not known:
        return "absent"
    if len(known) == 1:
        return next(iter(known))
    return "in part" if known & {"removed", "in part"} else "kept"


def alignment_quantile(width: int, level: float, rank: int = 1) -> float:
    """Quantile of the length of a random unit vector within a subspace of this rank; |u . v| for rank 1.

    Its square has the distribution Beta(rank / 2, (width - rank) / 2).
    """
    if rank >= width:
        return 1.0
    return math.sqrt(float(scipy.stats.beta.ppf(level, rank / 2, (width - rank) / 2)))


def share_of_directions(
    change: Float[Tensor, "residual column"], size: float, scale: Float[Tensor, " residual"] | None = None
) -> Float[Tensor, "residual residual"]:
    """X X' / |X|^2 of a change X: how much of it lies along which direction; zero without a change.

    A change that is no larger than rounding to bfloat16 counts for less, so that rounding noise of matrices that were
    not edited does not outweigh those that were.

    Args:
        change: the difference of a matrix.
        size: Frobenius norm of the matrix before.
        scale: by which a norm behind the write multiplies each channel. A direction v of the residual stream is removed
            from the matrix as scale * v, so that the change is divided by the scale first.
    """
    wide = change.double()
    known = min(1.0, (float(wide.norm()) / (ROUNDING * size)) ** 2) if size else 1.0
    if scale is not None:
        least = LEAST_SCALE * scale.abs().amax()
        sign = torch.where(scale < 0, -1.0, 1.0).to(wide)
        wide = wide / (sign * scale.abs().clamp_min(least)).to(wide)[:, None]
    total = wide.square().sum()
    return known * (wide @ wide.T) / total.clamp_min(torch.finfo(torch.float64).tiny)


def common_directions(shares: Float[Tensor, "residual residual"], count: int) -> Float[Tensor, "direction residual"]:
    """The leading directions that the changes of all matrices have in common, from the sum of their shares."""
    vectors: Tensor = torch.linalg.eigh(shares).eigenvectors
    return vectors.flip(1)[:, :count].T.contiguous()


def refine_direction(
    before: Float[Tensor, "residual residual"],
    after: Float[Tensor, "residual residual"],
    near: Float[Tensor, " residual"],
) -> Float[Tensor, " residual"]:
    """The unit vector of which least is left: it minimises v' after v / v' before v.

    The common left singular vector is only about the direction that was removed where the edit changed the rest too (to
    keep lengths, or by training). What is left tells it exactly.

    Args:
        before: sum of W W' over the matrices of the reference from which the direction was removed.
        after: the same of the policy.
        near: where to look; returned as it is where the minimum lies elsewhere.
    """
    ridge = RIDGE * float(before.trace()) / len(before) * torch.eye(len(before), dtype=torch.float64)
    _, vectors = scipy.linalg.eigh((after + ridge).numpy(), (before + ridge).numpy(), subset_by_index=[0, 0])
    found = torch.from_numpy(vectors[:, 0].copy())
    found = found / found.norm()
    cosine = float(found @ near)
    return near if abs(cosine) < NEAR else found * math.copysign(1.0, cosine)


def as_matrices(tensor: Tensor, axis: int) -> Float[Tensor, "part residual column"]:
    """The matrices that make up a writing tensor: one, or one an expert where experts are fused along the first axis.

    Args:
        tensor: a bias [residual], a matrix, or fused experts [part ...].
        axis: the axis of the residual stream.
    """
    if tensor.ndim <= 2 or axis == 0:
        return tensor.movedim(axis, 0).reshape(1, tensor.shape[axis], -1)
    return tensor.movedim(axis, 1).reshape(tensor.shape[0], tensor.shape[axis], -1)
