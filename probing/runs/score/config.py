"""Options of ``probing score``."""

from dataclasses import dataclass, fields

from probing.instruments.columns import RATE_COLUMNS, REF_LOGPS, REGIME_COLUMNS, known_columns, split_columns
from probing.runs.common.options import (
    ArrayOptions,
    EngineOptions,
    HubOptions,
    LossOptions,
    PairOptions,
    PlotOptions,
    option,
)

SCORES_FILE = "scores.parquet"
PLOTS_FILE = "plots.html"
SUGGESTED_DROP = 0.2
"""Share of the pairs that the command suggested after a scoring leaves out."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(PairOptions, LossOptions, HubOptions, PlotOptions, ArrayOptions, EngineOptions):
    """Score every pair of a preference dataset by CHES and its relatives.

    Writes scores.parquet, plots.html and run.json; and tokens.parquet, and the pairs with log-probabilities, where
    these are asked for.

    Args:
        model: folder or hub id of a causal language model, or "bundled" for the small one in this package.
        columns: names of the columns to compute, separated by commas. By default CHES and its relatives; "all" adds
            everything about likelihood, which one pass gives as well; displacement_rate and displacement_rate_exact
            cost more and must be named. "regime" adds all that tells how training on a pair moves both responses,
            "regime_exact" the same by gradients of the model.
        write_ref_logps: also write the pairs as ref_logps.jsonl (or in another format that the data have), with the
            log-probabilities that TRL's DPOTrainer computes of its reference model: ref_chosen_logps and
            ref_rejected_logps. Pairs that cannot be scored are left out. Give --max-length the max_length of the
            trainer, which cuts longer pairs.
        pull: also write tokens.parquet with a row a token of the rejected responses: its pull is how much lowering the
            token lowers ln p of the chosen response, in the form of displacement_rate. It costs as much as that.
    """

    model: str = option(identity=False, holds="model")
    columns: str | None = None
    write_ref_logps: bool = False
    pull: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.computed
        if self.write_ref_logps and not self.eos:
            raise ValueError(
                "--write-ref-logps is of responses with their end of turn, as DPOTrainer has them; leave out --no-eos"
            )

    @property
    def computed(self) -> tuple[str, ...]:
        """The columns to compute."""
        columns = split_columns(self.columns)
        return known_columns([*columns, *REF_LOGPS.values()]) if self.write_ref_logps else columns

    @property
    def unused_loss(self) -> bool:
        """Whether the options say something of the loss, and no column that is computed depends on it."""
        given = any(getattr(self, entry.name) != entry.default for entry in fields(LossOptions))
        return given and not {*RATE_COLUMNS, *REGIME_COLUMNS} & {*self.computed}
