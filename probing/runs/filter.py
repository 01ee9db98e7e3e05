"""The job ``probing filter``: keep the pairs with low scores, say what was dropped, lose nothing silently."""

import contextlib
import dataclasses
import logging
import os
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probing.data.filters import RULES, check_rule, find_threshold
from probing.data.formats import check_ending, file_format
from probing.data.lazy import make_in_blocks
from probing.data.tables import Row, Table
from probing.data.writing import write_rows
from probing.errors import DataInvalid, UsageError
from probing.instruments.filtering import SIDE_PREFIX, Bad, choose_kept, find_scores, warn_of_direction
from probing.runs.common.datasets import read_pair_ids
from probing.runs.common.options import PairDataOptions, PlotOptions
from probing.runs.common.scored import PARTS, READING, check_same_pairs, read_pair_table, recorded_reading
from probing.runs.score.config import SCORES_FILE
from probing.store.files import check_output_name, file_sha256, is_special, new_together, remove_leftovers
from probing.store.manifest import RUN_FILE, read_run
from probing.types import Format, Report

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

PLOTS_SUFFIX = ".plots.html"
MODELS = ("model", "reference", "policy", "adapter", "steps")
"""Options of a scoring that name models."""


@dataclass(frozen=True, kw_only=True)
class FilterConfig(PairDataOptions, PlotOptions):
    """Keep the pairs of a preference dataset whose scores are low (or high).

    Args:
        data: the dataset that was scored; its rows may have been reordered or given further columns since. The options
            of how and which part it is read are by default those of the scoring.
        scores: output folder of "probing score", or a scores.parquet.
        by: score column to filter by. "ches_normalized" is the one to start with: higher means more alike, so keep the
            lowest. Of a displacement rate keep the highest.
        out: file (or folder, for datasets) for the pairs that are kept.
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


def run(config: FilterConfig) -> Report:
    """Write the kept rows to ``config.out`` and the dropped ones, with their scores, beside it.

    Raises:
        ProbingError: see ``probing.errors``; nothing is written over unless asked for.
    """
    warn_of_direction(config.by, check_rule(**config.rule)[0])
    check_output_name(Path(config.out))
    check_ending(Path(config.out), config.format)
    frame, facts = _read_scores(Path(config.scores).expanduser())
    used = facts.get("config", {})
    before = _stamp_files(config)
    with contextlib.ExitStack() as held:
        table, ids, sha256 = read_pair_ids(_as_scored(config, used), held)
        check_same_pairs(sha256, facts, ", ".join(config.sources), config.scores)
        kept = choose_kept(ids, frame, config.by, config.bad, config.rule, table)
        rows = find_scores(ids, frame, config.by)
        page = _draw_page(config, frame, rows[np.array(kept)], used)
        wrote = _write(config, table, kept, _list_side_columns(rows[~np.array(kept)], frame), before, page)
    return _report(frame, ids, kept, config.by, wrote)


def _stamp_files(config: FilterConfig) -> dict[str, tuple[int, int]]:
    """Size and time of the last change of every file of the data."""
    files = [Path(source).expanduser() for source in config.sources]
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()}


def _write(
    config: FilterConfig,
    table: Table,
    kept: Sequence[bool],
    extra: Sequence[Row],
    before: Mapping[str, tuple[int, int]],
    page: str | None,
) -> list[Path]:
    """Write the rows that are kept, the dropped ones with their scores, and the page; answers with the paths."""
    out = Path(config.out).expanduser()
    form = _format(config, table)
    side, plots = _side_path(out), _plots_path(out)
    for target in (out, side, plots):
        remove_leftovers(target.parent, re.escape(target.name))

    def check() -> None:
        _check_targets(config, form, out, side, plots)
        # Rows are read anew when they are written.
        for file, stamp in before.items():
            if _stamp_files(config).get(file) != stamp:
                raise DataInvalid(f"{file}: changed while it was read; filter again when nothing writes into it")

    check()
    fates = {keep: array("q", (at for at, known in enumerate(kept) if known == keep)) for keep in (True, False)}
    wrote, drawn = [out, side] if fates[False] else [out], [] if page is None else [plots]
    # All files are complete under temporary names before any appears. A file that is not written anew belongs to the
    # run that is being replaced.
    obsolete = [path for path in (side, plots) if path not in (*wrote, *drawn)]
    with new_together(wrote, form == "datasets", obsolete, check, drawn) as temporaries:
        for keep, path in zip((True, False)[: len(wrote)], temporaries, strict=False):
            zipped = out.suffix.lower() == ".gz"
            write_rows(table, fates[keep], path, form, () if keep else extra, zipped)
        if page is not None:
            temporaries[-1].write_text(page, encoding="utf-8")
    return [*wrote, *drawn]


def _draw_page(
    config: FilterConfig, frame: "pd.DataFrame", kept: NDArray[np.int64], used: Mapping[str, Any]
) -> str | None:
    """A page with the distribution of the score.

    Args:
        config: the options.
        frame: the scores.
        kept: numbers of the rows of the scores that are kept.
        used: options of the scoring.
    """
    from probing.report.plot_page import make_plots
    from probing.report.plots import draw_filter
    from probing.runs.common.about import describe_now

    scores = frame[config.by].to_numpy(dtype=np.float64)
    mask = np.zeros(len(scores), dtype=bool)
    mask[kept] = True
    name, value = check_rule(**config.rule)
    at = value if name in ("below", "above") else find_threshold(scores, mask)
    mark = None if at is None else (at, f"--{name.replace('_', '-')} {value:g}")
    # Options in a record are not believed: they are shown.
    models = {kind: str(used[kind]) for kind in MODELS if used.get(kind)}
    about = describe_now("filter", config, **models, data=config.sources)
    figures = draw_filter(scores, mask, config.by, mark)
    return make_plots(figures, about, config.interactive) if figures else None


def _as_scored(config: FilterConfig, used: Mapping[str, Any]) -> FilterConfig:
    """The options with those of the scoring in place of those that were not given, for how the data are read."""
    part = PARTS if config.limit is None and config.sample is None else ()
    known = recorded_reading(used, (*READING, *part))
    return dataclasses.replace(config, **{name: value for name, value in known.items() if not getattr(config, name)})


def _read_scores(path: Path) -> tuple["pd.DataFrame", Mapping[str, Any]]:
    file = path / SCORES_FILE if path.is_dir() else path
    if file.is_file() and file.name != SCORES_FILE and not _is_parquet(file):
        raise UsageError(f"{file}: is no Parquet file; give the output folder of 'probing score' as --scores")
    if not file.is_file():
        run_file = file.parent / RUN_FILE
        if run_file.is_file() and read_run(file.parent).get("status") != "done":
            raise UsageError(f"{path}: the scoring run in it is not finished; run the same 'probing score' again")
        raise UsageError(f"{file}: no such file; give the output folder of 'probing score' as --scores")
    return read_pair_table(file)


def _is_parquet(file: Path) -> bool:
    """Whether a file begins as Parquet files do, whatever its name."""
    with file.open("rb") as opened:
        return opened.read(4) == b"PAR1"


def _check_targets(config: FilterConfig, form: Format, out: Path, *beside: Path) -> None:
    """Raise rather than overwrite: never the input or what is no dataset, and other files only on request."""
    sources = {Path(name).expanduser().resolve() for name in [*config.sources, str(config.scores)]}
    for target in (out, *beside):
        folder = form == "datasets" and not target.name.endswith(PLOTS_SUFFIX)
        if sources & {target.resolve(), *target.resolve().parents}:
            raise UsageError(f"{target}: is what is being filtered; choose another --out")
        if os.path.lexists(target) and not config.overwrite:
            raise UsageError(f"{target}: exists already; choose another --out, or replace it with --overwrite")
        if is_special(target):
            raise UsageError(f"{target}: is a device or a pipe, which is not replaced; choose another --out")
        if target.is_dir() and not (folder and (target / "dataset_info.json").is_file()):
            raise UsageError(f"{target}: is a folder, and no saved dataset; choose another --out")
        if folder and target.is_file():
            raise UsageError(f"{target}: is a file, where a dataset would be saved as a folder; choose another --out")
    for target in beside:
        if target.is_symlink():
            raise UsageError(f"{target}: is a link, and no file that was named is replaced through it; remove it")


def _format(config: FilterConfig, table: Table) -> Format:
    named = file_format(Path(config.out))
    if named == "json" == file_format(Path(table.path)):
        # Files called .json often hold one object a line; the copy keeps that.
        named = table.format
    return config.format or named or table.format


def _side_path(out: Path) -> Path:
    """``kept.jsonl.gz`` -> ``kept.dropped.jsonl.gz``."""
    stem, dot, suffixes = out.name.partition(".") if not out.name.startswith(".") else (out.name, "", "")
    return out.with_name(f"{stem}.dropped{dot}{suffixes}")


def _plots_path(out: Path) -> Path:
    """``kept.jsonl.gz`` -> ``kept.jsonl.gz.plots.html``, so that outputs of several formats have one each."""
    return out.with_name(f"{out.name}{PLOTS_SUFFIX}")


def _list_side_columns(dropped: NDArray[np.int64], frame: "pd.DataFrame") -> Sequence[Row]:
    """The scores of every dropped row under names that no dataset uses, NaN as None."""

    def make(start: int, stop: int) -> list[Row]:
        records = frame.iloc[dropped[start:stop]].to_dict("records")
        return [
            {f"{SIDE_PREFIX}{name}": value if value == value else None for name, value in row.items()}
            for row in records
        ]

    return make_in_blocks(len(dropped), make)


def _report(frame: "pd.DataFrame", ids: Sequence[str], kept: Sequence[bool], by: str, wrote: Sequence[Path]) -> Report:
    import pandas as pd

    from probing.report.tables import quantiles

    keep = dict(zip(ids, kept, strict=True))
    fate = frame["id"].map(keep).map({True: "kept", False: "dropped"})
    counts = pd.crosstab(frame["status"], fate).reindex(columns=["kept", "dropped"], fill_value=0)
    parts = {"all": frame, "kept": frame[fate == "kept"], "dropped": frame[fate == "dropped"]}
    spread = pd.concat([quantiles(part, [by]).assign(score=name) for name, part in parts.items()], ignore_index=True)
    facts = {"by": by, "kept": sum(kept), "dropped": len(kept) - sum(kept), "wrote": [str(path) for path in wrote]}
    facts["sha256"] = {str(path): file_sha256(path) for path in wrote if path.is_file()}
    counts = counts.rename_axis(columns=None).reset_index()
    return Report({"Pairs": counts, f"Quantiles: {by}": spread.rename(columns={"score": "rows"})}, facts)
