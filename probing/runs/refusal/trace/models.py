"""The model of a trace, and the direction."""

from dataclasses import dataclass

from probing.errors import SourceMismatch
from probing.instruments.directions import first_token_head
from probing.instruments.trace_reading import ProjectionReader
from probing.kernels.output_head import Unembedding
from probing.models.language_model import LanguageModel
from probing.models.layers import find_stack
from probing.models.stack import Stack
from probing.runs.common.models import load_model
from probing.runs.refusal.common.directions import read_direction
from probing.runs.refusal.trace.config import TraceConfig
from probing.runs.refusal.trace.data import Answers
from probing.store.probes import HASHES
from probing.types import Direction


@dataclass(frozen=True, eq=False)
class TracedModel:
    """The model with what reads it.

    Attributes:
        model: the model.
        stack: its blocks.
        head: its output head, proved.
        direction: the direction; None where none was given.
        reader: reads projections on it.
    """

    model: LanguageModel
    stack: Stack
    head: Unembedding
    direction: Direction | None
    reader: ProjectionReader | None


def open_model(config: TraceConfig, answers: Answers | None) -> TracedModel:
    """Load the model and the direction, and check that they and the answers belong together.

    Raises:
        SourceMismatch: the direction or the answers are of another model.
        UsageError: a place that is not there, or a subspace.
    """
    model = load_model(config.model, config, config.revision)
    if answers is not None:
        _check_answers(answers, model)
    direction = reader = None
    if config.direction is not None:
        direction = read_direction(config.direction.expanduser(), config.place, config.position)
        reader = ProjectionReader.open(model, direction, config.random_directions, config.seed, config.batch_tokens)
    return TracedModel(model, find_stack(model), first_token_head(model), direction, reader)


def _check_answers(answers: Answers, model: LanguageModel) -> None:
    wrong = [name for name in HASHES if answers.model.get(name) != getattr(model.source, name)]
    if wrong:
        raise SourceMismatch(
            f"{answers.path}: its answers are of {answers.model.get('model')}, not of {model.source.model} "
            f"({', '.join(wrong)} differ); evaluate this model, or leave --answers out"
        )
