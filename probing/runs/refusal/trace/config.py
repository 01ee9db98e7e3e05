"""Options of ``probing refusal trace``."""

from dataclasses import dataclass
from pathlib import Path

from probing.runs.common.options import FoldOptions, PlotOptions, StatesOptions, SupervisedOptions, option
from probing.runs.refusal.common.options import MOST_DIRECTIONS, KindOptions, OneDirectionOptions

RESULTS_FILE = "results.parquet"
SOURCES_FILE = "sources.parquet"
CURVES_FILE = "curves.parquet"
CLIFFS_FILE = "cliffs.parquet"
BANDS_FILE = "bands.parquet"
PLOTS_FILE = "plots.html"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True, kw_only=True)
class TraceConfig(KindOptions, StatesOptions, OneDirectionOptions, FoldOptions, SupervisedOptions, PlotOptions):
    """Say where in depth and where in the text a model decides to refuse.

    Three measurements: how well a linear head on the states behind each block agrees with the model's own decision to
    refuse or comply, with heads that tell the kind of prompt only as control; the log-odds of refusal that each block's
    output gives by the final norm and the output head; and, with a direction, the projection of every token on it.
    Writes results.parquet, sources.parquet, curves.parquet, cliffs.parquet, bands.parquet, plots.html and summary.json.

    Args:
        direction: file of a direction, or folder of 'probing refusal select' or of 'probing refusal extract' (then
            --place names one), whose projections are traced token by token; left out, none are.
        answers: folder of 'probing refusal evaluate' of the same model and prompts: its verdicts on the answers before
            the edit are the decisions, in place of the sign of the refusal log-odds, and the answers and thoughts are
            traced behind the prompts.
        source_column: column that says which source each prompt is from; heads are trained without each source and
            tested on it. By default source, else the category, else the file.
        classifier: fit heads; without them the model need not refuse some prompts and comply with others.
    """

    direction: Path | None = option(None, identity=False)
    answers: Path | None = option(None, identity=False)
    source_column: str | None = option(None, identity=False)
    classifier: bool = True
    random_directions: int = option(100, least=0, most=MOST_DIRECTIONS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.direction is None and self.place is not None:
            raise ValueError("place names a direction of a folder, and no direction is given")
