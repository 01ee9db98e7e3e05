"""How far apart the states of two models, or of two checkpoints, lie on the same rows."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK_NUMBERS = 1 << 20
"""Numbers of a side that are widened to float64 at a time where a side need not be held in float64 whole."""
CONSTANT_KERNEL = 1e-12
"""Share of a kernel's square below which its unbiased part is rounding."""
Squares = dict[tuple[int, int], float]


@dataclass(frozen=True, slots=True)
class CentroidShift:
    """Shift of the mean of the rows.

    Attributes:
        vector: mean of after - before, in the states' unit, shape [width], float64.
        norm: length of the vector.
        relative: ``norm`` divided by the root mean square distance of the rows before to their mean.
        noise: norm to expect from sampling the rows alone, were the true shift zero (the root of the mean
            square): a norm not well above it says nothing.
    """

    vector: Tensor
    norm: float
    relative: float
    noise: float


@dataclass(frozen=True, slots=True)
class BuresWasserstein:
    """Distance of two covariance matrices A and B.

    Attributes:
        distance: the Bures-Wasserstein distance, in the states' unit, at least 0.
        conflict: square of the distance divided by tr A + tr B: 0 where they are equal, 1 where their supports are
            orthogonal.
    """

    distance: float
    conflict: float


def centroid_shift(before: Float[Tensor, "row width"], after: Float[Tensor, "row width"]) -> CentroidShift:
    """The shift of the mean between two models that saw the same rows.

    Rows are paired, so that the noise is that of their differences, which is mostly far below that of either side.

    Args:
        before: states of the first model, of any float dtype; all is computed in float64.
        after: states of the second model, the same rows in the same order.

    Raises:
        ValueError: shapes that differ, fewer than two rows, states that are not finite, or rows before that are all
            the same, so that there is no spread to compare with.

    Source: representation shift, arXiv 2501.03012; ``noise`` is the standard error of a mean,
        ``sqrt(tr cov(after - before) / n)``.
    """
    _require_states(before, "before")
    _require_states(after, "after", spread=False)
    _require_same("widths", before.shape[1], after.shape[1])
    _require_same("rows", len(before), len(after))
    change = after.double() - before.double()
    vector = change.mean(dim=0)
    norm = float(vector.norm())
    spread = float(_center(before).norm()) / math.sqrt(len(before))
    rest = float((change - vector).norm())
    return CentroidShift(vector, norm, norm / spread, rest / math.sqrt((len(before) - 1) * len(before)))


def linear_cka(
    left: Float[Tensor, "row left_width"], right: Float[Tensor, "row right_width"], debiased: bool = False
) -> float:
    """Linear centred kernel alignment: similarity of the geometry of the rows in two models, whatever their bases.

    Unchanged where a side is rotated, shifted, or scaled as a whole. With rows of fewer than the width the usual form
    comes near 1 whatever the states are; compare such states by the debiased one.

    No matrix larger than rows x rows or width x width is held, whichever is smaller, and no side in float64 as a whole.

    Args:
        left: states of the first model, of any float dtype; all is computed in float64.
        right: states of the second model, the same rows in the same order, of any width.
        debiased: whether to use the unbiased estimate of HSIC, which leaves out what a row has in common with itself.

    Returns:
        The similarity: from 0 to 1, or debiased from -1 to 1 and about 0 for states that are independent.

    Raises:
        ValueError: different numbers of rows on the two sides, fewer than two (debiased: four), states that are not
            finite, rows that are all the same; or debiased, rows that have nothing in common with one another, as where
            all but one are the same.

    Source: Kornblith et al. 2019, arXiv 1905.00414, equation 4; debiased: Song et al. 2012, equation 5, as in Nguyen et
        al. 2021, arXiv 2010.15327, equation 3. For centred rows with squared lengths d and e that equation is
        ``|X'Y|^2 - n <d, e> / (n - 2) + sum(d) sum(e) / ((n - 1) (n - 2))``, up to a factor that cancels.
    """
    _require_states(left, "left")
    _require_states(right, "right")
    _require_same("rows", len(left), len(right))
    if debiased and len(left) < 4:
        raise ValueError(f"{len(left)} rows; the debiased form needs at least 4")
    inner = _inner_by_rows if len(left) <= max(left.shape[1], right.shape[1]) else _inner_by_columns
    squares, lengths = inner(left, right)
    if debiased:
        whole = squares
        squares = {(i, j): _sum_without_own(whole[i, j], lengths[i], lengths[j]) for i, j in whole}
        if any(squares[i, i] <= CONSTANT_KERNEL * whole[i, i] for i in (0, 1)):
            raise ValueError("the rows of a side have nothing in common to compare; give more rows, or rows less alike")
    return squares[0, 1] / (math.sqrt(squares[0, 0]) * math.sqrt(squares[1, 1]))


def principal_angles(
    left: Float[Tensor, "left_row width"], right: Float[Tensor, "right_row width"], components: int
) -> Float[Tensor, " component"]:
    """Angles between the spans of the first principal components of two sets of states.

    0 where a direction is shared, 90 degrees where it is orthogonal to the other span altogether. Unchanged where both
    sides are rotated alike, and where either is shifted, or scaled as a whole. Tiny angles keep their digits. A span is
    as certain as the gap between the variance of its last component and that of the next.

    Args:
        left: states of the first model, of any float dtype; all is computed in float64.
        right: states of the second model, in the same space; they may be other rows.
        components: number of components of the largest variance that span each side.

    Returns:
        The angles, as many as components, in degrees from 0 to 90, ascending, float64.

    Raises:
        ValueError: widths that differ, fewer than two rows, states that are not finite, rows that are all the same, or
            more components than a side has rows, columns, or directions with any spread.

    Source: Bjorck and Golub 1973, algorithm with sines and cosines.
    """
    for states, name in ((left, "left"), (right, "right")):
        _require_states(states, name)
    _require_same("widths", left.shape[1], right.shape[1])
    one, other = (_span(states, name, components) for states, name in ((left, "left"), (right, "right")))
    shared = one.T @ other
    cosines, sines = torch.linalg.svdvals(shared), torch.linalg.svdvals(other - one @ shared).flip(0)
    # Computed from both, since a cosine has no digits of a small angle and a sine none of one near 90 degrees; scipy's
    # subspace_angles (1.17) takes the wrong one of them where angles below and above 45 degrees come together.
    return torch.rad2deg(torch.atan2(sines, cosines))


def bures_wasserstein(
    left: Float[Tensor, "left_row width"], right: Float[Tensor, "right_row width"]
) -> BuresWasserstein:
    """The Bures-Wasserstein distance of the covariance matrices of two sets of states, both with n - 1.

    ``distance^2 = tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2``. With A = X'X and B = Y'Y the last trace is the nuclear norm
    of XY', and the whole is the smallest ``|X - QY|^2`` over orthogonal Q. It is computed in that form, from X and Y
    alone, since the traces cancel: of equal inputs the distance is about 1e-15 of ``sqrt(tr A + tr B)``, not 1e-8.

    Unchanged where both sides are rotated alike and where either is shifted; ``distance`` scales with both sides and
    ``conflict`` stays.

    Args:
        left: states of the first model, of any float dtype; all is computed in float64.
        right: states of the second model, in the same space; they may be other rows, and not as many.

    Raises:
        ValueError: widths that differ, fewer than two rows, states that are not finite, or rows that are all the same.

    Source: Bhatia, Jain and Lim 2019 (arXiv 1712.01504), theorem 1; normalised by the traces it is the geometry
        conflict of arXiv 2605.09608.
    """
    _require_states(left, "left")
    _require_states(right, "right")
    _require_same("widths", left.shape[1], right.shape[1])
    roots = [_covariance_root(states) for states in (left, right)]
    longest = max(len(root) for root in roots)
    one, other = (torch.nn.functional.pad(root, (0, 0, 0, longest - len(root))) for root in roots)
    turn_left, _, turn_right = torch.linalg.svd(one @ other.T)
    distance = float((one - turn_left @ (turn_right @ other)).norm())
    traces = float(one.norm()) ** 2 + float(other.norm()) ** 2
    return BuresWasserstein(distance, min(1.0, distance**2 / traces))


def _center(states: Tensor) -> Tensor:
    wide = states.double()
    return wide - wide.mean(dim=0)


def _span(states: Tensor, name: str, components: int) -> Tensor:
    """Orthonormal columns: the first principal components."""
    if not 1 <= components <= min(states.shape):
        rows, width = states.shape
        raise ValueError(f"{components} components of {rows} rows x {width} columns of {name}; ask for 1 to the fewer")
    _, spread, directions = torch.linalg.svd(_center(states), full_matrices=False)
    rounding = torch.finfo(torch.float64).eps * max(states.shape) * max(float(spread[0]), float(states.abs().max()))
    rank = int((spread > rounding).sum())
    if rank < components:
        raise ValueError(f"{name} has spread in {rank} directions only; ask for at most as many components")
    return directions[:components].T


def _covariance_root(states: Tensor) -> Tensor:
    """A matrix of few rows whose Gram matrix over them is the covariance."""
    root = _center(states) / math.sqrt(len(states) - 1)
    return torch.linalg.qr(root, mode="r").R if len(root) > root.shape[1] else root


def _inner_by_rows(left: Tensor, right: Tensor) -> tuple[Squares, list[Tensor]]:
    """<K, L>, <K, K> and <L, L> of centred kernels, and their diagonals, with rows x rows matrices."""
    kernels = []
    for states in (left, right):
        kernel = torch.zeros(len(states), len(states), dtype=torch.float64, device=states.device)
        for block in states.split(max(1, BLOCK_NUMBERS // len(states)), dim=1):
            centred = _center(block)
            kernel.addmm_(centred, centred.T)
        kernels.append(kernel)
    flat = [kernel.flatten() for kernel in kernels]
    squares = {(i, j): float(flat[i].dot(flat[j])) for i, j in ((0, 0), (0, 1), (1, 1))}
    return squares, [kernel.diagonal() for kernel in kernels]


def _inner_by_columns(left: Tensor, right: Tensor) -> tuple[Squares, list[Tensor]]:
    """Inner products from width x width matrices: <K, L> = |X'Y|^2."""
    width = max(left.shape[1], right.shape[1])
    blocks = [_blocks(states, width) for states in (left, right)]
    means = [torch.stack([block.double().sum(dim=0) for block in side]).sum(dim=0) / len(left) for side in blocks]
    squares = {}
    for i, j in ((0, 0), (0, 1), (1, 1)):
        product = torch.zeros(len(means[i]), len(means[j]), dtype=torch.float64, device=left.device)
        for one, other in zip(blocks[i], blocks[j], strict=True):
            product.addmm_((one.double() - means[i]).T, other.double() - means[j])
        squares[i, j] = float(product.norm()) ** 2
    lengths = [
        torch.cat([(block.double() - mean).square().sum(dim=1) for block in side])
        for side, mean in zip(blocks, means, strict=True)
    ]
    return squares, lengths


def _sum_without_own(square: float, left: Tensor, right: Tensor) -> float:
    """n (n - 3) HSIC_1 of centred rows from <K, L> and the rows' squared lengths."""
    rows = len(left)
    own = rows / (rows - 2) * float(left.dot(right))
    return square - own + float(left.sum()) * float(right.sum()) / ((rows - 1) * (rows - 2))


def _blocks(states: Tensor, width: int) -> tuple[Tensor, ...]:
    """Blocks of rows; the width is that of the wider side where two are read together."""
    blocks: tuple[Tensor, ...] = states.split(max(1, BLOCK_NUMBERS // max(1, width)))
    return blocks


def _require_states(states: Tensor, name: str, spread: bool = True) -> None:
    if states.ndim != 2 or len(states) < 2:
        raise ValueError(f"{name} has the shape {list(states.shape)}; give at least 2 rows, as [row width]")
    finite = torch.cat([torch.isfinite(block).all(dim=1) for block in _blocks(states, states.shape[1])])
    if not bool(finite.all()):
        raise ValueError(f"row {int((~finite).nonzero()[0])} of {name} is not finite; leave it out on both sides")
    if spread and not any(bool((block != states[0]).any()) for block in _blocks(states, states.shape[1])):
        raise ValueError(f"every row of {name} is the same; give rows that differ")


def _require_same(what: str, left: int, right: int) -> None:
    if left != right:
        raise ValueError(f"{left} and {right} {what}; there must be as many on both sides")
