"""Options of ``probing refusal select``."""

from dataclasses import dataclass
from pathlib import Path

from probing.directions.choose import INDUCE_LEAST, KL_MOST, PRUNED, Limits
from probing.runs.common.options import PlotOptions, option
from probing.runs.refusal.common.options import RefusalOptions

CANDIDATES_FILE = "candidates.parquet"
SUMMARY_FILE = "summary.json"
PLOTS_FILE = "plots.html"


@dataclass(frozen=True, kw_only=True)
class SelectConfig(RefusalOptions, PlotOptions):
    """Choose the direction whose removal takes most refusal away, among those that induce it and do little else.

    Every candidate of 'probing refusal extract' is judged on the prompts that were held out there: bypass is the mean
    refusal score of harmful prompts with the direction ablated everywhere, induce that of harmless prompts with the
    direction added at its layer, kl how much the ablation changes the first token of answers to harmless prompts. The
    candidate with the lowest bypass within the limits is chosen. The refusal tokens are those of the extraction, unless
    others are given. COSMIC gives a second opinion that needs no refusal tokens. Writes direction.safetensors,
    candidates.parquet, plots.html and summary.json.

    Args:
        directions: folder that 'probing refusal extract' wrote from the same model and data.
        induce_least: least mean refusal score of harmless prompts with the direction added.
        kl_most: largest mean divergence of the first token of harmless answers, in nats.
        pruned: share of the last layers whose directions are left out.
        exhaustive: measure every score of every candidate in passes through the whole model, to check the shorter way,
            which chooses the same.
        cosmic: ask COSMIC for a second opinion.
    """

    directions: Path = option(identity=False)
    # What is measured does not depend on the limits, so that a run in which nothing passed goes on with others.
    induce_least: float = option(INDUCE_LEAST, least=-20.0, most=20.0, identity=False)
    kl_most: float = option(KL_MOST, least=0.0, most=1e6, identity=False)
    pruned: float = option(PRUNED, least=0.0, most=0.99, identity=False)
    exhaustive: bool = False
    cosmic: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compile:
            raise ValueError("directions are ablated inside of blocks, which cannot be compiled; leave out compile")

    @property
    def limits(self) -> Limits:
        """What a candidate has to keep to."""
        return Limits(self.induce_least, self.kl_most, self.pruned)
