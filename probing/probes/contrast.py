"""Every probe of one layer, on every split: the contrast-consistent ones, their ceilings, and what they must beat."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probing.probes.ccs_blocks import Training
from probing.probes.ccs_states import logits_of
from probing.probes.ccs_training import TrainedProbes, train_together
from probing.probes.closed_form import crc_directions, vinc_directions
from probing.probes.contrast_readings import PROBES, SUPERVISED, DistractorReadings, NullDraws, StatementReadings
from probing.probes.contrast_states import ContrastOptions, Prepared, Rows, center_about
from probing.probes.controls import draw_directions, shuffle_pairings
from probing.probes.evaluate import Array, credit
from probing.probes.supervised import LinearProbe, fit_logistic, fit_mass_mean
from probing.statistics.groups import connected_groups
from probing.statistics.permutation import draw_label_flips

Directions = Mapping[str, tuple[Tensor, Tensor]]
"""Weights [width split] and biases [split], by the name of the probe."""
SAME_ANSWERS = 0.95
"""Share of statements that two restarts have to answer alike to count as the same optimum."""


def fit_layer(
    forms: Float[Tensor, "4 pair width"],
    rows: Rows,
    options: ContrastOptions,
    *,
    marker: tuple[Float[Tensor, "4 some width"], NDArray[np.int64]] | None = None,
    distracted: tuple[Float[Tensor, "4 pair width"], NDArray[np.bool_]] | None = None,
    report: Callable[[float], None] = lambda share: None,
    threads: int | None = None,
) -> StatementReadings:
    """Train every probe of a layer, and read what it says of the pairs.

    Args:
        forms: states of A1, A0, N1, N0.
        rows: labels, units and splits.
        options: probes to train, and how.
        marker: states of some pairs with a word replaced by a meaningless one, and which pairs they are.
        distracted: states of all pairs where some have a word appended, and which have.
        report: told what share of the work is done.
        threads: number of threads that share the trainings on a CPU; by default as many as torch has.

    Raises:
        NotFinite: training diverged.
    """
    made = Prepared.of(forms, rows.splits, options)
    worded = None if distracted is None else _prepare_distracted(distracted[0], rows, options)
    trained, paired, followed = _train(made, worded, rows, options, report, threads)
    weight, bias = trained.best()
    wanted = _measure_spread(logits_of(made.states, made.centers, weight, bias)[0], made.train)
    nulls = {"random": _draw_random(made, rows, options, wanted)}
    supervised, refits = _fit_supervised(made, rows, options)
    directions = {"ccs": (weight[0], bias[0]), **_find_closed_forms(made, wanted), **supervised}
    read = {name: _predict(made, *directions[name]) for name in PROBES}
    credits = np.stack([_credit_pairs(read[name], rows) for name in PROBES])
    nulls |= refits | {"pairings": _judge_shuffled(made, rows, paired)}
    whole_weight, whole_bias = _orient_whole(rows, directions, credits)
    agreement = _compare_restarts(made, trained)
    distractor = None
    if distracted is not None and worded is not None and followed is not None:
        distractor = _judge_distracted(rows, worded, followed, directions["mass_mean"], distracted[1])
    return StatementReadings(
        forms=np.stack([rows.splits.held_out(read[name]) for name in PROBES]),
        credits=credits,
        nulls=nulls,
        weight=whole_weight.double().cpu().numpy(),
        bias=whole_bias.double().cpu().numpy(),
        centers=(made.centers[0, :, -1] + made.origin).double().cpu().numpy(),
        cosines=_find_cosines(whole_weight),
        restart_loss=trained.loss[0, -1].double().cpu().numpy(),
        restart_agreement=agreement,
        marker=None if marker is None else _predict_marked(made, rows, options, directions, *marker),
        distractor=distractor,
    )


def _prepare_distracted(forms: Tensor, rows: Rows, options: ContrastOptions) -> Prepared:
    """States with a word appended, centred by their mean.

    The median of a feature that is either present or absent is one of the two values, and would hide the feature from a
    probe.
    """
    return Prepared.of(forms, rows.splits.without_pairs, replace(options, centering="mean"))


def _train(
    made: Prepared,
    worded: Prepared | None,
    rows: Rows,
    options: ContrastOptions,
    report: Callable[[float], None],
    threads: int | None,
) -> tuple[TrainedProbes, list[tuple[Tensor, Tensor]], TrainedProbes | None]:
    """Train all probes at once: those of the pairs, the best of each permuted pairing, and those with the distractor.

    A pairing combines statements with the no form of another statement of the same fold; it needs no copy of the
    states.
    """
    device = made.states.device
    targets = torch.from_numpy(np.concatenate([rows.labels, ~rows.labels])).to(device)
    partners = shuffle_pairings(np.concatenate([rows.splits.folds] * 2), options.pairings, options.ccs.seed)
    trainings = {"own": Training(made.states, made.centers)}
    if len(partners):
        mixed = _drop_last_split(made)
        pairings = torch.from_numpy(partners).to(device)
        trainings["paired"] = Training(mixed.states, mixed.centers, pairings, mixed.train)
    if worded is not None:
        trainings["worded"] = Training(worded.states, worded.centers, train=worded.train)
    together = train_together(
        list(trainings.values()),
        made.train,
        options.ccs,
        targets,
        lambda done: report(done / options.ccs.epochs),
        threads,
    )
    trained = dict(zip(trainings, together, strict=True))
    paired = list(zip(*trained["paired"].best(), strict=True)) if "paired" in trained else []
    return trained["own"], paired, trained.get("worded")


def _drop_last_split(made: Prepared) -> Prepared:
    """Leave out the last split, which sees every row."""
    return replace(made, centers=made.centers[:, :, :-1], train=made.train[:, :-1])


def _predict(made: Prepared, weight: Tensor, bias: Tensor) -> Array:
    """Probabilities [4 pair split] by weights [width split] and biases [split]."""
    return _split_forms(logits_of(made.states, made.centers, weight[None], bias[None])[0])


def _split_forms(logits: Tensor) -> Array:
    """Probabilities [4 pair ...] of A1, A0, N1, N0 from logits [2 row ...]."""
    pairs = logits.shape[1] // 2
    p = torch.sigmoid(logits.double()).cpu().numpy()
    return np.stack([p[0, :pairs], p[1, :pairs], p[0, pairs:], p[1, pairs:]])


def _credit_pairs(forms: Array, rows: Rows) -> Array:
    """How right every split is on every pair, [pair split], from [4 pair split]."""
    return credit(np.moveaxis(forms, -1, 0)).T * rows.truth[:, None]


def _measure_spread(logits: Tensor, train: Tensor) -> Tensor:
    """Root mean square of the logits of the training rows of each split, [split], from [2 row split]."""
    counted = train.to(logits)
    return ((logits.square() * counted).sum(dim=(0, 1)) / (2 * counted.sum(dim=0))).sqrt()


def _scale(made: Prepared, direction: Tensor, wanted: Tensor) -> Tensor:
    """Scale directions [width split] so that their logits have the spread ``wanted`` on the training rows."""
    zero = torch.zeros(direction.shape[1]).to(direction)
    own = _measure_spread(logits_of(made.states, made.centers, direction[None], zero[None])[0], made.train)
    return direction * _stretch(wanted, own)


def _stretch(wanted: Tensor, own: Tensor) -> Tensor:
    """Factor by which logits that spread ``own`` have to grow."""
    return wanted / own.clamp_min(torch.finfo(own.dtype).tiny)


def _find_closed_forms(made: Prepared, wanted: Tensor) -> Directions:
    """Find the closed-form directions and give them the spread of the contrast-consistent probe."""
    states, kept = made.states[0].double(), made.train.T.double()
    means = [
        (kept @ form) / kept.sum(dim=1, keepdim=True) + origin for form, origin in zip(states, made.origin, strict=True)
    ]
    directions = {
        "crc_tpc": crc_directions(made.states[0], made.train),
        "vinc": vinc_directions(made.states[0], made.centers[0], made.train, (means[0] - means[1]).to(made.states)),
    }
    zero = torch.zeros_like(wanted)
    return {name: (_scale(made, direction, wanted), zero) for name, direction in directions.items()}


def _fit_supervised(made: Prepared, rows: Rows, options: ContrastOptions) -> tuple[Directions, dict[str, NullDraws]]:
    """Fit supervised probes to the labels, and to permutations of them.

    A row is a form; its target is 1 where it affirms a true claim or denies a false one.
    """
    signs = np.concatenate(
        [np.ones((1, len(rows.units))), draw_label_flips(rows.units, options.refits, options.ccs.seed)]
    )
    claimed = signs * rows.truth  # [labeling pair]
    right = torch.from_numpy(np.concatenate([claimed, -claimed], axis=1).T > 0).to(made.states.device)
    fitted: dict[str, list[LinearProbe]] = {name: [] for name in SUPERVISED}
    for split in range(made.train.shape[1]):
        states = torch.cat(made.rows_of(split))
        kept = right[made.train[:, split]]
        targets = torch.cat([kept, ~kept]).to(states)
        fitted["mass_mean"].append(fit_mass_mean(states, targets))
        fitted["logistic"].append(fit_logistic(states, targets, options.inverse_penalty))
    directions, nulls = {}, {}
    for name, probes in fitted.items():
        weight, bias = torch.stack([p.weight for p in probes], dim=-1), torch.stack([p.bias for p in probes], dim=-1)
        directions[name] = (weight[:, 0], bias[0])
        draws = []
        for draw in range(1, len(signs)):
            forms = _predict(made, weight[:, draw], bias[draw])
            credits = credit(np.moveaxis(forms, -1, 0)).T * claimed[draw][:, None]
            draws.append((rows.splits.held_out(forms), rows.splits.inner_scores(credits)))
        nulls[f"{name}_labels"] = _stack_draws(draws, rows)
    return directions, nulls


def _stack_draws(draws: Sequence[tuple[Array, Array]], rows: Rows) -> NullDraws:
    """Stack held-out probabilities [4 pair] and inner scores [fold] of every draw."""
    if not draws:
        return NullDraws(np.zeros((0, 4, len(rows.units))), np.zeros((0, rows.splits.count)))
    forms, inner = zip(*draws, strict=True)
    return NullDraws(np.stack(forms), np.stack(inner))


def orient(forms: Array, credits: Array, rows: Rows) -> tuple[Array, Array]:
    """Held-out probabilities [4 pair] and inner scores [fold], each split turned as its training pairs say.

    Args:
        forms: probabilities of every split, [4 pair split].
        credits: how right every split is on every pair, [pair split].
        rows: labels, units and splits.
    """
    signs = rows.splits.orientation(credits)
    turned = np.where(signs < 0, 1 - forms, forms)
    return rows.splits.held_out(turned), rows.splits.inner_scores(credits * signs)


def _draw_random(made: Prepared, rows: Rows, options: ContrastOptions, wanted: Tensor) -> NullDraws:
    """Random directions, as spread as the contrast-consistent probe and oriented in the same way."""
    drawn = torch.from_numpy(draw_directions(made.states.shape[-1], options.random, options.ccs.seed)).to(made.states)
    # Projections on every direction; a split only shifts them.
    spots, shifts = made.states[0] @ drawn, made.centers[0] @ drawn
    draws = []
    for number in range(options.random):
        own = spots[:, :, number, None] - shifts[:, None, :, number]
        forms = _split_forms(own * _stretch(wanted, _measure_spread(own, made.train)))
        draws.append(orient(forms, _credit_pairs(forms, rows), rows))
    return _stack_draws(draws, rows)


def _judge_shuffled(made: Prepared, rows: Rows, paired: Sequence[tuple[Tensor, Tensor]]) -> NullDraws:
    """The shuffled-pair control: probes trained on permuted pairings, judged on the true pairs."""
    draws = []
    judged = replace(rows, splits=rows.splits.without_all)
    for weight, bias in paired:
        forms = _predict(_drop_last_split(made), weight, bias)
        draws.append(orient(forms, _credit_pairs(forms, judged), judged))
    return _stack_draws(draws, rows)


def _orient_whole(rows: Rows, directions: Directions, credits: Array) -> tuple[Tensor, Tensor]:
    """The probes that saw every pair, oriented: weights [probe width] and biases [probe]."""
    signs = [float(rows.splits.orientation(credits[index])[-1]) for index in range(len(PROBES))]
    weights = torch.stack([sign * directions[name][0][:, -1] for name, sign in zip(PROBES, signs, strict=True)])
    biases = torch.stack([sign * directions[name][1][-1] for name, sign in zip(PROBES, signs, strict=True)])
    return weights, biases


def _find_cosines(weights: Tensor) -> Array:
    """Cosines between directions, [probe probe] from [probe width]."""
    units = torch.nn.functional.normalize(weights.double(), dim=1)
    return (units @ units.T).cpu().numpy()


def _compare_restarts(made: Prepared, trained: TrainedProbes) -> Array:
    """Share of statements that each two restarts that saw every pair answer alike, [restart restart].

    A probe and its opposite are the same answer, so agreement is at least a half.
    """
    weight, bias = trained.weight[0, :, -1], trained.bias[0, -1]
    centers = made.centers[:, :, -1:].expand(-1, -1, weight.shape[1], -1)
    p, q = torch.sigmoid(logits_of(made.states, centers, weight[None], bias[None])[0]).double()
    answers = torch.sign((p + 1 - q) / 2 - 0.5)
    alike = ((answers.T @ answers) / len(answers) + 1) / 2
    return torch.maximum(alike, 1 - alike).cpu().numpy()


def count_optima(agreement: Array, alike: float = SAME_ANSWERS) -> int:
    """Number of optima among the restarts: chains of restarts that answer alike."""
    rows, columns = np.nonzero((agreement >= alike) | np.eye(len(agreement), dtype=bool))
    return len(np.unique(connected_groups(rows, columns.tolist())))


def _predict_marked(
    made: Prepared,
    rows: Rows,
    options: ContrastOptions,
    directions: Directions,
    forms: Tensor,
    which: NDArray[np.int64],
) -> Array:
    """Probabilities of the same probes and centres for states with a word replaced: [probe 4 pair], NaN elsewhere."""
    states, _ = center_about(forms, options.normalization, made.origin)
    marked = np.full((len(PROBES), 4, len(rows.units)), np.nan)
    for index, name in enumerate(PROBES):
        weight, bias = directions[name]
        every = _split_forms(logits_of(states, made.centers, weight[None], bias[None])[0])
        marked[index][:, which] = np.take_along_axis(every, rows.splits.folds[which][None, :, None], axis=-1)[..., 0]
    return marked


def _judge_distracted(
    rows: Rows, made: Prepared, trained: TrainedProbes, truth: tuple[Tensor, Tensor], has: NDArray[np.bool_]
) -> DistractorReadings:
    """Probes trained where half of the pairs carry a word: do their answers follow the word, or truth?"""
    weight, bias = trained.best()
    read = _predict(made, weight[0], bias[0])
    signs = np.where(has, 1.0, -1.0)
    answers = np.sign(np.moveaxis(read, -1, 0)[:, [0, 2]] - np.moveaxis(read, -1, 0)[:, [1, 3]])
    follows = answers.mean(axis=1).T / 2 * signs[:, None]
    planted = torch.from_numpy(np.concatenate([has, has])).to(made.states.device)
    targets = torch.cat([planted, ~planted]).to(made.states)[:, None]
    everything = torch.cat(made.rows_of(made.train.shape[1] - 1))
    away = fit_mass_mean(everything, targets).weight[:, 0]
    units = [torch.nn.functional.normalize(w.double(), dim=0) for w in (weight[0, :, -1], away, truth[0][:, -1])]
    return DistractorReadings(
        forms=rows.splits.without_pairs.held_out(read),
        credits=_credit_pairs(read, rows),
        follows=follows,
        cosines=np.array([float((units[0] @ other).abs()) for other in units[1:]]),
    )
