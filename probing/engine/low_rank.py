"""The removal of a direction from the weights of a model as an adapter: two thin matrices for each writing module."""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from probing.directions.edits import pull_back
from probing.directions.low_rank import factor_removal
from probing.engine.edit_requests import read_request
from probing.engine.guard import LeaveAsFound
from probing.engine.orthogonalization import Embedding
from probing.engine.stream import ONE_AT_A_TIME
from probing.errors import EditRefused
from probing.models.language_model import LanguageModel
from probing.models.layers import find_stack
from probing.models.writers import Writers, find_writers
from probing.models.writing_tensors import TensorFinder, WritingTensor
from probing.types import Direction

NAMED = 5


@dataclass(frozen=True, eq=False)
class Factors:
    """What an adapter adds to one module: ``up @ down``.

    Attributes:
        module: path within the model.
        down: [rank in]; for an embedding [rank vocabulary].
        up: [width rank].
        embedding: whether the module is an embedding.
    """

    module: str
    down: Tensor
    up: Tensor
    embedding: bool


@dataclass(frozen=True, eq=False)
class LowRankRemoval:
    """A removal as an adapter.

    Attributes:
        writers: account of the writers; none is proved yet.
        factors: of each module.
    """

    writers: Writers
    factors: tuple[Factors, ...]


def find_low_rank_removal(model: LanguageModel, direction: Direction, embedding: Embedding = "untie") -> LowRankRemoval:
    """The removal that ``orthogonalize`` makes, as an adapter (LoRA) of the rank of the direction.

    Args:
        model: the model, which stays as it is.
        direction: direction of this model.
        embedding: "untie" has the adapter act on the embedding too (a head that is tied to it stays as it is); "skip"
            leaves it out.

    Raises:
        EditRefused: a write that is not understood, or that a LoRA cannot change: a bias, the shift of a norm, experts
            that are one tensor, a convolution. Names them.
        UsageError: a direction of another width.
    """
    with ONE_AT_A_TIME, LeaveAsFound(model.model), LeaveAsFound(model.model):
        request = read_request(find_stack(model), direction, "project", None, None)
        found = find_writers(request.stack)
        edited = tuple(each for each in found if embedding == "untie" or each.kind != "embedding")
        finder, basis = TensorFinder(request.stack, edited), request.basis()
        factors, refused = [], []
        for writer in edited:
            inner = basis if writer.norm is None else pull_back(basis, writer.norm.scale, writer.norm.centred)
            for tensor in finder.find(writer):
                if _is_expressible(tensor):
                    factors.append(_factor(tensor, inner))
                else:
                    refused.append(f"{tensor.name} ({type(tensor.owner).__name__})")
    if refused:
        more = f" and {len(refused) - NAMED} more" if len(refused) > NAMED else ""
        raise EditRefused(
            f"a LoRA changes the weights of linear layers and embeddings, and {request.stack.family} also writes "
            f"through {', '.join(refused[:NAMED])}{more}; use --format model"
        )
    writers = Writers(found, edited)
    if embedding == "skip":
        writers.notes.append("the embedding is not edited, as was asked for")
    return LowRankRemoval(writers, tuple(factors))


def _is_expressible(tensor: WritingTensor) -> bool:
    kinds = {nn.Linear: 0, Conv1D: 1, nn.Embedding: 1}
    axis = next((axis for kind, axis in kinds.items() if isinstance(tensor.owner, kind)), None)
    return tensor.key == "weight" and tensor.axis == axis


def _factor(tensor: WritingTensor, basis: Tensor) -> Factors:
    weight = tensor.parameter.detach().cpu()
    down, up = factor_removal(weight if tensor.axis == 0 else weight.T, basis.cpu())
    embedding = isinstance(tensor.owner, nn.Embedding)
    return Factors(tensor.name.removesuffix(f".{tensor.key}"), down.float(), up.float(), embedding)
