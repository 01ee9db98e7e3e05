"""Stage ``score``: what a token of ``probing score`` costs on an 8B model, and where the time goes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from card import engine_points as engine
from card.kinds import profiled
from card.model import realistic_pairs
from card.run import Run
from card.timing import sync
from card.work import Work, work_of
from probing import PreferencePair
from probing.instruments.pair_scores import PairScorer

WARM_PAIRS = 24
"""Scored before time is taken: libraries set themselves up, and compiled blocks are compiled."""


@dataclass(frozen=True)
class Way:
    """One way to score.

    Attributes:
        name: as in the lines.
        packing: "varlen", or "paths": attention a sequence at a time.
        columns: to be computed; None for the usual ones, without likelihoods.
        compiled: whether blocks are compiled.
        share: of the pairs that are scored; slow ways take fewer.
    """

    name: str
    packing: str
    columns: tuple[str, ...] | None = None
    compiled: bool = False
    share: float = 1.0


def ways(card: bool) -> list[Way]:
    """In order of value."""
    fast = "varlen" if card else "paths"
    return [
        Way("eager", fast),
        Way("compiled", fast, compiled=True),
        Way("eager, all likelihoods", fast, columns=("all",)),
        Way("eager, a sequence at a time", "paths", share=0.25),
    ]


def score(run: Run) -> None:
    """Every way, each with its own line for time and for kinds of kernels."""
    stack = run.need("stack")
    pairs = realistic_pairs(run.need("model"), run.sizes.pairs, run.sizes.text)
    for way in ways(run.card):
        some = pairs[: max(1, round(len(pairs) * way.share))]
        with (
            run.part(way=way.name),
            engine.scorer_of(stack, way.packing, way.columns, way.compiled, run.small) as scorer,
        ):
            one_way(run, way, scorer, some)
        run.clean()


def one_way(run: Run, way: Way, scorer: PairScorer, pairs: Sequence[PreferencePair]) -> None:
    """Warm up, score under timers, then score a few again to see the kernels."""
    began = time.perf_counter()
    scorer.score(pairs[:WARM_PAIRS])
    sync(run.device)
    first = time.perf_counter() - began
    if run.card:
        torch.cuda.reset_peak_memory_stats()
    with engine.timed_parts(run.device) as spent:
        wall, block = timed_score(run, scorer, pairs)
    good = [pair for pair in scorer.tokenize(pairs) if pair.status == "ok"]
    run.say(
        figure="time",
        way=way.name,
        pairs=len(pairs),
        scored=int((block.frame["status"] == "ok").sum()),
        first_call_seconds=first,
        batch_tokens=scorer.stream.budget.tokens,
        budget=scorer.stream.budget.reason,
        peak_gib=torch.cuda.max_memory_allocated() / 2**30 if run.card else None,
        **figures(run, work_of(good, run.sizes), wall, spent, likely=way.columns is not None),
    )
    by_kind(run, way, scorer, pairs[: run.sizes.few])


def timed_score(run: Run, scorer: PairScorer, pairs: Sequence[PreferencePair]) -> tuple[float, Any]:
    """Seconds by the wall clock, the card's queue emptied before and after, and what came out."""
    sync(run.device)
    began = time.perf_counter()
    block = scorer.score(pairs)
    sync(run.device)
    return time.perf_counter() - began, block


def figures(run: Run, work: Work, wall: float, spent: engine.Spent, likely: bool) -> dict[str, Any]:
    """Time a token, operations a second, and shares of the ceiling that was held for seconds."""
    whole = work.body + work.attention + (work.head if likely else 0.0)
    within = (work.body + work.attention) / spent.within if spent.within else None
    return {
        "tokens_run": work.tokens,
        "answer_tokens": work.answers,
        "seconds": wall,
        "microseconds_a_token": wall / work.tokens * 1e6,
        "tflop_s": whole / wall / 1e12,
        "share_of_held": run.share(whole / wall, "matmul_held"),
        # With likelihoods the head runs when a pass reads its last state: within it, but not counted here.
        "share_of_held_within_passes": run.share(within, "matmul_held") if within and not likely else None,
        "seconds_within_passes": spent.within or None,
        "passes": spent.passes,
        "host_seconds": dict(sorted(spent.host.items(), key=lambda part: -part[1])),
    }


def by_kind(run: Run, way: Way, scorer: PairScorer, pairs: Sequence[PreferencePair]) -> None:
    """A few pairs timed without and then with the profiler: kinds of kernels, and how long the card was idle."""
    wall, _ = timed_score(run, scorer, pairs)
    found = profiled(lambda: scorer.score(pairs), run.device, run.card)
    run.say(
        figure="kinds of kernels",
        way=way.name,
        pairs=len(pairs),
        seconds=wall,
        busy_seconds=found.busy,
        idle_share=1 - found.busy / wall if run.card else None,
        launches=found.launches,
        shares=found.shares,
        longest=found.longest,
    )
