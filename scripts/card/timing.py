"""Seconds of a job on a card, by its own clock, or on a CPU."""

import statistics
import time
from collections.abc import Callable

import torch

Job = Callable[[], object]


def on_card(device: str) -> bool:
    """Whether a device is a CUDA card."""
    return device.startswith("cuda")


def sync(device: str) -> None:
    """Wait until the card has done everything that it was given."""
    if on_card(device):
        torch.cuda.synchronize()


def once(job: Job, device: str) -> float:
    """Seconds of one call: between two marks in the card's queue, or by the wall clock on a CPU."""
    if not on_card(device):
        began = time.perf_counter()
        job()
        return time.perf_counter() - began
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    job()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def seconds(job: Job, device: str, rounds: int = 10, warm: int = 2) -> float:
    """Median of some calls, after some that do not count."""
    for _ in range(warm):
        job()
    return statistics.median(once(job, device) for _ in range(rounds))


def held(job: Job, device: str, lasting: float, burst: int = 20) -> float:
    """Seconds a call when the job is repeated for so many seconds on end."""
    sync(device)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < lasting:
        for _ in range(burst):
            job()
        sync(device)
        count += burst
    return (time.perf_counter() - began) / count
