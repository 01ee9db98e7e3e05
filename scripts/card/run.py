"""Stages in order of value, each with an allowance of time; a failure is told and the next one runs."""

import contextlib
import gc
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from card.lines import Lines, end_of
from card.sizes import Sizes
from card.timing import on_card, sync

LEAST_SHARE = 0.25
"""A stage is begun when at least this share of its allowance is left."""


class TimeUp(BaseException):
    """A stage has used up its allowance. Not an ``Exception``, so that no library takes it for a failure of its own."""


@dataclass
class Run:
    """What the stages share.

    Attributes:
        device: "cuda" or "cpu".
        small: whether this is the dry run.
        sizes: how much is done.
        lines: where figures go.
        children: folders that child processes need on their path.
        commit: as given on the command line.
        measured: figures that later stages divide by, such as the ceilings; missing where their stage failed.
        kept: what later stages use again, such as the model.
        rest: stages that another process has to run, since this one has lost the card.
        failures: stages, and parts of stages, that failed.
    """

    device: str
    small: bool
    sizes: Sizes
    lines: Lines
    children: tuple[Path, ...] = ()
    commit: str | None = None
    stage: str = ""
    until: float = 0.0
    measured: dict[str, float] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)

    @property
    def card(self) -> bool:
        """Whether there is a card."""
        return on_card(self.device)

    def say(self, **facts: Any) -> None:
        """One line of the stage that runs."""
        self.lines.say(self.stage, **facts)

    def left(self) -> float:
        """Seconds until the stage that runs has used up its allowance."""
        return self.until - time.monotonic()

    def share(self, rate: float, ceiling: str) -> float | None:
        """A rate as a share of a measured ceiling; None where that was not measured."""
        return rate / self.measured[ceiling] if self.measured.get(ceiling) else None

    def need(self, name: str) -> Any:
        """What an earlier stage made.

        Raises:
            LookupError: that stage failed or was not run.
        """
        if name not in self.kept:
            raise LookupError(f"there is no {name}: the stage that makes it failed or was not run")
        return self.kept[name]

    @contextlib.contextmanager
    def part(self, **what: Any) -> Iterator[None]:
        """A part of a stage: when it fails, that is told in a line with ``what``, and the stage goes on."""
        problem: dict[str, Any] | None = None
        try:
            yield
        # Whatever a part raises, the figures of the others are worth having. Benchmarks leave by SystemExit.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            problem = end_of(error)
        if problem is not None:  # outside the handler: the traceback's frames hold the memory of the card
            self.failures.append(" ".join([self.stage, *map(str, what.values())]))
            self.say(**what, **problem)
            self.clean()

    def clean(self) -> None:
        """Give the card's memory back that nothing holds."""
        gc.collect()
        if self.card and not self.lost():
            torch.cuda.empty_cache()

    def lost(self) -> bool:
        """Whether a kernel went so wrong, as by an address that is not its own, that this process can use no card."""
        try:
            sync(self.device)
        except RuntimeError:
            return True
        return False


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: as in the lines.
        work: what it does.
        allowance: seconds that it may take.
    """

    name: str
    work: Callable[[Run], None]
    allowance: float


def run_stages(run: Run, stages: Sequence[Stage], seconds: float) -> int:
    """Every stage in turn, within ``seconds`` in all; a stage may also use what those before it left over.

    Returns:
        The exit status: 1 if a stage failed, was cut short or was not run for lack of time. Where the card is lost
        before the last stage, ``run.rest`` names those that another process has to run.
    """
    end = time.monotonic() + seconds
    for number, stage in enumerate(stages):
        later = stages[number + 1 :]
        left = end - time.monotonic()
        run.stage = stage.name
        if left < LEAST_SHARE * stage.allowance:
            run.failures.append(f"{stage.name} (not run)")
            run.say(not_run=f"{max(left, 0):.0f} s are left of all, its allowance is {stage.allowance:.0f} s")
            continue
        over = left - sum(other.allowance for other in later)
        _run_one(run, stage, min(left, max(stage.allowance, over)))
        run.clean()
        if later and run.lost():
            run.rest = [other.name for other in later]
            run.say(card_lost="nothing more can be run in this process; the stages that are left run in another")
            return 1
    run.stage = "end"
    run.say(failures=run.failures, took_seconds=seconds - (end - time.monotonic()))
    return 1 if run.failures else 0


def _run_one(run: Run, stage: Stage, allowance: float) -> None:
    began = time.monotonic()
    run.until = began + allowance
    try:
        with interrupted_after(allowance), run.part():
            stage.work(run)
            sync(run.device)
    except TimeUp:
        run.failures.append(f"{stage.name} (cut short)")
        run.say(cut_short=f"its allowance of {allowance:.0f} s is used up; what it said before counts")
        run.clean()
    run.say(took_seconds=time.monotonic() - began)


@contextlib.contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Raise ``TimeUp`` in the main thread when a block takes longer: as soon as Python code runs again there."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
