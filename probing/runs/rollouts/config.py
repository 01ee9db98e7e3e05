"""Options of ``probing rollouts``."""

from dataclasses import dataclass

from probing.runs.common.options import EngineOptions, HubOptions, PlotOptions, RolloutOptions, option

ROLLOUTS_FILE = "rollouts.parquet"
PLOTS_FILE = "plots.html"


@dataclass(frozen=True, kw_only=True)
class RolloutsConfig(RolloutOptions, HubOptions, PlotOptions, EngineOptions):
    """Say for groups of responses with rewards whether one training step lowers the correct ones, and which tokens do.

    Writes rollouts.parquet, tokens.parquet, plots.html and run.json.

    Args:
        model: folder or hub id of the causal language model that is trained and gave the responses, or "bundled".
    """

    model: str = option(identity=False, holds="model")
