"""Options of ``probing report``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from probing.report.checks import THRESHOLDS
from probing.runs.common.options import Options, option

MEGABYTE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Options):
    """Write one page about finished runs: checks with their thresholds, figures, tables, and the rows behind them.

    The page needs nothing else: no network, no library. Checks whose number lies beyond its threshold come first.

    Args:
        folders: output folders of finished runs of any commands, or folders that hold such folders.
        out: file for the page; a report that is there is replaced.
        data: dataset of the runs, where it lies elsewhere now; may be repeated.
        check: leave with exit status 1 if a check warns.
        threshold: threshold of a check as NAME=VALUE, in place of the usual one; NAME=off leaves the check out. May be
            repeated; the names are those in the page and in --json.
        title: title of the page; by default the names of the folders.
        most_megabytes: largest size of the page; what is left out to keep it is named in the page.
        overwrite: replace the file of --out even if it is no report.
    """

    folders: list[Path] = option(positional=True, identity=False)
    out: Path = option(Path("report.html"), identity=False)
    data: str | list[str] | None = option(None, identity=False, repeatable=True)
    check: bool = option(False, identity=False)
    threshold: str | list[str] | None = option(None, identity=False, repeatable=True)
    title: str | None = option(None, identity=False)
    most_megabytes: float = option(8.0, identity=False, above=0.05, most=1000)
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.folders:
            raise ValueError("give the output folder of at least one run")
        _ = self.thresholds

    @property
    def thresholds(self) -> Mapping[str, float | None]:
        """Thresholds that were given, by name of the check; None for a check that is left out."""
        given = [self.threshold] if isinstance(self.threshold, str) else list(self.threshold or [])
        return dict(map(_parse_threshold, given))


def _parse_threshold(text: str) -> tuple[str, float | None]:
    name, equals, value = text.partition("=")
    if name not in THRESHOLDS:
        raise ValueError(f"threshold: there is no check '{name[:60]}'; there are {', '.join(THRESHOLDS)}")
    if value == "off":
        return name, None
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not equals or number != number or abs(number) == float("inf"):
        raise ValueError(f"threshold: write it as {name}=0.2, or {name}=off, not '{text[:60]}'")
    return name, number
