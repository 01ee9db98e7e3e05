"""Options of ``probing refusal extract``."""

from dataclasses import dataclass
from typing import Literal

from probing.runs.common.options import MOST_DRAWS, DrawOptions, PermutationOptions, StatesOptions, option
from probing.runs.refusal.common.options import RefusalOptions

RESULTS_FILE = "results.parquet"
SUMMARY_FILE = "summary.json"
PLACES = "resid_pre:all"


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(RefusalOptions, StatesOptions, PermutationOptions, DrawOptions):
    """Find the direction between harmful and harmless prompts at every layer, at every token that ends the prompt.

    States are read at the last token of the instruction, where harmfulness is represented, and at the tokens that the
    chat template writes after it, where refusal is. A part of the prompts is held out to judge the directions, and to
    select one with 'probing refusal select'. Writes directions.safetensors, results.parquet, prompts.parquet,
    summary.json and the states.

    Args:
        method: "difference_in_means", "mass_mean" (the same times the inverse covariance), "logistic", or "paired_svd"
            (uncentred singular vectors of the differences of the n-th prompts of both kinds).
        rank: number of vectors, for paired_svd.
        winsorize: share of prompts whose values are limited on either side, in every dimension, so that single outliers
            in massive dimensions do not decide the mean.
        off_harmless_mean: take the component along the harmless mean off every direction.
        validation_share: share of the prompts of each kind that is held out.
    """

    places: str | list[str] = PLACES
    method: Literal["difference_in_means", "mass_mean", "logistic", "paired_svd"] = "difference_in_means"
    rank: int = option(1, least=1, most=64)
    winsorize: float = option(0.0, least=0.0, most=0.49)
    off_harmless_mean: bool = False
    validation_share: float = option(0.2, above=0.0, most=0.9)
    permutations: int = option(100, least=1, most=MOST_DRAWS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank > 1 and self.method != "paired_svd":
            raise ValueError(f"a rank of {self.rank} needs the method paired_svd; {self.method} gives one vector")
