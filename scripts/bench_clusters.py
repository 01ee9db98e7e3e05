"""The job ``clusters`` of ``bench.py``: cluster indices with a null against scikit-learn's and scipy's without one."""

import argparse
import json
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from clusters_before import before
from measuring import peak_of, spread_of, timed
from torch import Tensor

from probing.metrics.clusters import ALL_INDICES, INDICES
from probing.metrics.clusters.draws import IndexDraws, measure_clusters
from probing.metrics.clusters.grouped import Grouped
from probing.metrics.clusters.preparation import prepare

AGREE = 1e-4
"""Relative; scikit-learn computes two of its indices in the float32 of the states."""
LAYERS, POINTS, WIDTH, PERMUTATIONS = 12, 4000, 768, 1000
GROWING = (1000, 2000, 4000, 8000, 16000)
SMALL = (2, 120, 16, 20)
CHANGES = ((4000, 768, 1000, 0), (2000, 576, 1000, 1000))
"""Points, width, permutations and resamples of the figures that compare with the plain form; the second is what the
command draws."""
SMALL_CHANGES = ((120, 16, 20, 20),)
ROUNDS, SMALL_ROUNDS = 12, 2
AGREE_DRAWS = 1e-5
"""Of draws, relative to the largest of them, or to 1 of silhouettes: sums in float32 are made in another order."""
SMALL_GROWING = (60, 120)
APART = 0.1


def inputs(points: int, width: int, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """Two classes that overlap, in float32, about a common offset."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (points,), generator=generator)
    states = torch.randn(points, width, generator=generator) + APART * labels[:, None] + 3
    return states.to(device), labels


def ours(states: Tensor, labels: Tensor, permutations: int) -> dict[str, float]:
    """All five indices, and the same under permuted labels."""
    grouped = prepare(states, labels, 2)
    drawn = None
    if permutations:
        generator = torch.Generator().manual_seed(0)
        codes = grouped.codes.cpu()
        columns = [codes[torch.randperm(len(codes), generator=generator)] for _ in range(permutations)]
        drawn = torch.stack(columns, dim=1).to(states.device, torch.int8)
    found = measure_clusters(grouped, INDICES, drawn)
    if permutations and not all(len(null) == permutations for null in found.null.values()):
        sys.exit("draws are missing; no times are shown")
    return {name: float(value) for name, value in found.values.items()}


def plain(states: Tensor, labels: Tensor) -> dict[str, float]:
    """scikit-learn's three, and Dunn's index from all of scipy's distances; no permutation."""
    from scipy.spatial.distance import pdist
    from sklearn import metrics

    points, own = states.numpy(force=True), labels.numpy()
    apart = pdist(points)
    upper = np.triu_indices(len(own), 1)
    same = own[upper[0]] == own[upper[1]]
    return {
        "davies_bouldin": float(metrics.davies_bouldin_score(points, own)),
        "dunn": float(apart[~same].min() / apart[same].max()),
        "calinski_harabasz": float(metrics.calinski_harabasz_score(points, own)),
        "silhouette": float(metrics.silhouette_score(points, own)),
    }


def compare(sizes: tuple[int, int, int, int], device: str) -> dict[str, Any]:
    """Both ways in turn, layer by layer."""
    layers, points, width, permutations = sizes
    small = inputs(64, width, 0, device)
    ours(*small, 2)
    plain(*small)
    ratios, seconds, worst = [], {"ours": 0.0, "plain": 0.0}, 0.0
    for layer in range(layers):
        states, labels = inputs(points, width, layer, device)
        found, mine = timed(lambda at=(states, labels): ours(*at, permutations), device)
        known, theirs = timed(lambda at=(states, labels): plain(*at), device)
        worst = float(np.max([worst, *(abs(found[name] / value - 1) for name, value in known.items())]))
        if not worst <= AGREE:
            sys.exit(f"indices of the two ways differ by {worst:.1e} of their value; no times are shown")
        ratios.append(theirs / mine)
        seconds["ours"] += mine
        seconds["plain"] += theirs
        print(f"  layer {layer}: ours {mine:.2f} s, scikit-learn and scipy {theirs:.2f} s", file=sys.stderr)
    return {
        "figure": "time of scikit-learn's three indices and scipy's pdist over that of five with permutations",
        "layers": layers,
        "points": points,
        "width": width,
        "permutations": permutations,
        "worst_difference": float(f"{worst:.1e}"),
        **spread_of(ratios, digits=2),
        "seconds_ours": round(seconds["ours"], 3),
        "seconds_plain": round(seconds["plain"], 3),
    }


def draws_of(grouped: Grouped, permutations: int, resamples: int) -> tuple[Tensor, Tensor]:
    """Labels and weights of every position, as the command hands them over."""
    generator = torch.Generator().manual_seed(0)
    own, n = grouped.codes.cpu(), len(grouped.order)
    labels = torch.empty((n, permutations), dtype=torch.int8)
    weights = torch.empty((n, resamples), dtype=torch.int16)
    for draw in range(permutations):
        labels[:, draw] = own[torch.randperm(n, generator=generator)]
    for draw in range(resamples):
        weights[:, draw] = torch.bincount(torch.randint(n, (n,), generator=generator), minlength=n)
    return labels.to(grouped.points.device), weights.to(grouped.points.device)


def difference_of(found: IndexDraws, plain: IndexDraws) -> float:
    """The largest difference of values, relative, and of draws, relative to the largest or to 1 of silhouettes."""
    worst = 0.0
    for kind in ("values", "null", "draws"):
        for name, expected in getattr(plain, kind).items():
            size = 1.0 if name == "silhouette" else expected.abs().nan_to_num().max() if len(expected) else 1.0
            change = (getattr(found, kind)[name] - expected).abs() / size
            known = change[~(expected.isnan() & getattr(found, kind)[name].isnan())]
            worst = float(np.max([worst, *known.tolist()]))
    return worst


def compare_with_before(sizes: tuple[int, int, int, int], rounds: int, device: str) -> dict[str, Any]:
    """The plain form and the present one in turn, on the same points and draws."""
    points, width, permutations, resamples = sizes
    states, labels = inputs(points, width, 0, device)
    drawn = draws_of(prepare(states, labels, 2), permutations, resamples)
    ratios, seconds, worst = [], {"now": 0.0, "before": 0.0}, 0.0
    for number in range(rounds + 1):  # the first of them warms up
        found, now = timed(lambda: measure_clusters(prepare(states, labels, 2), ALL_INDICES, *drawn), device)
        with before():
            plain_found, then = timed(lambda: measure_clusters(prepare(states, labels, 2), ALL_INDICES, *drawn), device)
        worst = float(np.max([worst, difference_of(found, plain_found)]))
        if not worst <= AGREE_DRAWS:
            sys.exit(f"indices of the two ways differ by {worst:.1e}; no times are shown")
        if number:
            ratios.append(then / now)
            seconds["now"] += now
            seconds["before"] += then
    return {
        "figure": "time of the plain form over that of the present one, all indices with draws",
        "points": points,
        "width": width,
        "permutations": permutations,
        "resamples": resamples,
        "rounds": rounds,
        "worst_difference": float(f"{worst:.1e}"),
        **spread_of(ratios, digits=2),
        "seconds_now": round(seconds["now"] / rounds, 3),
        "seconds_before": round(seconds["before"] / rounds, 3),
    }


def alone(layers: int, points: int, width: int, permutations: int, device: str) -> dict[str, Any]:
    """In a process of its own: seconds, and the peak memory beyond the states."""
    sizes = json.dumps([layers, points, width, permutations])
    command = [sys.executable, __file__, sizes, device]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def job_alone(layers: int, points: int, width: int, permutations: int, device: str) -> dict[str, Any]:
    """The inside of that process."""
    ours(*inputs(64, width, 0, device), min(permutations, 2))
    spaces = [inputs(points, width, layer, device) for layer in range(layers)]
    (_, seconds), peak = peak_of(
        lambda: timed(lambda: [ours(*space, permutations) for space in spaces], device), device
    )
    return {
        "layers": layers,
        "points": points,
        "width": width,
        "permutations": permutations,
        "seconds": round(seconds, 3),
        "peak_mb": peak,
    }


def bench_clusters(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Speed, beside others and the plain form, memory of the whole, and growth with the number of points."""
    sizes = SMALL if options.small else (LAYERS, POINTS, WIDTH, PERMUTATIONS)
    rows = [compare(sizes, options.device)]
    if options.device == "cpu":
        for case in SMALL_CHANGES if options.small else CHANGES:
            rows.append(compare_with_before(case, SMALL_ROUNDS if options.small else ROUNDS, options.device))
    rows.append({"figure": "memory beyond the states", **alone(*sizes, options.device)})
    for points in SMALL_GROWING if options.small else GROWING:
        grown = alone(1, points, sizes[2], 0, options.device)
        grown["nanoseconds_per_pair"] = round(grown["seconds"] / points**2 * 2e9, 2)
        rows.append({"figure": "growth with points", **grown})
    return rows


if __name__ == "__main__":
    print(json.dumps(job_alone(*json.loads(sys.argv[1]), sys.argv[2])))
