"""Options of ``probing filter``."""

from dataclasses import dataclass, fields
from pathlib import Path

from probing.data.addresses import is_address
from probing.data.filters import RULES, check_rule
from probing.instruments.filtering import Bad
from probing.runs.common.options import GroupOptions, PairDataOptions, PlotOptions, option
from probing.types import Format


@dataclass(frozen=True, kw_only=True)
class FilterConfig(PairDataOptions, GroupOptions, PlotOptions):
    """Keep the pairs of a preference dataset whose scores are low (or high), or compare rules by which to keep them.

    Args:
        data: the dataset that was scored; its rows may have been reordered or given further columns since. The options
            of how and which part it is read are by default those of the scoring.
        scores: output folder of "probing score", "probing displacement" or "probing influence", or the file with a row
            a pair in it. May be repeated with --compare: runs over the same pairs are joined.
        by: column to filter by. "ches_normalized" is the one to start with: higher means more alike, so keep the
            lowest. Of a displacement rate and of an influence keep the highest.
        out: file (or folder, for datasets) for the pairs that are kept; also an address, such as s3://bucket/kept.jsonl.
            A name that ends in a slash makes a folder that load_dataset reads, with the kept and the dropped rows, the
            plots and a card (README.md).
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
        compare: rules to compare instead of filtering, separated by commas: names of columns, each with the end that is
            kept behind a colon (lowest, highest, or smallest or largest of absolute values). The end may be left out of
            a column for which one is recommended; "all" stands for all of those that are there.
        keep: with --compare, share of the pairs that every rule keeps, e.g. 0.25.
    """

    # A path forgets whether it ends in a slash.
    out: str | Path | None = option(None, identity=False)  # type: ignore[assignment]
    scores: str | list[str] | Path = option(repeatable=True)
    by: str | None = None
    keep_lowest: float | None = None
    drop_highest: float | None = None
    below: float | None = None
    keep_highest: float | None = None
    drop_lowest: float | None = None
    above: float | None = None
    bad: Bad = "fail"
    format: Format | None = None
    overwrite: bool = False
    compare: str | None = None
    keep: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compare is None:
            self._check_filter()
        else:
            self._check_comparison()

    def _check_out(self, out: str | Path) -> None:
        if not is_address(str(out)):
            super()._check_out(out)

    def _check_filter(self) -> None:
        given = [name for name in ("keep", "group_column") if getattr(self, name) is not None]
        if given:
            raise ValueError(f"--{given[0].replace('_', '-')} belongs to --compare; a filter takes --by and --out")
        if self.by is None or self.out is None:
            missing = " and ".join(f"--{name}" for name in ("by", "out") if getattr(self, name) is None)
            raise ValueError(f"{missing} must be given, or --compare and --keep to compare rules")
        if isinstance(self.scores, list) and len(self.scores) != 1:
            raise ValueError("several --scores belong to --compare; a filter takes one")
        check_rule(**self.rule)

    def _check_comparison(self) -> None:
        of_filter = ("by", "out", *RULES, "bad", "format", "overwrite")
        defaults = {entry.name: entry.default for entry in fields(self)}
        given = [f"--{name.replace('_', '-')}" for name in of_filter if getattr(self, name) != defaults[name]]
        if given:
            raise ValueError(f"--compare writes nothing and takes --keep; leave out {', '.join(given)}")
        if self.keep is None:
            raise ValueError("--compare takes --keep, the share of the pairs that every rule keeps")
        if not 0 < self.keep < 1:
            raise ValueError(f"keep must be a share above 0 and below 1, not {self.keep}")

    @property
    def folders(self) -> list[Path]:
        """Where the scores lie, in order."""
        named = self.scores if isinstance(self.scores, list) else [self.scores]
        return [Path(path).expanduser() for path in named]

    @property
    def column(self) -> str:
        """The column to filter by."""
        return self.by or ""

    @property
    def target(self) -> Path:
        """Where the kept rows are written."""
        return Path(self.out or "").expanduser()

    @property
    def rule(self) -> dict[str, float | None]:
        """All rules by name; None for those that were not given."""
        return {name: getattr(self, name) for name in RULES}

    @property
    def makes_folder(self) -> bool:
        """Whether the output is a folder with a card: its name says so, or it replaces one."""
        from probing.report.filter_card import is_filtered_dataset

        replaces = self.overwrite and self.format != "datasets"
        return str(self.out).endswith("/") or (replaces and is_filtered_dataset(self.target))
