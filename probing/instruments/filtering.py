"""Pairs kept by their scores, after a check that the scores belong to these pairs."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from probing.data.filters import RULES, check_rule, make_keep_mask
from probing.data.lazy import LazySequence
from probing.data.pair_columns import PairColumns
from probing.data.tables import Table
from probing.errors import DataInvalid, SourceMismatch, UsageError
from probing.instruments.columns import KEEP_HIGHEST, KEEP_LOWEST, SCORE_COLUMNS, TOKEN_COLUMNS

if TYPE_CHECKING:
    import pandas as pd


log = logging.getLogger(__name__)


Bad = Literal["keep", "drop", "fail"]
NO_SCORES = ("id", "row", *TOKEN_COLUMNS)
"""Columns of numbers in a table of scores that say where a pair is and how long, not how it scores."""
SIDE_PREFIX = "probing_"
"""Begins the names of the columns in which dropped rows carry their scores."""


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
    prompt_column: str | None = None,
    chosen_column: str | None = None,
    rejected_column: str | None = None,
    system_column: str | None = None,
    implicit_prompt: bool = False,
) -> Any:
    """The pairs whose scores are low (or high), in their own order and type.

    Args:
        pairs: the pairs that were given to ``score_pairs``: a list, a ``datasets.Dataset`` or a ``pandas.DataFrame``.
        scores: the table that ``score_pairs`` returned; joined by id, so its rows may be in any order.
        by: score column. Of similarities keep the lowest: higher means more alike. Of rates keep the highest.
        keep_lowest: share of the scored pairs to keep. Give exactly one of the six rules.
        drop_highest: share of the scored pairs to drop.
        below: keep scores strictly below this.
        keep_highest: share of the scored pairs to keep.
        drop_lowest: share of the scored pairs to drop.
        above: keep scores strictly above this.
        bad: whether pairs without a score are kept, dropped, or refused.
        prompt_column: column of the prompts; this and the next ones as they were given to ``score_pairs``.
        chosen_column: column of the chosen responses.
        rejected_column: column of the rejected responses.
        system_column: column of the system prompts.
        implicit_prompt: whether the prompt of plain responses without one is what both begin with.

    Returns:
        The same kind of thing as ``pairs``.

    Raises:
        ValueError: no rule or several, an unknown column, or another word for ``bad``.
        TypeError: pairs that can only be read once (a generator, an ``IterableDataset``), or a ``DatasetDict``.
        DataInvalid: pairs without a score, and ``bad`` is "fail".
        SourceMismatch: ids of ``pairs`` and ``scores`` differ.
    """
    from probing.instruments.pair_scores import as_pairs

    given = (keep_lowest, drop_highest, below, keep_highest, drop_lowest, above)
    rule = dict(zip(RULES, given, strict=True))
    warn_of_direction(by, check_rule(**rule)[0])
    check_bad(bad)
    check_kind(pairs)
    columns = PairColumns(prompt_column, chosen_column, rejected_column, system_column, implicit_prompt)
    kept = choose_kept([pair.id for pair in as_pairs(pairs, columns)], scores, by, bad, rule)
    return take_rows(pairs, [index for index, keep in enumerate(kept) if keep])


def check_bad(bad: str) -> None:
    """Raise ``ValueError`` unless this says what becomes of pairs without a score."""
    if bad not in get_args(Bad):
        raise ValueError(f"bad must be one of {', '.join(get_args(Bad))}, not {bad!r}")


def check_kind(pairs: Any) -> None:
    """Raise ``TypeError`` unless rows can be read from this more than once, and taken from it by their numbers."""
    found = type(pairs).__name__
    if isinstance(pairs, str | Mapping):
        advice = "read the file first" if isinstance(pairs, str) else "name one of its splits, as in dataset['train']"
        raise TypeError(f"pairs must be a list, a Dataset or a DataFrame, not a {found}; {advice}")
    if not hasattr(pairs, "__len__") or not hasattr(pairs, "__getitem__"):
        why = ", which is read once" if hasattr(pairs, "__iter__") else ""
        raise TypeError(f"pairs must be a list, a Dataset or a DataFrame, not {found}{why}")


def take_rows(pairs: Any, indices: Sequence[int]) -> Any:
    """Some of the rows, in the order given, as the same kind of thing; a list of anything but tables."""
    if hasattr(pairs, "iloc"):
        return pairs.iloc[indices]
    return pairs.select(indices) if hasattr(pairs, "select") else [pairs[index] for index in indices]


def warn_of_direction(by: str, rule: str) -> None:
    """Warn where the rule keeps just the pairs that the score warns of."""
    keeps_lowest = rule in ("keep_lowest", "drop_highest", "below")
    if by == "influence" and keeps_lowest:
        log.warning("%s with %s keeps the pairs that lower the target most", by, rule)
    elif (by in KEEP_HIGHEST and keeps_lowest) or (by in KEEP_LOWEST and not keeps_lowest):
        kept = "are most alike, and so lose" if by in SCORE_COLUMNS else "lose"
        log.warning("%s with %s keeps the pairs whose chosen responses %s most", by, rule, kept)


def choose_kept(
    ids: Sequence[str],
    frame: "pd.DataFrame",
    by: str,
    bad: Bad,
    rule: Mapping[str, float | None],
    table: Table | None = None,
) -> list[bool]:
    """Whether to keep each id, in order."""
    places = find_scores(ids, frame, by)
    status, scores = frame["status"].to_numpy()[places], frame[by].to_numpy(dtype=np.float64)[places]
    kept: list[bool] = choose_by_scores(ids, status, scores, bad, rule, table).tolist()
    return kept


def choose_by_scores(
    ids: Sequence[str],
    status: Any,
    scores: NDArray[np.float64],
    bad: Bad,
    rule: Mapping[str, float | None],
    table: Table | None = None,
) -> NDArray[np.bool_]:
    """Whether to keep each pair, by its status and its score.

    Args:
        ids: ids of the pairs, all different.
        status: status of each pair, an array or a ``pandas.Categorical``.
        scores: score of each pair; any value where the status is not "ok", [pair].
        bad: what becomes of pairs without a score.
        rule: see ``make_keep_mask``.
        table: the pairs' dataset, for messages.

    Raises:
        DataInvalid: pairs without a score, and ``bad`` is "fail".
        UsageError: the rule cannot be applied, or keeps no pair.
    """
    good = np.flatnonzero(status == "ok")
    if len(good) < len(ids) and bad == "fail":
        bad_rows = describe_bad_rows(ids, status, table)
        raise DataInvalid(f"{bad_rows}. Say what to do with them: --bad keep or --bad drop")
    keep = np.full(len(ids), bad == "keep")
    try:
        # Ids that are on the disk stay there.
        known = LazySequence(len(good), lambda number: ids[good[number]])
        keep[good] = make_keep_mask(known, scores[good], **rule)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not keep.any():
        raise UsageError(f"no pair of {len(ids)} would be kept; nothing was written. Choose a wider rule")
    return keep


def list_score_columns(frame: "pd.DataFrame") -> list[str]:
    """The columns of a table of pairs that pairs can be filtered by."""
    return [str(name) for name in frame.select_dtypes("number").columns if name not in NO_SCORES]


def find_scores(ids: Sequence[str], frame: "pd.DataFrame", by: str) -> NDArray[np.int64]:
    """The row of a table of scores that each id has.

    Raises:
        UsageError: there is no such column of scores.
        SourceMismatch: ids are not the same ones, or one has two rows.
    """
    check_score_column(frame, by)
    return find_places(ids, frame)


def check_score_column(frame: "pd.DataFrame", by: str) -> None:
    """Raise ``UsageError`` unless a table of pairs has a column of scores with this name."""
    known = list_score_columns(frame)
    if by not in known:
        raise UsageError(f"there is no score column '{by}'; there are {', '.join(known)}")


def find_places(ids: Sequence[str], frame: "pd.DataFrame") -> NDArray[np.int64]:
    """The row of a table of pairs that each id has.

    Raises:
        SourceMismatch: ids are not the same ones, or one has two rows.
    """
    if frame["id"].duplicated().any():
        raise SourceMismatch(f"the scores hold the id '{frame['id'][frame['id'].duplicated()].iloc[0]}' twice")
    at = {identity: row for row, identity in enumerate(frame["id"])}
    unscored = [identity for identity in ids if identity not in at]
    unknown = at.keys() - ids if unscored or len(ids) != len(at) else ()
    if unscored or unknown:
        raise SourceMismatch(
            f"pairs and scores do not belong together: {len(unscored)} pairs have no score, {len(unknown)} scores "
            f"no pair (for instance '{min(unscored or unknown)}')"
        )
    return np.fromiter((at[identity] for identity in ids), np.int64, len(ids))


def describe_bad_rows(ids: Sequence[str], status: Any, table: Table | None = None) -> str:
    """What is wrong with the pairs that have no score, in words."""
    bad = [index for index, word in enumerate(status) if word != "ok"]
    counted = Counter(status[index] for index in bad)
    summary = ", ".join(f"{count} {name}" for name, count in sorted(counted.items()))
    shown = "; ".join(
        (f"{table.where(index)} " if table else "") + f"(id '{ids[index]}'): {status[index]}" for index in bad[:3]
    )
    return f"{len(bad)} of {len(ids)} pairs have no score that can be trusted ({summary}); first: {shown}"
