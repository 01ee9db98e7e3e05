"""The engine that the options name: the worker of this process, or actors of Ray."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from probing.runs.common.makers import Block, Made
from probing.runs.common.options import EngineOptions
from probing.runs.common.workers import BlockWorker, LocalWorker, Workers
from probing.store.manifest import RunFolder

Config = TypeVar("Config", bound=EngineOptions)


@contextlib.contextmanager
def open_workers(
    config: Config,
    open_worker: Callable[[Config], BlockWorker[Any, Made]],
    folder: RunFolder,
    missing: Callable[[], Iterable[Block]],
) -> Iterator[Workers[Made]]:
    """What makes the blocks of a run inside the block: this process, or the actors of Ray if the options say so.

    Args:
        config: the options of the job.
        open_worker: loads the models and answers a worker; a class or a function of a module.
        folder: folder of the run.
        missing: the blocks that have to be made; asked for only where they are sent to other processes, before the
            run has begun.

    Raises:
        ProbingError: see ``probing.models.load.load``, and ``probing.runs.common.on_ray``.
    """
    if config.engine != "ray":
        yield LocalWorker(open_worker(config))
        return
    from probing.runs.common.on_ray import RayWorkers

    recorded = folder.facts().get("batch_tokens")
    with RayWorkers(config, open_worker, missing(), recorded) as workers:
        yield workers
