"""What the held-out probabilities of every layer say: metrics with intervals, nulls beside each, and the controls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.probes.contrast import PROBES, UNSUPERVISED, Rows, distinct
from probing.probes.evaluate import BY_LABEL, HIGHER_IS_BETTER, METRICS, measure
from probing.report.progress import Progress
from probing.runs.ccs.config import CCSConfig
from probing.runs.common.results import CHOSEN, null_columns
from probing.statistics.bootstrap import draw_bootstrap_weights
from probing.statistics.folds import Splits
from probing.statistics.intervals import null_interval, percentile_interval
from probing.statistics.permutation import corrected_p_values, draw_label_flips, p_value
from probing.types import ContrastPair, Estimate

Array = NDArray[np.float64]
ALL = "all"
NO_P_VALUE = ("polar_consistency",)
"""Neither a low nor a high mean is better: its sign belongs to another kind of inconsistency."""
BANDS = ("random", "pairings", "labels")
CONTROL_METRICS = ("esa", "polar_consistency", "contradiction_index")
Metrics = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Judged:
    """Everything that is said of a run.

    Attributes:
        results: one row a subset, place, probe and metric.
        controls: one row a control, place, probe and metric.
        chosen: for each probe, the place that was chosen for each fold.
        best: for each probe, the place with the best inner scores over all folds.
        forms: held-out probabilities at the chosen places, oriented, of each probe: [4 pair].
        weights: [place probe width] of the probes that saw every pair; ``biases`` [place probe], ``centers``
            [place 2 width].
        trained: number of contrast-consistent probes that were trained.
    """

    results: pd.DataFrame
    controls: pd.DataFrame
    chosen: dict[str, list[str]]
    best: dict[str, str]
    forms: dict[str, Array]
    weights: Array
    biases: Array
    centers: Array
    trained: int


@dataclass
class Band:
    """Draws of a null that choose their own layer for each fold as the layers pass by.

    Attributes:
        forms: [draw 4 pair] at the best layer so far.
        inner: [draw fold], its inner scores.
    """

    forms: Array
    inner: Array

    def offer(self, forms: Array, inner: Array, folds: NDArray[np.int64]) -> None:
        """Take over every fold whose inner score is better at this layer."""
        better = inner > self.inner
        self.forms = np.where(better[:, folds][:, None], forms, self.forms)
        self.inner = np.maximum(inner, self.inner)


@dataclass
class Judge:
    """Goes through the layers once."""

    config: CCSConfig
    pairs: Sequence[ContrastPair]
    rows: Rows
    places: Sequence[str]
    results: list[dict[str, object]] = field(default_factory=list)
    controls: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.splits: Splits = self.rows.splits
        self.folds, self.truth, units = self.splits.folds, self.rows.truth, self.rows.units
        self.weights = draw_bootstrap_weights(units, self.config.resamples, self.config.seed)
        self.flips = draw_label_flips(units, self.config.permutations, self.config.seed)
        self.refits = draw_label_flips(units, self.config.refits, self.config.seed)
        everything = np.ones(len(self.pairs), dtype=bool)
        self.subsets: dict[str, NDArray[np.bool_]] = {ALL: everything} | self.formulations()
        # Probes that saw labels would have to be trained anew on every permutation of them.
        self.unsupervised = [probe for probe in UNSUPERVISED if probe != "ccs" or not self.config.supervision]
        self.forms: dict[str, list[Array]] = {probe: [] for probe in PROBES}
        self.inner: dict[str, list[Array]] = {probe: [] for probe in PROBES}
        self.nulls: list[dict[tuple[str, str], Metrics]] = []  # per place: (band, probe) -> draws of every metric
        self.bands: dict[str, Band] = {}
        self.flipped: dict[str, list[tuple[Array, Array]]] = {probe: [] for probe in UNSUPERVISED}
        self.saved: dict[str, list[Array]] = {"weight": [], "bias": [], "centers": []}
        self.random_by_formulation: list[dict[str, Metrics]] = []

    def formulations(self) -> dict[str, NDArray[np.bool_]]:
        """Pairs of each formulation, where there are several."""
        names = [pair.formulation or "" for pair in self.pairs]
        if len(set(names)) < 2:
            return {}
        return {f"formulation={name}": np.array([other == name for other in names]) for name in sorted(set(names))}

    # One place

    def look_at(self, number: int, arrays: Mapping[str, Array]) -> None:
        """Take in the arrays of one place."""
        place = self.places[number]
        signs = {probe: self.splits.orientation(arrays["credits"][at]) for at, probe in enumerate(PROBES)}
        nulls: dict[tuple[str, str], Metrics] = {}
        for at, probe in enumerate(PROBES):
            turned = self._turned(arrays["forms"][at], signs[probe])
            self.forms[probe].append(turned)
            self.inner[probe].append(self.splits.inner_scores(arrays["credits"][at] * signs[probe]))
            if probe in self.unsupervised:
                nulls["labels", probe] = self._flipped(probe, arrays["forms"][at], arrays["credits"][at])
        for name in ("random", "pairings", "mass_mean_labels", "logistic_labels"):
            forms, inner = arrays[f"{name}.forms"], arrays[f"{name}.inner"]
            found = self._draws(name, forms)
            keys = [(name, probe) for probe in PROBES] if name in BANDS else [("labels", name.removesuffix("_labels"))]
            nulls |= dict.fromkeys(keys, found)
            if name not in self.bands:
                self.bands[name] = Band(forms, np.full(inner.shape, -np.inf))
            self.bands[name].offer(forms, inner, self.folds)
        self.nulls.append(nulls)
        self.random_by_formulation.append(
            {name: self._of_draws(arrays["random.forms"], mask) for name, mask in list(self.subsets.items())[1:]}
        )
        for name, parts in self.saved.items():
            parts.append(arrays[name])
        self._robustness(place, arrays, signs)

    def _turned(self, forms: Array, signs: Array) -> Array:
        turned: Array = np.where(signs[self.folds] < 0, 1 - forms, forms)
        return turned

    def _of_draws(self, forms: Array, mask: NDArray[np.bool_], truth: Array | None = None) -> Metrics:
        """Every metric of every draw, [draw]."""
        truths = np.broadcast_to(self.truth if truth is None else truth, (len(forms), len(self.truth)))
        found = [
            measure(draw[:, mask], labels[mask], self.folds[mask]) for draw, labels in zip(forms, truths, strict=True)
        ]
        return {name: np.array([each[name][0] for each in found]) for name in METRICS}

    def _draws(self, name: str, forms: Array) -> Metrics:
        everything = self.subsets[ALL]
        truth = self.truth * self.refits if name.endswith("_labels") else None
        return self._of_draws(forms, everything, truth)

    def _flipped(self, probe: str, forms: Array, credits: Array) -> Metrics:
        """Metrics of labels under permutations of them, the orientation found anew for each."""
        signs = np.where(self.flips @ (credits * self.splits.train) < 0, -1.0, 1.0)  # [permutation split]
        oriented = np.take_along_axis(signs, np.broadcast_to(self.folds, (len(signs), len(self.folds))), axis=1)
        held, inner = [], []
        for fold in range(self.splits.count):
            inside = self.folds == fold
            held.append((self.flips[:, inside] @ credits[inside, fold]) * signs[:, fold])
            parts = []
            for at, other in self.splits.inner(fold):
                judged = self.folds == other
                parts.append((self.flips[:, judged] @ credits[judged, at]) * signs[:, at] / judged.sum())
            inner.append(np.mean(parts, axis=0))
        self.flipped[probe].append((np.stack(held, axis=1), np.stack(inner, axis=1)))
        return measure(forms, self.truth * self.flips * oriented, self.folds, metrics=BY_LABEL)

    # Controls

    def _robustness(self, place: str, arrays: Mapping[str, Array], signs: Mapping[str, Array]) -> None:
        agreement = arrays["restart_agreement"]
        count = len(agreement)
        if count > 1:
            others = agreement[~np.eye(count, dtype=bool)]
            self._control("restarts", place, "ccs", "agreement", Estimate(float(others.mean()), *_NONE, count))
        self._control("restarts", place, "ccs", "distinct_optima", Estimate(distinct(agreement), *_NONE, count))
        for name, value in (("least_loss", "min"), ("largest_loss", "max")):
            loss = float(getattr(np, f"nan{value}")(arrays["restart_loss"]))
            self._control("restarts", place, "ccs", name, Estimate(loss, *_NONE, count))
        for other in (*UNSUPERVISED[1:], "mass_mean", "logistic"):
            cosine = float(arrays["cosines"][PROBES.index("ccs"), PROBES.index(other)])
            self._control("cosine", place, "ccs", other, Estimate(cosine, *_NONE, len(self.pairs)))
        if "marker.forms" in arrays:
            self._marker(place, arrays["marker.forms"], signs)
        if "distractor.forms" in arrays:
            self._distractor(place, arrays)

    def _control(self, control: str, place: str, probe: str, metric: str, found: Estimate) -> None:
        row = {"control": control, "place": place, "probe": probe, "metric": metric, "value": found.value}
        self.controls.append(row | {"low": found.low, "high": found.high, "pairs": found.n})

    def _marker(self, place: str, forms: Array, signs: Mapping[str, Array]) -> None:
        for at, probe in enumerate(PROBES):
            known = np.isfinite(forms[at]).all(axis=0)
            after = self._turned(forms[at], signs[probe])[:, known]
            before = self.forms[probe][-1][:, known]
            values = [self._measured(each, known) for each in (before, after)]
            for metric in CONTROL_METRICS:
                (old, old_draws), (new, new_draws) = (each[metric] for each in values)
                n = int(known.sum())
                self._control("marker:before", place, probe, metric, _estimate(old, old_draws, n))
                self._control("marker:after", place, probe, metric, _estimate(new, new_draws, n))
                self._control("marker:change", place, probe, metric, _estimate(new - old, new_draws - old_draws, n))

    def _measured(self, forms: Array, mask: NDArray[np.bool_]) -> dict[str, tuple[float, Array]]:
        """Value and bootstrap draws of every metric on some pairs (``forms`` are of those alone)."""
        value = measure(forms, self.truth[mask], self.folds[mask])
        draws = measure(forms, self.truth[mask], self.folds[mask], self.weights[:, mask])
        return {name: (float(value[name][0]), draws[name]) for name in METRICS}

    def _distractor(self, place: str, arrays: Mapping[str, Array]) -> None:
        splits = self.splits.without_pairs
        for metric, name in (("truth", "credits"), ("distractor", "follows")):
            credits = arrays[f"distractor.{name}"]
            turned = splits.held_out(credits * splits.orientation(credits))
            draws = 0.5 + (self.weights @ turned) / self.weights.sum(axis=1)
            self._control("distractor", place, "ccs", metric, _estimate(0.5 + turned.mean(), draws, len(turned)))
        for metric, value in zip(("cosine_distractor", "cosine_truth"), arrays["distractor.cosines"], strict=True):
            self._control("distractor", place, "ccs", metric, Estimate(float(value), *_NONE, len(self.pairs)))

    # All places

    def finish(self) -> Judged:
        """Everything that needs all places."""
        chosen = {probe: np.argmax(np.stack(inner), axis=0) for probe, inner in self.inner.items()}
        best = {probe: self.places[int(np.stack(inner).mean(axis=1).argmax())] for probe, inner in self.inner.items()}
        picked = {
            probe: np.stack(self.forms[probe])[chosen[probe][self.folds], :, np.arange(len(self.folds))].T
            for probe in PROBES
        }
        draws: dict[tuple[str, str, str], list[Array]] = {}
        bands = {name: self._draws(name, band.forms) for name, band in self.bands.items()}
        for probe in PROBES:
            for number in range(len(self.places)):
                self._of_place(number, probe, draws)
            self._of_chosen(probe, picked[probe], bands)
        self._formulations(draws)
        saved = {name: np.stack(parts) for name, parts in self.saved.items()}
        config = self.config
        trainings = 1 + config.pairings + any(row["control"] == "distractor" for row in self.controls)
        return Judged(
            pd.DataFrame(self.results),
            pd.DataFrame(self.controls),
            {probe: [self.places[at] for at in chosen[probe]] for probe in PROBES},
            best,
            picked,
            saved["weight"],
            saved["bias"],
            saved["centers"],
            len(self.places) * trainings * config.restarts * len(self.splits.left_out),
        )

    def _of_place(self, number: int, probe: str, draws: dict[tuple[str, str, str], list[Array]]) -> None:
        for subset, mask in self.subsets.items():
            measured = self._measured(self.forms[probe][number][:, mask], mask)
            for metric, (value, drawn) in measured.items():
                draws.setdefault((subset, probe, metric), []).append(np.array([value, *drawn]))
                found = _estimate(value, drawn, int(mask.sum()))
                if subset == ALL:
                    bands = {band: self.nulls[number].get((band, probe), {}).get(metric) for band in BANDS}
                    row = self._row(subset, self.places[number], probe, metric, found, bands)
                    row |= self._corrected(value, probe, metric)
                else:
                    bands = {"random": self.random_by_formulation[number][subset][metric]}
                    row = self._row(subset, self.places[number], probe, metric, found, bands)
                self.results.append(row)

    def _corrected(self, value: float, probe: str, metric: str) -> dict[str, float]:
        """p-values against the best place of every draw."""
        found = {}
        for band in ("random", "labels"):
            nulls = [each.get((band, probe), {}).get(metric) for each in self.nulls]
            known = [null for null in nulls if null is not None]
            p = float("nan")
            if len(known) == len(nulls) and metric not in NO_P_VALUE:
                p = float(corrected_p_values(np.array([value]), np.stack(known), metric in HIGHER_IS_BETTER)[0])
            found[f"p_{band}_corrected"] = p
        return found

    def _row(
        self,
        subset: str,
        place: str,
        probe: str,
        metric: str,
        found: Estimate,
        bands: Mapping[str, Array | None],
    ) -> dict[str, object]:
        row: dict[str, object] = {"subset": subset, "place": place, "probe": probe, "metric": metric}
        row |= {"value": found.value, "low": found.low, "high": found.high, "pairs": found.n}
        for band in BANDS:
            null = bands.get(band)
            row |= null_columns(band, null)
        for band in ("random", "labels"):
            null = bands.get(band)
            value = float("nan")
            if null is not None and metric not in NO_P_VALUE:
                value = p_value(found.value, null, metric in HIGHER_IS_BETTER)
            row |= {f"p_{band}": value, f"p_{band}_corrected": float("nan")}
        return row

    def _of_chosen(self, probe: str, forms: Array, bands: Mapping[str, Metrics]) -> None:
        """The place chosen inside each fold; the nulls choose theirs, so that nothing is left to correct."""
        everything = self.subsets[ALL]
        labels: Metrics = bands.get(f"{probe}_labels", {})
        if probe in self.unsupervised:
            held, inner = (np.stack(parts, axis=-1) for parts in zip(*self.flipped[probe], strict=True))
            picked = np.take_along_axis(held, inner.argmax(axis=-1)[..., None], axis=-1)[..., 0]
            labels = {"esa": 0.5 + picked.sum(axis=1) / len(self.pairs)}
        for metric, (value, drawn) in self._measured(forms, everything).items():
            nulls = {
                "random": bands["random"][metric],
                "pairings": bands["pairings"][metric],
                "labels": labels.get(metric),
            }
            found = _estimate(value, drawn, len(self.pairs))
            row = self._row(ALL, CHOSEN, probe, metric, found, nulls)
            row |= {f"{name}_corrected": row[name] for name in ("p_random", "p_labels")}
            self.results.append(row)

    def _formulations(self, draws: Mapping[tuple[str, str, str], list[Array]]) -> None:
        """Mean over places of the absolute difference between formulations, and of random probes."""
        names = list(self.subsets)[1:]
        for first, second in ((a, b) for i, a in enumerate(names) for b in names[i + 1 :]):
            label = f"{first.removeprefix('formulation=')} / {second.removeprefix('formulation=')}"
            for metric in CONTROL_METRICS:
                for probe in PROBES:
                    sides = [np.stack(draws[name, probe, metric]) for name in (first, second)]
                    away = np.abs(sides[0] - sides[1]).mean(axis=0)
                    found = _estimate(float(away[0]), away[1:], len(self.pairs))
                    self._control(f"formulations: {label}", "mean over places", probe, metric, found)
                random = [
                    np.stack([each[name][metric] for each in self.random_by_formulation]) for name in (first, second)
                ]
                away = np.abs(random[0] - random[1]).mean(axis=0)
                low, median, high = null_interval(away)
                found = Estimate(median, low, high, len(self.pairs))
                self._control(f"formulations: {label}", "mean over places", "random", metric, found)


_NONE = (float("nan"), float("nan"))


def _estimate(value: float, draws: Array, n: int) -> Estimate:
    return Estimate(float(value), *(percentile_interval(draws) if n > 1 else _NONE), n)


def judge(
    config: CCSConfig,
    pairs: Sequence[ContrastPair],
    rows: Rows,
    places: Sequence[str],
    read: Callable[[int], Mapping[str, Array]],
) -> Judged:
    """Go through the arrays of every place and say what they mean."""
    judge = Judge(config, pairs, rows, places)
    with Progress(len(places), unit="places", doing="judging") as bar:
        for number in range(len(places)):
            judge.look_at(number, read(number))
            bar.advance(1, 0)
    return judge.finish()
