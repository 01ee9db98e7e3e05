"""Options of ``probing score``."""

from dataclasses import dataclass

from probing.instruments.columns import split_columns
from probing.runs.common.options import HubOptions, PairOptions, option

SCORES_FILE = "scores.parquet"
PLOTS_FILE = "plots.html"
SUGGESTED_DROP = 0.2
"""Share of the pairs that the command suggested after a scoring leaves out."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(PairOptions, HubOptions):
    """Score every pair of a preference dataset by CHES and its relatives.

    Writes scores.parquet, plots.html and run.json.

    Args:
        model: folder or hub id of a causal language model, or "bundled" for the small one in this package.
        columns: names of the columns to compute, separated by commas. By default CHES and its relatives; "all" adds
            everything about likelihood, which one pass gives as well; displacement_rate and displacement_rate_exact
            cost more and must be named.
    """

    model: str = option(identity=False, holds="model")
    columns: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        split_columns(self.columns)
