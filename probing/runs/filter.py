"""The job ``probing filter``: keep the pairs with low scores, say what was dropped, lose nothing silently."""

import contextlib
import dataclasses
import gzip
import logging
import os
import re
import shlex
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probing.data.filters import RULES, check_rule, find_threshold
from probing.data.formats import check_ending, file_format
from probing.data.lazy import make_in_blocks
from probing.data.pairs import pick_pairs
from probing.data.tables import Row, Table
from probing.data.writing import write_rows
from probing.errors import DataInvalid, UsageError
from probing.instruments.columns import RATE_COLUMNS, SCORE_COLUMNS
from probing.instruments.filtering import SIDE_PREFIX, Bad, choose_kept, find_scores, warn_of_direction
from probing.runs.common.datasets import read_pair_ids
from probing.runs.common.options import PairDataOptions, PlotOptions, option
from probing.runs.common.provenance import list_data, list_models, list_versions, name_source
from probing.runs.common.scored import PARTS, READING, check_same_pairs, read_pair_table, recorded_reading
from probing.runs.score.config import SCORES_FILE
from probing.store.files import check_output_name, file_sha256, is_special, new_together, remove_leftovers
from probing.store.manifest import RUN_FILE, read_run
from probing.types import Format, PreferencePair, Report

if TYPE_CHECKING:
    import pandas as pd

    from probing.report.filter_card import DataFile, FilterCard

log = logging.getLogger(__name__)

PLOTS_SUFFIX = ".plots.html"
MODELS = ("model", "reference", "policy", "adapter", "steps")
"""Options of a scoring that name models."""
JSON_CHUNK, CSV_CHUNK = 10 << 20, 10_000
"""Bytes of JSONL and rows of CSV from which the datasets library takes the types of all others."""
LONGEST_CHUNK = (1 << 31) - (1 << 20)
EXAMPLES = 3


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


@dataclass(frozen=True)
class _Filtered:
    """What is written.

    Attributes:
        table: the rows.
        ids: their ids.
        kept: whether each of them is kept.
        scores: their scores, in their order.
        extra: the columns that those dropped get.
        page: the page of plots.
    """

    table: Table
    ids: Sequence[str]
    kept: Sequence[bool]
    scores: "pd.DataFrame"
    extra: Sequence[Row]
    page: str | None

    def write(self, keep: bool, path: Path, form: Format, zipped: bool) -> None:
        """Write the rows that are kept, or the others with their scores."""
        rows = array("q", (at for at, known in enumerate(self.kept) if known == keep))
        write_rows(self.table, rows, path, form, () if keep else self.extra, zipped)


def run(config: FilterConfig) -> Report:
    """Write the kept rows to ``config.out`` and the dropped ones, with their scores, beside it.

    Raises:
        ProbingError: see ``probing.errors``; nothing is written over unless asked for.
    """
    warn_of_direction(config.by, check_rule(**config.rule)[0])
    check_output_name(Path(config.out))
    makes_folder = config.makes_folder
    if not makes_folder:
        check_ending(Path(config.out), config.format)
    frame, facts = _read_scores(Path(config.scores).expanduser())
    used = facts.get("config", {})
    before = _stamp_files(config)
    with contextlib.ExitStack() as held:
        reading = _as_scored(config, used)
        table, ids, sha256 = read_pair_ids(reading, held)
        check_same_pairs(sha256, facts, ", ".join(config.sources), config.scores)
        kept = choose_kept(ids, frame, config.by, config.bad, config.rule, table)
        rows = find_scores(ids, frame, config.by)
        page = _draw_page(config, frame, rows[np.array(kept)], used)
        report = _report(frame, ids, kept, config.by)
        dropped = rows[~np.array(kept)]
        filtered = _Filtered(table, ids, kept, frame.iloc[rows], _list_side_columns(dropped, frame), page)
        card = _make_card(config, reading, filtered, facts, report) if makes_folder else None
        wrote = _write(config, filtered, card, lambda: _check_unchanged(config, before))
    hashes = {str(path): file_sha256(path) for path in wrote if path.is_file()}
    return dataclasses.replace(report, facts={**report.facts, "wrote": [str(path) for path in wrote], "sha256": hashes})


def _stamp_files(config: FilterConfig) -> dict[str, tuple[int, int]]:
    """Size and time of the last change of every file of the data."""
    files = [Path(source).expanduser() for source in config.sources]
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()}


def _check_unchanged(config: FilterConfig, before: Mapping[str, tuple[int, int]]) -> None:
    """Raise if a file has changed: rows are read anew when they are written."""
    for file, stamp in before.items():
        if _stamp_files(config).get(file) != stamp:
            raise DataInvalid(f"{file}: changed while it was read; filter again when nothing writes into it")


def _write(
    config: FilterConfig, filtered: _Filtered, card: "FilterCard | None", check_unchanged: Callable[[], None]
) -> list[Path]:
    """Write the rows that are kept, the dropped ones with their scores, the page, and the card if there is one.

    Returns:
        The paths.
    """
    out = Path(config.out).expanduser()
    form = _format(config, filtered.table, card is not None)
    if card is not None and form != "datasets":
        return _write_folder(config, filtered, card, form, check_unchanged)
    side, plots = _side_path(out), _plots_path(out)
    for target in (out, side, plots):
        remove_leftovers(target.parent, re.escape(target.name))

    def check() -> None:
        _check_targets(config, form, out, side, plots)
        check_unchanged()

    check()
    dropped = not all(filtered.kept)
    wrote, drawn = [out, side] if dropped else [out], [] if filtered.page is None else [plots]
    # All files are complete under temporary names before any appears. A file that is not written anew belongs to the
    # run that is being replaced.
    obsolete = [path for path in (side, plots) if path not in (*wrote, *drawn)]
    with new_together(wrote, form == "datasets", obsolete, check, drawn) as temporaries:
        for keep, path in zip((True, False)[: len(wrote)], temporaries, strict=False):
            filtered.write(keep, path, form, zipped=out.suffix.lower() == ".gz")
        if card is not None:
            split = _find_split(config, filtered.table)
            files = [_describe_file(filtered, path, path == out, split, form) for path in wrote]
            _write_card(card, files, temporaries[0], saved=True)
        if filtered.page is not None:
            temporaries[-1].write_text(filtered.page, encoding="utf-8")
    return [*wrote, *drawn]


def _write_folder(
    config: FilterConfig, filtered: _Filtered, card: "FilterCard", form: Format, check_unchanged: Callable[[], None]
) -> list[Path]:
    """Write a folder that ``load_dataset`` reads; answers with the paths of its files."""
    from probing.report.card import CARD_FILE
    from probing.report.filter_card import DROPPED, PLOTS_FILE

    out = Path(config.out).expanduser()
    zipped = form != "parquet" and all(source.lower().endswith(".gz") for source in config.sources)
    remove_leftovers(out.parent, re.escape(out.name))

    def check() -> None:
        _check_folder(config, out)
        check_unchanged()

    check()
    split = _find_split(config, filtered.table)
    names = {True: "kept" if split == DROPPED else split, False: DROPPED}
    with new_together([out], True, (), check) as [folder]:
        files = []
        for keep in (True, False)[: 1 if all(filtered.kept) else 2]:
            path = folder / f"{names[keep]}.{form}{'.gz' if zipped else ''}"
            filtered.write(keep, path, form, zipped)
            files.append(_describe_file(filtered, path, keep, split, form))
        if filtered.page is not None:
            (folder / PLOTS_FILE).write_text(filtered.page, encoding="utf-8")
        _write_card(card, files, folder)
    drawn = [] if filtered.page is None else [PLOTS_FILE]
    return [out / name for name in (*(file.name for file in files), *drawn, CARD_FILE)]


def _find_split(config: FilterConfig, table: Table) -> str:
    """Name of the split that was filtered; "train" where it has none that the datasets library takes."""
    named = getattr(table.original, "split", None) if table.format == "datasets" else None
    name = str(config.part.split_name or named or "train")
    return name if re.fullmatch(r"\w+(\.\w+)*", name, re.ASCII) and name != "all" else "train"


def _describe_file(filtered: _Filtered, path: Path, keep: bool, split: str, form: Format) -> "DataFile":
    """What the card tells of a file of rows, and how it is to be read."""
    from probing.report.filter_card import DEFAULT, DROPPED, DataFile

    rows, reading = list(filtered.kept).count(keep), {}
    if form == "csv":
        # Otherwise a response such as "None" or "null" would be read as a missing one.
        reading = {"keep_default_na": False, "na_values": [""]}
        reading |= {"chunksize": rows, "low_memory": False} if rows > CSV_CHUNK else {}
    size = _count_bytes(path) if form == "jsonl" else 0
    if JSON_CHUNK < size < LONGEST_CHUNK:
        # Types of all rows are those of the first chunk: a column that is empty there could not hold anything later.
        reading = {"chunksize": size}
    digest = file_sha256(path) if path.is_file() else None
    return DataFile(DEFAULT if keep else DROPPED, path.name, split, rows, digest, reading)


def _count_bytes(path: Path) -> int:
    """Bytes of a file's content, unzipped."""
    if path.suffix != ".gz":
        return path.stat().st_size
    with gzip.open(path) as file:
        return file.seek(0, os.SEEK_END)


def _write_card(card: "FilterCard", files: Sequence["DataFile"], folder: Path, saved: bool = False) -> None:
    from probing.report.card import CARD_FILE
    from probing.report.filter_card import write_filter_card

    (folder / CARD_FILE).write_text(write_filter_card(card, files, saved), encoding="utf-8")


def _make_card(
    config: FilterConfig, reading: FilterConfig, filtered: _Filtered, facts: Mapping[str, Any], report: Report
) -> "FilterCard":
    """What the card tells.

    Args:
        config: the options as they were given.
        reading: the options with those of the scoring for how the data are read.
        filtered: the rows with their scores.
        facts: record of the scoring.
        report: counts and quantiles.
    """
    from probing.report.filter_card import FilterCard
    from probing.runs.common.about import today, write_command

    counts, spread = report.tables.values()
    mask, values = np.array(filtered.kept), filtered.scores[config.by].to_numpy(dtype=np.float64)

    def read(rows: list[int]) -> list[tuple[PreferencePair, float]]:
        pairs = pick_pairs(filtered.table, rows, filtered.ids, reading.id_column, reading.pair_columns)
        return list(zip(pairs, values[rows].tolist(), strict=True))

    chosen = _choose_examples(values, mask, check_rule(**config.rule)[0])
    # Without the slash the same command would write a file where there is no folder yet.
    out = f"{str(config.out).rstrip('/')}/"
    return FilterCard(
        folder=Path(config.out).name,
        title=", ".join(map(name_source, config.sources)),
        source=", ".join(config.sources),
        data=list_data(reading, filtered.table),
        models=list_models(facts),
        by=config.by,
        meaning=_tell_meaning(config.by),
        rule=check_rule(**config.rule),
        threshold=find_threshold(values, mask),
        bad=(config.bad, int((filtered.scores["status"] != "ok").sum())),
        counts=counts,
        spread=spread,
        examples={title: read(rows) for title, rows in chosen.items()},
        command=f"{write_command('filter', config)} --out {shlex.quote(out)}",
        versions=list_versions(facts),
        date=today(),
    )


def _choose_examples(values: NDArray[np.float64], kept: NDArray[np.bool_], rule: str) -> dict[str, list[int]]:
    """Rows to show: of those dropped the farthest from the threshold, of those kept the nearest to it."""
    low = rule in ("keep_lowest", "drop_highest", "below")
    order = np.argsort(-values if low else values, kind="stable")
    order = order[np.isfinite(values[order])]
    return {
        f"Dropped, with the {'highest' if low else 'lowest'} scores": order[~kept[order]][:EXAMPLES].tolist(),
        "Kept, nearest to the threshold": order[kept[order]][:EXAMPLES].tolist(),
    }


def _tell_meaning(by: str) -> str:
    if by in SCORE_COLUMNS:
        return "Higher means that the two responses are more alike to the model."
    return "Lower means that the chosen response is expected to lose more." if by in RATE_COLUMNS else ""


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
    for target in (out, *beside):
        folder = form == "datasets" and not target.name.endswith(PLOTS_SUFFIX)
        _check_replaceable(config, target)
        if target.is_dir() and not (folder and (target / "dataset_info.json").is_file()):
            raise UsageError(f"{target}: is a folder, and no saved dataset; choose another --out")
        if folder and target.is_file():
            raise UsageError(f"{target}: is a file, where a dataset would be saved as a folder; choose another --out")
    for target in beside:
        if target.is_symlink():
            raise UsageError(f"{target}: is a link, and no file that was named is replaced through it; remove it")


def _check_folder(config: FilterConfig, out: Path) -> None:
    """Raise rather than replace a folder that no filter wrote, or anything else than a folder."""
    from probing.report.filter_card import is_filtered_dataset

    if set(str(out)) & set("*?["):
        raise UsageError(f"{out}: load_dataset takes *, ? and [ in a path for a pattern; choose another --out")
    _check_replaceable(config, out)
    if out.is_file():
        raise UsageError(f"{out}: is a file, where a folder would be made; choose another --out")
    if out.is_dir() and any(out.iterdir()) and not is_filtered_dataset(out):
        raise UsageError(
            f"{out}: is a folder, and not one that 'probing filter' wrote with a card, so it is not replaced; choose "
            f"another --out"
        )


def _check_replaceable(config: FilterConfig, target: Path) -> None:
    """Raise if this is, holds or lies in what is filtered, or exists and may not be replaced."""
    sources = {Path(name).expanduser().resolve() for name in [*config.sources, str(config.scores)]}
    resolved = target.resolve()
    if sources & {resolved, *resolved.parents}:
        raise UsageError(f"{target}: is what is being filtered; choose another --out")
    if any(resolved in source.parents for source in sources):
        raise UsageError(f"{target}: holds what is being filtered; choose another --out")
    if os.path.lexists(target) and not config.overwrite:
        raise UsageError(f"{target}: exists already; choose another --out, or replace it with --overwrite")
    if is_special(target):
        raise UsageError(f"{target}: is a device or a pipe, which is not replaced; choose another --out")


def _format(config: FilterConfig, table: Table, in_folder: bool) -> Format:
    if in_folder:
        # A folder with a saved dataset in it cannot be read by load_dataset.
        return config.format or ("parquet" if table.format == "datasets" else table.format)
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


def _report(frame: "pd.DataFrame", ids: Sequence[str], kept: Sequence[bool], by: str) -> Report:
    import pandas as pd

    from probing.report.tables import quantiles

    keep = dict(zip(ids, kept, strict=True))
    fate = frame["id"].map(keep).map({True: "kept", False: "dropped"})
    counts = pd.crosstab(frame["status"], fate).reindex(columns=["kept", "dropped"], fill_value=0)
    parts = {"all": frame, "kept": frame[fate == "kept"], "dropped": frame[fate == "dropped"]}
    spread = pd.concat([quantiles(part, [by]).assign(score=name) for name, part in parts.items()], ignore_index=True)
    facts = {"by": by, "kept": sum(kept), "dropped": len(kept) - sum(kept)}
    counts = counts.rename_axis(columns=None).reset_index()
    return Report({"Pairs": counts, f"Quantiles: {by}": spread.rename(columns={"score": "rows"})}, facts)
