"""Stage ``kernels``: each of ours against its plain and its compiled form, the library's product, and Liger's."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from bench_kernels import (
    bench_ccs_gradient,
    bench_pair_distances,
    bench_project_out,
    bench_row_stats,
    bench_segment_sum,
    figures_of,
)
from torch import Tensor

from card import engine_points as engine
from card.run import Run
from card.timing import seconds
from probing.kernels.token_stats import Unembedding, token_stats
from probing.metrics.clusters.kernel import products_error

LIGER = "liger_kernel.transformers"
WRONG = "elements are off"
"""Stands in why a way was given no time when its results are not close enough to float64."""


def kernels(run: Run) -> None:
    """In order of what they cost a user; every figure is of results that were compared with float64 first."""
    size, ceiling = run.sizes, run.measured.get("copy") if run.card else None
    jobs: list[tuple[str, Callable[[], list[dict[str, Any]]]]] = [
        ("row_stats", lambda: bench_row_stats(run.device, (size.chunk, size.vocabulary), ceiling)),
        ("token_stats", lambda: bench_token_stats(run)),
        (
            "segment_sum",
            lambda: bench_segment_sum(run.device, size.tokens, size.width, size.segment, torch.bfloat16, ceiling),
        ),
        ("pair_distances, bf16", lambda: distances(run, torch.bfloat16, ceiling)),
        ("pair_distances, float32", lambda: distances(run, torch.float32, ceiling)),
        ("ccs_gradient", lambda: gradient(run, ceiling)),
        ("project_out", lambda: bench_project_out(run.device, (size.chunk, size.width, 1, 1), ceiling)),
        (
            "project_out, a direction a row",
            lambda: bench_project_out(run.device, (size.chunk, size.width, 8, 1), ceiling),
        ),
        ("Liger", lambda: liger(run)),
        ("error of products", lambda: product_errors(run)),
    ]
    with engine.rounds_of_kernels(size.rounds):
        for name, job in jobs:
            with run.part(kernel=name):
                for row in job():
                    run.say(**row)
                    if WRONG in row.get("not_run", ""):
                        run.failures.append(f"kernels: {row['kernel']}, {row['way']}: {row['not_run']}")
            run.clean()


def distances(run: Run, dtype: torch.dtype, ceiling: float | None) -> list[dict[str, Any]]:
    """One layer; TFLOP/s count one half of all products, which is all that has to be computed."""
    rows = bench_pair_distances(run.device, (1, run.sizes.points, run.sizes.width), dtype, ceiling)
    return [shared(run, row) for row in rows]


def gradient(run: Run, ceiling: float | None) -> list[dict[str, Any]]:
    """Losses and gradients of one epoch of the probes of all layers."""
    shape = (run.sizes.probe_layers, run.sizes.probes, run.sizes.probe_pairs)
    return bench_ccs_gradient(run.device, shape, "original", ceiling)


def shared(run: Run, row: dict[str, Any]) -> dict[str, Any]:
    """A row with its TFLOP/s as a share of the ceiling too."""
    if "tflop_s" not in row:
        return row
    # Twice: a multiplication and an addition; the row counts one half of the products, so the two cancel.
    return {**row, "share_of_held": run.share(row["tflop_s"] * 1e12, "matmul_held")}


def head_inputs(run: Run) -> tuple[Tensor, Tensor, Tensor]:
    """States and an output head in bf16, with logits of spread one, and targets."""
    size = run.sizes
    generator = torch.Generator(run.device).manual_seed(0)
    hidden = torch.randn(size.head_rows, size.width, generator=generator, device=run.device)
    weight = torch.randn(size.vocabulary, size.width, generator=generator, device=run.device) / size.width**0.5
    targets = torch.randint(size.vocabulary, (size.head_rows,), generator=generator, device=run.device)
    return hidden.bfloat16(), weight.bfloat16(), targets


def bench_token_stats(run: Run) -> list[dict[str, Any]]:
    """Log-probability and entropy of every target: ours, with the plain form of a row, and of float32 states."""
    size = run.sizes
    hidden, weight, targets = head_inputs(run)
    head = Unembedding(weight)

    def way(states: Tensor, **options: Any) -> Callable[[], Tensor]:
        return lambda: torch.stack(token_stats(states, head, targets, **options)[0:3:2])

    ways = {"torch": way(hidden, impl="torch"), "float32 states": way(hidden.float(), impl="torch")}
    missing = {}
    if run.card:
        ways |= {"triton": way(hidden, impl="triton"), "compiled": compiled_stats(hidden, weight, targets, size.chunk)}
    else:
        missing = {"triton": "there is no card", "compiled": "only measured on a card"}
    exact = torch.stack(token_stats(hidden.double(), Unembedding(weight.double()), targets, impl="torch")[0:3:2])
    case = {"figure": "kernel", "kernel": "token_stats", "rows": size.head_rows, "vocabulary": size.vocabulary}
    work = 2 * size.head_rows * size.width * size.vocabulary
    ceiling = run.measured.get("copy") if run.card else None
    rows = figures_of(case, ways, missing, exact, hidden.nbytes + weight.nbytes, ceiling)
    rows = [with_rate(run, row, work) for row in rows]
    return [*rows, product_alone(run, case, hidden, weight, work)]


def with_rate(run: Run, row: dict[str, Any], work: float) -> dict[str, Any]:
    """A row with operations a second, and as a share of the ceiling."""
    if "ms_median" not in row:
        return row
    rate = work / row["ms_median"] * 1e3
    return {**row, "tflop_s": rate / 1e12, "share_of_held": run.share(rate, "matmul_held")}


def compiled_stats(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Callable[[], Tensor]:
    """What a compiler makes of the statistics of a chunk of logits, behind the same product."""
    from probing.kernels.token_stats import row_stats_reference

    compiled = torch.compile(row_stats_reference, dynamic=False)

    def run() -> Tensor:
        found = []
        for states, some in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            logits = torch.mm(states, weight.T, out_dtype=torch.float32)
            found.append(torch.stack(compiled(logits, some)[0:3:2]))
        return torch.cat(found, dim=1)

    return run


def product_alone(run: Run, case: dict[str, Any], hidden: Tensor, weight: Tensor, work: float) -> dict[str, Any]:
    """The library's products with float32 sums, into a buffer that is used again: no form can be faster."""
    row = {**case, "way": "product alone (mm.dtype_out)"}
    if not run.card:
        return {**row, "not_run": "torch has this product on a CUDA card only"}
    chunk = run.sizes.chunk
    out = torch.empty(chunk, len(weight), device=run.device)

    def products() -> None:
        for states in hidden.split(chunk):
            torch.ops.aten.mm.dtype_out(states, weight.T, torch.float32, out=out[: len(states)])

    return with_rate(run, {**row, "ms_median": seconds(products, run.device, rounds=5) * 1e3}, work)


def liger(run: Run) -> list[dict[str, Any]]:
    """Liger's fused linear cross-entropy, forward only, where it is installed: a log-probability, and no rank."""
    case = {"figure": "kernel", "kernel": "token_stats", "way": "Liger, cross-entropy alone"}
    try:
        loss_of = importlib.import_module(LIGER).LigerFusedLinearCrossEntropyLoss(reduction="none")
    except ImportError:
        return [{**case, "not_run": "liger_kernel is not installed"}]
    hidden, weight, targets = head_inputs(run)
    with torch.no_grad():
        own = seconds(lambda: loss_of(weight, hidden, targets), run.device, rounds=3, warm=1)
    work = 2 * len(hidden) * weight.shape[0] * weight.shape[1]
    return [with_rate(run, {**case, "rows": len(hidden), "ms_median": own * 1e3}, work)]


def product_errors(run: Run) -> list[dict[str, Any]]:
    """How far squared distances from bf16 products with float32 sums are off, relative to the largest squared norm.

    The recheck in float64 behind Dunn's index has to cover it.
    """
    generator = torch.Generator(run.device).manual_seed(0)
    drawn = torch.randn(run.sizes.few_points, run.sizes.width, generator=generator, device=run.device)
    cases = {
        "mean 0": drawn,
        "mean 3": drawn + 3,
        "two massive dimensions": torch.cat([300 * (1 + 0.01 * drawn[:, :2]), drawn[:, 2:]], dim=1),
    }
    found = []
    for name, points in cases.items():
        found.append({"figure": "error of products", "points": name, **error_of(points)})
        for dtype in (torch.bfloat16, torch.float32):
            own = products_error(points.to(dtype))
            found.append({"figure": "error of the kernel", "points": name, "dtype": str(dtype), **own._asdict()})
            if not own.worst <= own.bound:
                run.failures.append(f"kernels: pair_distances of {name}, {dtype}: off by {own.worst} of {own.bound}")
    return found


def error_of(points: Tensor) -> dict[str, Any]:
    """Of the squared distances of points rounded to bf16, against float64."""
    few = points.bfloat16()
    exact = few.double()
    norms = exact.square().sum(dim=1)
    right = norms[:, None] + norms - 2 * exact @ exact.T
    product = torch.mm(few, few.T, out_dtype=torch.float32) if few.is_cuda else few.float() @ few.float().T
    off = (norms[:, None] + norms - 2 * product.double() - right).fill_diagonal_(0) / norms.max()
    return {"worst_of_norm": float(off.abs().max()), "mean": float(off.mean()), "spread": float(off.std())}
