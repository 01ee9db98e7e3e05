"""A direction used in another model: shared prompts read in both, and what it does to the refusal log-odds there."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from probing.engine.ablation import ablate
from probing.errors import DataInvalid
from probing.instruments.capture import capture
from probing.instruments.directions import refusal_log_odds, split_positions
from probing.models.language_model import LanguageModel
from probing.types import Capture, Direction, LabelledPrompt, Place, TokenActivations


def read_states(
    model: LanguageModel, prompts: Sequence[LabelledPrompt], place: Place, position: int
) -> dict[str, Float[Tensor, " width"]]:
    """State of every prompt that can be read, by id, at a place and a position from the end of the prompt.

    Raises:
        DataInvalid: the chat template writes fewer tokens after the instruction than the position asks for.
    """
    read = capture(model, prompts, Capture((place,), "tokens", "instruction_end", chat=True))
    assert isinstance(read, TokenActivations)
    if not read.ids:
        raise DataInvalid(f"no prompt can be read with {model.source.model}")
    ends = split_positions(read.values[:, 0].float(), read.offsets.diff())
    if -position > ends.shape[1]:
        raise DataInvalid(
            f"the direction was read at position {position}, and the chat template of {model.source.model} writes only "
            f"{ends.shape[1] - 1} tokens after the instruction"
        )
    return dict(zip(read.ids, ends[:, position], strict=True))


def choose_place(place: Place, layers: int, own_layers: int) -> Place:
    """The place at the same relative depth of a model with other layers.

    Args:
        place: in the model that has ``layers`` layers.
        layers: number of its layers.
        own_layers: number of layers of the other model.
    """
    if place.layer is None or layers == own_layers:
        return place
    return Place(place.kind, min(round(place.layer * own_layers / layers), own_layers - 1))


def measure_effects(
    model: LanguageModel,
    direction: Direction,
    harmful: Sequence[LabelledPrompt],
    harmless: Sequence[LabelledPrompt],
    tokens: Sequence[int | str],
) -> tuple[Float[Tensor, " harmful"], Float[Tensor, " harmless"]]:
    """Refusal log-odds of harmful prompts with the direction removed, and of harmless ones with it added.

    Args:
        model: the model.
        direction: one of its own places.
        harmful: prompts.
        harmless: prompts.
        tokens: the refusal tokens.
    """
    with ablate(model, direction):
        removed = refusal_log_odds(model, harmful, tokens)
    with ablate(model, direction, "add"):
        added = refusal_log_odds(model, harmless, tokens)
    return removed, added
