"""What all parts of a run are made from."""

from collections.abc import Sequence
from dataclasses import dataclass

from probing.errors import DataInvalid
from probing.instruments.parameter_gradients import ParameterGradients
from probing.metrics.preference_losses import PreferenceLoss
from probing.runs.common.budget import KeptBudget
from probing.runs.common.losses import make_loss
from probing.runs.common.parts import Dataset
from probing.runs.influence.config import InfluenceConfig
from probing.runs.influence.models import MovedModel
from probing.runs.influence.rows import Target, draw_order, draw_runnable
from probing.store.manifest import RunFolder
from probing.tokens.pairs import TokenizedPair

TARGET, JOINT, POINT = "target", "joint", "point"
"""Names of directions: of the target, of the training, and, with a number behind it, of the target after so many steps
of the pilot."""


def describe_direction(name: str) -> str:
    """The name of a direction in words."""
    if not name.startswith(POINT):
        return name
    done = int(name.removeprefix(POINT))
    return f"{TARGET} after {done} step{'' if done == 1 else 's'} of the pilot"


@dataclass(frozen=True, eq=False)
class Work:
    """What all parts of a run are made from.

    Attributes:
        folder: folder of the run.
        config: the options.
        data: pairs of the training.
        moved: the model and its parameters.
        target: the target; None where there is none.
        budget: token budget, which goes on as it was after each shard.
    """

    folder: RunFolder
    config: InfluenceConfig
    data: Dataset
    moved: MovedModel
    target: Target | None
    budget: KeptBudget

    @property
    def loss(self) -> PreferenceLoss:
        """The loss of the training."""
        return make_loss(self.config)

    def gradients(self, part: int) -> ParameterGradients:
        """Gradients over the parameters of a part."""
        return ParameterGradients(self.moved.stack, self.moved.parts[part])

    def tokenize(self, numbers: Sequence[int]) -> list[TokenizedPair]:
        """Pairs by their numbers, as the model sees them."""
        pairs, where = [self.data.pairs[at] for at in numbers], self.data.table.where
        return self.moved.scorer.tokenize(pairs, lambda row: where(numbers[row]))

    def draw(self, count: int) -> list[TokenizedPair]:
        """So many pairs at random that can be run, or as many as there are."""
        return draw_runnable(self.tokenize, draw_order(len(self.data.pairs), self.config.seed), count)

    def explain_none(self) -> DataInvalid:
        """The error to raise where no pair can be run; it says why the first cannot."""
        problem = self.tokenize([0])[0].problem
        assert problem is not None
        return DataInvalid(
            f"{self.data.table.path}: no pair of the training data can be run; the first: '{problem.id}' "
            f"({problem.status}, {problem.detail})"
        )
