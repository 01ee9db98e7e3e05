"""Rows that belong together, and the folds that keep them so."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.data.columns import require_split_values
from probing.data.tables import Table, canonical
from probing.data.words import evenly_spaced
from probing.errors import DataInvalid, UsageError
from probing.probes.controls import LEAST_FOLDS, make_folds
from probing.types import LabelledPrompt

TEXT = "text"


def values_to_split(config: Any, table: Table, prompts: Sequence[LabelledPrompt]) -> list[str] | None:
    """For each row the value that must not be in two folds; None where only equal texts must not."""
    if config.split_by == TEXT:
        return None
    if config.split_by == "category" and any(prompt.category is not None for prompt in prompts):
        values: list[Any] = [prompt.category for prompt in prompts]
    elif len(table.rows) == len(prompts):
        values = [row.get(config.split_by) for row in table.rows]
    else:
        raise UsageError(f"{table.path}: rows of preference pairs can be split by text only")
    return require_split_values(table, config.split_by, [prompt.id for prompt in prompts], values, "row")


def text_units(prompts: Sequence[LabelledPrompt]) -> list[int]:
    """Rows of equal text have one number."""
    texts: dict[str, int] = {}
    return [texts.setdefault(text_key(prompt), len(texts)) for prompt in prompts]


def text_key(prompt: LabelledPrompt) -> str:
    """The text of a row; white space counts once."""
    text = evenly_spaced(prompt.text) if isinstance(prompt.text, str) else prompt.text
    return canonical(text).decode()


def folds_of(
    config: Any, units: Sequence[int], values: Sequence[str] | None, rows: str, share: str
) -> tuple[Any, list[int]]:
    """The fold of each row, and the groups that folds keep whole.

    Args:
        config: with ``folds``, ``seed`` and ``split_by``.
        units: rows of one unit share texts.
        values: that must not be in two folds either.
        rows: what a row is called.
        share: what units share.

    Raises:
        DataInvalid: fewer groups than folds.
    """
    together = joined_groups(units, values)
    try:
        return make_folds(together, config.folds, config.seed), together
    except ValueError as error:
        by = f"share no {share}" if values is None else f"share neither a {share} nor a {config.split_by}"
        raise DataInvalid(
            f"{len(units)} {rows} make {len(set(together))} groups that {by}; {config.folds} folds need as many. "
            f"Give more {rows}, or fewer --folds (at least {LEAST_FOLDS})"
        ) from error


def joined_groups(units: Sequence[int], values: Sequence[str] | None) -> list[int]:
    """Groups of rows that share a unit or a value, directly or through others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if values is None:
        return list(units)
    _, left = np.unique(np.asarray(units), return_inverse=True)
    _, right = np.unique(np.asarray(values), return_inverse=True)
    size = int(left.max()) + 1 + int(right.max()) + 1
    links = coo_array((np.ones(len(left)), (left, int(left.max()) + 1 + right)), shape=(size, size))
    found: NDArray[np.int32] = connected_components(links, directed=False)[1]
    return [int(group) for group in found[left]]
