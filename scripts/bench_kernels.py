"""Benchmarks of kernels: each against its plain torch form and against what torch.compile makes of it.

A job of ``bench.py``. On a card the three run in turn at the sizes of an 8B model; elsewhere only the torch form, at
small sizes, to see that it works.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from probing.kernels.ccs_step import LOGIT_TYPES, LOSSES, Loss, ccs_gradient, ccs_gradient_reference
from probing.kernels.dispatch import find_triton_obstacle
from probing.kernels.jit import ELEMENT_TYPES
from probing.kernels.pair_distances import PairDistances, pair_distances, pair_distances_reference, squared_norms
from probing.kernels.project_out import project_out, project_out_reference
from probing.kernels.segment_pool import segment_sum, segment_sum_reference
from probing.kernels.token_stats import ROW_TYPES, RowStats, row_stats, row_stats_reference

ROUNDS = 20
SLACK = 1e-5
COPY_BYTES = 2**30
# Tokens, width and tokens a row: one batch of an 8B model, the same with few long rows, and a small model's.
CUDA_SIZES = [(65536, 4096, 600), (65536, 4096, 8192), (65536, 896, 600)]
CUDA_LOGITS = [(2048, 128256), (2048, 32000)]
SMALL_LOGITS = [(64, 1001)]
# Entries, probes of each and rows: all layers of an 8B model, ten restarts; the same with ten splits; a small model's.
CUDA_PROBES = [(33, 10, 5000), (33, 100, 2000), (12, 10, 500)]
SMALL_PROBES = [(2, 3, 101)]
# Layers, points and width: an 8B model at all layers, a small model. Points are in two clusters, and PANELS panels.
CUDA_POINTS = [(33, 20000, 4096, torch.bfloat16), (12, 4000, 768, torch.bfloat16), (12, 4000, 768, torch.float32)]
SMALL_POINTS = [(2, 120, 17, torch.bfloat16), (2, 120, 17, torch.float32)]
PANELS = 20
SMALL_SIZES = [(2048, 256, 60), (1025, 37, 60)]
# Tokens, width, directions and their rank: one for a batch of an 8B model, and 32 candidates of a layer, a row each.
CUDA_DIRECTIONS = [(16384, 4096, 1, 1), (16384, 4096, 32, 1), (16384, 4096, 1, 4)]
SMALL_DIRECTIONS = [(257, 64, 1, 1), (257, 64, 4, 2)]

Way = Callable[[], Tensor]


def bench_kernels(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a kernel, size, dtype and way to compute it; a way that cannot run here says why."""
    cuda = options.device == "cuda"
    sizes = CUDA_SIZES if cuda and not options.small else SMALL_SIZES
    ceiling = copy_bandwidth() if cuda else None
    rows = []
    for tokens, width, row in sizes:
        for dtype in (torch.bfloat16, torch.float32):
            rows += bench_segment_sum(options.device, tokens, width, row, dtype, ceiling)
    for shape in CUDA_LOGITS if cuda and not options.small else SMALL_LOGITS:
        rows += bench_row_stats(options.device, shape, ceiling)
    for shape in CUDA_PROBES if cuda and not options.small else SMALL_PROBES:
        for loss in LOSSES:
            rows += bench_ccs_gradient(options.device, shape, loss, ceiling)
    for layers, points, width, dtype in CUDA_POINTS if cuda and not options.small else SMALL_POINTS:
        rows += bench_pair_distances(options.device, (layers, points, width), dtype, ceiling)
    for sizes in CUDA_DIRECTIONS if cuda and not options.small else SMALL_DIRECTIONS:
        rows += bench_project_out(options.device, sizes, ceiling)
    return rows


def bench_segment_sum(
    device: str, tokens: int, width: int, row: int, dtype: torch.dtype, ceiling: float | None
) -> list[dict[str, Any]]:
    """Sums over the last two thirds of rows of equal length, as over responses behind their prompts."""
    values = torch.randn(tokens, width, generator=torch.Generator(device).manual_seed(0), device=device).to(dtype)
    starts = torch.arange(0, tokens - row + 1, row) + row // 3
    stops = starts + row - row // 3
    ways: dict[str, Way] = {"torch": lambda: segment_sum(values, starts, stops, impl="torch")}
    missing = {}
    if values.is_cuda:
        compiled = torch.compile(padded_segment_sum, dynamic=False)
        longest, ends = int((stops - starts).max()), (starts.to(device), stops.to(device))
        ways["compiled"] = lambda: compiled(values, *ends, longest)
    else:
        missing["compiled"] = "only measured on a card"
    obstacle = find_triton_obstacle(values, ELEMENT_TYPES)
    if obstacle is None and values.is_cuda:
        ways["triton"] = lambda: segment_sum(values, starts, stops, impl="triton")
    else:
        missing["triton"] = obstacle or "the interpreter is not timed"
    moved = int((stops - starts).sum()) * width * values.element_size() + len(starts) * width * 4
    case = {
        "figure": "kernel",
        "kernel": "segment_sum",
        "tokens": tokens,
        "width": width,
        "segments": len(starts),
        "dtype": str(dtype).removeprefix("torch."),
    }
    return figures_of(case, ways, missing, segment_sum_reference(values.double(), starts, stops), moved, ceiling)


def bench_project_out(device: str, sizes: tuple[int, int, int, int], ceiling: float | None) -> list[dict[str, Any]]:
    """States of one layer without a direction, or each without one of several. In float32: half precision rounds."""
    tokens, width, directions, rank = sizes
    generator = torch.Generator(device).manual_seed(0)
    states = torch.randn(tokens, width, generator=generator, device=device)
    basis = torch.linalg.qr(torch.randn(directions, width, rank, generator=generator, device=device)).Q.mT
    own = torch.arange(tokens, device=device) * directions // tokens if directions > 1 else None
    basis = basis.contiguous() if directions > 1 else basis[0].contiguous()
    ways: dict[str, Way] = {"torch": lambda: project_out(states, basis, own, impl="torch")}
    missing = {}
    if states.is_cuda:
        compiled = torch.compile(project_out_reference, dynamic=False)
        ways["compiled"] = lambda: compiled(states, basis, own)
    else:
        missing["compiled"] = "only measured on a card"
    obstacle = find_triton_obstacle(states, ELEMENT_TYPES)
    if obstacle is None and states.is_cuda:
        ways["triton"] = lambda: project_out(states, basis, own, impl="triton")
    else:
        missing["triton"] = obstacle or "the interpreter is not timed"
    names = ("tokens", "width", "directions", "rank")
    case = {"figure": "kernel", "kernel": "project_out", **dict(zip(names, sizes, strict=True)), "dtype": "float32"}
    exact = project_out_reference(states.double(), basis.double(), own)
    return figures_of(case, ways, missing, exact, 2 * states.numel() * 4, ceiling)


def bench_row_stats(device: str, shape: tuple[int, int], ceiling: float | None) -> list[dict[str, Any]]:
    """One chunk of logits. The torch form writes over them, so every way is given a fresh copy, and pays for it."""
    logits = torch.randn(shape, generator=torch.Generator(device).manual_seed(0), device=device) * 3
    targets = torch.arange(shape[0], device=device) % shape[1]

    def way(job: Callable[..., RowStats], **options: Any) -> Way:
        return lambda: torch.stack(job(logits.clone(), targets, **options)[::2])

    ways = {"torch": way(row_stats, impl="torch")}
    missing = {}
    if logits.is_cuda:
        ways["compiled"] = way(torch.compile(row_stats_reference, dynamic=False))
    else:
        missing["compiled"] = "only measured on a card"
    obstacle = find_triton_obstacle(logits, ROW_TYPES)
    if obstacle is None and logits.is_cuda:
        ways["triton"] = way(row_stats, impl="triton")
    else:
        missing["triton"] = obstacle or "the interpreter is not timed"
    case = {"figure": "kernel", "kernel": "row_stats", "rows": shape[0], "vocabulary": shape[1], "dtype": "float32"}
    exact = torch.stack(row_stats_reference(logits.double(), targets)[::2])
    return figures_of(case, ways, missing, exact, 3 * logits.numel() * 4, ceiling)


def bench_ccs_gradient(
    device: str, shape: tuple[int, int, int], loss: Loss, ceiling: float | None
) -> list[dict[str, Any]]:
    """One epoch's losses and gradients. Logits are written over: every way is given a fresh copy, and pays for it."""
    entries, probes, count = shape
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn((entries, probes, 2, count), generator=generator, device=device)
    row_weights = torch.full((count, 1), 1 / count, device=device)

    def way(job: Callable[..., Tensor], **options: Any) -> Way:
        def run() -> Tensor:
            gradient = logits.clone()
            return torch.cat((job(gradient, row_weights, loss, **options).flatten(), gradient.flatten() * count))

        return run

    ways = {"torch": way(ccs_gradient_reference), "in place": way(ccs_gradient, impl="torch")}
    missing = {}
    if logits.is_cuda:
        ways["compiled"] = way(torch.compile(ccs_gradient_reference, dynamic=False))
    else:
        missing["compiled"] = "only measured on a card"
    obstacle = find_triton_obstacle(logits, LOGIT_TYPES)
    if obstacle is None and logits.is_cuda:
        ways["triton"] = way(ccs_gradient, impl="triton")
    else:
        missing["triton"] = obstacle or "the interpreter is not timed"
    sizes = {"entries": entries, "probes": probes, "rows": count}
    case = {"figure": "kernel", "kernel": "ccs_gradient", **sizes, "loss": loss, "dtype": "float32"}
    gradient = logits.double()
    value = ccs_gradient_reference(gradient, row_weights.double(), loss)
    exact = torch.cat((value.flatten(), gradient.flatten() * count))
    # The copy, the kernel, the comparison's own product and joining.
    return figures_of(case, ways, missing, exact, 8 * logits.numel() * 4, ceiling)


def bench_pair_distances(
    device: str, shape: tuple[int, int, int], dtype: torch.dtype, ceiling: float | None
) -> list[dict[str, Any]]:
    """Sums by cluster, the least distance between clusters and the greatest within one, a layer at a time."""
    layers, count, width = shape
    generator, bounds = torch.Generator(device).manual_seed(0), [0, count // 2, count]
    points = torch.empty(shape, dtype=dtype, device=device)
    for values in points:
        values.copy_(torch.randn((count, width), generator=generator, device=device))

    def way(job: Callable[..., PairDistances], **options: Any) -> Way:
        return lambda: torch.cat([gist(job(values[None], bounds, **options)) for values in points])

    ways = {"torch": way(pair_distances_reference)}
    missing = {}
    if points.is_cuda:
        panel = torch.compile(panel_distances, dynamic=False)
        ways["compiled"] = lambda: torch.cat([distances_by_panels(panel, values) for values in points])
    else:
        missing["compiled"] = "only measured on a card"
    obstacle = find_triton_obstacle(points, ELEMENT_TYPES)
    if obstacle is None and points.is_cuda:
        ways["triton"] = way(pair_distances, impl="triton")
    else:
        missing["triton"] = obstacle or "the interpreter is not timed"
    sizes = {"layers": layers, "points": count, "width": width}
    case = {"figure": "kernel", "kernel": "pair_distances", **sizes, "dtype": str(dtype).removeprefix("torch.")}
    exact = torch.cat([gist(pair_distances_reference(values[None].double(), bounds)) for values in points])
    rows = figures_of(case, ways, missing, exact, points.nbytes + exact.numel() * 4, ceiling)
    for row in rows:
        if "ms_median" in row:  # of one half of all products, which is all that has to be computed
            row["tflop_s"] = round(layers * count * count * width / row["ms_median"] / 1e9, 6)
    return rows


def gist(found: PairDistances) -> Tensor:
    """What every way computes of a layer: its sums, the least between two clusters and the greatest within one."""
    clusters = (found.blocks[found.tiles, 0] >= found.sums.shape[1] // 2).long()
    alone = clusters[:, 0] == clusters[:, 1]
    extremes = found.extremes[0]
    return torch.cat((found.sums.flatten(), extremes[~alone].amin()[None], extremes[alone].amax()[None]))


def panel_distances(points: Tensor, norms: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Some points of one cluster and all of two equally large ones: what a compiler can fuse behind one product."""
    rows = points[places]
    if rows.is_cuda and rows.dtype != torch.float32:
        products = torch.mm(rows, points.T, out_dtype=torch.float32)
    else:
        products = rows.float() @ points.float().T
    squared = (norms[places, None] + norms - 2 * products).clamp_min(0)
    squared = torch.where(places[:, None] == torch.arange(len(points), device=points.device), 0.0, squared)
    halves = squared.unflatten(1, (2, -1))
    return halves.sqrt().sum(dim=2), halves.amin(dim=(0, 2)), halves.amax(dim=(0, 2))


def distances_by_panels(panel: Callable[..., tuple[Tensor, Tensor, Tensor]], points: Tensor) -> Tensor:
    """The same numbers as ``gist``, some rows of all distances at a time."""
    norms = squared_norms(points[None], torch.float32)[0]
    places = torch.arange(len(points), device=points.device).chunk(PANELS)
    sums, least, greatest = zip(*(panel(points, norms, some) for some in places), strict=True)
    own = (torch.arange(PANELS, device=points.device) >= PANELS // 2).long()[:, None]
    between, within = torch.stack(least).gather(1, 1 - own), torch.stack(greatest).gather(1, own)
    return torch.cat((torch.cat(sums).flatten(), between.amin()[None], within.amax()[None]))


def figures_of(
    case: Mapping[str, Any],
    ways: Mapping[str, Way],
    missing: Mapping[str, str],
    exact: Tensor,
    moved: int,
    ceiling: float | None,
) -> list[dict[str, Any]]:
    """A row a way that runs and is right, and one a way that does not or is not; see ``wrong_ways``."""
    wrong = wrong_ways(ways, exact)
    right = {name: way for name, way in ways.items() if name not in wrong}
    rows = [{**case, "way": way, **figures} for way, figures in measure(right, moved, ceiling).items()]
    return rows + [{**case, "way": way, "not_run": reason} for way, reason in {**missing, **wrong}.items()]


def padded_segment_sum(values: Tensor, starts: Tensor, stops: Tensor, longest: int) -> Tensor:
    """The form that a compiler can fuse into one kernel: every segment read as if it were the longest."""
    rows = starts[:, None] + torch.arange(longest, device=values.device)
    inside = rows < stops[:, None]
    picked = values[rows.clamp(max=len(values) - 1)].float()
    return torch.where(inside[..., None], picked, 0.0).sum(dim=1)


def wrong_ways(ways: Mapping[str, Way], exact: Tensor) -> dict[str, str]:
    """The ways that get no time, and why: they are further from float64 than the plain one and a little slack.

    They are told rather than fatal: on a card that is lent for minutes the times of the other ways are worth having.
    """
    allowed = (ways["torch"]() - exact).abs() + SLACK * exact.abs().clamp(min=1)
    found = {}
    for name, way in ways.items():
        off = (way() - exact).abs()
        wrong = int((~(off <= allowed)).sum())
        if wrong:
            worst = float((off / exact.abs().clamp(min=1)).max())
            found[name] = f"{wrong} of {exact.numel()} elements are off, by up to {worst:.1e}; no times are shown"
    return found


def measure(ways: Mapping[str, Way], moved: int, ceiling: float | None) -> dict[str, dict[str, Any]]:
    """Milliseconds of every way, in turn; its speed over the plain one's in the same round; share of copying."""
    timer = cuda_milliseconds if ceiling else cpu_milliseconds
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        timer(way)
    for _ in range(ROUNDS):
        for name, way in ways.items():
            times[name].append(timer(way))
    figures: dict[str, dict[str, Any]] = {}
    for name in ways:
        ratios = [plain / own for plain, own in zip(times["torch"], times[name], strict=True)]
        figures[name] = {**quantiles("ms", times[name]), **quantiles("ratio", ratios)}
        if ceiling:
            bandwidth = moved / statistics.median(times[name]) * 1e3
            figures[name] |= {"copy_share": round(bandwidth / ceiling, 3), "peak_mb": peak_mb(ways[name])}
    return figures


def quantiles(name: str, values: list[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile."""
    low, *_, high = statistics.quantiles(values, n=5)
    middle = statistics.median(values)
    return {f"{name}_median": round(middle, 4), f"{name}_20": round(low, 4), f"{name}_80": round(high, 4)}


def cpu_milliseconds(way: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    way()
    return (time.perf_counter() - began) * 1e3


def cuda_milliseconds(way: Callable[[], object]) -> float:
    """Of one call, on an idle card: from before its first launch until it has finished, the host's work included."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    way()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) * 1e3


def peak_mb(way: Callable[[], object]) -> float:
    """Most memory of the card beyond what is held before the call."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    way()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def copy_bandwidth() -> float:
    """Bytes a second that this card reads and writes when it copies: the ceiling of whatever only adds up."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    job = functools.partial(target.copy_, source)
    job()
    return 2 * COPY_BYTES / statistics.median(cuda_milliseconds(job) for _ in range(ROUNDS)) * 1e3
