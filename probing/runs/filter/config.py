"""Options of ``probing filter``."""

from dataclasses import dataclass
from pathlib import Path

from probing.data.filters import RULES, check_rule
from probing.instruments.filtering import Bad
from probing.runs.common.options import PairDataOptions, PlotOptions, option
from probing.types import Format


@dataclass(frozen=True, kw_only=True)
class FilterConfig(PairDataOptions, PlotOptions):
    """Keep the pairs of a preference dataset whose scores are low (or high).

    Args:
        data: the dataset that was scored; its rows may have been reordered or given further columns since. The options
            of how and which part it is read are by default those of the scoring.
        scores: output folder of "probing score", or a scores.parquet.
        by: score column to filter by. "ches_normalized" is the one to start with: higher means more alike, so keep the
            lowest. Of a displacement rate keep the highest.
        out: file (or folder, for datasets) for the pairs that are kept. A name that ends in a slash makes a folder that
            load_dataset reads, with the kept and the dropped rows, the plots and a card (README.md).
        keep_lowest: share of the scored pairs to keep, e.g. 0.05.
        drop_highest: share of the scored pairs to drop, e.g. 0.1.
        below: keep pairs with a score below this value.
        keep_highest: share of the scored pairs to keep, those with the highest scores.
        drop_lowest: share of the scored pairs to drop, those with the lowest scores.
        above: keep pairs with a score above this value.
        bad: what to do with pairs that have no score (truncated, identical, ...); "fail" stops and names them.
        format: format to write; by default what the name of --out says, or else that of the data.
        split: which split, where the data have several; by default the one that was scored.
        id_column: column of unique ids; by default the one used for scoring.
        overwrite: replace --out if it exists.
    """

    # A path forgets whether it ends in a slash.
    out: str | Path = option(identity=False)  # type: ignore[assignment]
    scores: Path
    by: str
    keep_lowest: float | None = None
    drop_highest: float | None = None
    below: float | None = None
    keep_highest: float | None = None
    drop_lowest: float | None = None
    above: float | None = None
    bad: Bad = "fail"
    format: Format | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rule(**self.rule)

    @property
    def rule(self) -> dict[str, float | None]:
        """All rules by name; None for those that were not given."""
        return {name: getattr(self, name) for name in RULES}

    @property
    def makes_folder(self) -> bool:
        """Whether the output is a folder with a card: its name says so, or it replaces one."""
        from probing.report.filter_card import is_filtered_dataset

        replaces = self.overwrite and self.format != "datasets"
        return str(self.out).endswith("/") or (replaces and is_filtered_dataset(Path(self.out).expanduser()))
