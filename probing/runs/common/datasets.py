"""The dataset that an option names, as typed rows."""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from probing.data.aside import is_in_memory
from probing.data.bundled import BUNDLED, BundledName, bundled_data
from probing.data.columns import ColumnResolver
from probing.data.lazy import LazyRows, pick
from probing.data.memory import take_part
from probing.data.pairs import leave_out_ties, pairs_from_table
from probing.data.portions import Part
from probing.data.prompts import TEXT_COLUMNS, Columns, prompts_from_table
from probing.data.rollouts import rollouts_from_table
from probing.data.tables import Row, Table, join_tables, list_files, read_table
from probing.errors import DataInvalid, UsageError
from probing.runs.common.held import InMemory
from probing.runs.common.options import (
    TEXT,
    ArrayOptions,
    DatasetOptions,
    LabelledOptions,
    PairDataOptions,
    PromptOptions,
    RolloutOptions,
    TextOptions,
)
from probing.types import LabelledPrompt, PreferencePair, RolloutGroup

LABEL = "label"
OneRow = TypeVar("OneRow")


def read_sources(config: DatasetOptions, bundled: BundledName, held: ExitStack | None = None) -> Table:
    """The part of the dataset that is asked for, of several files together.

    Args:
        config: a job's options of the dataset.
        bundled: the bundled file that "bundled" stands for.
        held: keeps files open whose rows are read when they are asked for, as in ``read_table``.
    """
    return join_tables(read_each(config.sources, config.part, bundled, held), config.part)


def read_each(
    sources: Sequence[str],
    part: Part,
    bundled: BundledName,
    held: ExitStack | None = None,
) -> list[Table]:
    """A table for each source; limit and sample are applied only where there is a single one.

    Raises:
        UsageError: a source is given twice, so that its rows would count twice.
    """
    part = part if len(sources) == 1 else replace(part, limit=None, sample=None)
    if sources.count("-") > 1:
        raise UsageError("standard input can be read only once")
    known: dict[str, str] = {}
    for source in sources:
        files = [] if isinstance(source, InMemory) else list_files(source)
        # A file is called as it was named, or by its own name among those of a folder.
        paths = {os.path.realpath(file): source if len(files) == 1 else str(file) for file in files}
        twice = min(known.keys() & paths.keys(), default=None)
        if twice is not None:
            raise UsageError(f"{known[twice]}: is given twice, so that its rows would count twice; leave one out")
        known |= paths
    return [_read_source(source, part, bundled, held) for source in sources]


def _read_source(source: str, part: Part, bundled: BundledName, held: ExitStack | None) -> Table:
    if isinstance(source, InMemory):
        return take_part(source.held, part)
    return read_table(str(bundled_data(bundled)) if source == BUNDLED else source, part=part, held=held)


def take_shard(config: DatasetOptions, table: Table, rows: Sequence[OneRow]) -> tuple[Table, Sequence[OneRow]]:
    """The rows of a dataset that are in the shard that is asked for; all of them where none is.

    The rows are given with the ids that they have among all. The hash of the table stays that of the whole dataset,
    which is the same for all shards of an array.

    Args:
        config: a job's options of the dataset.
        table: the whole dataset.
        rows: one a row of the table.
    """
    if not isinstance(config, ArrayOptions) or config.num_shards is None:
        return table, rows
    chosen = config.choose_rows(len(rows))
    return replace(table.take(chosen), sha256=table.sha256), pick(rows, chosen)


def read_pairs(config: PairDataOptions, held: ExitStack | None = None) -> tuple[Table, Sequence[PreferencePair]]:
    """The dataset as a table, and its rows as pairs; ties are left out of both, and rows of other shards.

    Args:
        config: a job's options of the dataset.
        held: keeps files open; then rows and pairs are read when they are asked for, as in ``read_table``.
    """
    table = leave_out_ties(read_sources(config, "pairs", held), config.pair_columns)
    return take_shard(config, table, pairs_from_table(table, config.id_column, config.pair_columns))


def read_rollouts(config: RolloutOptions) -> tuple[Table, Sequence[RolloutGroup]]:
    """The dataset as a table, and its rows as groups of responses with rewards; without the rows of other shards."""
    table = read_sources(config, "rollouts")
    return take_shard(config, table, rollouts_from_table(table, config.id_column, config.rollout_columns))


def read_labelled_sources(
    config: PromptOptions, sources: Sequence[str], part: Part, held: ExitStack | None = None
) -> Table:
    """Texts of one or several sources, each of which may be written LABEL=SOURCE to label its rows.

    Args:
        config: a job's options of texts.
        sources: the sources.
        part: which part of them is read.
        held: keeps files open whose rows are read when they are asked for, as in ``read_table``.

    Raises:
        UsageError: only some sources have a label, or the rows have labels of their own.
    """
    named = [_split_label(source) for source in sources]
    tables = read_each([source for _, source in named], part, "prompts", held)
    labels = [label for label, _ in named]
    if any(label is not None for label in labels):
        if None in labels:
            raise UsageError(
                f"{sources[labels.index(None)]}: has no label, though others have; write LABEL=FILE for all"
            )
        if config.label_column is not None:
            raise UsageError("labels are given twice: as LABEL=FILE and by --label-column")
        tables = [_label_rows(table, str(label)) for table, label in zip(tables, labels, strict=True)]
    return join_tables(tables if config.text_column is not None else _align_texts(tables), part)


def _align_texts(tables: list[Table]) -> list[Table]:
    """The tables with their texts in one column where some have them in one and some in another."""
    found = [ColumnResolver.of(table.rows, table.path).find(None, TEXT_COLUMNS) for table in tables]
    columns = [column for column in found if column is not None]
    if len(columns) < len(tables) or len(set(columns)) == 1:
        return tables
    first = TEXT_COLUMNS[0]
    return [
        table
        if column == first
        else replace(table, rows=_change_rows(table.rows, partial(_copy_column, column, first)))
        for table, column in zip(tables, columns, strict=True)
    ]


def _copy_column(column: str, name: str, row: Row) -> Row:
    return {**row, name: row.get(column)}


def _change_rows(rows: Sequence[Row], change: Callable[[Row], Row]) -> Sequence[Row]:
    """Rows that are changed, when they are asked for where the rows are."""
    changed = LazyRows(len(rows), lambda index: change(rows[index]))
    return list(changed) if is_in_memory(rows) else changed


def _split_label(source: str) -> tuple[str | None, str]:
    """Label and source of ``LABEL=SOURCE``; no label where that is the name of a file as it stands."""
    label, equals, rest = source.partition("=")
    if not equals or Path(source).expanduser().exists() or re.fullmatch(r"[\w .+-]+", label) is None:
        return None, source
    return label, rest


def _label_rows(table: Table, label: str) -> Table:
    other = next((i for i, row in enumerate(table.rows) if row.get(LABEL) not in (None, label)), None)
    if other is not None:
        raise UsageError(
            f"{table.where(other)}: has the label {table.rows[other][LABEL]!r:.40} in its own column, and the file is "
            f"given as {label}={table.path}; give it without the label"
        )
    rows = _change_rows(table.rows, lambda row: {**row, LABEL: label})
    # The same file under another label is other data.
    digest = hashlib.sha256(f"{label}\n{table.sha256}".encode()).hexdigest()
    return replace(table, rows=rows, sha256=digest, original=None)


def text_columns(config: TextOptions) -> Columns:
    """The columns that options of texts name."""
    return Columns(
        config.id_column,
        config.text_column,
        config.response_column,
        config.label_column,
        config.category_column,
        pairs=config.pair_columns,
    )


def read_labelled(config: LabelledOptions, source: str | Sequence[str]) -> tuple[Table, list[LabelledPrompt]]:
    """A dataset as a table, and its rows.

    Args:
        config: a job's options of splits and columns.
        source: the dataset, or several; of others than the job's own, all rows of the split are read.

    Raises:
        DataInvalid: no row has a label.
    """
    sources = [source] if isinstance(source, str) else list(source)
    part = config.part if sources == config.sources else replace(config.part, limit=None, sample=None)
    table = read_labelled_sources(config, sources, part)
    prompts = prompts_from_table(table, text_columns(config))
    if all(prompt.label is None for prompt in prompts):
        raise DataInvalid(
            f"{table.path}: no row has a label; name their column with --label-column, or give a file for each label "
            f"as --data LABEL=FILE"
        )
    if config.split_by not in (TEXT, "category"):
        ColumnResolver.of(table.rows, table.path).check(config.split_by, " to split by", "give 'text' or one of")
    return table, prompts
