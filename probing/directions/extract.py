"""Directions between two sets of states: differences of means and their relatives, and how far they can be trusted.

All of them point from harmless to harmful, and have the length by which the harmless mean has to be moved along them to
lie beside the harmful one; so "add it once" means the same whatever the method was. Computed in float64: means that
were rounded to bfloat16 before they are subtracted give a direction of cosine .96.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from probing.probes.supervised import fit_lda, fit_logistic

Method = Literal["difference_in_means", "mass_mean", "logistic", "paired_svd"]
METHODS: tuple[Method, ...] = get_args(Method)
LEAST_PROMPTS = 2
"""Prompts of each kind without which there is no mean with a spread."""
SMALLEST_SHARE = 1e-6
"""Directions along which the means differ by less than this part of their distance have no sign and no length."""

SAME = 1e-12
"""Means that differ by less than this part of the largest state differ by rounding alone."""


class NoDirection(ValueError):
    """Harmful and harmless states do not differ, so there is no direction between them."""


def difference_in_means(
    harmful: Float[Tensor, "harmful *axes width"], harmless: Float[Tensor, "harmless *axes width"]
) -> Float[Tensor, "*axes width"]:
    """Mean state of harmful prompts minus mean state of harmless ones, in float64.

    Args:
        harmful: states of harmful prompts.
        harmless: states of harmless prompts; as many places and positions, not necessarily as many prompts.

    Raises:
        ValueError: no prompts on one side, or states that are not finite.

    Source: Arditi et al. 2024, arXiv 2406.11717.
    """
    for name, states in (("harmful", harmful), ("harmless", harmless)):
        if not len(states):
            raise ValueError(f"there are no {name} states")
        if not bool(states.isfinite().all()):
            raise ValueError(f"there are {name} states that are not finite")
    return harmful.double().mean(dim=0) - harmless.double().mean(dim=0)


def find_direction(
    harmful: Float[Tensor, "harmful width"],
    harmless: Float[Tensor, "harmless width"],
    method: Method = "difference_in_means",
    rank: int = 1,
) -> Float[Tensor, "..."]:
    """The direction from harmless to harmful states by one of ``METHODS``, [width]; [rank width] by "paired_svd".

    "difference_in_means" is the definition. "mass_mean" multiplies it by the inverse of the shrunk covariance (Marks
    and Tegmark 2023), "logistic" is the weight of a penalised logistic regression. "paired_svd" takes the first right
    singular vectors of the differences of the n-th harmful and the n-th harmless prompt; these are not centred, since
    centring would take away the difference of the means, which is what is sought.

    Args:
        harmful: states of harmful prompts.
        harmless: states of harmless prompts.
        method: one of ``METHODS``.
        rank: number of vectors, for "paired_svd".

    Raises:
        ValueError: too few prompts, states that are not finite or all the same, an unknown method, a rank that there
            are too few pairs for, or a direction along which the means do not differ.
    """
    if method not in METHODS:
        raise ValueError(f"'{method}' is none of {', '.join(METHODS)}")
    if rank != 1 and method != "paired_svd":
        raise ValueError(f"{method} gives one vector; a rank of {rank} needs paired_svd")
    if min(len(harmful), len(harmless)) < LEAST_PROMPTS:
        raise ValueError(f"{len(harmful)} harmful and {len(harmless)} harmless prompts; two of each are needed")
    apart = difference_in_means(harmful, harmless)
    # At the embedding, for one, all prompts have the same state at the tokens that the template writes.
    largest = float(torch.maximum(harmful.abs().max(), harmless.abs().max()))
    if not float(apart.norm()) > SAME * largest:
        raise NoDirection("the means of harmful and harmless prompts do not differ")
    if method == "difference_in_means":
        return apart
    if method == "paired_svd":
        return _find_subspace(harmful, harmless, apart, rank)
    states = torch.cat([harmful, harmless]).double()
    targets = torch.cat([torch.ones(len(harmful)), torch.zeros(len(harmless))]).double()[:, None]
    fitted = fit_lda(states, targets) if method == "mass_mean" else fit_logistic(states, targets)
    return _scale(fitted.weight[:, 0].double(), apart)


def _find_subspace(
    harmful: Tensor, harmless: Tensor, apart: Float[Tensor, " width"], rank: int
) -> Float[Tensor, "rank width"]:
    """First right singular vectors of paired differences, the length of each its root mean square difference."""
    pairs = min(len(harmful), len(harmless))
    if not 1 <= rank <= min(pairs, harmful.shape[1]):
        raise ValueError(f"a rank of {rank}; {pairs} pairs of width {harmful.shape[1]} have at most {pairs}")
    differences = harmful[:pairs].double() - harmless[:pairs].double()
    _, lengths, vectors = torch.linalg.svd(differences, full_matrices=False)
    if not float(lengths[rank - 1]) > SMALLEST_SHARE * float(lengths[0]):
        raise NoDirection(f"the differences of {pairs} pairs span fewer than {rank} dimensions")
    signs = torch.where(vectors[:rank] @ apart < 0, -1.0, 1.0).double()
    return (signs * lengths[:rank] / pairs**0.5)[:, None] * vectors[:rank]


def _scale(vector: Float[Tensor, " width"], apart: Float[Tensor, " width"]) -> Float[Tensor, " width"]:
    """The vector at the length by which the means lie apart along it."""
    unit = vector / vector.norm()
    along = unit @ apart
    _check_length(along, apart)
    return unit * along


def _check_length(along: Tensor, apart: Tensor) -> None:
    if not float(along.abs()) > SMALLEST_SHARE * float(apart.norm()):
        raise NoDirection("the means of harmful and harmless prompts do not differ along this direction")


def find_at_positions(
    harmful: Float[Tensor, "harmful position width"],
    harmless: Float[Tensor, "harmless position width"],
    *,
    method: Method,
    rank: int = 1,
    winsorized: float = 0.0,
) -> Float[Tensor, "..."]:
    """``find_direction`` at every position of one place, [position width] or [position rank width].

    NaN at a position at which the states of both kinds have the same mean, as those of the template have at the
    embedding.

    Raises:
        ValueError: see ``find_direction``; names the position.
    """
    shape = (rank, harmful.shape[2]) if method == "paired_svd" else (harmful.shape[2],)
    found = []
    for position in range(harmful.shape[1]):
        states = torch.cat([harmful[:, position], harmless[:, position]])
        limited = winsorize(states, winsorized)
        try:
            found.append(find_direction(limited[: len(harmful)], limited[len(harmful) :], method, rank))
        except NoDirection:
            found.append(torch.full(shape, float("nan"), dtype=torch.float64))
        except ValueError as error:
            raise ValueError(f"no direction at position {position - harmful.shape[1]}: {error}") from error
    return torch.stack(found)


def project_off(
    direction: Float[Tensor, "*axes width"], mean: Float[Tensor, "*#axes width"]
) -> Float[Tensor, "*axes width"]:
    """A direction without its component along the harmless mean, so that moving along it leaves that component alone.

    Args:
        direction: any vectors.
        mean: mean state of the harmless prompts, of the same place and position.
    """
    unit = torch.nn.functional.normalize(mean.double(), dim=-1)
    return direction.double() - (direction.double() * unit).sum(dim=-1, keepdim=True) * unit


def winsorize(states: Float[Tensor, "row width"], share: float) -> Float[Tensor, "row width"]:
    """States with every dimension limited to its quantiles ``share`` and ``1 - share``, in float64.

    A few dimensions are a hundred times larger than the others in many models, and single prompts have outliers there;
    limited, they do not decide the mean alone.

    Args:
        states: harmful and harmless states together, so that both are limited alike.
        share: 0 leaves everything as it is; below .5.

    Raises:
        ValueError: a share out of range.
    """
    if not 0 <= share < 0.5:
        raise ValueError(f"the share of rows that are limited on either side is from 0 to below .5, not {share}")
    exact = states.double()
    if share == 0:
        return exact
    low, high = torch.quantile(exact, torch.tensor([share, 1 - share], dtype=torch.float64), dim=0)
    return torch.minimum(torch.maximum(exact, low), high)


def cosine(left: Float[Tensor, "*axes width"], right: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes"]:
    """Cosine of the angle between vectors, in float64."""
    return torch.nn.functional.cosine_similarity(left.double(), right.double(), dim=-1, eps=0.0).clamp(-1, 1)


def bootstrap_angles(
    harmful: Float[Tensor, "harmful width"],
    harmless: Float[Tensor, "harmless width"],
    harmful_weights: Float[Tensor, "replicate harmful"],
    harmless_weights: Float[Tensor, "replicate harmless"],
) -> Float[Tensor, " replicate"]:
    """Angle in degrees between the difference in means and that of each bootstrap replicate of the prompts.

    A replicate whose means do not differ tells nothing: it counts as 90 degrees.

    Args:
        harmful: states of harmful prompts.
        harmless: states of harmless prompts.
        harmful_weights: how often each harmful prompt counts in every replicate.
        harmless_weights: the same of the harmless prompts.
    """
    plain = difference_in_means(harmful, harmless)
    sides = []
    for states, weights in ((harmful, harmful_weights), (harmless, harmless_weights)):
        exact = weights.double()
        sides.append(exact @ states.double() / exact.sum(dim=1, keepdim=True))
    return torch.rad2deg(torch.arccos(cosine(sides[0] - sides[1], plain.expand_as(sides[0])).nan_to_num(0.0)))
