"""What makes the blocks of a run: workers, each with the models in its process."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

from probing.engine.stream import Stream
from probing.instruments.reading import Advance
from probing.models.language_model import LanguageModel
from probing.runs.common.budget import KeptBudget, RecordedBudget
from probing.runs.common.makers import Block, MadeElsewhere, Maker, Where, make_with_next_prepared
from probing.runs.common.model_facts import find_model_facts
from probing.store.manifest import RunFolder

Ready = TypeVar("Ready")
Ready_co = TypeVar("Ready_co", covariant=True)
Made_co = TypeVar("Made_co", covariant=True)
Made = TypeVar("Made")


class BlockWorker(Protocol[Ready_co, Made_co]):
    """Makes the blocks of a run with the models in its process."""

    @property
    def streams(self) -> Sequence[Stream]:
        """Streams that run the models."""

    def describe(self) -> Mapping[str, Any]:
        """Facts of its models, for the identity of the run."""

    def how(self) -> Any:
        """How the models are run, for the record: a sentence, or one for each of several models by its name."""

    def prepare(self, rows: Any, where: Where) -> Ready_co:
        """Do what can be done for a block of rows while the one before it is made."""

    def make(self, ready: Any, report: Advance) -> Made_co:
        """Make what was prepared."""


class Scorer(Protocol):
    """Runs one model on rows."""

    @property
    def stream(self) -> Stream:
        """The stream that runs the model."""

    def tokenize(self, rows: Any, where: Where | None = None, /) -> Any:
        """Tokens of some rows."""


AnyScorer = TypeVar("AnyScorer", bound=Scorer)


class ScorerWorker(Generic[AnyScorer]):
    """A worker with one scorer of one model, of which a job says how it makes a block.

    Args:
        model: the model.
        open_scorer: opens the scorer, when it is first needed: a finished run needs none.
    """

    def __init__(self, model: LanguageModel, open_scorer: Callable[[LanguageModel], AnyScorer]) -> None:
        self._model, self._open_scorer = model, open_scorer

    @cached_property
    def scorer(self) -> AnyScorer:
        """Scores rows with the model."""
        return self._open_scorer(self._model)

    @property
    def streams(self) -> list[Stream]:
        """The stream that runs the model."""
        return [self.scorer.stream]

    def describe(self) -> dict[str, Any]:
        """Facts of the model."""
        return {"model": find_model_facts(self._model)}

    def how(self) -> str:
        """How the model is run."""
        return self.scorer.stream.how

    def prepare(self, rows: Any, where: Where) -> Any:
        """Tokens of some rows."""
        return self.scorer.tokenize(rows, where)


class Workers(Protocol[Made]):
    """What makes the blocks of a run."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Facts of the models; see ``BlockWorker.describe``."""

    def how(self) -> Any:
        """How the models were run; see ``BlockWorker.how``."""

    @property
    def local(self) -> Any:
        """The worker of this process; None where the workers are in others."""

    def keep_budget(self, folder: RunFolder) -> KeptBudget | RecordedBudget:
        """The token budget of the run, which its record gets."""

    def maker(self, block_of: Callable[[int], Block]) -> Maker[Made] | MadeElsewhere[Made]:
        """Makes the parts with some numbers, from their blocks."""


class LocalWorker(Generic[Ready, Made]):
    """The worker of this process.

    Args:
        worker: makes the blocks.
    """

    def __init__(self, worker: BlockWorker[Ready, Made]) -> None:
        self.local, self.facts, self.how = worker, worker.describe(), worker.how

    def keep_budget(self, folder: RunFolder) -> KeptBudget:
        """The token budget of the worker's streams."""
        return KeptBudget(folder, self.local.streams)

    def maker(self, block_of: Callable[[int], Block]) -> Maker[Made]:
        """Makes one part at a time, while another thread prepares the next one."""

        def prepare(number: int) -> Ready:
            block = block_of(number)
            return self.local.prepare(block.rows, block.where)

        def make(number: int, ready: Ready, report: Advance) -> Made:
            return self.local.make(ready, report)

        return make_with_next_prepared(prepare, make)
