"""Where the card's time goes, by kind of kernel."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile

from card.timing import sync

KINDS = (
    ("row_stats", ("row_stats",)),
    ("segment_sum", ("segment_sum",)),
    ("compiled", ("triton",)),
    ("attention", ("flash", "fmha", "scaled_dot_product")),
    ("products", ("gemm", "nvjet", "cutlass", "xmma", "::mm", "addmm", "bmm")),
    ("copy, gather, concatenate", ("copy", "index", "cat", "gather", "memcpy", "memset")),
    ("elementwise and norms", ("elementwise", "reduce", "mul", "add", "pow", "mean", "rsqrt", "silu")),
)
"""Kinds with words of which one stands in the kernel's name; the first that fits counts."""


@dataclass(frozen=True)
class Kinds:
    """What a profile shows.

    Attributes:
        busy: seconds of all kernels together.
        shares: of ``busy`` by kind, largest first.
        launches: how many kernels ran.
        longest: the names of those that took longest, with their shares.
    """

    busy: float
    shares: dict[str, float]
    launches: int
    longest: dict[str, float]


def kind_of(name: str) -> str:
    """Of a kernel, by its name."""
    lower = name.lower()
    return next((kind for kind, words in KINDS if any(word in lower for word in words)), "other")


def profiled(job: Callable[[], object], device: str, card: bool) -> Kinds:
    """Run a job once under torch's profiler; on a CPU its operators stand in for kernels."""
    activity = ProfilerActivity.CUDA if card else ProfilerActivity.CPU
    with profile(activities=[activity]) as found:
        job()
        sync(device)
    return summed((event.key, _microseconds(event, card), event.count) for event in found.key_averages())


def summed(events: Iterable[tuple[str, float, int]], shown: int = 8) -> Kinds:
    """From names, microseconds and numbers of launches."""
    kept = sorted((event for event in events if event[1] > 0), key=lambda event: -event[1])
    busy = sum(event[1] for event in kept)
    times: dict[str, float] = {}
    for name, own, _ in kept:
        times[kind_of(name)] = times.get(kind_of(name), 0.0) + own
    shares = {kind: own / busy for kind, own in sorted(times.items(), key=lambda entry: -entry[1])}
    longest = {name[:80]: own / busy for name, own, _ in kept[:shown]}
    return Kinds(busy / 1e6, shares, sum(event[2] for event in kept), longest)


def _microseconds(event: Any, card: bool) -> float:
    return float(event.self_device_time_total if card else event.self_cpu_time_total)
