"""Results of supervised probes of every layer on held-out and fresh rows, beside null distributions and a baseline."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.probes.prompts import METRICS, PROBES, LabelledReadings, LabelledRows, ProbeReadings, measure_rows
from probing.report.progress import Progress
from probing.runs.common.layers import Arrays
from probing.runs.common.results import (
    ALL,
    CHOSEN,
    SURFACE,
    Array,
    NullDistribution,
    compare,
    correct_share_interval,
)
from probing.runs.probe.config import ProbeConfig
from probing.statistics.bootstrap import draw_bootstrap_weights
from probing.statistics.intervals import auroc_interval, percentile_interval

BASELINE = "logistic"
"""The probe that reads lengths and punctuation."""
HELD_OUT, FRESH = "held out", "fresh"
Row = dict[str, object]


@dataclass(frozen=True, eq=False)
class Judged:
    """All results of a run.

    Attributes:
        results: one row a set (``HELD_OUT``, ``FRESH``), place, probe and metric.
        chosen: place that was chosen for each fold, for each probe.
        best: place with the best inner scores over all folds, for each probe.
        logits: held-out logits at the chosen places, [row]; the baseline's under ``SURFACE``.
        fresh: logits of fresh rows at the best place.
        weights: weight vectors, [place probe width], of the probes that saw every row; ``biases`` [place probe].
    """

    results: pd.DataFrame
    chosen: dict[str, list[str]]
    best: dict[str, str]
    logits: dict[str, Array]
    fresh: dict[str, Array]
    weights: Array
    biases: Array


@dataclass(frozen=True, eq=False)
class Measured:
    """Metrics of the logits of some rows.

    Attributes:
        values: value of each metric.
        replicates: value of each metric in every bootstrap replicate, [replicate].
        rows: number of rows.
        intervals: ends of the interval of each metric where percentiles of the replicates do not hold, otherwise None.
    """

    values: Mapping[str, float]
    replicates: Mapping[str, Array]
    rows: int
    intervals: Mapping[str, tuple[float, float] | None]


@dataclass(frozen=True, eq=False)
class RowSet:
    """The rows of one set, with what is needed to evaluate probes on them.

    Attributes:
        name: name of the set.
        labels: labels of the rows, [row].
        folds: fold that each row was held out of; one fold, where one probe read them all.
        weights: number of times that each row counts in each bootstrap replicate, [replicate row].
        labelings: the labels, then the permutations that probes were fitted to, [labeling row].
        units: rows of one unit are drawn together.
    """

    name: str
    labels: NDArray[np.bool_]
    folds: NDArray[np.int64]
    units: NDArray[np.int64]
    weights: Array
    labelings: NDArray[np.bool_]

    def measure(self, logits: Array) -> Measured:
        """Metrics of logits, [row]."""
        values = {name: float(value[0]) for name, value in measure_rows(logits, self.labels, self.folds).items()}
        replicates = measure_rows(logits, self.labels, self.folds, self.weights)
        right = np.where(logits == 0, 0.5, (logits > 0) == self.labels)
        intervals = {
            "accuracy": correct_share_interval(right, self.units),
            "auroc": auroc_interval(values["auroc"], self._count_couples(), replicates["auroc"]),
        }
        return Measured(values, replicates, len(self.labels), intervals)

    def _count_couples(self) -> int:
        """Couples of rows of both labels inside the folds that have no unit in common, at least."""
        count = 0
        for fold in np.unique(self.folds):
            here = self.folds == fold
            kinds = [len(np.unique(self.units[here & side])) for side in (self.labels, ~self.labels)]
            count += min(*kinds, len(np.unique(self.units[here])) // 2)
        return count

    def measure_null(self, logits: Array) -> dict[str, Array]:
        """Metrics of the probes that were fitted to permuted labels, on those labels; logits are [labeling row]."""
        draws = [
            measure_rows(row, labels, self.folds) for row, labels in zip(logits[1:], self.labelings[1:], strict=True)
        ]
        return {metric: np.array([each[metric][0] for each in draws]) for metric in METRICS}

    def make_rows(
        self,
        place: str,
        probe: str,
        own: Measured,
        nulls: Mapping[str, NullDistribution],
        baseline: Measured | None,
    ) -> list[Row]:
        """One row a metric: value, interval, null distribution, and by how much it is above the baseline."""
        rows, groups = [], len(np.unique(self.units))
        for metric in METRICS:
            row: Row = {"set": self.name, "subset": ALL, "place": place, "probe": probe, "metric": metric}
            compared = compare(
                own.values[metric],
                own.replicates[metric],
                own.rows,
                {"labels": nulls[metric]},
                interval=own.intervals[metric],
                groups=groups,
            )
            row |= compared.to_columns("rows")
            if baseline is not None:
                low, high = percentile_interval(own.replicates[metric] - baseline.replicates[metric], groups)
                row["above_surface"] = own.values[metric] - baseline.values[metric]
                row |= {"above_surface_low": low, "above_surface_high": high}
            rows.append(row)
        return rows


def judge(
    config: ProbeConfig,
    rows: LabelledRows,
    fresh: tuple[NDArray[np.bool_], NDArray[np.int64]] | None,
    places: Sequence[str],
    read: Callable[[int], Arrays],
) -> Judged:
    """Compute the results of a run from the arrays of every place.

    Args:
        config: seeds and numbers of replicates.
        rows: labels, units, splits.
        fresh: labels and units of the fresh rows.
        places: places in order; the baseline comes after them.
        read: the arrays of a place, from its part file.
    """
    readings = []
    with Progress(len(places) + 1, unit="places", doing="judging") as bar:
        for number in range(len(places) + 1):
            readings.append(LabelledReadings.from_arrays(read(number)).probes)
            bar.advance(1, 0)
    surface = readings.pop()[BASELINE]
    weights = draw_bootstrap_weights(rows.units, config.resamples, config.seed)
    labelings = rows.labelings(config.refits, config.seed)
    held = RowSet(HELD_OUT, rows.labels, rows.splits.folds, rows.units, weights, labelings)
    baseline = held.measure(surface.logits[0])
    judged = {
        probe: _judge_probe(held, probe, places, [each[probe] for each in readings], baseline) for probe in PROBES
    }
    results = [row for each in judged.values() for row in each.rows]
    nulls = _make_nulls(held.measure_null(surface.logits))
    results += held.make_rows(SURFACE, BASELINE, baseline, nulls, None)
    new: dict[str, Array] = {}
    if fresh is not None:
        results += _judge_fresh(config, fresh, places, readings, surface)
        new = {probe: _fresh_logits(readings[places.index(each.best)][probe]) for probe, each in judged.items()}
        new[SURFACE] = _fresh_logits(surface)
    return Judged(
        results=pd.DataFrame(results),
        chosen={probe: each.chosen for probe, each in judged.items()},
        best={probe: each.best for probe, each in judged.items()},
        logits={SURFACE: surface.logits[0], **{probe: each.logits for probe, each in judged.items()}},
        fresh=new,
        weights=np.stack([[each[probe].weight for probe in PROBES] for each in readings]),
        biases=np.stack([[each[probe].bias for probe in PROBES] for each in readings]),
    )


@dataclass(frozen=True, eq=False)
class JudgedProbe:
    """Results of one kind of probe on held-out rows.

    Attributes:
        rows: rows of the results table: of every place and of the places that were chosen.
        chosen: the place that was chosen for each fold.
        best: the place with the best inner scores over all folds.
        logits: held-out logits at the chosen places, [row].
    """

    rows: list[Row]
    chosen: list[str]
    best: str
    logits: Array


def _judge_probe(
    held: RowSet, probe: str, places: Sequence[str], readings: Sequence[ProbeReadings], baseline: Measured
) -> JudgedProbe:
    """Evaluate every place beside probes of permuted labels, and the places that were chosen inside the folds."""
    rows: list[Row] = []
    draws = [held.measure_null(each.logits) for each in readings]
    for place, each, own in zip(places, readings, draws, strict=True):
        rows += held.make_rows(place, probe, held.measure(each.logits[0]), _make_nulls(own, draws), baseline)
    inner = np.stack([each.inner for each in readings])  # [place labeling fold]
    # Each labeling chooses its own place for each fold.
    picked = inner.argmax(axis=0)
    nested = _choose_places([each.logits for each in readings], picked, held.folds)
    nulls = _make_nulls(held.measure_null(nested), chosen=True)
    rows += held.make_rows(CHOSEN, probe, held.measure(nested[0]), nulls, baseline)
    best = places[int(inner[:, 0].mean(axis=1).argmax())]
    return JudgedProbe(rows, [places[at] for at in picked[0]], best, nested[0])


def _choose_places(logits: Sequence[Array], picked: NDArray[np.int64], folds: NDArray[np.int64]) -> Array:
    """Logits [labeling row] at the places that each labeling chose for each fold, [labeling fold]."""
    values = np.stack(logits)  # [place labeling row]
    nested: Array = values[picked[:, folds], np.arange(values.shape[1])[:, None], np.arange(len(folds))]
    return nested


def _make_nulls(
    draws: Mapping[str, Array], places: Sequence[Mapping[str, Array]] = (), chosen: bool = False
) -> dict[str, NullDistribution]:
    return {
        metric: NullDistribution(draws[metric], [each[metric] for each in places], chosen=chosen) for metric in METRICS
    }


def _judge_fresh(
    config: ProbeConfig,
    fresh: tuple[NDArray[np.bool_], NDArray[np.int64]],
    places: Sequence[str],
    readings: Sequence[Mapping[str, ProbeReadings]],
    surface: ProbeReadings,
) -> list[Row]:
    """Fresh rows, by the probes that saw all others; they have no null distribution."""
    labels, units = fresh
    weights = draw_bootstrap_weights(units, config.resamples, config.seed)
    others = RowSet(FRESH, labels, np.zeros(len(labels), dtype=np.int64), units, weights, labels[None])
    baseline = others.measure(_fresh_logits(surface))
    nulls = {metric: NullDistribution(None) for metric in METRICS}
    rows: list[Row] = []
    for probe in PROBES:
        for place, each in zip(places, readings, strict=True):
            rows += others.make_rows(place, probe, others.measure(_fresh_logits(each[probe])), nulls, baseline)
    return rows + others.make_rows(SURFACE, BASELINE, baseline, nulls, None)


def _fresh_logits(readings: ProbeReadings) -> Array:
    assert readings.fresh is not None
    return readings.fresh
