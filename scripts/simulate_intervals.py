"""How often intervals cover what they estimate, and how often tests reject: by simulation.

Each cell draws data of which the truth is known, hundreds of times, and makes the intervals and the p-values with the
functions of the jobs. A line gives the share of the draws in which an interval covers the truth (wanted: .95), or in
which p is at most .05 (wanted under the null: .05), with its standard error.

    $ OMP_NUM_THREADS=1 python scripts/simulate_intervals.py
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import expit, ndtr

from probing.metrics.clusters import cluster_indices
from probing.metrics.clusters.indices import alignment_quality_index
from probing.metrics.clusters.readings import PlaceReadings
from probing.probes.ccs_options import CCSOptions
from probing.probes.contrast import fit_layer
from probing.probes.contrast_readings import NULLS, PROBES, NullDraws, StatementReadings
from probing.probes.contrast_states import ContrastOptions
from probing.probes.contrast_states import Rows as StatementRows
from probing.probes.evaluate import METRICS, credit, measure
from probing.probes.prompts import LabelledRows, fit_prompts
from probing.runs.ccs.config import CCSConfig
from probing.runs.ccs.results import judge as judge_statements
from probing.runs.clusters.config import ClustersConfig
from probing.runs.clusters.parts import describe_place, hold_out
from probing.runs.clusters.results import judge as judge_clusters
from probing.runs.clusters.rows import HELD_OUT, Material, Part, Rows, View
from probing.runs.common.results import ALL, CHOSEN, NullDistribution
from probing.runs.probe.config import ProbeConfig
from probing.runs.probe.results import RowSet
from probing.runs.probe.results import judge as judge_prompts
from probing.statistics.bootstrap import bootstrap_mean, bootstrap_spearman, draw_bootstrap_weights, estimate_share
from probing.statistics.folds import Splits, make_folds
from probing.types import ContrastPair, Estimate

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator], Sequence[bool]]
"""Of one draw of the data, for every line: whether the interval covers the truth, or p is at most .05."""
RESAMPLES, PERMUTATIONS, REFITS = 300, 199, 19
LEVEL, WHOLE = 0.05, 0.95
FOLDS = 3
OPTIONS: dict[str, Any] = {"data": "none", "out": Path("none"), "model": "none", "folds": FOLDS}
"""Options of the jobs, which read and write nothing here."""


@dataclass(frozen=True)
class Cell:
    """Lines of the table that come from the same draws.

    Attributes:
        what: the intervals and p-values, one a line.
        data: the data that are drawn.
        wanted: the share that is wanted; None for an alternative, of which only power is told.
        draw: makes one draw.
        share: number of draws as a part of those that are asked for: fewer where one takes long.
    """

    what: Sequence[str]
    data: str
    wanted: float | None
    draw: Draw
    share: float = 1.0


def covers(found: Estimate, truth: float) -> bool:
    """Whether the interval covers the truth; one that is not there covers nothing."""
    return found.low <= truth <= found.high


def holds(row: Any, truth: float, prefix: str = "") -> bool:
    """Whether the interval in a row of a results table covers the truth."""
    return bool(row[f"{prefix}low"] <= truth <= row[f"{prefix}high"])


def rejects(row: Any, column: str) -> bool:
    """Whether the p-value of a row is small; of several rows, the least."""
    return bool(np.min(row[column]) <= LEVEL)


def draw_normal(random: np.random.Generator, groups: int, copies: int) -> Array:
    """Normal values, of which those of a group have half of their variance in common: [group * copies]."""
    shared = np.repeat(random.normal(size=groups), copies)
    return shared if copies == 1 else (shared + random.normal(size=groups * copies)) / math.sqrt(2)


# Shares, means, correlations


def cover_share(rows: int, share: float, copies: int = 1, alike: bool = True) -> Draw:
    """A share of rows, or of groups of rows that all say the same, or half so."""

    def draw(random: np.random.Generator) -> Sequence[bool]:
        values = np.repeat(random.random(rows) < share, copies)
        if not alike:
            values = ndtr(draw_normal(random, rows, copies)) < share
        return [covers(estimate_share(values, RESAMPLES, 0, np.repeat(np.arange(rows), copies)), share)]

    return draw


def cover_mean(rows: int, copies: int = 1, skewed: bool = False) -> Draw:
    """The mean of rows, or of groups of rows that have half of their variance in common."""

    def draw(random: np.random.Generator) -> Sequence[bool]:
        values = random.exponential(size=rows) - 1 if skewed else draw_normal(random, rows, copies)
        return [covers(bootstrap_mean(values, RESAMPLES, 0, np.repeat(np.arange(rows), copies)), 0.0)]

    return draw


def cover_spearman(rows: int, correlation: float, copies: int = 1) -> Draw:
    """Spearman's correlation of two normal columns."""
    truth = 6 / math.pi * math.asin(correlation / 2)

    def draw(random: np.random.Generator) -> Sequence[bool]:
        left, other = (draw_normal(random, rows, copies) for _ in range(2))
        right = correlation * left + math.sqrt(1 - correlation**2) * other
        groups = np.repeat(np.arange(rows), copies)
        return [covers(bootstrap_spearman(left, right, RESAMPLES, 0, groups), truth)]

    return draw


# probing probe


def cover_prompts(groups: int, apart: float, copies: int = 1, positive: float = 0.5) -> Draw:
    """AUROC and accuracy of a fixed probe, and the AUROC above that of another one, which is as good."""
    labels = np.repeat(np.arange(groups) < positive * groups, copies)
    units, nothing = np.repeat(np.arange(groups), copies), np.zeros(len(labels), dtype=np.int64)
    auroc, accuracy = float(ndtr(apart / math.sqrt(2))), float(ndtr(apart / 2))

    def draw(random: np.random.Generator) -> Sequence[bool]:
        weights = draw_bootstrap_weights(units, RESAMPLES, int(random.integers(2**31)))
        rows = RowSet("held out", labels, nothing, units, weights, labels[None])
        own, other = (draw_normal(random, groups, copies) + apart * (labels - 0.5) for _ in range(2))
        found = pd.DataFrame(rows.make_rows("", "", rows.measure(own), NO_NULLS, rows.measure(other)))
        ends = found.set_index("metric")
        return [
            holds(ends.loc["auroc"], auroc),
            holds(ends.loc["accuracy"], accuracy),
            holds(ends.loc["auroc"], 0.0, "above_surface_"),
        ]

    return draw


NO_NULLS = {name: NullDistribution(None) for name in ("auroc", "accuracy")}
PROMPT_INTERVALS = ("AUROC", "accuracy of a probe", "AUROC above the baseline")


def reject_prompts(groups: int, copies: int, apart: float, places: int) -> Draw:
    """p of supervised probes: at a place that is fixed, chosen inside folds, and corrected over places."""
    units = np.repeat(np.arange(groups), copies)
    labels = units % 2 == 0

    def draw(random: np.random.Generator) -> Sequence[bool]:
        seed = int(random.integers(2**31))
        rows = LabelledRows(labels, units, Splits.of(make_folds(units, FOLDS, seed, labels)))
        config = ProbeConfig(**OPTIONS, seed=seed, refits=REFITS, resamples=2)
        arrays = []
        for _ in range(places + 1):
            states = np.stack([draw_normal(random, groups, copies) for _ in range(5)], axis=1) + apart * labels[:, None]
            arrays.append(fit_prompts(torch.from_numpy(states).float(), rows, REFITS, seed).to_arrays())
        names = [str(number) for number in range(places)]
        found = judge_prompts(config, rows, None, names, lambda number: arrays[number]).results
        found = found[found["metric"] == "auroc"].set_index(["probe", "place"])
        below = []
        for probe in ("mass_mean", "logistic"):
            own = found.loc[probe]
            below += [rejects(own.loc[place], "p_labels") for place in ("0", CHOSEN)]
            below.append(rejects(own.loc[names], "p_labels_corrected"))
        return below

    return draw


PROMPT_TESTS = tuple(
    f"p(labels), {probe}, {where}"
    for probe in ("mass-mean", "logistic")
    for where in ("a fixed place", "chosen inside folds", "corrected, least of the places")
)


# probing ccs


def statement_rows(pairs: int, copies: int, seed: int) -> tuple[StatementRows, list[ContrastPair]]:
    """Pairs of which every other statement is true, those of a group alike, with folds of groups."""
    units = np.repeat(np.arange(pairs), copies)
    labels = units % 2 == 0
    rows = StatementRows(labels, units, Splits.of(make_folds(units, FOLDS, seed)))
    return rows, [ContrastPair(str(at), f"S{at}", f"O{at}", bool(label)) for at, label in enumerate(labels)]


def draw_forms(random: np.random.Generator, truth: Array, copies: int, apart: float) -> Array:
    """Probabilities of A1, A0, N1, N0 by a fixed probe, [4 pair]."""
    noise = np.stack([draw_normal(random, len(truth) // copies, copies) for _ in range(4)])
    return np.asarray(expit(noise + apart * truth * np.array([1, -1, -1, 1])[:, None]))


def cover_statements(pairs: int, copies: int, apart: float) -> Draw:
    """Every metric of a fixed probe on pairs, and the marker control's change of the polar consistency."""
    many = np.where(np.arange(20_000) % 2 == 0, 1.0, -1.0)
    forms = draw_forms(np.random.default_rng(0), many, 1, apart)
    truth = {name: float(value[0]) for name, value in measure(forms, many, np.zeros(20_000, dtype=int)).items()}
    blind = draw_forms(np.random.default_rng(1), many, 1, 0.0)
    change = measure(blind, many, np.zeros(20_000, dtype=int))["contradiction_index"] - truth["contradiction_index"]

    def draw(random: np.random.Generator) -> Sequence[bool]:
        seed = int(random.integers(2**31))
        rows, listed = statement_rows(pairs, copies, seed)
        own = np.stack([draw_forms(random, rows.truth, copies, apart)] * len(PROBES))
        marked = np.stack([draw_forms(random, rows.truth, copies, 0.0)] * len(PROBES))
        credits = np.repeat((credit(own) * rows.truth)[..., None], len(rows.splits.left_out), axis=-1)
        nothing = NullDraws(np.zeros((0, *own.shape[1:])), np.zeros((0, FOLDS)))
        plain = (np.zeros((len(PROBES), 1)), np.zeros(len(PROBES)), np.zeros((2, 1)), np.eye(len(PROBES)))
        readings = StatementReadings(
            own, credits, dict.fromkeys(NULLS, nothing), *plain, np.zeros(1), np.ones((1, 1)), marked
        )
        config = CCSConfig(**OPTIONS, seed=seed, permutations=1, refits=0, resamples=RESAMPLES)
        judged = judge_statements(config, listed, rows, ["0"], lambda number: readings.to_arrays())
        found = judged.results[(judged.results["subset"] == ALL) & (judged.results["place"] == "0")]
        ends = found[found["probe"] == "ccs"].set_index("metric")
        covered = [holds(ends.loc[name], truth[name]) for name in METRICS]
        controls = judged.controls[judged.controls["control"] == "marker:change"]
        ends = controls[controls["probe"] == "ccs"].set_index("metric")
        return [*covered, holds(ends.loc["contradiction_index"], float(change[0]))]

    return draw


STATEMENT_INTERVALS = (*METRICS, "marker control: change of the contradiction_index")


def reject_statements(pairs: int, copies: int, apart: float, places: int) -> Draw:
    """p of contrast-consistent and supervised probes on pairs whose states are noise, or hold the truth."""
    ccs = CCSOptions(restarts=2, epochs=40, learning_rate=0.05)
    options = ContrastOptions(ccs=ccs, random=REFITS, pairings=1, refits=REFITS)

    def draw(random: np.random.Generator) -> Sequence[bool]:
        seed = int(random.integers(2**31))
        rows, listed = statement_rows(pairs, copies, seed)
        arrays = []
        for _ in range(places):
            states = np.stack(
                [np.stack([draw_normal(random, pairs, copies) for _ in range(4)]) for _ in range(6)], axis=-1
            )
            states[..., 0] += apart * rows.truth * np.array([1, -1, -1, 1])[:, None]
            arrays.append(fit_layer(torch.from_numpy(states).float(), rows, options, threads=1).to_arrays())
        config = CCSConfig(
            **OPTIONS, seed=seed, permutations=PERMUTATIONS, random=REFITS, refits=REFITS, resamples=2, restarts=2
        )
        names = [str(number) for number in range(places)]
        found = judge_statements(config, listed, rows, names, lambda number: arrays[number]).results
        found = found[(found["metric"] == "esa") & (found["subset"] == ALL)].set_index(["probe", "place"])
        own, other = found.loc["ccs"], found.loc["mass_mean"]
        return [
            rejects(own.loc["0"], "p_labels"),
            rejects(own.loc[CHOSEN], "p_labels"),
            rejects(own.loc[names], "p_labels_corrected"),
            rejects(own.loc[CHOSEN], "p_random"),
            rejects(own.loc[names], "p_random_corrected"),
            rejects(other.loc[CHOSEN], "p_labels"),
        ]

    return draw


STATEMENT_TESTS = (
    "p(labels), CCS, a fixed place",
    "p(labels), CCS, chosen inside folds",
    "p(labels), CCS, corrected, least of the places",
    "p(random), CCS, chosen inside folds",
    "p(random), CCS, corrected, least of the places",
    "p(labels), mass-mean of pairs, chosen inside folds",
)


# probing clusters


class DrawnMaterial(Material):
    """States that were drawn, without a model, a store or texts behind them."""

    def __init__(
        self,
        layers: Sequence[Sequence[torch.Tensor]],
        codes: NDArray[np.int64],
        units: NDArray[np.int64],
        permutations: int = 1,
        resamples: int = 1,
    ):
        seed, names = int(layers[0][0][0, 0].abs() * 1e6), [str(number) for number in range(int(codes.max()) + 1)]
        self.config = ClustersConfig(**OPTIONS, seed=seed, permutations=permutations, resamples=resamples, tsne=False)
        folds = make_folds(units, FOLDS, seed, codes)
        view = View(ALL, "", np.arange(len(codes)), codes.astype(np.int16), names)
        self.rows = Rows([], len(codes), codes.astype(str), units, folds, "", [view], {}, {}, {})
        self.layers, self.controls, self.device = layers, [], torch.device("cpu")
        self.names = [str(number) for number in range(len(layers))]
        self.places = [[str(number) for number in range(len(each))] for each in layers]
        self._relabelings: dict[int, NDArray[np.integer[Any]]] = {}

    def states(self, model: int, place: str, control: bool = True) -> torch.Tensor:
        """The states that were drawn, [row width]."""
        return self.layers[model][int(place)]

    @property
    def parts(self) -> list[Part]:
        """None of drift, which has no intervals."""
        return []

    def judge(self) -> pd.DataFrame:
        """The results table of the job."""
        arrays: dict[Part, dict[str, Array]] = {}
        for model, layers in enumerate(self.layers):
            described: list[PlaceReadings] = [describe_place(self, each, lambda share: None) for each in layers]
            arrays |= {(model, "", str(number)): each.to_arrays() for number, each in enumerate(described)}
            arrays[model, HELD_OUT, ""] = hold_out(self, model, described).to_arrays()
        return judge_clusters(self, lambda part: arrays[part]).results


def draw_points(
    random: np.random.Generator, codes: NDArray[np.int64], copies: int, spreads: Sequence[float], apart: float
) -> torch.Tensor:
    """Points of clusters whose centres are as far from each other, [n width]."""
    noise = np.stack([draw_normal(random, len(codes) // copies, copies) for _ in range(20)], axis=1)
    points = noise * np.array(spreads)[codes, None]
    points[np.arange(len(codes)), codes] += apart / math.sqrt(2)
    return torch.from_numpy(points).float()


def make_codes(sizes: Sequence[int], copies: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cluster of each row, and its group."""
    codes = np.repeat(np.arange(len(sizes)), sizes)
    return np.repeat(codes, copies), np.repeat(np.arange(len(codes)), copies)


def true_indices(n: int, clusters: int, apart: float) -> dict[str, float]:
    """Indices of so many points that chance is left out; those that grow with n as of n points."""
    codes = np.repeat(np.arange(clusters), 6_000 // clusters)
    points = draw_points(np.random.default_rng(0), codes, 1, (1.0,) * clusters, apart)
    values = cluster_indices(points, codes, ("davies_bouldin", "xie_beni", "calinski_harabasz", "silhouette"))
    values["calinski_harabasz"] *= (n - clusters) / (len(codes) - clusters)
    for name, form in (("aqi", "paper"), ("aqi_size_free", "size_free")):
        values[name] = alignment_quality_index(values, form, 0.5, n, clusters)
    return {name: float(value) for name, value in values.items()}


def cover_clusters(sizes: Sequence[int], copies: int, apart: float, further: float) -> Draw:
    """Every index with an interval, held out too, and the differences from a model whose clusters are closer."""
    codes, units = make_codes(sizes, copies)
    plain = (1.0,) * len(sizes)
    truth, first = (true_indices(len(codes), len(sizes), far) for far in (further, apart))

    def draw(random: np.random.Generator) -> Sequence[bool]:
        before = draw_points(random, codes, copies, plain, apart)
        after = before.clone()
        after[np.arange(len(codes)), codes] += (further - apart) / math.sqrt(2)
        found = DrawnMaterial([[before], [after]], codes, units, resamples=RESAMPLES).judge()
        table: Any = found[found["model"] == "1"].set_index(["set", "place", "metric"]).sort_index()
        own, held = table.loc[ALL, "0"], table.loc[HELD_OUT, CHOSEN]
        covered = [holds(own.loc[name], truth[name]) for name in CLUSTER_INDICES]
        covered += [holds(held.loc[name], truth[name]) for name in ("silhouette", "aqi_size_free")]
        covered += [
            holds(own.loc[name], truth[name] - first[name], "minus_first_") for name in ("silhouette", "aqi_size_free")
        ]
        return covered

    return draw


CLUSTER_INDICES = ("silhouette", "davies_bouldin", "calinski_harabasz", "xie_beni", "aqi", "aqi_size_free")
CLUSTER_INTERVALS = (
    *CLUSTER_INDICES,
    "silhouette, held out",
    "aqi_size_free, held out",
    "silhouette minus the first model's",
    "aqi_size_free minus the first model's",
)


def reject_clusters(
    sizes: Sequence[int], spreads: Sequence[float], apart: float = 0.0, copies: int = 1, places: int = 1
) -> Draw:
    """p of the silhouette, of the centres and of Calinski and Harabasz: at a place, over places, held out."""
    codes, units = make_codes(sizes, copies)

    def draw(random: np.random.Generator) -> Sequence[bool]:
        layers = [draw_points(random, codes, copies, spreads, apart) for _ in range(places)]
        table = DrawnMaterial([layers], codes, units, permutations=PERMUTATIONS).judge()
        found: Any = table.set_index(["set", "place", "metric"]).sort_index()
        names = [str(number) for number in range(places)]
        below: list[bool] = []
        for index in TESTED:
            over = [found.loc[(ALL, name, index), "p_labels_corrected"] for name in names]
            below += [
                rejects(found.loc[(ALL, "0", index)], "p_labels"),
                min(over) <= LEVEL,
                rejects(found.loc[(HELD_OUT, CHOSEN, index)], "p_labels"),
            ]
        return below

    return draw


TESTED = ("silhouette", "welch", "calinski_harabasz")
CLUSTER_TESTS = tuple(
    f"p of {index}, {where}"
    for index in TESTED
    for where in ("a fixed place", "corrected, least of the places", "held out, chosen inside folds")
)


# The table


def make_cells() -> Iterable[Cell]:
    """Every cell, intervals first."""
    for rows, share in ((20, 0.95), (20, 0.5), (60, 0.8), (60, 0.99)):
        yield Cell(["share"], f"{rows} rows, {share}", WHOLE, cover_share(rows, share))
    yield Cell(["share"], "30 groups of 4 equal rows, 0.9", WHOLE, cover_share(30, 0.9, 4))
    yield Cell(["share"], "25 groups of 4 half-alike rows, 0.5", WHOLE, cover_share(25, 0.5, 4, alike=False))
    for rows, skewed in ((6, False), (6, True), (10, True), (15, False), (15, True), (40, True), (200, True)):
        kind = "exponential" if skewed else "normal"
        yield Cell(["mean"], f"{rows} {kind} rows", WHOLE, cover_mean(rows, skewed=skewed))
    yield Cell(["mean"], "25 groups of 4 rows", WHOLE, cover_mean(25, 4))
    yield Cell(["Spearman"], "20 rows, correlation 0.5", WHOLE, cover_spearman(20, 0.5))
    yield Cell(["Spearman"], "30 groups of 4 half-alike rows, 0.5", WHOLE, cover_spearman(30, 0.5, 4), 0.5)
    for groups, copies, apart, positive in ((40, 1, 1.0, 0.5), (40, 1, 3.0, 0.5), (20, 2, 1.0, 0.5), (60, 1, 2.5, 0.2)):
        name = f"{groups} groups of {copies}, {positive:.0%} positive, AUROC {ndtr(apart / math.sqrt(2)):.2f}"
        yield Cell(PROMPT_INTERVALS, name, WHOLE, cover_prompts(groups, apart, copies, positive))
    for pairs, copies, apart in ((40, 1, 0.7), (20, 2, 0.7), (40, 1, 2.0)):
        name = f"{pairs} groups of {copies} pairs, a fixed probe, logits {apart} from 0"
        yield Cell(STATEMENT_INTERVALS, name, WHOLE, cover_statements(pairs, copies, apart))
    yield Cell(
        CLUSTER_INTERVALS, "30 and 30 rows, 3 apart (first: 2)", WHOLE, cover_clusters((30, 30), 1, 2.0, 3.0), 0.6
    )
    yield Cell(
        CLUSTER_INTERVALS,
        "15 and 15 groups of 2 rows, 3 apart (first: 2)",
        WHOLE,
        cover_clusters((15, 15), 2, 2.0, 3.0),
        0.6,
    )
    yield Cell(PROMPT_TESTS, "24 rows, width 5, 2 places, no difference", LEVEL, reject_prompts(24, 1, 0.0, 2), 2.5)
    yield Cell(PROMPT_TESTS, "18 groups of 2 rows, no difference", LEVEL, reject_prompts(18, 2, 0.0, 2), 0.75)
    yield Cell(PROMPT_TESTS, "24 rows, 0.6 apart in each dimension", None, reject_prompts(24, 1, 0.6, 2), 0.25)
    yield Cell(STATEMENT_TESTS, "24 pairs, width 6, 2 places, noise", LEVEL, reject_statements(24, 1, 0.0, 2), 0.5)
    yield Cell(STATEMENT_TESTS, "18 groups of 2 pairs, noise", LEVEL, reject_statements(18, 2, 0.0, 2), 0.5)
    yield Cell(STATEMENT_TESTS, "24 pairs, truth 1.0 from 0", None, reject_statements(24, 1, 1.0, 2), 0.15)
    for sizes, spreads in (((30, 30), (1, 1)), ((30, 30), (1, 3)), ((40, 12), (3, 1)), ((40, 12), (1, 3))):
        name = f"{sizes[0]} and {sizes[1]} rows, spread {spreads[0]} and {spreads[1]}, one centre, 2 places"
        yield Cell(CLUSTER_TESTS, name, LEVEL, reject_clusters(sizes, spreads, places=2), 0.6)
    yield Cell(
        CLUSTER_TESTS, "15 and 15 groups of 2 rows, one centre", LEVEL, reject_clusters((15, 15), (1, 1), 0, 2), 0.6
    )
    yield Cell(CLUSTER_TESTS, "30 and 30 rows, 1.5 apart", None, reject_clusters((30, 30), (1, 1), 1.5), 0.15)


def simulate(cell: Cell, replicates: int, seed: int = 0) -> list[tuple[float, float]]:
    """Share of the draws, and its standard error, of every line."""
    draws = [cell.draw(np.random.default_rng([seed, number])) for number in range(replicates)]
    shares = np.mean(np.array(draws, dtype=np.float64), axis=0)
    errors = np.sqrt(np.maximum(shares * (1 - shares), 1 / replicates**2) / replicates)
    return list(zip(shares.tolist(), errors.tolist(), strict=True))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=400)
    parser.add_argument("--only", default="", help="cells that have this in a line")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| interval or p-value | data | wanted | found | standard error |\n|---|---|---|---|---|")
    for cell in make_cells():
        if not any(given.only in f"{what} {cell.data}" for what in cell.what):
            continue
        began, wanted = time.monotonic(), "power" if cell.wanted is None else f"{cell.wanted:.2f}"
        found = simulate(cell, max(1, round(given.replicates * cell.share)))
        for what, (share, error) in zip(cell.what, found, strict=True):
            print(f"| {what} | {cell.data} | {wanted} | {share:.3f} | {error:.3f} |", flush=True)
        print(f"{time.monotonic() - began:.0f} s: {cell.what[0]}, {cell.data}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
