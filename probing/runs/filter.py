"""The job ``probing filter``: keep the pairs with low scores, say what was dropped, lose nothing silently."""

import contextlib
import dataclasses
import io
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.data.filters import RULES, check_rule
from probing.data.formats import file_format
from probing.data.pairs import content_sha256
from probing.data.tables import Table
from probing.data.writing import stage_rows
from probing.errors import SourceMismatch, StoreCorrupt, UsageError
from probing.instruments.filtering import Bad, choose_kept, warn_of_direction
from probing.runs.common.datasets import read_pairs
from probing.runs.common.options import PairColumnOptions, PairDataOptions
from probing.runs.score.config import SCORES_FILE
from probing.store.files import remove_leftovers
from probing.store.manifest import RUN_FILE, read_run
from probing.types import Format, PreferencePair, Report

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

SIDE_PREFIX = "probing_"


@dataclass(frozen=True, kw_only=True)
class FilterConfig(PairDataOptions):
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
    frame, facts = _read_scores(Path(config.scores).expanduser())
    used = facts.get("config", {})
    table, pairs = read_pairs(_as_scored(config, used))
    _check_same_pairs(pairs, facts, config)
    kept = choose_kept([pair.id for pair in pairs], frame, config.by, config.bad, config.rule, table)
    out, form = Path(config.out).expanduser(), _format(config, table)
    side = _side_path(out)
    _check_targets(config, form, out, side)
    fates = {keep: [index for index, kept_here in enumerate(kept) if kept_here == keep] for keep in (True, False)}
    records: Sequence[Mapping[Any, Any]] = frame.to_dict("records")
    scored = {row["id"]: row for row in records}
    extra = [_side_columns(scored[pairs[index].id]) for index in fates[False]]
    # Both files are complete under temporary names before either appears.
    with contextlib.ExitStack() as both:
        both.enter_context(stage_rows(table, fates[True], out, form))
        if fates[False]:
            both.enter_context(stage_rows(table, fates[False], side, form, extra))
    if not fates[False] and side.exists():
        # This file belongs to the run that is being replaced.
        shutil.rmtree(side) if side.is_dir() else side.unlink()
    wrote = [out, side] if fates[False] else [out]
    return _report(frame, [pair.id for pair in pairs], kept, config.by, wrote)


def _as_scored(config: FilterConfig, used: Mapping[str, Any]) -> FilterConfig:
    """The options with those of the scoring in place of those that were not given, for how the data are read."""
    names = [
        "split",
        "subset",
        "data_revision",
        "id_column",
        *(entry.name for entry in dataclasses.fields(PairColumnOptions)),
    ]
    if config.limit is None and config.sample is None:
        names += ["limit", "sample"]
    known = {name: used[name] for name in names if used.get(name) and not getattr(config, name)}
    return dataclasses.replace(config, **known)


def _read_scores(path: Path) -> tuple["pd.DataFrame", Mapping[str, Any]]:
    import pandas as pd
    import pyarrow as pa

    file = path / SCORES_FILE if path.is_dir() else path
    if not file.is_file():
        run_file = file.parent / RUN_FILE
        if run_file.is_file() and read_run(file.parent).get("status") != "done":
            raise UsageError(f"{path}: the scoring run in it is not finished; run the same 'probing score' again")
        raise UsageError(f"{file}: no such file; give the output folder of 'probing score' as --scores")
    try:
        frame = pd.read_parquet(io.BytesIO(file.read_bytes()))
    except (pa.ArrowException, OSError) as error:
        raise StoreCorrupt(f"{file}: not a whole Parquet file ({error}); score again") from error
    missing = {"id", "status"} - set(frame.columns)
    if missing:
        raise UsageError(
            f"{file}: has no column {' and '.join(sorted(missing))}, so it was not made by 'probing score'"
        )
    return frame, read_run(file.parent) if (file.parent / RUN_FILE).is_file() else {}


def _check_same_pairs(pairs: Sequence[PreferencePair], facts: Mapping[str, Any], config: FilterConfig) -> None:
    """Raise unless the texts agree: ids easily agree by chance (0, 1, 2, ...)."""
    scored = facts.get("data", {}).get("pairs_sha256")
    if scored is not None and scored != content_sha256(pairs):
        raise SourceMismatch(
            f"{', '.join(config.sources)}: these are not the pairs that were scored into {config.scores} (scored: "
            f"{facts['data']['rows']} rows of {facts['data']['path']}); ids or texts differ. Score this file first"
        )


def _check_targets(config: FilterConfig, form: Format, *targets: Path) -> None:
    """Raise rather than overwrite: never the input or what is no dataset, and other files only on request."""
    sources = {Path(name).expanduser().resolve() for name in [*config.sources, str(config.scores)]}
    for target in targets:
        if not target.name or target.name == "..":
            raise UsageError(f"{target}: is no name for a new file; choose another --out")
        remove_leftovers(target.parent, re.escape(target.name))
        if sources & {target.resolve(), *target.resolve().parents}:
            raise UsageError(f"{target}: is what is being filtered; choose another --out")
        if os.path.lexists(target) and not config.overwrite:
            raise UsageError(f"{target}: exists already; choose another --out, or replace it with --overwrite")
        if target.is_dir() and not (form == "datasets" and (target / "dataset_info.json").is_file()):
            raise UsageError(f"{target}: is a folder, and no saved dataset; choose another --out")
        if form == "datasets" and target.is_file():
            raise UsageError(f"{target}: is a file, where a dataset would be saved as a folder; choose another --out")


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


def _side_columns(scores: Mapping[Any, Any]) -> dict[str, Any]:
    """The scores of one row under names that no dataset uses, NaN as None."""
    return {f"{SIDE_PREFIX}{name}": value if value == value else None for name, value in scores.items()}


def _report(frame: "pd.DataFrame", ids: Sequence[str], kept: Sequence[bool], by: str, wrote: Sequence[Path]) -> Report:
    import pandas as pd

    from probing.report.tables import quantiles

    keep = dict(zip(ids, kept, strict=True))
    fate = frame["id"].map(keep).map({True: "kept", False: "dropped"})
    counts = pd.crosstab(frame["status"], fate).reindex(columns=["kept", "dropped"], fill_value=0)
    parts = {"all": frame, "kept": frame[fate == "kept"], "dropped": frame[fate == "dropped"]}
    spread = pd.concat([quantiles(part, [by]).assign(score=name) for name, part in parts.items()], ignore_index=True)
    facts = {"by": by, "kept": sum(kept), "dropped": len(kept) - sum(kept), "wrote": [str(path) for path in wrote]}
    counts = counts.rename_axis(columns=None).reset_index()
    return Report({"Pairs": counts, f"Quantiles of {by}": spread.rename(columns={"score": "rows"})}, facts)
