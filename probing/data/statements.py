"""Rows of any dataset as statements with their opposites."""

import logging
from collections.abc import Sequence
from dataclasses import fields

from probing.data.columns import ColumnResolver
from probing.data.layouts import (
    LAYOUT_READERS,
    LAYOUTS,
    UNUSED,
    USUAL_COLUMNS,
    Candidate,
    Cells,
    Layout,
    StatementColumns,
)
from probing.data.rows import Where, row_ids
from probing.data.tables import Row, Table
from probing.data.words import collapse_spaces
from probing.errors import DataInvalid, UsageError
from probing.statistics.groups import connected_groups
from probing.types import ContrastPair

log = logging.getLogger(__name__)


def contrast_pairs_from_table(table: Table, columns: StatementColumns, layout: Layout = "auto") -> list[ContrastPair]:
    """All pairs of a table. See ``contrast_pairs_from_rows``."""
    return contrast_pairs_from_rows(table.rows, columns, layout, table.where, table.path)


def contrast_pairs_from_rows(
    rows: Sequence[Row],
    columns: StatementColumns,
    layout: Layout = "auto",
    where: Where = "row {}".format,
    name: str = "the data",
) -> list[ContrastPair]:
    """Rows as statements with their opposites, in the order of the statements' first rows.

    A pair with the same two texts as an earlier one, in either order, is left out with a warning, since it would count
    twice.

    Args:
        rows: laid out in one of three ways.
        columns: other names of columns than the usual ones (``USUAL_COLUMNS``).
        layout: "wide": a statement and its opposite in one row, with the label of the statement. "long": one row a
            statement with its own label, a pair column that partners share and a polarity column that tells the
            affirmative one, which becomes the statement. "halves": one row a statement with its own label, where the
            rows of the second half are the partners of those of the first, in the same order; the first ones are the
            statements unless a polarity column says otherwise. "auto": "wide" if there is a column of opposites,
            otherwise "long" if there is a pair column.
        where: names a row for messages, given its index.
        name: name of all rows, for messages.

    Returns:
        Pairs, with ids from the id column ("wide", "halves": of the row in the first half) or the pair column ("long"),
        otherwise made from the content.

    Raises:
        DataInvalid: a missing column, a text or label that is none, a pair that is not one statement and one opposite
            of it, a text that is true in one place and false in another, a duplicate id; names the rows.
        UsageError: a column that does not exist or that the layout does not use, or no layout that fits.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"'{layout}' is none of {', '.join(LAYOUTS)}")
    if not rows:
        return []
    resolver = ColumnResolver.of(rows, name)
    actual_layout, actual_columns = _resolve(resolver, columns, layout)
    cells = Cells(rows, actual_columns, where, resolver)
    candidates = LAYOUT_READERS[actual_layout](cells)
    _check_truth(candidates, cells)
    named = "pair" if actual_layout == "long" else "id"

    def ids(candidates: Sequence[Candidate]) -> Sequence[str]:
        if named == "pair":
            return [str(cells.words(one.rows[0], "pair")) for one in candidates]
        owners = [min(one.rows) for one in candidates]
        texts = [(one.statement, one.opposite) for one in candidates]
        return row_ids([rows[row] for row in owners], texts, lambda index: where(owners[index]), columns.id)

    # No id may occur twice, not even that of a pair that is left out below.
    ids(candidates)
    kept = _drop_repeats(candidates, cells)
    return [
        ContrastPair(id, one.statement, one.opposite, one.label, one.category, one.formulation)
        for id, one in zip(ids(kept), kept, strict=True)
    ]


def _resolve(resolver: ColumnResolver, columns: StatementColumns, layout: Layout) -> tuple[Layout, StatementColumns]:
    """The layout that the data have, and the columns as they are called in them."""
    named = {field.name: getattr(columns, field.name) for field in fields(columns)}
    resolved = {role: resolver.find(named[role], USUAL_COLUMNS[role]) for role in named}
    if layout == "auto":
        if resolved["opposite"] is None and resolved["pair"] is None:
            options = ", ".join(f"--{role}-column" for role in USUAL_COLUMNS)
            raise UsageError(
                f"{resolver.name}: there is neither a column of opposites ({', '.join(USUAL_COLUMNS['opposite'])}) nor "
                f"one that tells which rows are a pair ({', '.join(USUAL_COLUMNS['pair'])}); name one ({options}), or "
                f"say --layout halves if the second half of the rows are the opposites of the first; the columns are "
                f"{resolver.listing}"
            )
        by_pair = resolved["opposite"] is None or (named["pair"] is not None and named["opposite"] is None)
        layout = "long" if by_pair else "wide"
    for role in UNUSED[layout]:
        if named[role] is not None:
            raise UsageError(
                f"{resolver.name}: the layout '{layout}' has no use for --{role}-column; leave it out, or say another "
                f"--layout"
            )
    return layout, StatementColumns(**resolved)


def _check_truth(candidates: Sequence[Candidate], cells: Cells) -> None:
    """Raise if a text is the opposite of itself, or true in one place and false in another."""
    known: dict[str, tuple[bool, int]] = {}
    for one in candidates:
        if len(one.texts) == 1:
            raise DataInvalid(
                f"{cells.name_both(*one.rows)}: a statement and its opposite are the same: {one.statement!r:.60}"
            )
        for text, truth, row in zip((one.statement, one.opposite), (one.label, not one.label), one.rows, strict=True):
            before, first = known.setdefault(collapse_spaces(text), (truth, row))
            if before != truth:
                raise DataInvalid(
                    f"{cells.where(row)}: {text!r:.60} is {str(truth).lower()} by its label here, but "
                    f"{str(before).lower()} at {cells.where(first)}"
                )


def _drop_repeats(candidates: Sequence[Candidate], cells: Cells) -> list[Candidate]:
    """Keep the first of all pairs with the same two texts."""
    first: dict[frozenset[str], Candidate] = {}
    repeats = [one for one in candidates if first.setdefault(one.texts, one) is not one]
    if repeats:
        log.warning(
            "%s: pairs whose two texts occurred before are left out: %d, the first at %s (as at %s)",
            cells.name,
            len(repeats),
            cells.name_both(*repeats[0].rows),
            cells.name_both(*first[repeats[0].texts].rows),
        )
    return list(first.values())


def text_groups(pairs: Sequence[ContrastPair]) -> list[int]:
    """The group of each pair, numbered from 0 as they appear: pairs that share a text, directly or through others.

    A group must not be split between train and test, or a test text would have been trained on.
    """
    texts = [(row, collapse_spaces(text)) for row, pair in enumerate(pairs) for text in (pair.statement, pair.opposite)]
    groups: list[int] = connected_groups([row for row, _ in texts], [text for _, text in texts])[::2].tolist()
    return groups
