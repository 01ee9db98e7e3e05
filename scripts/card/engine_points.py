"""Everything here that reaches into the engine beyond its public functions: timers, spies and choices that are forced.

The rest of the scripts uses public functions only, so a change of the engine is followed in this one file.
"""

import contextlib
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import bench_kernels
import torch

from card.timing import on_card, sync
from probing import LanguageModel
from probing.engine import compiled, launched_batches, modes, stream
from probing.engine.modes import Mode, choose_mode, parity
from probing.instruments import pair_scores, reading
from probing.instruments.columns import COLUMNS
from probing.instruments.pair_scores import PairScorer
from probing.models import layers
from probing.models.layers import find_stack
from probing.models.stack import Stack
from probing.probes import ccs_training

CAUSAL_LIMIT = 0.0
"""In half precision: no bit of earlier states may change with later tokens."""
EARLY_LIMIT, PARITY_LIMIT = modes.EARLY_HALF, modes.PARITY_HALF
HOST_PARTS = (
    (pair_scores, "tokenize_pairs", "tokenising"),
    (stream, "plant", "sharing prompts"),
    (stream, "pack_trees", "packing"),
    (stream, "Spots", "finding the states"),
    (launched_batches.LaunchedBatch, "store", "waiting and storing"),
    (pair_scores, "_similarities", "similarities"),
    (pair_scores, "likelihood_columns", "likelihood columns"),
    (pair_scores, "as_frame", "table"),
)
"""Where a function stands, its name there, and what its seconds are called."""


@contextlib.contextmanager
def replaced(*places: tuple[Any, str, Any]) -> Iterator[None]:
    """Attributes with other values for a while: object, name, value."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    try:
        for owner, name, value in places:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


@contextlib.contextmanager
def spied_differences() -> Iterator[list[float]]:
    """What the trials of a model measure, in the order in which they measure it."""
    seen: list[float] = []
    plain = layers.channelwise_difference

    def spy(*arguments: Any) -> float:
        seen.append(plain(*arguments))
        return seen[-1]

    with replaced((layers, "channelwise_difference", spy), (modes, "channelwise_difference", spy)):
        yield seen


def causal_stack(language_model: LanguageModel) -> tuple[Stack, bool, list[float]]:
    """The model's stack, taken for causal whatever the trial says; what it says; and what it measured."""
    with spied_differences() as seen:
        stack = find_stack(language_model)
    return replace(stack, causal=True), stack.causal, seen


def chosen(stack: Stack) -> tuple[Mode, list[float]]:
    """The way that is chosen for a model, and what the trials measured on the way."""
    with spied_differences() as seen:
        return choose_mode(stack), seen


def forced_mode(stack: Stack, packing: Any, sharing: bool) -> Mode:
    """A way to run a causal model, tried or not."""
    return Mode(packing, sharing, True, stack.language_model.max_positions)


@dataclass(frozen=True)
class Compared:
    """What the trial of a way measured.

    Attributes:
        verdict: what is wrong; None where nothing is.
        early: how far each row is from the plain way's after the first blocks.
        apart: the same at the end.
        noise: how far rounding moves the plain way's states; only measured where ``apart`` is large.
        leaks: how much rows change with those that are packed before them; only where nothing was wrong until then.
    """

    verdict: str | None
    early: list[float]
    apart: list[float]
    noise: list[float]
    leaks: list[float]


def compared(stack: Stack, packing: Any, sharing: bool) -> Compared:
    """The trial of a way, by the order in which it measures."""
    with spied_differences() as seen:
        verdict = parity(stack, forced_mode(stack, packing, sharing))
    rows = len(modes.TRIALS)
    leaked = modes.NEIGHBOURS * rows // 2 if verdict is None or "packed before it" in verdict else 0
    last = len(seen) - leaked
    return Compared(verdict, seen[:rows], seen[rows : 2 * rows], seen[2 * rows : last], seen[last:])


@contextlib.contextmanager
def scorer_of(
    stack: Stack, packing: Any, columns: Sequence[str] | None, compiling: bool, small: bool
) -> Iterator[PairScorer]:
    """A scorer that runs the model in the way that is named, whatever the trials say of it.

    In the dry run compiled blocks are only recorded, since a compiler takes minutes.
    """
    mode = forced_mode(stack, packing, True)
    with replaced(
        (pair_scores, "find_backbone", lambda language_model: stack),
        (reading, "choose_mode", lambda stack: mode),
        (compiled, "BACKEND", "eager" if small else compiled.BACKEND),
    ):
        known = COLUMNS if columns is None else columns
        yield PairScorer(stack.language_model, columns=known, compile=compiling)


@dataclass
class Spent:
    """Where the time of scoring went.

    Attributes:
        host: seconds of the host by part; those of one part may overlap with another's.
        passes: of the model.
        within: seconds of the card within passes, by its own clock; 0 without a card.
    """

    host: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    passes: int = 0
    within: float = 0.0


@contextlib.contextmanager
def timed_parts(device: str) -> Iterator[Spent]:
    """Seconds of the parts of scoring; ``within`` is known once the block is left."""
    spent = Spent()
    marks: list[list[Any]] = []

    def launched(*arguments: Any, **options: Any) -> Any:
        spent.passes += 1
        pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if on_card(device) else []
        for event in pair[:1]:
            event.record()
        try:
            return run_backbone(*arguments, **options)
        finally:  # a pass ends with an exception when the last state that is wanted has been read
            for event in pair[1:]:
                event.record()
            marks.append(pair)

    run_backbone = stream.run_backbone
    parts = [(owner, name, _counted(getattr(owner, name), label, spent.host)) for owner, name, label in HOST_PARTS]
    passes = _counted(launched, "launching passes", spent.host)
    with replaced(*parts, (stream, "run_backbone", passes)):
        yield spent
    sync(device)
    spent.within = sum(pair[0].elapsed_time(pair[1]) for pair in marks if pair) / 1e3


def _counted(function: Callable[..., Any], label: str, spent: dict[str, float]) -> Callable[..., Any]:
    @functools.wraps(function, updated=())
    def run(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            spent[label] += time.perf_counter() - began

    return run


@contextlib.contextmanager
def uncaptured() -> Iterator[None]:
    """Contrast-consistent probes trained epoch by epoch on a card, with no graph."""

    def run(epoch: Callable[[], None], epochs: int, report: Callable[[int], None]) -> None:
        for _ in range(epochs):
            epoch()
        report(epochs)

    with replaced((ccs_training, "_replay_as_graph", run)):
        yield


@contextlib.contextmanager
def rounds_of_kernels(rounds: int) -> Iterator[None]:
    """How often the benchmarks of kernels run every way."""
    with replaced((bench_kernels, "ROUNDS", rounds)):
        yield
