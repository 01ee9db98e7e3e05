"""Formulas that carry a direction from the states of one model to those of another, by a map fitted on shared prompts.

A map takes centred states to centred states; a direction, which is a difference of states, goes through it without the
means. Everything is computed in float64.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Penalties of the least-squares map that are tried, relative to the mean square length of the states."""
SMALLEST = 1e-10
"""Directions along which both sides vary together by less than this share of the largest are no part of a rotation."""


@dataclass(frozen=True, eq=False)
class StateMap:
    """A linear map of the states of one model to those of another.

    Attributes:
        name: how it was made.
        matrix: [from_width, to_width].
        from_mean: mean of the states that it was fitted to.
        to_mean: mean of the states that these were mapped to.
        penalty: of the least-squares map; None for others.
    """

    name: str
    matrix: Float[Tensor, "from_width to_width"]
    from_mean: Float[Tensor, " from_width"]
    to_mean: Float[Tensor, " to_width"]
    penalty: float | None = None

    def carry(self, vectors: Float[Tensor, "*axes from_width"]) -> Float[Tensor, "*axes to_width"]:
        """Directions in the other model."""
        return vectors.double() @ self.matrix

    def measure_error(self, states: Float[Tensor, "row from_width"], targets: Float[Tensor, "row to_width"]) -> float:
        """Squared error of mapped states over that of the mean alone: 0 is perfect, 1 no better than the mean."""
        wanted = targets.double() - self.to_mean
        off = wanted - (states.double() - self.from_mean) @ self.matrix
        return float(off.square().sum() / wanted.square().sum())


def keep_states(states: Float[Tensor, "row width"], targets: Float[Tensor, "row width"]) -> StateMap:
    """The map that leaves every vector as it is.

    Raises:
        ValueError: the widths differ.
    """
    if states.shape[1] != targets.shape[1]:
        raise ValueError(f"states of width {states.shape[1]} and {targets.shape[1]}: a direction cannot stay as it is")
    identity = torch.eye(states.shape[1], dtype=torch.float64)
    return StateMap("as it is", identity, states.double().mean(dim=0), targets.double().mean(dim=0))


def fit_orthogonal(states: Float[Tensor, "row from_width"], targets: Float[Tensor, "row to_width"]) -> StateMap:
    """The rotation (and one scale) that takes states nearest to their targets: Procrustes.

    With X and Y centred and X' Y = U S V', the map is U V' times tr(S) / |X|^2. Where there are fewer prompts than
    dimensions, or the widths differ, it is zero on what the prompts do not span.

    Source: Schoenemann 1966.
    """
    from_mean, to_mean = states.double().mean(dim=0), targets.double().mean(dim=0)
    centred = states.double() - from_mean
    left, sizes, right = torch.linalg.svd(centred.T @ (targets.double() - to_mean), full_matrices=False)
    kept = sizes > SMALLEST * sizes[0]
    scale = sizes[kept].sum() / centred.square().sum()
    return StateMap("orthogonal map", scale * left[:, kept] @ right[kept], from_mean, to_mean)


def fit_least_squares(
    states: Float[Tensor, "row from_width"], targets: Float[Tensor, "row to_width"], penalty: float
) -> StateMap:
    """The linear map of least squared error with a ridge penalty: X' (X X' + penalty m I)^-1 Y, X and Y centred.

    Args:
        states: of the one model.
        targets: of the other, for the same prompts.
        penalty: relative to m, the mean square length of the centred states.
    """
    from_mean, to_mean = states.double().mean(dim=0), targets.double().mean(dim=0)
    centred = states.double() - from_mean
    gram = centred @ centred.T
    gram = gram + penalty * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    matrix = centred.T @ torch.linalg.solve(gram, targets.double() - to_mean)
    return StateMap("least-squares map", matrix, from_mean, to_mean, penalty)


def fit_maps(
    states: Float[Tensor, "row from_width"],
    targets: Float[Tensor, "row to_width"],
    held_out: Int[Tensor, " held_out"],
) -> list[tuple[StateMap, float]]:
    """Every kind of map with its error on rows that it was not fitted to, the least first.

    The penalty is the one of least held-out error. The maps that are returned are fitted to all rows.

    Args:
        states: of the one model.
        targets: of the other, for the same prompts.
        held_out: rows by which the maps are compared.
    """
    inside = torch.ones(len(states), dtype=torch.bool)
    inside[held_out] = False
    seen, shown = states[inside], targets[inside]
    unseen = (states[held_out], targets[held_out])
    fitted = [fit_least_squares(seen, shown, penalty) for penalty in PENALTIES]
    errors = [each.measure_error(*unseen) for each in fitted]
    best = errors.index(min(errors))
    found = [
        (fit_least_squares(states, targets, PENALTIES[best]), errors[best]),
        (fit_orthogonal(states, targets), fit_orthogonal(seen, shown).measure_error(*unseen)),
    ]
    if states.shape[1] == targets.shape[1]:
        found.append((keep_states(states, targets), keep_states(seen, shown).measure_error(*unseen)))
    return sorted(found, key=lambda pair: pair[1])


def draw_like(vector: Float[Tensor, " width"], count: int, generator: torch.Generator) -> Float[Tensor, "count width"]:
    """Random directions of the length of a vector."""
    drawn = torch.randn(count, len(vector), generator=generator, dtype=torch.float64)
    return drawn / drawn.norm(dim=1, keepdim=True) * vector.double().norm()


def to_length(vector: Float[Tensor, " width"], length: float) -> Float[Tensor, " width"]:
    """A vector of the same direction with another length.

    Raises:
        ValueError: nothing of the vector is left, so that it has no direction.
    """
    own = float(vector.double().norm())
    if not own > 0:
        raise ValueError("nothing of the direction is left behind the map")
    return vector.double() * (length / own)
