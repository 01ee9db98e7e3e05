"""Options of ``probing refusal transfer``."""

from dataclasses import dataclass
from pathlib import Path

from probing.runs.common.options import MOST_DRAWS, DrawOptions, PermutationOptions, option
from probing.runs.refusal.common.options import AnswerOptions, RefusalOptions
from probing.types import Place

RESULTS_FILE = "results.parquet"
CATEGORIES_FILE = "categories.parquet"
ANSWERS_FILE = "answers.parquet"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True, kw_only=True)
class TransferConfig(RefusalOptions, AnswerOptions, PermutationOptions, DrawOptions):
    """Use a direction of one model in others: as it is where the widths agree, and through a map of their states.

    The map (orthogonal, or least squares with a ridge penalty) is fitted on the states of shared prompts, and the
    direction is judged on prompts that no map has seen: by the AUROC of their projections and by the refusal log-odds
    with it removed and added. Beside it stand the model's own direction, random directions through the same map, and
    the direction through maps that were fitted on permuted prompts. Where prompts have categories, a direction of each
    is judged on each. Writes direction.safetensors (of several models direction-1.safetensors and so on),
    results.parquet, categories.parquet, summary.json, and with texts answers.parquet.

    Args:
        model: folder or hub id of the model in which the direction is used. May be repeated, as for the checkpoints of
            one training run.
        from_direction: folder of 'probing refusal select', or a direction.safetensors, of another model.
        from_model: the model that the direction is of; by default the one that it names.
        place: place in the model in which the direction is used; by default the same, or that at the same relative
            depth where the numbers of layers differ.
        random_edits: number of random directions through the map whose effect on the refusal log-odds is measured.
        texts: answer the held-out prompts, too: as the model is, and with the transferred direction, the model's own,
            and a random one through the map, each removed for harmful prompts and added for harmless ones.
    """

    model: str | list[str] = option(identity=False, repeatable=True)  # type: ignore[assignment]
    from_direction: Path = option(identity=False)
    from_model: str | None = option(None, identity=False)
    place: str | None = None
    random_edits: int = option(5, least=1, most=MOST_DRAWS)
    texts: bool = False
    filter_by_sign: bool = False
    permutations: int = option(200, least=1, most=MOST_DRAWS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.models:
            raise ValueError("model must name at least one model")
        if self.place is not None:
            Place.parse(self.place)

    @property
    def models(self) -> list[str]:
        """The models in which the direction is used, in order."""
        return [self.model] if isinstance(self.model, str) else list(self.model)
