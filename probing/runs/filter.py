"""The job ``probing filter``: keep the pairs with low scores, say what was dropped, lose nothing silently."""

import contextlib
import io
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from probing.data.filters import RULES, check_rule, keep_mask
from probing.data.pairs import content_sha256
from probing.data.tables import Table, file_format, staged_rows
from probing.errors import DataInvalid, SourceMismatch, StoreCorrupt, UsageError
from probing.runs.columns import RATE_COLUMNS, SCORE_COLUMNS
from probing.runs.score import SCORES_FILE, read_pairs
from probing.store.files import remove_leftovers
from probing.store.manifest import RUN_FILE, read_run
from probing.types import Format, PreferencePair, Report

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Bad = Literal["keep", "drop", "fail"]
SIDE_PREFIX = "probing_"


@dataclass(frozen=True)
class FilterConfig:
    """Keep the pairs of a preference dataset whose scores are low (or high).

    Args:
        data: the dataset that was scored; its rows may have been reordered or given further columns since.
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

    data: str
    scores: Path
    by: str
    out: Path
    keep_lowest: float | None = None
    drop_highest: float | None = None
    below: float | None = None
    keep_highest: float | None = None
    drop_lowest: float | None = None
    above: float | None = None
    bad: Bad = "fail"
    format: Format | None = None
    split: str | None = None
    id_column: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_rule(**self.rule)

    @property
    def rule(self) -> dict[str, float | None]:
        """The rule, and those that were not given."""
        return {name: getattr(self, name) for name in RULES}


def run(config: FilterConfig) -> Report:
    """Write the kept rows to ``config.out`` and the dropped ones, with their scores, beside it.

    Raises:
        ProbingError: see ``probing.errors``; nothing is written over unless asked for.
    """
    _warn_of_direction(config.by, check_rule(**config.rule)[0])
    frame, facts = _read_scores(Path(config.scores).expanduser())
    used = facts.get("config", {})
    table, pairs = read_pairs(config.data, config.split or used.get("split"), config.id_column or used.get("id_column"))
    _check_same_pairs(pairs, facts, config)
    kept = _kept([pair.id for pair in pairs], frame, config.by, config.bad, config.rule, table)
    out, form = Path(config.out).expanduser(), _format(config, table)
    side = _side_path(out)
    _check_targets(config, form, out, side)
    fates = {keep: [index for index, kept_here in enumerate(kept) if kept_here == keep] for keep in (True, False)}
    records: Sequence[Mapping[Any, Any]] = frame.to_dict("records")
    scored = {row["id"]: row for row in records}
    extra = [_side_columns(scored[pairs[index].id]) for index in fates[False]]
    with contextlib.ExitStack() as both:  # written aside before either appears
        both.enter_context(staged_rows(table, fates[True], out, form))
        if fates[False]:
            both.enter_context(staged_rows(table, fates[False], side, form, extra))
    if not fates[False] and side.exists():
        shutil.rmtree(side) if side.is_dir() else side.unlink()  # of the run that is being replaced
    wrote = [out, side] if fates[False] else [out]
    return _report(frame, [pair.id for pair in pairs], kept, config.by, wrote)


def filter_pairs(
    pairs: Any,
    scores: "pd.DataFrame",
    by: str = "ches_normalized",
    *,
    keep_lowest: float | None = None,
    drop_highest: float | None = None,
    below: float | None = None,
    keep_highest: float | None = None,
    drop_lowest: float | None = None,
    above: float | None = None,
    bad: Bad = "fail",
) -> Any:
    """The pairs whose scores are low (or high), in their own order and type.

    Args:
        pairs: what was given to ``score_pairs``: a list, a ``datasets.Dataset`` or a ``pandas.DataFrame``.
        scores: what came back; joined by id, so its rows may be in any order.
        by: score column. Of similarities keep the lowest: higher means more alike. Of rates keep the highest.
        keep_lowest: share of the scored pairs to keep. Give exactly one of the six rules.
        drop_highest: share of the scored pairs to drop.
        below: keep scores strictly below this.
        keep_highest: share of the scored pairs to keep.
        drop_lowest: share of the scored pairs to drop.
        above: keep scores strictly above this.
        bad: whether pairs without a score are kept, dropped, or refused.

    Returns:
        The same kind of thing as ``pairs``.

    Raises:
        ValueError: no rule or several, or an unknown column.
        TypeError: pairs that can only be read once (a generator, an ``IterableDataset``).
        DataInvalid: pairs without a score, and ``bad`` is "fail".
        SourceMismatch: ids of ``pairs`` and ``scores`` differ.
    """
    from probing.runs.pair_scores import as_pairs

    given = (keep_lowest, drop_highest, below, keep_highest, drop_lowest, above)
    rule = dict(zip(RULES, given, strict=True))
    _warn_of_direction(by, check_rule(**rule)[0])
    if not hasattr(pairs, "__len__") or not hasattr(pairs, "__getitem__"):
        raise TypeError(
            f"pairs must be a list, a Dataset or a DataFrame, not {type(pairs).__name__}, which is read once"
        )
    kept = _kept([pair.id for pair in as_pairs(pairs)], scores, by, bad, rule)
    indices = [index for index, keep in enumerate(kept) if keep]
    if hasattr(pairs, "iloc"):
        return pairs.iloc[indices]
    return pairs.select(indices) if hasattr(pairs, "select") else [pairs[index] for index in indices]


def _warn_of_direction(by: str, rule: str) -> None:
    """A word where the rule keeps just the pairs that the score warns of."""
    keeps_lowest = rule in ("keep_lowest", "drop_highest", "below")
    if (by in RATE_COLUMNS and keeps_lowest) or (by in SCORE_COLUMNS and not keeps_lowest):
        kept = "lose" if by in RATE_COLUMNS else "are most alike, and so lose"
        log.warning("%s with %s keeps the pairs whose chosen responses %s most", by, rule, kept)


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
    """Ids agree by chance easily (0, 1, 2, ...); the texts do not."""
    scored = facts.get("data", {}).get("pairs_sha256")
    if scored is not None and scored != content_sha256(pairs):
        raise SourceMismatch(
            f"{config.data}: these are not the pairs that were scored into {config.scores} (scored: "
            f"{facts['data']['rows']} rows of {facts['data']['path']}); ids or texts differ. Score this file first"
        )


def _kept(
    ids: Sequence[str],
    frame: "pd.DataFrame",
    by: str,
    bad: Bad,
    rule: Mapping[str, float | None],
    table: Table | None = None,
) -> list[bool]:
    """Whether to keep each id, in order."""
    scores = _column(ids, frame, by)
    status = dict(zip(frame["id"], frame["status"], strict=True))
    good = [identity for identity in ids if status[identity] == "ok"]
    if len(good) < len(ids) and bad == "fail":
        raise DataInvalid(_bad_rows(ids, status, table))
    keep = dict.fromkeys(ids, bad == "keep")
    try:
        mask = keep_mask(good, [scores[identity] for identity in good], **rule)
    except ValueError as error:
        raise UsageError(str(error)) from error
    keep.update(zip(good, mask.tolist(), strict=True))
    if not any(keep.values()):
        raise UsageError(f"no pair of {len(ids)} would be kept; nothing was written. Choose a wider rule")
    return [keep[identity] for identity in ids]


def _column(ids: Sequence[str], frame: "pd.DataFrame", by: str) -> dict[str, float]:
    numeric = [name for name in frame.select_dtypes("number").columns]
    if by not in numeric:
        raise UsageError(f"there is no score column '{by}'; there are {', '.join(numeric)}")
    if frame["id"].duplicated().any():
        raise SourceMismatch(f"the scores hold the id '{frame['id'][frame['id'].duplicated()].iloc[0]}' twice")
    scores = dict(zip(frame["id"], frame[by], strict=True))
    unscored, unknown = set(ids) - scores.keys(), scores.keys() - set(ids)
    if unscored or unknown:
        raise SourceMismatch(
            f"pairs and scores do not belong together: {len(unscored)} pairs have no score, {len(unknown)} scores "
            f"no pair (for instance '{min(unscored or unknown)}')"
        )
    return scores


def _bad_rows(ids: Sequence[str], status: Mapping[str, str], table: Table | None) -> str:
    bad = [index for index, identity in enumerate(ids) if status[identity] != "ok"]
    counted = Counter(status[ids[index]] for index in bad)
    summary = ", ".join(f"{count} {name}" for name, count in sorted(counted.items()))
    shown = "; ".join(
        (f"{table.where(index)} " if table else "") + f"(id '{ids[index]}'): {status[ids[index]]}" for index in bad[:3]
    )
    return (
        f"{len(bad)} of {len(ids)} pairs have no score that can be trusted ({summary}); first: {shown}. "
        f"Say what to do with them: --bad keep or --bad drop"
    )


def _check_targets(config: FilterConfig, form: Format, *targets: Path) -> None:
    """Nothing is written over unless asked for, and never what is being read or what is no dataset at all."""
    sources = {Path(name).expanduser().resolve() for name in (config.data, config.scores)}
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
        named = table.format  # what is called .json is often one object a line, and stays so
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
