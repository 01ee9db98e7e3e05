"""Options of ``probing probe``."""

from dataclasses import dataclass
from pathlib import Path

from probing.runs.common.options import LabelledOptions, OneModelOptions, PlotOptions, SupervisedOptions, option

RESULTS_FILE = "results.parquet"
PREDICTIONS_FILE = "predictions.parquet"
PROBES_FILE = "probes.safetensors"
SUMMARY_FILE = "summary.json"
PLOTS_FILE = "plots.html"
FRESH_STATES = "fresh-states"


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(LabelledOptions, OneModelOptions, SupervisedOptions, PlotOptions):
    """Fit logistic, mass-mean and LDA probes to labelled prompts at every layer, and try to prove them wrong.

    The dataset holds texts with labels. Writes results.parquet, predictions.parquet, probes.safetensors, summary.json,
    plots.html and the states.

    Args:
        fresh: other prompts of the same kind, written independently: the probes that saw all of the dataset are tried
            on them.
        fresh_store: with a store, the folder that 'probing capture' wrote from the fresh prompts.
        positive: the label that a probe says yes to; needed where there are not exactly two labels (all others are no).
    """

    fresh: str | None = option(None, identity=False, holds="rows")
    fresh_store: Path | None = option(None, identity=False)
    positive: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.store is not None and self.fresh is not None) != (self.fresh_store is not None):
            raise ValueError("--fresh-store belongs to --store and --fresh together")
