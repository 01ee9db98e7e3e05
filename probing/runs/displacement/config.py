"""Options of ``probing displacement``."""

from dataclasses import dataclass
from pathlib import Path

from probing.errors import UsageError
from probing.instruments.columns import RATE_COLUMNS, SCORE_COLUMNS
from probing.runs.common.options import (
    MOST_ROWS,
    ArrayOptions,
    BetaOptions,
    EngineOptions,
    GroupOptions,
    PairOptions,
    PlotOptions,
    TwoModelOptions,
    option,
)

PAIRS_FILE = "displacement.parquet"
COURSE_FILE = "course.parquet"
COURSE_PLOT = "course.html"
PLOTS_FILE = "plots.html"
PREDICTORS = (*SCORE_COLUMNS, *RATE_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class DisplacementConfig(
    TwoModelOptions, PairOptions, GroupOptions, BetaOptions, PlotOptions, ArrayOptions, EngineOptions
):
    """Compare two models on preference pairs: which responses lost probability, and to which tokens it went.

    Writes displacement.parquet, tokens.parquet, plots.html and run.json; with --steps course.parquet and course.html
    too.

    Args:
        policy: folder or hub id of the model after training; an adapter's folder is put onto the base weights of the
            reference, which are then in memory once. "bundled-displaced" is such a copy of the bundled model.
        adapter: folder of an adapter, in place of a policy: it is put onto the base weights of the reference.
        reference_adapter: folder of an adapter that, put onto the reference, makes the model before training; the
            policy's adapter is put onto the same weights.
        steps: folder of checkpoints whose names end in a number (checkpoint-500), in place of a policy: all are
            measured, the last one is the policy, and the course over training is drawn.
        rater_share_column: column with the share of raters (0 to 1) who preferred the chosen response, for the
            idealised ranking accuracy.
        predictors: scores of the reference to rank against the change, separated by commas: ches, ches_normalized,
            last_state_similarity, edit_similarity, displacement_rate, displacement_rate_exact.
        top: number of tokens to name at each position of a response that gained most, and as many that lost most (or,
            where fewer did, gained and lost least); 0 leaves out tokens.parquet.
    """

    policy: str | None = option(None, identity=False, holds="model")
    adapter: str | None = option(None, identity=False)
    reference_adapter: str | None = option(None, identity=False)
    steps: Path | None = option(None, identity=False)
    rater_share_column: str | None = option(None, identity=False)
    # Here it is of one line of the summary alone.
    beta: float = option(0.1, above=0, most=1e6, identity=False)
    predictors: str = ",".join(SCORE_COLUMNS)
    top: int = option(3, least=0, most=1000)
    shard_pairs: int = option(256, least=1, most=MOST_ROWS)

    def __post_init__(self) -> None:
        super().__post_init__()
        empty = [name for name in ("reference", "policy", "adapter", "reference_adapter") if getattr(self, name) == ""]
        if empty:
            raise ValueError(f"{empty[0]} is empty; name a folder or a hub id")
        given = [name for name in ("policy", "adapter", "steps") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of policy, adapter and steps; given: {' and '.join(given) or 'none'}")
        if self.steps is not None and self.engine == "ray":
            raise UsageError(
                "--steps compares one checkpoint after the other, which --engine ray does not do; leave out --engine, "
                "and put torchrun in front of the command"
            )
        self.predictor_names()

    def predictor_names(self) -> tuple[str, ...]:
        """The predictors, in the order of the table of scores."""
        names = [name.strip() for name in self.predictors.split(",") if name.strip()]
        unknown = [name for name in names if name not in PREDICTORS]
        if unknown:
            raise UsageError(f"unknown predictors {', '.join(unknown)}; there are {', '.join(PREDICTORS)}")
        return tuple(name for name in PREDICTORS if name in names)
