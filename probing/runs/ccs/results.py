"""Results from the held-out probabilities of every layer: metrics with intervals, null distributions, and controls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.probes.contrast import count_optima
from probing.probes.contrast_nulls import (
    Metrics,
    NestedChoice,
    PermutedLabels,
    judge_permuted_labels,
    measure_draws,
    orient_forms,
)
from probing.probes.contrast_readings import PROBES, UNSUPERVISED, NullDraws, StatementReadings
from probing.probes.contrast_states import Rows
from probing.probes.evaluate import HIGHER_IS_BETTER, MEANS, METRICS, measure, measure_pairs
from probing.report.progress import Progress
from probing.runs.ccs.config import CCSConfig
from probing.runs.common.layers import Arrays
from probing.runs.common.results import (
    ALL,
    CHOSEN,
    NOT_KNOWN,
    Array,
    ComparedEstimate,
    NullDistribution,
    compare,
    correct_share_interval,
    estimate_with_interval,
    estimate_without_interval,
)
from probing.statistics.bootstrap import bootstrap_mean, draw_bootstrap_weights
from probing.statistics.folds import Splits
from probing.statistics.intervals import FEW, MANY, auroc_interval, null_interval, percentile_interval
from probing.statistics.permutation import draw_label_flips
from probing.types import ContrastPair, Estimate

NO_P_VALUE = ("polar_consistency",)
"""Metrics of which neither a low nor a high mean is better: its sign tells the kind of inconsistency."""
NULL_NAMES = ("random", "pairings", "labels")
UNTESTED = ("pairings",)
"""Null distributions that are shown and not tested against: they have too few draws."""
CONTROL_METRICS = ("esa", "polar_consistency", "contradiction_index")
MEAN_OVER_PLACES = "mean over places"


@dataclass(frozen=True, eq=False)
class Judged:
    """All results of a run.

    Attributes:
        results: one row a subset, place, probe and metric.
        controls: one row a control, place, probe and metric.
        chosen: place that was chosen for each fold, for each probe.
        best: place with the best inner scores over all folds, for each probe.
        forms: oriented held-out probabilities of each probe at its chosen places, [4 pair].
        weights: weight vectors, [place probe width], of the probes that saw every pair; ``biases`` [place probe],
            ``centers`` [place 2 width].
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


class Judge:
    """Collects from each layer, in turn, what the results need."""

    def __init__(self, config: CCSConfig, pairs: Sequence[ContrastPair], rows: Rows, places: Sequence[str]) -> None:
        self.config, self.pairs, self.rows, self.places = config, pairs, rows, places
        self.splits: Splits = rows.splits
        self.folds, self.truth = self.splits.folds, rows.truth
        self.weights = draw_bootstrap_weights(rows.units, config.resamples, config.seed)
        self.flips = draw_label_flips(rows.units, config.permutations, config.seed)
        self.refits = draw_label_flips(rows.units, config.refits, config.seed)
        self.everything, self.groups = np.ones(len(pairs), dtype=bool), len(np.unique(rows.units))
        self.formulations = _find_formulations(pairs)
        # For these probes alone: those that saw labels would have to be trained again on every permutation.
        self.unsupervised = [probe for probe in UNSUPERVISED if probe != "ccs" or not config.supervision]
        self.forms: dict[str, list[Array]] = {probe: [] for probe in PROBES}
        self.inner: dict[str, list[Array]] = {probe: [] for probe in PROBES}
        # One entry a place; its keys are a null distribution and a probe.
        self.nulls: list[dict[tuple[str, str], Metrics]] = []
        self.nested: dict[str, NestedChoice] = {}
        self.permuted: dict[str, list[PermutedLabels]] = {probe: [] for probe in UNSUPERVISED}
        self.random_by_formulation: list[dict[str, Metrics]] = []
        self.saved: list[tuple[Array, Array, Array]] = []  # weights, biases, centers
        self.results: list[dict[str, object]] = []
        self.controls: list[dict[str, object]] = []

    # One place

    def add_place(self, place: str, readings: StatementReadings) -> None:
        """Add the readings of the probes of one place."""
        signs = {probe: self.splits.orientation(readings.credits[at]) for at, probe in enumerate(PROBES)}
        nulls: dict[tuple[str, str], Metrics] = {}
        for at, probe in enumerate(PROBES):
            credits = readings.credits[at]
            self.forms[probe].append(orient_forms(readings.forms[at], signs[probe], self.folds))
            self.inner[probe].append(self.splits.inner_scores(credits * signs[probe]))
            if probe in self.unsupervised:
                permuted = judge_permuted_labels(readings.forms[at], credits, self.truth, self.flips, self.splits)
                self.permuted[probe].append(permuted)
                nulls["labels", probe] = permuted.metrics
        for name, draws in readings.nulls.items():
            measured = self._measure_null(name, draws)
            own = [(name, probe) for probe in PROBES] if name in NULL_NAMES else [("labels", name[: -len("_labels")])]
            nulls |= dict.fromkeys(own, measured)
            self.nested.setdefault(name, NestedChoice(draws)).offer(draws, self.folds)
        self.nulls.append(nulls)
        random = readings.nulls["random"].forms
        self.random_by_formulation.append(
            {name: measure_draws(random, self.truth, self.folds, mask) for name, mask in self.formulations.items()}
        )
        self.saved.append((readings.weight, readings.bias, readings.centers))
        self._add_controls(place, readings, signs)

    def _measure_null(self, name: str, draws: NullDraws) -> Metrics:
        """Every metric of every null draw; probes that were fitted to permuted labels are judged by those labels."""
        truth = self.truth * self.refits if name.endswith("_labels") else self.truth
        return measure_draws(draws.forms, truth, self.folds, self.everything)

    # Controls

    def _add_controls(self, place: str, readings: StatementReadings, signs: Mapping[str, Array]) -> None:
        self._add_restarts(place, readings)
        for other in (*UNSUPERVISED[1:], "mass_mean", "logistic"):
            cosine = readings.cosines[PROBES.index("ccs"), PROBES.index(other)]
            self._add_control("cosine", place, "ccs", other, estimate_without_interval(cosine, len(self.pairs)))
        if readings.marker is not None:
            self._add_marker(place, readings.marker, signs)
        if readings.distractor is not None:
            self._add_distractor(place, readings)

    def _add_control(self, control: str, place: str, probe: str, metric: str, estimate: Estimate) -> None:
        row: dict[str, object] = {"control": control, "place": place, "probe": probe, "metric": metric}
        self.controls.append(row | ComparedEstimate(estimate).to_columns("pairs"))

    def _add_restarts(self, place: str, readings: StatementReadings) -> None:
        agreement, count = readings.restart_agreement, len(readings.restart_agreement)
        values: dict[str, float] = {}
        if count > 1:
            values["agreement"] = float(agreement[~np.eye(count, dtype=bool)].mean())
        values["distinct_optima"] = count_optima(agreement)
        values["least_loss"] = float(np.nanmin(readings.restart_loss))
        values["largest_loss"] = float(np.nanmax(readings.restart_loss))
        for metric, value in values.items():
            self._add_control("restarts", place, "ccs", metric, estimate_without_interval(value, count))

    def _add_marker(self, place: str, marked: Array, signs: Mapping[str, Array]) -> None:
        for at, probe in enumerate(PROBES):
            known = np.isfinite(marked[at]).all(axis=0)
            before = self.forms[probe][-1][:, known]
            after = orient_forms(marked[at], signs[probe], self.folds)[:, known]
            measured = [self._measure(each, known) for each in (before, after)]
            for metric in CONTROL_METRICS:
                for name, each, found in zip(("before", "after"), (before, after), measured, strict=True):
                    ends = self._find_interval(metric, each, known, found[metric])
                    estimate = Estimate(found[metric][0], *ends, int(known.sum()))
                    self._add_control(f"marker:{name}", place, probe, metric, estimate)
                sides = [measure_pairs(metric, each, self.truth[known]) for each in (after, before)]
                (old, drawn), (new, drawn_after) = (found[metric] for found in measured)
                change = self._estimate_change(new - old, sides[0] - sides[1], drawn_after - drawn, known)
                self._add_control("marker:change", place, probe, metric, change)

    def _estimate_change(self, value: float, changes: Array, replicates: Array, mask: NDArray[np.bool_]) -> Estimate:
        """The change of a metric; without an interval where pairs are few, or all change alike.

        Args:
            value: the change.
            changes: change of each pair, [pair].
            replicates: the change in every bootstrap replicate.
            mask: the pairs, among all.
        """
        units = self.rows.units[mask]
        groups = len(np.unique(units))
        if groups < FEW or np.ptp(changes) == 0:
            return estimate_without_interval(value, len(changes))
        if groups < MANY:
            return replace(bootstrap_mean(changes, self.config.resamples, self.config.seed, units), value=value)
        return estimate_with_interval(value, replicates, len(changes))

    def _add_distractor(self, place: str, readings: StatementReadings) -> None:
        test = readings.distractor
        assert test is not None
        splits = self.splits.without_pairs
        for metric, credits in (("truth", test.credits), ("distractor", test.follows)):
            right = splits.held_out(credits * splits.orientation(credits))
            replicates = 0.5 + (self.weights @ right) / self.weights.sum(axis=1)
            estimate = estimate_with_interval(0.5 + float(right.mean()), replicates, len(self.pairs), self.groups)
            ends = correct_share_interval(0.5 + right, self.rows.units)
            if ends is not None:
                estimate = replace(estimate, low=ends[0], high=ends[1])
            self._add_control("distractor", place, "ccs", metric, estimate)
        for name, cosine in zip(("distractor", "truth"), test.cosines, strict=True):
            estimate = estimate_without_interval(cosine, len(self.pairs))
            self._add_control("distractor", place, "ccs", f"cosine_{name}", estimate)

    def _measure(self, forms: Array, mask: NDArray[np.bool_]) -> dict[str, tuple[float, Array]]:
        """Value and bootstrap replicates of every metric on some pairs (``forms`` are of those alone)."""
        value = measure(forms, self.truth[mask], self.folds[mask])
        replicates = measure(forms, self.truth[mask], self.folds[mask], self.weights[:, mask])
        return {name: (float(value[name][0]), replicates[name]) for name in METRICS}

    def _find_interval(
        self, metric: str, forms: Array, mask: NDArray[np.bool_], measured: tuple[float, Array]
    ) -> tuple[float, float]:
        """The interval of a metric on some pairs (``forms`` are of those alone); NaN where these are too few."""
        units, (value, replicates) = self.rows.units[mask], measured
        groups, ends = len(np.unique(units)), None
        if metric == "esa":
            ends = correct_share_interval(measure_pairs(metric, forms, self.truth[mask]), units)
        if metric == "auroc":
            ends = auroc_interval(value, groups // 2, replicates)
        if ends is not None:
            return ends
        if groups < (2 if mask.all() else FEW):
            return NOT_KNOWN, NOT_KNOWN
        if metric in MEANS and metric != "esa" and groups < MANY:
            values = measure_pairs(metric, forms, self.truth[mask])
            found = bootstrap_mean(values, self.config.resamples, self.config.seed, units)
            return found.low, found.high
        return percentile_interval(replicates, groups)

    def _compare(
        self,
        metric: str,
        forms: Array,
        mask: NDArray[np.bool_],
        measured: tuple[float, Array],
        nulls: Mapping[str, NullDistribution],
    ) -> ComparedEstimate:
        """A metric on some pairs with its interval, beside its null distributions."""
        ends, better = self._find_interval(metric, forms, mask, measured), _find_better(metric)
        return compare(*measured, int(mask.sum()), nulls, higher_is_better=better, interval=ends)

    # All places

    def finish(self) -> Judged:
        """Compute the results that need all places."""
        chosen = {probe: np.argmax(np.stack(inner), axis=0) for probe, inner in self.inner.items()}
        best = {probe: self.places[int(np.stack(inner).mean(axis=1).argmax())] for probe, inner in self.inner.items()}
        picked = {
            probe: np.stack(self.forms[probe])[chosen[probe][self.folds], :, np.arange(len(self.folds))].T
            for probe in PROBES
        }
        nested = {name: self._measure_null(name, choice.draws) for name, choice in self.nested.items()}
        by_formulation: dict[tuple[str, str, str], list[float]] = {}
        for probe in PROBES:
            for number in range(len(self.places)):
                self._add_all_pairs(number, probe)
                self._add_formulations(number, probe, by_formulation)
            self._add_chosen(probe, picked[probe], nested)
        self._add_differences(by_formulation)
        weights, biases, centers = (np.stack(parts) for parts in zip(*self.saved, strict=True))
        config = self.config
        trainings = 1 + config.pairings + any(row["control"] == "distractor" for row in self.controls)
        return Judged(
            results=pd.DataFrame(self.results),
            controls=pd.DataFrame(self.controls),
            chosen={probe: [self.places[at] for at in chosen[probe]] for probe in PROBES},
            best=best,
            forms=picked,
            weights=weights,
            biases=biases,
            centers=centers,
            trained=len(self.places) * trainings * config.restarts * len(self.splits.left_out),
        )

    def _add_result(self, subset: str, place: str, probe: str, metric: str, compared: ComparedEstimate) -> None:
        row: dict[str, object] = {"subset": subset, "place": place, "probe": probe, "metric": metric}
        self.results.append(row | compared.to_columns("pairs"))

    def _add_all_pairs(self, number: int, probe: str) -> None:
        """Add one place beside its null distributions, with p-values corrected for the choice among all places."""
        forms = self.forms[probe][number]
        for metric, measured in self._measure(forms, self.everything).items():
            nulls = {name: self._null_of(name, number, probe, metric) for name in NULL_NAMES}
            compared = self._compare(metric, forms, self.everything, measured, nulls)
            self._add_result(ALL, self.places[number], probe, metric, compared)

    def _null_of(self, name: str, number: int, probe: str, metric: str) -> NullDistribution:
        every = [each.get((name, probe), {}).get(metric) for each in self.nulls]
        known = [draws for draws in every if draws is not None]
        places = known if len(known) == len(every) else []
        return NullDistribution(every[number], places, tested=name not in UNTESTED)

    def _add_formulations(
        self, number: int, probe: str, by_formulation: dict[tuple[str, str, str], list[float]]
    ) -> None:
        """Add the pairs of each formulation at one place, beside random probes."""
        for name, mask in self.formulations.items():
            forms = self.forms[probe][number][:, mask]
            for metric, (value, replicates) in self._measure(forms, mask).items():
                by_formulation.setdefault((name, probe, metric), []).append(value)
                nulls = {null: NullDistribution(None, tested=null not in UNTESTED) for null in NULL_NAMES}
                nulls["random"] = NullDistribution(self.random_by_formulation[number][name][metric])
                compared = self._compare(metric, forms, mask, (value, replicates), nulls)
                self._add_result(name, self.places[number], probe, metric, compared)

    def _add_chosen(self, probe: str, forms: Array, nested: Mapping[str, Metrics]) -> None:
        """Add the place chosen inside each fold; null draws choose their own, so that nothing is left to correct."""
        labels: Metrics = nested.get(f"{probe}_labels", {})
        if probe in self.unsupervised:
            held = np.stack([each.held for each in self.permuted[probe]], axis=-1)
            inner = np.stack([each.inner for each in self.permuted[probe]], axis=-1)
            picked = np.take_along_axis(held, inner.argmax(axis=-1)[..., None], axis=-1)[..., 0]
            labels = {"esa": 0.5 + picked.sum(axis=1) / len(self.pairs)}
        for metric, measured in self._measure(forms, self.everything).items():
            nulls = {name: NullDistribution(nested[name][metric], chosen=True) for name in ("random", "pairings")}
            nulls["pairings"] = replace(nulls["pairings"], tested=False)
            nulls["labels"] = NullDistribution(labels.get(metric), chosen=True)
            compared = self._compare(metric, forms, self.everything, measured, nulls)
            self._add_result(ALL, CHOSEN, probe, metric, compared)

    def _add_differences(self, by_formulation: Mapping[tuple[str, str, str], list[float]]) -> None:
        """Add the mean over places of the absolute difference between formulations, also for random probes.

        It has no interval: replicates of an absolute value are never below 0, and lie above it by chance alone. What
        chance gives is the middle 95 % of the random probes.
        """
        for first, second in combinations(self.formulations, 2):
            control = " / ".join(name.removeprefix("formulation=") for name in (first, second))
            for metric in CONTROL_METRICS:
                for probe in PROBES:
                    sides = [np.array(by_formulation[name, probe, metric]) for name in (first, second)]
                    estimate = estimate_without_interval(np.abs(sides[0] - sides[1]).mean(), len(self.pairs))
                    self._add_control(f"formulations: {control}", MEAN_OVER_PLACES, probe, metric, estimate)
                random = [
                    np.stack([each[name][metric] for each in self.random_by_formulation]) for name in (first, second)
                ]
                low, median, high = null_interval(np.abs(random[0] - random[1]).mean(axis=0))
                estimate = Estimate(median, low, high, len(self.pairs))
                self._add_control(f"formulations: {control}", MEAN_OVER_PLACES, "random", metric, estimate)


def _find_formulations(pairs: Sequence[ContrastPair]) -> dict[str, NDArray[np.bool_]]:
    """Pairs of each formulation, where there are several."""
    names = [pair.formulation or "" for pair in pairs]
    if len(set(names)) < 2:
        return {}
    return {f"formulation={name}": np.array([other == name for other in names]) for name in sorted(set(names))}


def _find_better(metric: str) -> bool | None:
    """Whether high values of each metric are good; None where neither end is."""
    return None if metric in NO_P_VALUE else metric in HIGHER_IS_BETTER


def judge(
    config: CCSConfig,
    pairs: Sequence[ContrastPair],
    rows: Rows,
    places: Sequence[str],
    read: Callable[[int], Arrays],
) -> Judged:
    """Compute the results of a run from the arrays of every place.

    Args:
        config: the options.
        pairs: pairs that were probed.
        rows: labels, units and splits of these pairs.
        places: places of the model, in order.
        read: the arrays of a place, from its part file.
    """
    judge = Judge(config, pairs, rows, places)
    with Progress(len(places), unit="places", doing="judging") as bar:
        for number, place in enumerate(places):
            judge.add_place(place, StatementReadings.from_arrays(read(number)))
            bar.advance(1, 0)
    return judge.finish()
