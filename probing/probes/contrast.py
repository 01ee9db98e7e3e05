"""Every probe of one layer, on every split: the contrast-consistent ones, their ceilings, and what they must beat."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from probing.probes.ccs_blocks import Training
from probing.probes.ccs_options import CCSOptions
from probing.probes.ccs_states import Centering, Normalization, centers_of, logits_of, normalize
from probing.probes.ccs_training import TrainedProbes, train_together
from probing.probes.closed_form import crc_directions, vinc_directions
from probing.probes.controls import Splits, label_flips, permuted_pairings, random_directions
from probing.probes.evaluate import credit
from probing.probes.supervised import LinearProbe, fit_logistic, fit_mass_mean

Array = NDArray[np.float64]
UNSUPERVISED = ("ccs", "crc_tpc", "vinc")
SUPERVISED = ("mass_mean", "logistic")
PROBES = (*UNSUPERVISED, *SUPERVISED)
SAME_ANSWERS = 0.95
"""Two restarts that answer so many statements alike are taken for the same optimum."""


@dataclass(frozen=True)
class ContrastOptions:
    """What is trained at a layer besides the contrast-consistent probes.

    Attributes:
        ccs: how they are trained.
        normalization: of every state.
        centering: of the yes and of the no forms, by the training rows of a split.
        random: random probes, for their band.
        pairings: permutations of the no forms that probes are trained on, as a floor.
        refits: permutations of the labels that the supervised probes are fitted to.
        inverse_penalty: C of the logistic regression.
    """

    ccs: CCSOptions = field(default_factory=CCSOptions)
    normalization: Normalization = "l2"
    centering: Centering = "median"
    random: int = 100
    pairings: int = 3
    refits: int = 20
    inverse_penalty: float = 1.0


@dataclass(frozen=True, eq=False)
class Rows:
    """What is known of the pairs.

    Attributes:
        labels: whether each statement is true, [pair].
        units: pairs of one unit share texts, or what folds keep whole, [pair].
        splits: of the pairs.
    """

    labels: NDArray[np.bool_]
    units: NDArray[np.int64]
    splits: Splits

    @property
    def truth(self) -> Array:
        """1 where the statement is true, -1 where its opposite is."""
        return np.where(self.labels, 1.0, -1.0)


@dataclass(frozen=True, eq=False)
class Prepared:
    """States of one layer as probes see them.

    Attributes:
        states: normalised, about a common origin, [1 2 row width]: statements, then opposites.
        origin: that was taken off the yes and the no forms, [2 width]; of no consequence but for rounding.
        centers: of each split, [1 2 split width].
        train: rows of each split, [row split].
    """

    states: Tensor
    origin: Tensor
    centers: Tensor
    train: Tensor

    @classmethod
    def of(cls, forms: Tensor, splits: Splits, options: ContrastOptions) -> "Prepared":
        """From [4 pair width]: A1, A0, N1, N0."""
        states, origin = about_origin(forms, options.normalization)
        train = torch.from_numpy(np.concatenate([splits.train] * 2)).to(states.device)
        centers = centers_of(states, train, options.centering)
        return cls(states, origin, centers, train)

    def rows_of(self, split: int) -> tuple[Tensor, Tensor]:
        """Centred training rows of the yes and the no forms."""
        kept = self.train[:, split]
        yes, no = (self.states[0, form, kept] - self.centers[0, form, split] for form in (0, 1))
        return yes, no


def about_origin(
    forms: Float[Tensor, "4 pair width"], normalization: Normalization, origin: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Normalised states [1 2 row width], less the mean of the yes and of the no forms (or another ``origin``).

    Every split takes its own centre off afterwards, so that the origin cancels; near it no digits are lost.
    """
    a1, a0, n1, n0 = normalize(forms, normalization)
    states = torch.stack([torch.cat([a1, n1]), torch.cat([a0, n0])])
    origin = states.mean(dim=1) if origin is None else origin
    return (states - origin[:, None])[None], origin


def read_layer(
    forms: Float[Tensor, "4 pair width"],
    rows: Rows,
    options: ContrastOptions,
    *,
    marker: tuple[Float[Tensor, "4 some width"], NDArray[np.int64]] | None = None,
    distracted: tuple[Float[Tensor, "4 pair width"], NDArray[np.bool_]] | None = None,
    report: Callable[[float], None] = lambda share: None,
    threads: int | None = None,
) -> dict[str, Array]:
    """Train and read every probe of a layer.

    Args:
        forms: states of A1, A0, N1, N0.
        rows: labels, units and splits.
        options: what is trained.
        marker: states of some pairs with a word replaced by a meaningless one, and which pairs they are.
        distracted: states of all pairs where some have a word appended, and which have.
        report: told what share of the work is done.
        threads: that share the trainings on a CPU; by default as many as torch has.

    Returns:
        Arrays by name.
        ``forms`` [probe 4 pair]: held-out probabilities, not oriented; ``credits`` [probe pair split]: see
        ``evaluate.credit``, times the truth, for every split.
        ``BAND.forms`` [draw 4 pair] (oriented) and ``BAND.inner`` [draw fold]: the same for draws of a null, with
        BAND one of random, pairings, mass_mean_labels, logistic_labels.
        ``weight`` [probe width], ``bias`` [probe], ``centers`` [2 width]: oriented, trained on every pair.
        ``cosines`` [probe probe]: between those directions.
        ``restart_loss`` [restart], ``restart_agreement`` [restart restart]: of that training.
        ``marker.forms`` [probe 4 pair]: the held-out probes on the states with a word replaced (NaN elsewhere).
        ``distractor.forms`` [4 pair], ``distractor.credits`` [pair split] (of truth), ``distractor.follows``
        [pair split] (the same of the distractor), both of ``Splits.without_pairs``, ``distractor.cosines`` [2]: of its
        direction with those of the distractor and of truth.

    Raises:
        NotFinite: training diverged.
    """
    made = Prepared.of(forms, rows.splits, options)
    worded = None if distracted is None else _with_word(distracted[0], rows, options)
    trained, paired, followed = _train(made, worded, rows, options, report, threads)
    weight, bias = trained.best()
    wanted = _spread(logits_of(made.states, made.centers, weight, bias)[0], made.train)
    directions = {"ccs": (weight[0], bias[0])} | _closed_forms(made, wanted)
    bands = _random(made, rows, options, wanted)
    supervised, refits = _supervised(made, rows, options)
    directions |= supervised
    arrays: dict[str, Array] = {}
    read = {name: _read(made, *directions[name]) for name in PROBES}
    arrays["forms"] = np.stack([rows.splits.held_out(read[name]) for name in PROBES])
    arrays["credits"] = np.stack([_credits(read[name], rows) for name in PROBES])
    bands |= refits | {"pairings": _pairings(made, rows, paired)}
    for name, (draws, inner) in bands.items():
        arrays |= {f"{name}.forms": draws, f"{name}.inner": inner}
    arrays |= _on_everything(made, rows, directions, arrays["credits"]) | _restarts(made, trained)
    if marker is not None:
        arrays |= _marker(made, rows, options, directions, *marker)
    if distracted is not None and worded is not None and followed is not None:
        arrays |= _distractor(rows, worded, followed, directions["mass_mean"], distracted[1])
    return arrays


def _with_word(forms: Tensor, rows: Rows, options: ContrastOptions) -> Prepared:
    """Centred by the mean: the median of a feature that is there or not is one of the two, and would hold it back."""
    return Prepared.of(forms, rows.splits.without_pairs, replace(options, centering="mean"))


def _train(
    made: Prepared,
    worded: Prepared | None,
    rows: Rows,
    options: ContrastOptions,
    report: Callable[[float], None],
    threads: int | None,
) -> tuple[TrainedProbes, list[tuple[Tensor, Tensor]], TrainedProbes | None]:
    """All probes at once: those of the pairs, the best ones of each permuted pairing, and those with the distractor.

    A pairing is of statements with the no form of another one of the same fold. The states stay as they are for it.
    """
    device = made.states.device
    targets = torch.from_numpy(np.concatenate([rows.labels, ~rows.labels])).to(device)
    partners = permuted_pairings(np.concatenate([rows.splits.folds] * 2), options.pairings, options.ccs.seed)
    trainings = {"own": Training(made.states, made.centers)}
    if len(partners):
        mixed = without_all(made)
        pairings = torch.from_numpy(partners).to(device)
        trainings["paired"] = Training(mixed.states, mixed.centers, pairings, mixed.train)
    if worded is not None:
        trainings["worded"] = Training(worded.states, worded.centers, train=worded.train)
    trained = train_together(
        list(trainings.values()),
        made.train,
        options.ccs,
        targets,
        lambda done: report(done / options.ccs.epochs),
        threads,
    )
    found = dict(zip(trainings, trained, strict=True))
    paired = list(zip(*found["paired"].best(), strict=True)) if "paired" in found else []
    return found["own"], paired, found.get("worded")


def without_all(made: Prepared) -> Prepared:
    """Without the last split, which sees every row."""
    return replace(made, centers=made.centers[:, :, :-1], train=made.train[:, :-1])


def _read(made: Prepared, weight: Tensor, bias: Tensor) -> Array:
    """Probabilities [4 pair split] by weights [width split] and biases [split]."""
    return _forms(logits_of(made.states, made.centers, weight[None], bias[None])[0])


def _forms(logits: Tensor) -> Array:
    """Probabilities [4 pair ...] of A1, A0, N1, N0 from logits [2 row ...]."""
    pairs = logits.shape[1] // 2
    p = torch.sigmoid(logits.double()).cpu().numpy()
    return np.stack([p[0, :pairs], p[1, :pairs], p[0, pairs:], p[1, pairs:]])


def _credits(forms: Array, rows: Rows) -> Array:
    """How right every split is on every pair, [pair split], from [4 pair split]."""
    return credit(np.moveaxis(forms, -1, 0)).T * rows.truth[:, None]


def _spread(logits: Tensor, train: Tensor) -> Tensor:
    """Root mean square of the logits of the training rows of each split, [split], from [2 row split]."""
    counted = train.to(logits)
    return ((logits.square() * counted).sum(dim=(0, 1)) / (2 * counted.sum(dim=0))).sqrt()


def _scaled(made: Prepared, direction: Tensor, wanted: Tensor) -> Tensor:
    """Directions [width split] made as long as their logits spread ``wanted`` on the training rows."""
    zero = torch.zeros(direction.shape[1]).to(direction)
    own = _spread(logits_of(made.states, made.centers, direction[None], zero[None])[0], made.train)
    return direction * _stretch(wanted, own)


def _stretch(wanted: Tensor, own: Tensor) -> Tensor:
    """By how much logits that spread ``own`` have to grow."""
    return wanted / own.clamp_min(torch.finfo(own.dtype).tiny)


def _closed_forms(made: Prepared, wanted: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Directions without a scale of their own: they get the spread of the contrast-consistent probe."""
    states, kept = made.states[0].double(), made.train.T.double()
    means = [
        (kept @ form) / kept.sum(dim=1, keepdim=True) + origin for form, origin in zip(states, made.origin, strict=True)
    ]
    found = {
        "crc_tpc": crc_directions(made.states[0], made.train),
        "vinc": vinc_directions(made.states[0], made.centers[0], made.train, (means[0] - means[1]).to(made.states)),
    }
    zero = torch.zeros_like(wanted)
    return {name: (_scaled(made, direction, wanted), zero) for name, direction in found.items()}


def _supervised(
    made: Prepared, rows: Rows, options: ContrastOptions
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, tuple[Array, Array]]]:
    """Fitted to the labels, and to permutations of them.

    A row is a form: right where it affirms what is true or denies what is false.
    """
    signs = np.concatenate([np.ones((1, len(rows.units))), label_flips(rows.units, options.refits, options.ccs.seed)])
    claimed = signs * rows.truth  # [labeling pair]
    right = torch.from_numpy(np.concatenate([claimed, -claimed], axis=1).T > 0).to(made.states.device)
    fitted: dict[str, list[LinearProbe]] = {name: [] for name in SUPERVISED}
    for split in range(made.train.shape[1]):
        states = torch.cat(made.rows_of(split))
        kept = right[made.train[:, split]]
        targets = torch.cat([kept, ~kept]).to(states)
        fitted["mass_mean"].append(fit_mass_mean(states, targets))
        fitted["logistic"].append(fit_logistic(states, targets, options.inverse_penalty))
    found, bands = {}, {}
    for name, probes in fitted.items():
        weight, bias = torch.stack([p.weight for p in probes], dim=-1), torch.stack([p.bias for p in probes], dim=-1)
        found[name] = (weight[:, 0], bias[0])
        draws, inner = [], []
        for draw in range(1, len(signs)):
            forms = _read(made, weight[:, draw], bias[draw])
            credits = credit(np.moveaxis(forms, -1, 0)).T * claimed[draw][:, None]
            draws.append(rows.splits.held_out(forms))
            inner.append(rows.splits.inner_scores(credits))
        bands[f"{name}_labels"] = _stacked(draws, inner, rows)
    return found, bands


def _stacked(draws: list[Array], inner: list[Array], rows: Rows) -> tuple[Array, Array]:
    if not draws:
        return np.zeros((0, 4, len(rows.units))), np.zeros((0, rows.splits.count))
    return np.stack(draws), np.stack(inner)


def oriented(forms: Array, credits: Array, rows: Rows) -> tuple[Array, Array]:
    """Held-out probabilities [4 pair] and inner scores [fold], each split turned as its training pairs say.

    Args:
        forms: of every split, [4 pair split].
        credits: of every split, [pair split].
        rows: with the splits.
    """
    signs = rows.splits.orientation(credits)
    turned = np.where(signs < 0, 1 - forms, forms)
    return rows.splits.held_out(turned), rows.splits.inner_scores(credits * signs)


def _random(made: Prepared, rows: Rows, options: ContrastOptions, wanted: Tensor) -> dict[str, tuple[Array, Array]]:
    """Random directions, as spread as the contrast-consistent probe and oriented in the same way."""
    drawn = torch.from_numpy(random_directions(made.states.shape[-1], options.random, options.ccs.seed)).to(made.states)
    spots, shifts = made.states[0] @ drawn, made.centers[0] @ drawn  # of every direction; a split only moves them
    draws, inner = [], []
    for number in range(options.random):
        own = spots[:, :, number, None] - shifts[:, None, :, number]
        forms = _forms(own * _stretch(wanted, _spread(own, made.train)))
        found = oriented(forms, _credits(forms, rows), rows)
        draws.append(found[0])
        inner.append(found[1])
    return {"random": _stacked(draws, inner, rows)}


def _pairings(made: Prepared, rows: Rows, paired: Sequence[tuple[Tensor, Tensor]]) -> tuple[Array, Array]:
    """Probes trained on permuted pairings, judged on the true pairs."""
    draws, inner = [], []
    judged = replace(rows, splits=rows.splits.without_all)
    for weight, bias in paired:
        forms = _read(without_all(made), weight, bias)
        found = oriented(forms, _credits(forms, judged), judged)
        draws.append(found[0])
        inner.append(found[1])
    return _stacked(draws, inner, rows)


def _on_everything(
    made: Prepared, rows: Rows, directions: dict[str, tuple[Tensor, Tensor]], credits: Array
) -> dict[str, Array]:
    """The probes that saw every pair, oriented, with the centre in the model's own coordinates."""
    signs = [float(rows.splits.orientation(credits[index])[-1]) for index in range(len(PROBES))]
    weights = torch.stack([sign * directions[name][0][:, -1] for name, sign in zip(PROBES, signs, strict=True)])
    biases = torch.stack([sign * directions[name][1][-1] for name, sign in zip(PROBES, signs, strict=True)])
    units = torch.nn.functional.normalize(weights.double(), dim=1)
    return {
        "weight": weights.double().cpu().numpy(),
        "bias": biases.double().cpu().numpy(),
        "centers": (made.centers[0, :, -1] + made.origin).double().cpu().numpy(),
        "cosines": (units @ units.T).cpu().numpy(),
    }


def _restarts(made: Prepared, trained: TrainedProbes) -> dict[str, Array]:
    """Losses of the restarts that saw every pair, and the share of statements that each two answer alike.

    A probe and its opposite are the same answer, so agreement is at least a half.
    """
    weight, bias = trained.weight[0, :, -1], trained.bias[0, -1]
    centers = made.centers[:, :, -1:].expand(-1, -1, weight.shape[1], -1)
    p, q = torch.sigmoid(logits_of(made.states, centers, weight[None], bias[None])[0]).double()
    answers = torch.sign((p + 1 - q) / 2 - 0.5)
    alike = ((answers.T @ answers) / len(answers) + 1) / 2
    alike = torch.maximum(alike, 1 - alike)
    return {
        "restart_loss": trained.loss[0, -1].double().cpu().numpy(),
        "restart_agreement": alike.cpu().numpy(),
    }


def distinct(agreement: Array, alike: float = SAME_ANSWERS) -> int:
    """Number of optima among the restarts: chains of restarts that answer alike."""
    from scipy.sparse.csgraph import connected_components

    return int(connected_components(agreement >= alike, directed=False)[0])


def _marker(
    made: Prepared,
    rows: Rows,
    options: ContrastOptions,
    directions: dict[str, tuple[Tensor, Tensor]],
    forms: Tensor,
    which: NDArray[np.int64],
) -> dict[str, Array]:
    """The same probes, with the same centres, on the states with a word replaced."""
    states, _ = about_origin(forms, options.normalization, made.origin)
    found = np.full((len(PROBES), 4, len(rows.units)), np.nan)
    for index, name in enumerate(PROBES):
        weight, bias = directions[name]
        every = _forms(logits_of(states, made.centers, weight[None], bias[None])[0])
        found[index][:, which] = np.take_along_axis(every, rows.splits.folds[which][None, :, None], axis=-1)[..., 0]
    return {"marker.forms": found}


def _distractor(
    rows: Rows, made: Prepared, trained: TrainedProbes, truth: tuple[Tensor, Tensor], has: NDArray[np.bool_]
) -> dict[str, Array]:
    """Probes trained where half of the pairs carry a word: do their answers follow the word, or truth?"""
    weight, bias = trained.best()
    read = _read(made, weight[0], bias[0])
    signs = np.where(has, 1.0, -1.0)
    answers = np.sign(np.moveaxis(read, -1, 0)[:, [0, 2]] - np.moveaxis(read, -1, 0)[:, [1, 3]])
    follows = answers.mean(axis=1).T / 2 * signs[:, None]
    planted = torch.from_numpy(np.concatenate([has, has])).to(made.states.device)
    targets = torch.cat([planted, ~planted]).to(made.states)[:, None]
    everything = torch.cat(made.rows_of(made.train.shape[1] - 1))
    away = fit_mass_mean(everything, targets).weight[:, 0]
    units = [torch.nn.functional.normalize(w.double(), dim=0) for w in (weight[0, :, -1], away, truth[0][:, -1])]
    return {
        "distractor.forms": rows.splits.without_pairs.held_out(read),
        "distractor.credits": _credits(read, rows),
        "distractor.follows": follows,
        "distractor.cosines": np.array([float((units[0] @ other).abs()) for other in units[1:]]),
    }


def same_states(forms: Float[Tensor, "4 pair width"]) -> Bool[Tensor, " pair"]:
    """Pairs of which a yes form has the very states of its no form, so that no probe can tell them apart."""
    return (forms[0] == forms[1]).all(dim=1) | (forms[2] == forms[3]).all(dim=1)
