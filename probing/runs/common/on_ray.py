"""Blocks of a run made by actors of Ray: Ray Data feeds them, replaces those that die, and lets their number grow.

This process reads the data, holds the output folder and writes the parts as they come; it loads no model. A part that
is written is not made again, so that the same command goes on after any failure, on any engine.
"""

import contextlib
import logging
import math
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray import cloudpickle

from probing.errors import ProbingError, SourceMismatch, UsageError, WorkerLost
from probing.report.progress import open_bar, say
from probing.runs.common.budget import RecordedBudget, budget_facts, put_budget
from probing.runs.common.makers import Block, Delivery, MadeElsewhere
from probing.runs.common.options import EngineOptions
from probing.runs.common.versions import versions
from probing.runs.common.workers import BlockWorker
from probing.store.manifest import RunFolder, find_differences
from probing.store.progress import Worker

log = logging.getLogger(__name__)

Made = TypeVar("Made")
NOTHING = -1
"""Number of a block without rows, for which an actor only says what its models are."""
CALLS = 2
"""Blocks that an actor has at a time: one is prepared while the other is made."""
RESTARTS = 8
"""How often an actor that died is started again: a row that kills its actor must not do so for ever."""
WAITED_SECONDS = 60.0
REACHED_SECONDS = 10.0
START = "Start one with 'ray start --head', or leave out --ray-address and RAY_ADDRESS, and Ray is started here"
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
"""Where the environment does not say otherwise, Ray sends no figures about its use to its makers, and prints no log."""


@dataclass(frozen=True)
class Answer:
    """What an actor sends back for a block.

    Attributes:
        number: number of the block.
        made: what was made; None for no rows.
        error: what went wrong in place of it.
        facts: facts of the actor's models, in its first answer; afterwards None, since a tokenizer may be large.
        how: how they are run.
        budget: their token budget.
        versions: versions of the libraries there.
        warned: warnings since the last answer.
        actor: the process of the actor, and its machine.
        rows: number of rows that were made.
        tokens: number of tokens that were run.
        seconds: time that this took.
    """

    number: int
    made: Any
    error: ProbingError | None
    facts: Mapping[str, Any] | None
    how: Any
    budget: Mapping[str, Any]
    versions: Mapping[str, Any]
    warned: list[str]
    actor: tuple[int, str]
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0


class _Warnings(logging.Handler):
    """Keeps the warnings of an actor until they are sent to the process that shows them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record.getMessage())

    def take(self) -> list[str]:
        taken, self.kept = self.kept, []
        return taken


class Actor:
    """Makes blocks in a process of Ray's; Ray Data calls it with one block at a time in each of ``CALLS`` threads.

    Args:
        config: the options of the job.
        open_worker: loads the models.
        budget: token budget that the run began with; None for a new run.
    """

    def __init__(self, config: EngineOptions, open_worker: Callable[[Any], BlockWorker[Any, Any]], budget: Any) -> None:
        self._warnings, self._one_at_a_time = _Warnings(), threading.Lock()
        logging.getLogger("probing").addHandler(self._warnings)
        self._error: ProbingError | None = None
        self._told = False
        try:
            self._worker = open_worker(config)
            # The threads must not open a stream each.
            streams = self._worker.streams
            if budget is not None:
                put_budget(streams, budget)
        except ProbingError as error:
            # Ray would start the actor again and again.
            self._error = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Make the block of a batch of one row, and answer an ``Answer`` in one row."""
        (row,) = batch.to_pylist()
        return pa.table({"answer": pa.array([cloudpickle.dumps(self._answer(row))], pa.binary())})

    def _answer(self, row: Mapping[str, Any]) -> Answer:
        began, number, made, rows, tokens = time.monotonic(), row["number"], None, 0, 0
        if self._error is not None:
            return Answer(
                number=number,
                made=None,
                error=self._error,
                facts={},
                how=None,
                budget={},
                versions={},
                warned=[],
                actor=find_actor(),
            )
        error: ProbingError | None = None

        def count(done: float, run: int) -> None:
            nonlocal tokens
            tokens += run

        try:
            if number != NOTHING:
                of_block, names = cloudpickle.loads(row["rows"]), cloudpickle.loads(row["names"])
                ready = self._worker.prepare(of_block, names.__getitem__)
                with self._one_at_a_time:
                    made, rows = self._worker.make(ready, count), len(of_block)
        except ProbingError as wrong:
            error = wrong
        with self._one_at_a_time:
            facts = None if self._told else self._worker.describe()
            self._told = True
            budget = budget_facts(self._worker.streams)
            how, warned = self._worker.how(), self._warnings.take()
        return Answer(
            number=number,
            made=made,
            error=error,
            facts=facts,
            how=how,
            budget=budget,
            versions=versions(),
            warned=warned,
            actor=find_actor(),
            rows=rows,
            tokens=tokens,
            seconds=time.monotonic() - began,
        )


def find_actor() -> tuple[int, str]:
    """This process, and its machine."""
    return os.getpid(), socket.gethostname()


@dataclass
class _Told:
    """What the actors said so far.

    Attributes:
        facts: facts of the models of the first.
        how: how each runs its models, by actor.
        workers: what each has done, by actor, in the order in which they came.
        warned: warnings that were shown.
    """

    facts: Mapping[str, Any] | None
    how: dict[tuple[int, str], Any]
    workers: dict[tuple[int, str], Worker]
    warned: set[str]


class RayWorkers(Generic[Made]):
    """Actors of Ray that make the blocks of a run; they end with the block in which this is used.

    Args:
        config: the options of the job.
        open_worker: loads the models in an actor: a class or function of a module, or ``functools.partial`` of one.
        blocks: the blocks that have to be made.
        budget: token budget that the run began with; None for a new run.

    Raises:
        UsageError: an object in memory is among the options; the cluster is not there, or is too small.
    """

    local = None

    def __init__(
        self,
        config: EngineOptions,
        open_worker: Callable[[Any], BlockWorker[Any, Made]],
        blocks: Iterable[Block],
        budget: Mapping[str, Any] | None,
    ) -> None:
        self._config, self._open_worker, self._blocks, self._budget = config, open_worker, blocks, budget
        self._told, self._held = _Told(None, {}, {}, set()), list[Answer]()
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(connect(self._config))
            self._answers = stack.enter_context(contextlib.closing(self._ask()))
            # Before the first answer nothing is known of the models.
            with _say_if_waiting():
                while self._told.facts is None:
                    self._held.append(next(self._answers))
            # The time in which actors start and load the model is left out of the rates.
            self._began = time.monotonic() - self._held[0].seconds
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit.close()

    @property
    def facts(self) -> Mapping[str, Any]:
        """Facts of the models of the actors, which are the same."""
        assert self._told.facts is not None
        return self._told.facts

    def how(self) -> Any:
        """How the models were run: as all actors say, or as each of those says that differ."""
        return join_ways(list(self._told.how.values()))

    def keep_budget(self, folder: RunFolder) -> RecordedBudget:
        """The token budget of the actor that answered first."""
        return RecordedBudget(folder, self._held[0].budget if self._held else {})

    def maker(self, block_of: Callable[[int], Block]) -> MadeElsewhere[Made]:
        """Makes the blocks that are missing, in the actors."""
        return MadeElsewhere(self._receive)

    def _receive(self) -> Generator[Delivery[Made], None, None]:
        while self._held:
            yield from self._deliver(self._held.pop(0))
        for answer in self._answers:
            yield from self._deliver(answer)

    def _deliver(self, answer: Answer) -> Iterator[Delivery[Made]]:
        if answer.number == NOTHING:
            return
        worker = self._told.workers.setdefault(answer.actor, Worker(pid=answer.actor[0], host=answer.actor[1]))
        worker.rows += answer.rows
        worker.tokens += answer.tokens
        worker.seconds = time.monotonic() - self._began
        yield Delivery(answer.number, answer.made, list(self._told.workers).index(answer.actor), worker)

    def _ask(self) -> Generator[Answer, None, None]:
        """The answers of the actors to all blocks, as they come.

        Raises:
            ProbingError: what an actor raised; or the actors have other models, cards or libraries than one another.
            WorkerLost: the actors die again and again.
        """
        try:
            for batch in start(self._config, self._open_worker, self._blocks, self._budget):
                for packed in batch["answer"].to_pylist():
                    answer: Answer = cloudpickle.loads(packed)
                    self._hear(answer)
                    yield answer
        except ray.exceptions.RayActorError as error:
            raise WorkerLost(
                f"an actor of Ray died {RESTARTS + 1} times, most likely because the memory did not suffice: "
                f"{str(error).splitlines()[0]} Give it more (--ray-gpus), or less to hold (--batch-tokens); the same "
                f"command goes on from here"
            ) from error

    def _hear(self, answer: Answer) -> None:
        if answer.error is not None:
            raise answer.error
        for warning in answer.warned:
            if warning not in self._told.warned:
                log.warning("%s (on %s)", warning, answer.actor[1])
        self._told.warned.update(answer.warned)
        self._told.how[answer.actor] = answer.how
        if answer.facts is None:
            return
        here = {"versions": versions()}
        differences = find_differences(here, {"versions": answer.versions})
        if self._told.facts is None:
            self._told.facts = answer.facts
        elif answer.facts != self._told.facts:
            differences |= find_differences(self._told.facts, answer.facts)
        if differences:
            told = "; ".join(f"{name} is {one} and {other}" for name, (one, other) in differences.items())
            raise SourceMismatch(
                f"the actor on {answer.actor[1]} does not compute what the others do, or this process would: {told}. "
                f"All machines of the cluster need the same model files, cards and libraries"
            )


def join_ways(ways: list[Any]) -> Any:
    """How models were run, of several actors: what all say, or all that is said."""
    if isinstance(ways[0], Mapping):
        return {name: join_ways([way[name] for way in ways]) for name in ways[0]}
    return "; or ".join(dict.fromkeys(ways))


@dataclass(frozen=True)
class _Pool:
    """The actors that are asked for.

    Attributes:
        least: number of actors to begin with.
        most: number up to which more are started.
        cpus: cores of each.
        gpus: cards of each.
    """

    least: int
    most: int
    cpus: float
    gpus: float


def _plan_pool(config: EngineOptions, blocks: int) -> _Pool:
    """The actors for so many blocks: by default one a card of the cluster, or one where there is no card.

    Raises:
        UsageError: more cards are asked for than there are, and the cluster is this machine, which gets no more.
    """
    cards = ray.cluster_resources().get("GPU", 0.0)
    runs_on_cpu = getattr(config, "device", "auto") == "cpu"
    gpus = config.ray_gpus if config.ray_gpus is not None else float(bool(cards) and not runs_on_cpu)
    least = config.ray_actors or (max(1, int(cards / gpus)) if gpus else 1)
    most = max(least, config.ray_max_actors or 0)
    if gpus > cards and _names_no_cluster(config):
        raise UsageError(
            f"--ray-gpus {gpus:g} asks for more cards than this machine has for Ray, {cards:g}; name a cluster with "
            f"--ray-address, or ask for fewer"
        )
    return _Pool(min(least, blocks), min(most, blocks), config.ray_cpus, gpus)


def _names_no_cluster(config: EngineOptions) -> bool:
    """Whether Ray is, or was, started here because no cluster is named."""
    return not (config.ray_address or os.environ.get("RAY_ADDRESS"))


def _check_reachable(address: str) -> None:
    """Raise unless somebody answers at an address: Ray itself gives up only after minutes.

    Raises:
        UsageError: it is no address, or nobody answers.
    """
    if address in ("auto", "local"):
        return
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdigit():
        raise UsageError(
            f"--ray-address must be auto or HOST:PORT, as 'ray start --head' prints it, not {address!r:.100}"
        )
    try:
        socket.create_connection((host, int(port)), REACHED_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"no cluster of Ray answers at {address}: {error}. {START}") from error


@contextlib.contextmanager
def connect(config: EngineOptions) -> Iterator[None]:
    """Connect to the cluster that the options or RAY_ADDRESS name; without any, start Ray here, and end it afterwards.

    Raises:
        UsageError: there is no such cluster.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("ray", "ray.data"):
        # What goes wrong is raised as well.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    address = config.ray_address or os.environ.get("RAY_ADDRESS")
    most = max(config.ray_actors or 1, config.ray_max_actors or 0)
    if address:
        _check_reachable(address)
    say(f"connecting to Ray at {address}" if address else "starting Ray on this machine for this command")
    # More actors than cores may be asked for: the system then shares the cores.
    cores = None if address is not None else max(os.cpu_count() or 1, math.ceil(most * config.ray_cpus))
    try:
        with _quiet_stderr():
            ray.init(address, num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise UsageError(
            f"no cluster of Ray could be reached at {address or 'this machine'}: {reason}. {START}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Drop what is written to stderr: Ray's core says there, past any logger, that its log was set to be quiet."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def start(
    config: EngineOptions,
    open_worker: Callable[[Any], BlockWorker[Any, Any]],
    blocks: Iterable[Block],
    budget: Mapping[str, Any] | None,
) -> Iterator[pa.Table]:
    """Give all blocks to a pool of actors; yields the answers in the order in which they are done."""
    refs = []
    with open_bar(desc="sending rows to Ray ", unit=" blocks") as bar:
        for block in blocks:
            refs.append(ray.put(_pack(block)))
            bar.update()
    refs = refs or [ray.put(_pack(Block(NOTHING, (), str)))]
    pool = _plan_pool(config, len(refs))
    most = f" to {pool.most}" if pool.most > pool.least else ""
    say(f"starting {pool.least}{most} actors with {pool.cpus:g} cores and {pool.gpus:g} cards each; they load models")
    with warnings.catch_warnings():
        # About options of its own, which only change with its versions.
        warnings.simplefilter("ignore")
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = False
        context.max_consecutive_actor_init_deaths = RESTARTS
        compute = ray.data.ActorPoolStrategy(
            min_size=pool.least,
            max_size=pool.most,
            max_concurrent_calls_per_actor=CALLS,
            max_tasks_in_flight_per_actor=CALLS,
            enable_true_multi_threading=True,
        )
        # The stub asks for references to "Any | bytes", of which those to Any are no kind: the type is invariant.
        answers = ray.data.from_arrow_refs(cast("Any", refs)).map_batches(
            Actor,
            fn_constructor_args=(config, open_worker, budget),
            compute=compute,
            # A block has one row. Ray wants a number of rows for actors with cards.
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            max_restarts=RESTARTS,
            # Of a block, which waits for its actor. Ray counts every try to reach one that is still starting.
            max_task_retries=-1,
        )
    del refs
    return iter(answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))


def _pack(block: Block) -> pa.Table:
    """A block as a table of one row."""
    names = [block.where(row) for row in range(len(block.rows))]
    packed = {
        "number": [block.number],
        "rows": [cloudpickle.dumps(list(block.rows))],
        "names": [cloudpickle.dumps(names)],
    }
    return pa.table(packed)


@contextlib.contextmanager
def _say_if_waiting() -> Iterator[None]:
    """Say what is waited for if nothing comes for a while."""

    def say() -> None:
        there, free = ray.cluster_resources(), ray.available_resources()
        log.warning(
            "still waiting for the first actor of Ray: of %g cores of the cluster %g are free, of %g cards %g",
            *(each.get(kind, 0) for kind in ("CPU", "GPU") for each in (there, free)),
        )

    timer = threading.Timer(WAITED_SECONDS, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
