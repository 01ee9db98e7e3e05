"""How often intervals cover what they estimate, and how often tests reject: by simulation.

Each cell draws data of which the truth is known, hundreds of times, and makes the interval or the p-value as the jobs
make it. A line gives the share of the draws in which the interval covers the truth (wanted: .95), or in which p is at
most .05 (wanted under the null: .05), with its standard error.

    $ python scripts/simulate_intervals.py --replicates 400 > docs/benchmarks/intervals.md
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr

from probing.metrics.clusters.draws import measure_clusters
from probing.metrics.clusters.intervals import debias
from probing.metrics.clusters.preparation import prepare
from probing.probes.prompts import LabelledRows, fit_prompts, measure_rows
from probing.runs.common.results import correct_auroc_interval
from probing.statistics.bootstrap import bootstrap_mean, bootstrap_spearman, draw_bootstrap_weights, estimate_share
from probing.statistics.folds import Splits, make_folds
from probing.statistics.intervals import percentile_interval
from probing.statistics.permutation import p_value, permute_labels
from probing.types import Estimate

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator], bool]
"""Whether the interval of one draw of the data covers the truth, or its p-value is at most .05."""
RESAMPLES = 300
PERMUTATIONS = 199
LEVEL = 0.05


@dataclass(frozen=True)
class Cell:
    """One line of the table.

    Attributes:
        what: the interval or the p-value.
        data: the data that are drawn.
        wanted: the share that is wanted; None for an alternative, of which only power is told.
        draw: makes one draw.
    """

    what: str
    data: str
    wanted: float | None
    draw: Draw


def covers(found: Estimate, truth: float) -> bool:
    """Whether the interval covers the truth; one that is not there covers nothing."""
    return found.low <= truth <= found.high


def cover_share(rows: int, share: float, copies: int = 1) -> Draw:
    """A share of rows, or of groups of rows that all say the same."""

    def draw(random: np.random.Generator) -> bool:
        values = np.repeat(random.random(rows) < share, copies)
        return covers(estimate_share(values, RESAMPLES, 0, np.repeat(np.arange(rows), copies)), share)

    return draw


def cover_mean(rows: int, copies: int = 1, skewed: bool = False) -> Draw:
    """The mean of rows, or of groups of rows that have half of their variance in common."""

    def draw(random: np.random.Generator) -> bool:
        values = random.exponential(size=rows) - 1 if skewed else random.normal(size=rows)
        values = np.repeat(values, copies) + (random.normal(size=rows * copies) if copies > 1 else 0)
        return covers(bootstrap_mean(values, RESAMPLES, 0, np.repeat(np.arange(rows), copies)), 0.0)

    return draw


def cover_spearman(rows: int, correlation: float, copies: int = 1) -> Draw:
    """Spearman's correlation of two normal columns."""
    truth = 6 / math.pi * math.asin(correlation / 2)

    def draw(random: np.random.Generator) -> bool:
        left, other = np.repeat(random.normal(size=(2, rows)), copies, axis=1)
        right = correlation * left + math.sqrt(1 - correlation**2) * other
        groups = np.repeat(np.arange(rows), copies)
        return covers(bootstrap_spearman(left, right, RESAMPLES, 0, groups), truth)

    return draw


def cover_auroc(rows: int, apart: float) -> Draw:
    """AUROC of the logits of a fixed probe, whose two kinds of rows lie ``apart`` standard deviations apart."""
    truth, folds = float(ndtr(apart / math.sqrt(2))), np.zeros(rows, dtype=np.int64)
    labels = np.arange(rows) % 2 == 0

    def draw(random: np.random.Generator) -> bool:
        logits = random.normal(size=rows) + apart * labels
        value = float(measure_rows(logits, labels, folds)["auroc"][0])
        weights = draw_bootstrap_weights(np.arange(rows), RESAMPLES, int(random.integers(2**31)))
        ends = correct_auroc_interval(value, rows // 2)
        if ends is None:
            ends = percentile_interval(measure_rows(logits, labels, folds, weights)["auroc"])
        return covers(Estimate(value, *ends, rows), truth)

    return draw


def draw_clusters(
    random: np.random.Generator, sizes: tuple[int, ...], spreads: tuple[float, ...], apart: float, width: int
) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Points of clusters whose centres are as far from each other: [n width], and the cluster of each."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    points = random.normal(size=(len(labels), width)) * np.array(spreads)[labels, None]
    points[np.arange(len(labels)), labels] += apart / math.sqrt(2)
    return torch.from_numpy(points).float(), labels


def reject_clusters(
    index: str, sizes: tuple[int, ...], spreads: tuple[float, ...], apart: float = 0.0, width: int = 20, folds: int = 1
) -> Draw:
    """Whether an index is above that of permuted labels; with folds the mean over them, as of a place that is fixed."""

    def draw(random: np.random.Generator) -> bool:
        points, labels = draw_clusters(random, sizes, spreads, apart, width)
        seed = int(random.integers(2**31))
        parts = np.zeros(len(labels)) if folds == 1 else make_folds(np.arange(len(labels)), folds, seed, labels)
        values, nulls = [], []
        for fold in range(folds):
            here = np.flatnonzero(parts == fold)
            grouped = prepare(points[here], torch.from_numpy(labels[here]), len(sizes))
            drawn = permute_labels(labels[here], here, PERMUTATIONS, seed + fold)
            found = measure_clusters(grouped, (index,), torch.from_numpy(drawn.T.copy())[grouped.order].short())
            values.append(float(found.values[index][0]))
            nulls.append(found.null[index].double().numpy())
        return p_value(float(np.mean(values)), np.mean(nulls, axis=0)) <= LEVEL

    return draw


def cover_clusters(index: str, truth: float, sizes: tuple[int, ...], apart: float, width: int = 20) -> Draw:
    """The interval of an index, whose value of many points is ``truth``."""

    def draw(random: np.random.Generator) -> bool:
        points, labels = draw_clusters(random, sizes, (1.0,) * len(sizes), apart, width)
        grouped = prepare(points, torch.from_numpy(labels), len(sizes))
        weights = draw_bootstrap_weights(np.arange(len(labels)), RESAMPLES, int(random.integers(2**31))).T
        found = measure_clusters(grouped, (index,), None, torch.from_numpy(weights.copy())[grouped.order].short())
        value = float(found.values[index][0])
        _, low, high = debias(index, value, found.draws[index].double().numpy())
        return covers(Estimate(value, low, high, len(labels)), truth)

    return draw


def reject_probe(rows: int, width: int, apart: float, probe: str = "mass_mean", draws: int = 19) -> Draw:
    """Whether the held-out AUROC of a probe at a fixed place is above that of probes of permuted labels."""

    def draw(random: np.random.Generator) -> bool:
        labels = np.arange(rows) % 2 == 0
        states = torch.from_numpy(random.normal(size=(rows, width)) + apart * labels[:, None]).float()
        seed = int(random.integers(2**31))
        folds = make_folds(np.arange(rows), 3, seed, labels)
        own = LabelledRows(labels, np.arange(rows), Splits.of(folds))
        read = fit_prompts(states, own, draws, seed).probes[probe].logits
        labelings = own.labelings(draws, seed)
        values = [float(measure_rows(*each, folds)["auroc"][0]) for each in zip(read, labelings, strict=True)]
        return p_value(values[0], np.array(values[1:])) <= LEVEL

    return draw


def make_cells() -> list[Cell]:
    """Every cell, intervals first."""
    whole = 0.95
    cells = [
        Cell("share", f"{rows} rows, {share}", whole, cover_share(rows, share))
        for rows, share in ((20, 0.95), (20, 0.5), (60, 0.8), (60, 0.99))
    ]
    cells.append(Cell("share", "30 groups of 4 equal rows, 0.9", whole, cover_share(30, 0.9, 4)))
    cells.append(Cell("mean", "6 normal rows", whole, cover_mean(6)))
    cells.append(Cell("mean", "10 exponential rows", whole, cover_mean(10, skewed=True)))
    cells.append(Cell("mean", "15 normal rows", whole, cover_mean(15)))
    cells.append(Cell("mean", "40 exponential rows", whole, cover_mean(40, skewed=True)))
    cells.append(Cell("mean", "25 groups of 4 rows", whole, cover_mean(25, 4)))
    cells.append(Cell("Spearman", "20 rows, correlation 0.5", whole, cover_spearman(20, 0.5)))
    cells.append(Cell("Spearman", "30 groups of 4 equal rows, 0.5", whole, cover_spearman(30, 0.5, 4)))
    cells.append(Cell("AUROC", "40 rows, 0.76", whole, cover_auroc(40, 1.0)))
    cells.append(Cell("AUROC", "40 rows, 0.98", whole, cover_auroc(40, 3.0)))
    two = (30, 30)
    # Between and within sums of squares of many points: B = n a^2 / 4, W = n width, each but for its factor.
    truth = (60 - 2) * (2.0**2 / 4) / 20
    cells.append(
        Cell(
            "calinski_harabasz", "30 and 30 rows, 2 apart", whole, cover_clusters("calinski_harabasz", truth, two, 2.0)
        )
    )
    cells.append(Cell("xie_beni", "30 and 30 rows, 2 apart", whole, cover_clusters("xie_beni", 20 / 4.0, two, 2.0)))
    tied = (20,) * 5
    cells.append(
        Cell(
            "xie_beni (not shown)",
            "5 tied clusters of 20, 3 apart",
            whole,
            cover_clusters("xie_beni", 20 / 9.0, tied, 3.0),
        )
    )
    for sizes, spreads in ((two, (1.0, 1.0)), (two, (1.0, 3.0)), ((40, 8), (3.0, 1.0)), ((40, 8), (1.0, 3.0))):
        name = f"{sizes[0]} and {sizes[1]} rows, spread {spreads[0]:g} and {spreads[1]:g}, one centre"
        cells += [Cell(f"p of {each}", name, LEVEL, reject_clusters(each, sizes, spreads)) for each in INDICES]
    name = "15 and 15 rows, one centre, mean of 3 folds"
    cells += [Cell(f"p of {i}, held out", name, LEVEL, reject_clusters(i, (15, 15), (1, 1), folds=3)) for i in INDICES]
    cells += [
        Cell(f"p of {i}", "30 and 30 rows, 1.5 apart", None, reject_clusters(i, two, (1, 1), 1.5)) for i in INDICES
    ]
    cells.append(Cell("p of a probe, held out", "36 rows, width 5, no difference", LEVEL, reject_probe(36, 5, 0.0)))
    cells.append(Cell("p of a probe, held out", "36 rows, width 5, 0.5 apart", None, reject_probe(36, 5, 0.5)))
    return cells


INDICES = ("welch", "silhouette", "calinski_harabasz")


def simulate(cell: Cell, replicates: int, seed: int = 0) -> tuple[float, float]:
    """Share of the draws, and its standard error."""
    hits = sum(cell.draw(np.random.default_rng([seed, number])) for number in range(replicates))
    share = hits / replicates
    return share, math.sqrt(max(share * (1 - share), 1 / replicates**2) / replicates)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=400)
    parser.add_argument("--only", default="", help="cells whose name has this in it")
    given = parser.parse_args()
    print("| interval or p-value | data | wanted | found | standard error |\n|---|---|---|---|---|")
    for cell in make_cells():
        if given.only in cell.what:
            share, error = simulate(cell, given.replicates)
            wanted = "power" if cell.wanted is None else f"{cell.wanted:.2f}"
            print(f"| {cell.what} | {cell.data} | {wanted} | {share:.3f} | {error:.3f} |", flush=True)


if __name__ == "__main__":
    main()
