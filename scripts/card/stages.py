"""The stages in order of value, and how long each may take."""

import importlib
from collections.abc import Callable

from card.run import Run, Stage


def stages() -> list[Stage]:
    """All of them; a stage's module is imported when it runs, so that what it lacks is told as a failure of its own."""
    return [
        Stage("facts", _of("card.facts", "facts"), 20),
        Stage("ceilings", _of("card.ceilings", "ceilings"), 40),
        Stage("model", _of("card.model", "model"), 40),
        Stage("trials", _of("card.trials", "trials"), 40),
        Stage("tests", _of("card.gpu_tests", "gpu_tests"), 110),
        Stage("score", _of("card.score", "score"), 150),
        Stage("kernels", _of("card.kernels", "kernels"), 80),
        Stage("ccs", _of("card.probes", "contrast_probes"), 25),
        Stage("clusters", _of("card.probes", "clusters"), 35),
    ]


def _of(module: str, function: str) -> Callable[[Run], None]:
    def work(run: Run) -> None:
        getattr(importlib.import_module(module), function)(run)

    return work
