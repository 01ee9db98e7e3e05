"""Rows that belong together, and the folds that keep them so."""

from collections.abc import Sequence
from typing import Any

from probing.data.tables import Table, canonical, is_empty
from probing.errors import DataInvalid, UsageError
from probing.runs.common.options import TEXT, FoldOptions
from probing.statistics.folds import LEAST_FOLDS, make_folds
from probing.statistics.groups import connected_groups, number_values
from probing.types import LabelledPrompt


def values_to_split(config: FoldOptions, table: Table, prompts: Sequence[LabelledPrompt]) -> list[str] | None:
    """For each row the value that must not be in two folds; None where only equal texts must not."""
    if config.split_by == TEXT:
        return None
    if config.split_by == "category" and any(prompt.category is not None for prompt in prompts):
        values: list[Any] = [prompt.category for prompt in prompts]
    elif len(table.rows) == len(prompts):
        values = [row.get(config.split_by) for row in table.rows]
    else:
        raise UsageError(f"{table.path}: rows of preference pairs can be split by text only")
    missing = [prompt.id for prompt, value in zip(prompts, values, strict=True) if is_empty(value)]
    if missing:
        raise DataInvalid(f"{table.path}: row '{missing[0]}' has no {config.split_by} to split by")
    return [str(value) for value in values]


def text_units(prompts: Sequence[LabelledPrompt]) -> list[int]:
    """Rows of equal text have one number."""
    return number_values(text_key(prompt) for prompt in prompts)


def text_key(prompt: LabelledPrompt) -> str:
    """The text of a row; white space counts once."""
    text = " ".join(prompt.text.split()) if isinstance(prompt.text, str) else prompt.text
    return canonical(text).decode()


def folds_of(
    config: FoldOptions, units: Sequence[int], values: Sequence[str] | None, rows: str, share: str
) -> tuple[Any, list[int]]:
    """The fold of each row, and the groups that folds keep whole.

    Args:
        config: options of folds.
        units: rows of one unit share texts.
        values: that must not be in two folds either.
        rows: what a row is called.
        share: what units share.

    Raises:
        DataInvalid: fewer groups than folds.
    """
    together = join_groups(units, values)
    try:
        return make_folds(together, config.folds, config.seed), together
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
