"""Groups of rows that belong together, and folds that keep them whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probing.data.columns import require_split_values
from probing.data.tables import Table, canonical
from probing.data.words import collapse_spaces
from probing.errors import DataInvalid, UsageError
from probing.runs.common.options import PAIR, TEXT, FoldOptions
from probing.statistics.folds import LEAST_FOLDS, make_folds
from probing.statistics.groups import connected_groups, find_twins, number_values
from probing.types import ContrastPair, LabelledPrompt


@dataclass(frozen=True)
class RowKind:
    """The name of the rows of a job, and the values that they can be split by.

    Attributes:
        noun: word for a row in messages.
        itself: the value of ``split_by`` that keeps no more together than the rows themselves ask for.
        attributes: values of ``split_by`` that the rows know themselves, whatever their columns are called.
        several: message for the case that a row of the table is no row of the job, so that its columns cannot be used.
    """

    noun: str
    itself: str
    attributes: tuple[str, ...]
    several: str


PROMPTS = RowKind("row", TEXT, ("category",), "rows of preference pairs can be split by text only")
PAIRS = RowKind(
    "pair",
    PAIR,
    ("category", "formulation"),
    "splitting by '{split_by}' needs one row a pair; name it as --category-column and split by category",
)


def values_to_split(
    config: FoldOptions, table: Table, rows: Sequence[LabelledPrompt | ContrastPair], kind: RowKind = PROMPTS
) -> list[str] | None:
    """Value of each row that must not be in two folds; None where rows are split by themselves.

    Raises:
        UsageError: there is no such column, or a row of the table is no row of the job.
        DataInvalid: a row has no value.
    """
    if config.split_by == kind.itself:
        return None
    values = [getattr(row, config.split_by) for row in rows] if config.split_by in kind.attributes else []
    if all(value is None for value in values):
        values = _column_values(config.split_by, table, len(rows), kind)
    return require_split_values(table, config.split_by, [row.id for row in rows], values, kind.noun)


def _column_values(split_by: str, table: Table, rows: int, kind: RowKind) -> list[Any]:
    if split_by not in (*kind.attributes, *table.columns):
        raise UsageError(
            f"{table.path}: there is no column '{split_by}' to split by; give '{kind.itself}' or one of "
            f"{', '.join(map(str, table.columns))}"
        )
    if len(table.rows) != rows:
        raise UsageError(f"{table.path}: {kind.several.format(split_by=split_by)}")
    return [row.get(split_by) for row in table.rows]


def refuse_twin_labels(path: str, prompts: Sequence[LabelledPrompt]) -> None:
    """Raise for two labels that differ in white space only: they would be two labels that look the same.

    Raises:
        DataInvalid: there are two; names both and a row of each.
    """
    rows = {prompt.label: prompt.id for prompt in reversed(prompts) if isinstance(prompt.label, str)}
    twins = find_twins(rows)
    if twins is not None:
        one, other = (f"{label!r} (row '{rows[label]}')" for label in twins)
        raise DataInvalid(f"{path}: the labels {one} and {other} differ in white space only; write both alike")


def text_units(prompts: Sequence[LabelledPrompt]) -> list[int]:
    """A number for every row, equal for rows of equal text."""
    return number_values(text_key(prompt) for prompt in prompts)


def text_key(prompt: LabelledPrompt) -> str:
    """The text of a row with every run of white space as one space."""
    text = collapse_spaces(prompt.text) if isinstance(prompt.text, str) else prompt.text
    return canonical(text).decode()


STRATIFIED = "stratified by label"
"""How folds of labelled rows are made, as the identity of a run says it; earlier versions paid no heed to labels."""


def name_folds(facts: Mapping[str, Any]) -> str | None:
    """How the folds of a run are made, for its identity: a run that is finished keeps what its record says.

    An unfinished run of a version whose folds paid no heed to labels is thereby refused: its parts belong to other
    folds.

    Args:
        facts: the record of the run's folder; empty for a new one.
    """
    return name_way(facts, "folds", STRATIFIED)


def name_way(facts: Mapping[str, Any], key: str, today: str) -> str | None:
    """How something is computed, for the identity of a run: a run that is finished keeps what its record says.

    An unfinished run of a version that computed it in another way is thereby refused: its parts were made that way.

    Args:
        facts: the record of the run's folder; empty for a new one.
        key: the name in the identity.
        today: how it is computed now.
    """
    if facts.get("status") == "done":
        known: str | None = facts.get("identity", {}).get(key)
        return known
    return today


def folds_of(
    config: FoldOptions,
    units: Sequence[int],
    values: Sequence[str] | None,
    rows: str,
    share: str,
    labels: ArrayLike | None = None,
) -> tuple[NDArray[np.int64], list[int]]:
    """The fold of each row, and the groups that folds keep whole.

    Args:
        config: the options.
        units: rows of one unit share texts.
        values: values that must not be in two folds either.
        rows: word for rows in messages.
        share: word for what the rows of a unit share.
        labels: label of each row, where every fold shall hold the labels alike.

    Raises:
        DataInvalid: fewer groups than folds.
    """
    together = join_groups(units, values)
    try:
        return make_folds(together, config.folds, config.seed, labels), together
    except ValueError as error:
        by = f"share no {share}" if values is None else f"share neither a {share} nor a {config.split_by}"
        raise DataInvalid(
            f"{len(units)} {rows} make {len(set(together))} groups that {by}; {config.folds} folds need as many. "
            f"Give more {rows}, or fewer --folds (at least {LEAST_FOLDS})"
        ) from error


def join_groups(units: Sequence[int], values: Sequence[str] | None) -> list[int]:
    """Groups of rows that share a unit or, where there are values, one of these, directly or through others."""
    if values is None:
        return list(units)
    groups: list[int] = connected_groups(units, values).tolist()
    return groups
