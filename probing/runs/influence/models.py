"""The model whose weights are moved, and the parameters that a training would change."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from probing.errors import UsageError
from probing.instruments.pair_scores import PairScorer
from probing.instruments.parameter_directions import LORA, find_parameters
from probing.models.load import LanguageModel
from probing.models.stack import Stack
from probing.runs.common.models import load_model
from probing.runs.influence.config import InfluenceConfig

LIKELIHOODS = ("chosen_logprob", "rejected_logprob")


@dataclass(frozen=True, eq=False)
class MovedModel:
    """A model, how it is scored, and the parameters that move.

    Attributes:
        scorer: scores ln p of both responses.
        which: name of the parameters: "lora", "all", ...
        parts: the parameters, cut into parts that are measured one after the other.
    """

    scorer: PairScorer
    which: str
    parts: Sequence[Sequence[nn.Parameter]]

    @property
    def language_model(self) -> LanguageModel:
        """The model and its tokenizer."""
        return self.scorer.language_model

    @property
    def stack(self) -> Stack:
        """The model as the scorer found it."""
        return self.scorer.stream.stack

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters that move."""
        return [parameter for part in self.parts for parameter in part]


def load_float32(config: InfluenceConfig) -> LanguageModel:
    """The model in float32, also where the checkpoint has half precision: a small step would be lost in that."""
    return load_model(config.model, config, config.revision, dtype="float32" if config.dtype == "auto" else None)


def find_moved(config: InfluenceConfig, model: LanguageModel) -> MovedModel:
    """The parameters that the options name, and a scorer of the model.

    Raises:
        UsageError: there are no such parameters, or weights that are quantised, offloaded or of half precision.
        ModelInvalid, LayerNotFound: the model is no causal language model of an understood form.
    """
    scorer = PairScorer(
        model,
        eos=config.eos,
        max_length=config.max_length,
        batch_tokens=config.batch_tokens,
        columns=LIKELIHOODS,
        compile=config.compile,
    )
    which = name_parameters(config, model)
    if which != LORA and not all(parameter.is_floating_point() for parameter in model.model.parameters()):
        raise UsageError(
            "some weights are quantised, so that no small step can be made in them; load the model in float32, or "
            "measure the parameters of an adapter with --parameters lora"
        )
    parameters = find_parameters(scorer.stream.stack, which)
    return MovedModel(scorer, which, cut_parameters(parameters, config.parameter_parts))


def name_parameters(config: InfluenceConfig, model: LanguageModel) -> str:
    """The name of the parameters that move: those that were asked for, or of the adapter if there is one, or all."""
    return config.parameters or ("all" if model.peft is None else LORA)


def cut_parameters(parameters: Sequence[nn.Parameter], parts: int) -> list[list[nn.Parameter]]:
    """Parameters in their order, in at most so many parts of about equal size; none is empty."""
    total, done = sum(parameter.numel() for parameter in parameters), 0
    cut: list[list[nn.Parameter]] = [[] for _ in range(parts)]
    for parameter in parameters:
        # A parameter goes where its middle lies.
        cut[min(parts - 1, (2 * done + parameter.numel()) * parts // (2 * total))].append(parameter)
        done += parameter.numel()
    return [part for part in cut if part]
