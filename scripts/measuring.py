"""Time and memory, as every benchmark here takes them."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

RATIOS = ("ratio_median", "ratio_20", "ratio_80")

Result = TypeVar("Result")


def timed(job: Callable[[], Result], device: str) -> tuple[Result, float]:
    """What a job returns and how long it took, the device's queue emptied before and after."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    result = job()
    if device == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - began


def spread_of(ratios: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Median and 20th and 80th percentile."""
    low, *_, high = statistics.quantiles(ratios, n=5, method="inclusive")
    middle = statistics.median(ratios)
    return {name: round(value, digits) for name, value in zip(RATIOS, (middle, low, high), strict=True)}


def status_bytes(name: str) -> int:
    """Memory of this process, as the kernel counts it: VmRSS now, VmHWM at the most.

    Not ``ru_maxrss``, which a new process takes over from the one that started it.
    """
    return int(Path("/proc/self/status").read_text(encoding="ascii").split(f"{name}:")[1].split()[0]) * 1024


def peak_of(job: Callable[[], Result], device: str) -> tuple[Result, float]:
    """What a job returns, and the most memory in MB that it takes beyond what is taken now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # from here on the peak counts anew
        before = status_bytes("VmRSS")
    result = job()
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else status_bytes("VmHWM")
    return result, round((peak - before) / 2**20, 1)
