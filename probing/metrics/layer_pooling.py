"""Sparse weights over layers, learned while the model is frozen, by which layers are pooled into one state a row."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CHUNK_NUMBERS = 1 << 22
"""Numbers of differences that are held at a time."""
STARTS = 8
"""Number of weightings that are improved at the same time: the uniform one, and the best of all single layers and
halves of two."""
INWARD = 0.1
"""Share of the uniform weights that is mixed into starts, away from corners and edges where a search can get stuck."""
DECREASE = 1e-4
"""Share of the decrease predicted by the slope that a step must reach to be taken (Armijo)."""
RATES = (1e-8, 1e8)
MOVED = 1e-7
"""The search ends where no weight moves by more."""
NOT_ZERO = 1e-24
"""Squared distance below which its root counts as constant, since the slope of a root is infinite at zero."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Weights over layers that separate the labels.

    Attributes:
        weights: shape [layer], at least 0, sum 1, float64; most are exactly 0.
        loss: ``separation_loss`` with these weights, at most that of uniform weights and of every single layer.
        uniform_loss: ``separation_loss`` with the same weight for every layer.
    """

    weights: Tensor
    loss: float
    uniform_loss: float


def sparsemax(scores: Float[Tensor, "*batch layer"]) -> Float[Tensor, "*batch layer"]:
    """The point of the simplex nearest to the scores: like softmax, but low scores get exactly 0.

    Differentiable; the gradient of a score that got 0 is 0.

    Args:
        scores: any finite numbers; adding the same to all of them changes nothing.

    Returns:
        Weights in the shape and dtype of the scores; at least 0, with a sum of 1 over the last axis.

    Raises:
        ValueError: no scores, or scores that are not finite.

    Source: Martins and Astudillo 2016, arXiv 1602.02068, algorithm 1.
    """
    if not scores.shape[-1] or not bool(torch.isfinite(scores).all()):
        raise ValueError("there must be scores, and every one must be finite")
    shifted = scores - scores.amax(dim=-1, keepdim=True).detach()
    ordered = shifted.sort(dim=-1, descending=True).values
    excess = ordered.cumsum(dim=-1) - 1
    places = torch.arange(1, scores.shape[-1] + 1, dtype=scores.dtype, device=scores.device)
    support = (places * ordered > excess).sum(dim=-1, keepdim=True)
    return (shifted - excess.gather(-1, support - 1) / support).clamp_min(0)


def sample_pairs(
    labels: Int[Tensor, " row"], count: int, seed: int
) -> tuple[Int[Tensor, "pair 2"], Bool[Tensor, " pair"]]:
    """Pairs of rows to learn from: half of one label, half of two; of an odd count the larger half are of two.

    Every label with at least two rows gives as many pairs of its own as any other (one more or fewer where they do not
    divide), and every label is as often the first of two, the second being any other with the same chance: a rare label
    counts as much as a frequent one. Rows are drawn with replacement, so that a pair may come twice, but no row is
    paired with itself.

    Args:
        labels: labels of the rows; each value is a label of its own, negative ones too.
        count: number of pairs, at least 2.
        seed: seed of the draw of pairs; the same seed gives the same pairs.

    Returns:
        The pairs, as numbers of rows, and whether both rows have the same label.

    Raises:
        ValueError: fewer than two pairs asked for, one label only, or no label with two rows.
    """
    values, inverse, sizes = np.unique(labels.cpu().numpy(), return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(sizes > 1)
    if count < 2 or len(values) < 2 or not len(repeated):
        raise ValueError(
            f"{count} pairs of {len(inverse)} rows with {len(values)} labels, {len(repeated)} of them on two rows or "
            "more; ask for at least 2 pairs, with two labels, one of them on at least two rows"
        )
    random = np.random.default_rng(seed)
    members, starts = np.argsort(inverse, kind="stable"), np.cumsum(sizes) - sizes
    own = repeated[np.arange(count // 2) % len(repeated)]
    first = random.integers(sizes[own])
    second = (first + random.integers(1, sizes[own])) % sizes[own]
    left = np.arange(count - count // 2) % len(values)
    right = (left + random.integers(1, len(values), size=len(left))) % len(values)
    places = [
        np.concatenate([starts[own] + first, starts[left] + random.integers(sizes[left])]),
        np.concatenate([starts[own] + second, starts[right] + random.integers(sizes[right])]),
    ]
    pairs = torch.from_numpy(members[np.stack(places, axis=1)].astype(np.int64))
    return pairs, torch.arange(count) < count // 2


def difference_grams(
    layers: Sequence[Float[Tensor, "row width"]], pairs: Int[Tensor, "pair 2"]
) -> tuple[Float[Tensor, "pair layer layer"], Float[Tensor, " layer"]]:
    """Inner products of the differences of pairs of rows between all layers, from which the weights are learned.

    ``grams[p, l, m] = <h_l[a] - h_l[b], h_m[a] - h_m[b]> / (s_l s_m)`` for the pair p = (a, b), where ``s_l^2`` is the
    mean squared distance of the pairs at layer l. Without the scales a layer would count by the norm of its states,
    which grows with depth. A chunk of pairs x layer x width is held at a time; each layer is read once for every chunk.

    Args:
        layers: states of the same rows at every layer, of any float dtype; differences are taken in float64.
        pairs: pairs of row numbers, as ``sample_pairs`` gives them.

    Returns:
        The products, without unit, and the scales s, in the states' unit; both float64.

    Raises:
        ValueError: no layers, shapes that differ, no pairs, pairs of rows that there are not, or a layer (by its
            number, from 0) where paired states are not finite or do not differ at all.
    """
    _require_layers(layers, pairs)
    chunk = max(1, CHUNK_NUMBERS // max(1, len(layers) * layers[0].shape[1]))
    parts = []
    for first, second in (part.unbind(dim=1) for part in pairs.split(chunk)):
        change = torch.stack([layer[first].double() - layer[second].double() for layer in layers], dim=1)
        parts.append(change @ change.mT)
    grams = torch.cat(parts)
    scales = grams.diagonal(dim1=1, dim2=2).mean(dim=0).sqrt()
    for number, scale in enumerate(scales.tolist()):
        if not np.isfinite(scale):
            raise ValueError(
                f"layer {number}, row {_find_bad_row(layers[number], pairs)} is not finite; leave the row out"
            )
        if scale == 0:
            raise ValueError(f"layer {number}: the rows of every pair are the same; leave the layer out")
    return grams / (scales[:, None] * scales), scales


def separation_loss(
    weights: Float[Tensor, "*batch layer"],
    grams: Float[Tensor, "pair layer layer"],
    same: Bool[Tensor, " pair"],
    margin: float,
) -> Float[Tensor, "*batch"]:
    """Contrastive loss of the pooled states: pairs of one label should be near, those of two a margin apart.

    The mean over all pairs of ``d^2`` for one label and of ``max(0, margin - d)^2`` for two, with ``d^2 = w' G w``.
    Its gradient is finite at d = 0 too, where the root counts as constant.

    Args:
        weights: weights over layers, with any leading axes.
        grams: Gram matrices from ``difference_grams``, so that a distance of 1 is the usual one at a single layer.
        same: whether both rows of a pair have the same label.
        margin: the distance beyond which two labels are far enough apart.

    Returns:
        The loss of each weighting, at least 0.

    Source: Hadsell, Chopra and LeCun 2006, equations 1 to 4, without their factor 1/2 and as a mean; as the objective
        for layer weights arXiv 2506.13901.
    """
    # Computed as <G, ww'> in one product of matrices, since Gw would be as large as all grams for every weighting.
    products = (weights[..., :, None] * weights[..., None, :]).flatten(start_dim=-2)
    squares = products @ grams.flatten(start_dim=1).T
    missing = (margin - squares.clamp_min(NOT_ZERO).sqrt()).clamp_min(0)
    return torch.where(same, squares.clamp_min(0), missing.square()).mean(dim=-1)


def fit_layer_weights(
    grams: Float[Tensor, "pair layer layer"], same: Bool[Tensor, " pair"], margin: float = 2.0, steps: int = 100
) -> LayerWeights:
    """Weights over layers with the smallest separation loss, by projected gradient steps from several starts.

    The weights are ``sparsemax(scores)``, the scores being the last weights less a step along the gradient, so that a
    layer of weight 0 can come back, which it cannot where the gradient is taken through sparsemax. The loss is not
    convex: starts near the best single layers and the best halves of two, and the uniform weights, are improved at the
    same time, and the best result is kept. It is a local optimum, never worse than the uniform weights or any single
    layer. Of random problems that were made hard (few layers, few pairs, layers that cancel one another), one in two
    hundred had a better optimum, by about 1 %.

    Args:
        grams: Gram matrices from ``difference_grams``.
        same: whether both rows of a pair have the same label; there must be both kinds.
        margin: margin of ``separation_loss``, in units of the usual distance.
        steps: greatest number of steps; the search ends by itself where nothing moves.

    Raises:
        ValueError: grams that are not [pair layer layer] or not finite, another number of pairs, one kind of pairs
            only, a margin that is not positive, no steps.

    Source: learned sparse layer weights as in arXiv 2506.13901; steps of Barzilai and Borwein 1988, projected as in
        Birgin, Martinez and Raydan 2000.
    """
    _require_fit(grams, same, margin, steps)
    layers = grams.shape[-1]
    grams = grams.double()
    uniform = torch.full((1, layers), 1 / layers, dtype=torch.float64, device=grams.device)
    singles = torch.eye(layers, dtype=torch.float64, device=grams.device)
    one, other = torch.triu_indices(layers, layers, device=grams.device)
    middles = (singles[one] + singles[other]) / 2
    nearest = middles[separation_loss(middles, grams, same, margin).argsort(stable=True)[: STARTS - 1]]
    starts = torch.cat([uniform, (1 - INWARD) * nearest + INWARD * uniform])
    candidates = torch.cat([uniform, singles, _improve(starts, grams, same, margin, steps)])
    losses = separation_loss(candidates, grams, same, margin)
    best = int(losses.argmin())
    return LayerWeights(candidates[best], float(losses[best]), float(losses[0]))


def pool_layers(
    layers: Iterable[Float[Tensor, "row width"]], weights: Float[Tensor, " layer"], scales: Float[Tensor, " layer"]
) -> Float[Tensor, "row width"]:
    """One state a row: the sum over layers of weight x (state - mean of its layer) / scale.

    Layers of weight 0 are not read. Centring changes no distance, but keeps the digits of the spread where a layer is
    far from the origin.

    Args:
        layers: states of the same rows, one layer after the other, of any float dtype.
        weights: weights over the layers, at least 0, from ``fit_layer_weights``.
        scales: scales from ``difference_grams``.

    Returns:
        The pooled states, float64, without unit, mean 0.

    Raises:
        ValueError: different numbers of weights, scales and layers; weights below 0 or all 0; scales of weighted layers
            that are not positive; or a layer (by its number, from 0) whose shape differs or whose states are not
            finite.
    """
    _require_weights(weights, scales)
    pooled: Tensor | None = None
    count = 0
    for number, states in enumerate(layers):
        count += 1
        if number >= len(weights) or not float(weights[number]):
            continue
        wide = states.double()
        if not bool(torch.isfinite(wide).all()):
            row = int((~torch.isfinite(wide).all(dim=1)).nonzero()[0])
            raise ValueError(f"layer {number}, row {row} is not finite; leave the row out")
        part = (wide - wide.mean(dim=0)) * (float(weights[number]) / float(scales[number]))
        if pooled is not None and part.shape != pooled.shape:
            raise ValueError(f"layer {number} is {list(part.shape)}, others {list(pooled.shape)}; give the same rows")
        pooled = part if pooled is None else pooled.add_(part)
    if pooled is None or count != len(weights):
        raise ValueError(f"{count} layers and {len(weights)} weights; there must be as many")
    return pooled


def _improve(weights: Tensor, grams: Tensor, same: Tensor, margin: float, steps: int) -> Tensor:
    """Improve every start by projected gradient steps until its loss no longer falls."""

    def look(point: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            point = point.clone().requires_grad_()
            loss = separation_loss(point, grams, same, margin)
            (slope,) = torch.autograd.grad(loss.sum(), point)
        return loss.detach(), slope

    loss, slope = look(weights)
    rate = torch.ones_like(weights[:, :1])
    for _ in range(steps):
        trial = sparsemax(weights - rate * slope)
        trial_loss, trial_slope = look(trial)
        step = trial - weights
        taken = trial_loss <= loss + DECREASE * (step * slope).sum(dim=-1)
        bend = (step * (trial_slope - slope)).sum(dim=-1, keepdim=True)
        longer = torch.where(bend > 0, step.square().sum(dim=-1, keepdim=True) / bend, 2 * rate).clamp(*RATES)
        rate = torch.where(taken[:, None], longer, rate / 4)
        weights, slope = (
            torch.where(taken[:, None], new, old) for new, old in ((trial, weights), (trial_slope, slope))
        )
        loss = torch.where(taken, trial_loss, loss)
        if float(step.abs().max()) < MOVED:
            break
    return weights


def _find_bad_row(states: Tensor, pairs: Tensor) -> int:
    rows = pairs.unique()
    return int(rows[~torch.isfinite(states[rows]).all(dim=1)][0])


def _require_layers(layers: Sequence[Tensor], pairs: Tensor) -> None:
    if not len(layers) or not len(pairs):
        raise ValueError(f"{len(layers)} layers and {len(pairs)} pairs; there must be some")
    shape = layers[0].shape
    for number, layer in enumerate(layers):
        if layer.shape != shape:
            raise ValueError(
                f"layer {number} is {list(layer.shape)}, layer 0 {list(shape)}; give the same rows of each"
            )
    if int(pairs.min()) < 0 or int(pairs.max()) >= shape[0]:
        raise ValueError(f"pairs of rows {int(pairs.min())} to {int(pairs.max())}; there are rows 0 to {shape[0] - 1}")


def _require_fit(grams: Tensor, same: Tensor, margin: float, steps: int) -> None:
    if grams.ndim != 3 or grams.shape[1] != grams.shape[2] or len(grams) != len(same):
        raise ValueError(f"grams {list(grams.shape)} for {len(same)} pairs; they must be [pair layer layer]")
    if not bool(torch.isfinite(grams).all()):
        raise ValueError("grams must be finite; take them from difference_grams")
    if bool(same.all()) or not bool(same.any()):
        raise ValueError("there must be pairs of one label and pairs of two; take them from sample_pairs")
    if not 0 < margin < float("inf") or steps < 1:
        raise ValueError(f"margin {margin} and {steps} steps; the margin must be positive, with at least 1 step")


def _require_weights(weights: Tensor, scales: Tensor) -> None:
    if weights.shape != scales.shape:
        raise ValueError(f"{len(weights)} weights and {len(scales)} scales; there must be as many")
    if not bool((weights >= 0).all()) or not bool(weights.any()) or not bool((scales[weights > 0] > 0).all()):
        raise ValueError("weights must be at least 0, not all of them 0, and the scales where they are not 0 positive")
