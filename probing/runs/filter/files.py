"""The files of ``probing filter``: they appear whole and together, and nothing is written over unless asked for."""

import gzip
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from probing.data.formats import file_format
from probing.data.tables import Table, list_files
from probing.errors import UsageError
from probing.report.card import CARD_FILE
from probing.report.filter_card import (
    DEFAULT,
    DROPPED,
    PLOTS_FILE,
    DataFile,
    FilterCard,
    is_filtered_dataset,
    write_filter_card,
)
from probing.runs.filter.config import FilterConfig
from probing.runs.filter.rows import Filtered
from probing.store.files import file_sha256, is_special, new_together, remove_leftovers
from probing.types import Format

PLOTS_SUFFIX = ".plots.html"
JSON_CHUNK, CSV_CHUNK = 10 << 20, 10_000
"""Bytes of JSONL and rows of CSV from which the datasets library takes the types of all others."""
LONGEST_CHUNK = (1 << 31) - (1 << 20)


def write_outputs(
    config: FilterConfig, filtered: Filtered, card: FilterCard | None, check_unchanged: Callable[[], None]
) -> list[Path]:
    """Write the rows that are kept, the dropped ones with their scores, the page, and the card if there is one.

    Returns:
        The paths.
    """
    out = config.target
    form = choose_format(config, filtered.table, card is not None)
    if card is not None and form != "datasets":
        return _write_folder(config, filtered, card, form, check_unchanged)
    side, plots = side_path(out), plots_path(out)
    for target in (out, side, plots):
        remove_leftovers(target.parent, re.escape(target.name))

    def check() -> None:
        _check_targets(config, form, out, side, plots)
        check_unchanged()

    check()
    dropped = not filtered.kept.all()
    wrote, drawn = [out, side] if dropped else [out], [] if filtered.page is None else [plots]
    # All files are complete under temporary names before any appears. A file that is not written anew belongs to the
    # run that is being replaced.
    obsolete = [path for path in (side, plots) if path not in (*wrote, *drawn)]
    with new_together(wrote, form == "datasets", obsolete, check, drawn) as temporaries:
        for keep, path in zip((True, False)[: len(wrote)], temporaries, strict=False):
            filtered.write(keep, path, form, zipped=out.suffix.lower() == ".gz")
        if card is not None:
            split = find_split(config, filtered.table)
            files = [_describe_file(filtered, path, path == out, split, form) for path in wrote]
            _write_card(card, files, temporaries[0], saved=True)
        if filtered.page is not None:
            temporaries[-1].write_text(filtered.page, encoding="utf-8")
    return [*wrote, *drawn]


def _write_folder(
    config: FilterConfig, filtered: Filtered, card: FilterCard, form: Format, check_unchanged: Callable[[], None]
) -> list[Path]:
    """Write a folder that ``load_dataset`` reads; answers with the paths of its files."""

    out = config.target
    zipped = form != "parquet" and all(source.lower().endswith(".gz") for source in config.sources)
    remove_leftovers(out.parent, re.escape(out.name))

    def check() -> None:
        _check_folder(config, out)
        check_unchanged()

    check()
    split = find_split(config, filtered.table)
    names = {True: "kept" if split == DROPPED else split, False: DROPPED}
    with new_together([out], True, (), check) as [folder]:
        files = []
        for keep in (True, False)[: 1 if filtered.kept.all() else 2]:
            path = folder / f"{names[keep]}.{form}{'.gz' if zipped else ''}"
            filtered.write(keep, path, form, zipped)
            files.append(_describe_file(filtered, path, keep, split, form))
        if filtered.page is not None:
            (folder / PLOTS_FILE).write_text(filtered.page, encoding="utf-8")
        _write_card(card, files, folder)
    drawn = [] if filtered.page is None else [PLOTS_FILE]
    return [out / name for name in (*(file.name for file in files), *drawn, CARD_FILE)]


def find_split(config: FilterConfig, table: Table) -> str:
    """Name of the split that was filtered; "train" where it has none that the datasets library takes."""
    named = getattr(table.original, "split", None) if table.format == "datasets" else None
    name = str(config.part.split_name or named or "train")
    return name if re.fullmatch(r"\w+(\.\w+)*", name, re.ASCII) and name != "all" else "train"


def _describe_file(filtered: Filtered, path: Path, keep: bool, split: str, form: Format) -> DataFile:
    """What the card tells of a file of rows, and how it is to be read."""

    rows, reading = int((filtered.kept == keep).sum()), {}
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


def _write_card(card: FilterCard, files: Sequence[DataFile], folder: Path, saved: bool = False) -> None:

    (folder / CARD_FILE).write_text(write_filter_card(card, files, saved), encoding="utf-8")


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

    if set(str(out)) & set("*?["):
        raise UsageError(f"{out}: load_dataset takes *, ? and [ in a path for a pattern; choose another --out")
    if out.is_symlink():
        raise UsageError(f"{out}: is a link, and no folder is replaced through it; name the folder itself")
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
    read = (file for source in config.sources for file in [Path(source).expanduser(), *list_files(source)])
    sources = {path.resolve() for path in [*read, *config.folders]}
    resolved = target.resolve()
    if sources & {resolved, *resolved.parents}:
        raise UsageError(f"{target}: is what is being filtered; choose another --out")
    if any(resolved in source.parents for source in sources):
        raise UsageError(f"{target}: holds what is being filtered; choose another --out")
    if os.path.lexists(target) and not config.overwrite:
        raise UsageError(f"{target}: exists already; choose another --out, or replace it with --overwrite")
    if is_special(target):
        raise UsageError(f"{target}: is a device or a pipe, which is not replaced; choose another --out")


def choose_format(config: FilterConfig, table: Table, in_folder: bool) -> Format:
    """The format to write: that of --format, of the name of the output, or of the data."""
    if in_folder:
        # A folder with a saved dataset in it cannot be read by load_dataset.
        return config.format or ("parquet" if table.format == "datasets" else table.format)
    named = file_format(config.target)
    if named == "json" == file_format(Path(table.path)):
        # Files called .json often hold one object a line; the copy keeps that.
        named = table.format
    return config.format or named or table.format


def side_path(out: Path) -> Path:
    """``kept.jsonl.gz`` -> ``kept.dropped.jsonl.gz``."""
    stem, dot, suffixes = out.name.partition(".") if not out.name.startswith(".") else (out.name, "", "")
    return out.with_name(f"{stem}.dropped{dot}{suffixes}")


def plots_path(out: Path) -> Path:
    """``kept.jsonl.gz`` -> ``kept.jsonl.gz.plots.html``, so that outputs of several formats have one each."""
    return out.with_name(f"{out.name}{PLOTS_SUFFIX}")
