"""Rows of preference pairs on a page: the tables of all runs of the same pairs, joined by id, with texts and tokens."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from probing.report.pair_titles import TITLES
from probing.report.parts import TEXTS, PulledTokens, RowColumn, RowTable, RunData, Tokens

SCORES, CHANGES, TOKENS = "scores.parquet", "displacement.parquet", "tokens.parquet"
INFLUENCES = "influence.parquet"
PAIR_FILES: Mapping[str, str] = {"score": SCORES, "displacement": CHANGES, "influence": INFLUENCES}
"""The table with a row a pair, by command."""
FIRST = ("chosen_change", "ches_normalized", "influence", "joint_rate")
"""Columns by which rows are sorted at first, the first of them that there is."""
LOST = 0.1
"""Nats that a token must have lost for the tokens that gained in its place to be shown."""
SHOWN_GAIN = 0.005
"""Probability that a token must have gained to be shown."""


@dataclass(frozen=True)
class JoinedPairs:
    """Pairs of several runs in one table.

    Attributes:
        table: the rows.
        names: names of the columns of the table, by run and by column of its file.
    """

    table: RowTable
    names: Mapping[tuple[str, str], str]


def join_pairs(runs: Sequence[RunData], name: str) -> JoinedPairs:
    """The pairs of all runs in one table, a column for every number of every run.

    Args:
        runs: runs of "probing score", "displacement" and "influence" of the same pairs; at least one.
        name: name of the table for links.
    """
    frames = {run.label: run.files[PAIR_FILES[run.command]].set_index("id") for run in runs}
    ids = next(iter(frames.values())).index.tolist()
    ordered = {label: frame.reindex(ids) for label, frame in frames.items()}
    names = _name_columns(ordered)
    columns = [
        RowColumn(column, _title(own, column, label), _plain(ordered[label][own]), _kind(ordered[label][own]))
        for (label, own), column in _drop_repeats(names)
    ]
    texts = next((run.texts for run in runs if run.texts), {})
    groups = next((run.groups for run in runs if run.groups), {})
    if groups:
        columns.append(RowColumn("group", TITLES["group"], [groups.get(identity, "") for identity in ids], "text"))
    table = RowTable(
        name=name,
        title=f"All {len(ids):,} pairs",
        ids=ids,
        columns=columns,
        texts={kind: [texts.get(identity, {}).get(kind) for identity in ids] for kind in TEXTS} if texts else {},
        tokens=dict(_read_tokens(runs, ids)),
        first=next((names[label, own] for own in FIRST for label in ordered if (label, own) in names), None),
        about=_describe(runs, bool(texts)),
    )
    return JoinedPairs(table, names)


def _name_columns(frames: Mapping[str, pd.DataFrame]) -> dict[tuple[str, str], str]:
    """Names of all columns: a column that runs have with different values has the label of the run in its name."""
    names = {}
    for label, frame in frames.items():
        for column in map(str, frame.columns):
            others = [other[column] for other in frames.values() if column in other and other is not frame]
            alike = all(frame[column].equals(other) for other in others)
            names[label, column] = column if alike else f"{column} {label}"
    return names


def _drop_repeats(names: Mapping[tuple[str, str], str]) -> Iterator[tuple[tuple[str, str], str]]:
    """The columns by their names, each name once."""
    seen = set()
    for key, name in names.items():
        if name not in seen:
            seen.add(name)
            yield key, name


def _title(own: str, name: str, label: str) -> str:
    return TITLES.get(own, own) + (f" ({label})" if name != own else "")


def _plain(values: "pd.Series[Any]") -> list[Any]:
    """The values as Python has them, and None for those that are missing among flags and texts."""
    if pd.api.types.is_float_dtype(values):
        return list(values.tolist())
    return [None if missing else value for value, missing in zip(values.tolist(), values.isna(), strict=True)]


def _kind(values: "pd.Series[Any]") -> Literal["number", "flag", "text"]:
    if pd.api.types.is_bool_dtype(values) or set(map(type, values.dropna())) == {bool}:
        return "flag"
    return "number" if pd.api.types.is_numeric_dtype(values) else "text"


def _read_tokens(runs: Sequence[RunData], ids: Sequence[str]) -> Iterator[tuple[str, Tokens | PulledTokens]]:
    """The tokens of both responses of every comparison that has them, and of the rejected one those with pulls."""
    with_tokens = [run for run in runs if TOKENS in run.files]
    for run in with_tokens:
        frame = run.files[TOKENS]
        if run.command == "score":
            yield f"rejected, {run.label}" if len(with_tokens) > 1 else "rejected", take_pulls(frame, ids)
            continue
        numbers = frame["id"].map({identity: number for number, identity in enumerate(ids)})
        for side in ("chosen", "rejected"):
            own = frame.assign(pair=numbers)[(frame["side"] == side) & numbers.notna()]
            own = own.sort_values(["pair", "position"], kind="stable")
            name = f"{side}, {run.label}" if len(with_tokens) > 1 else side
            yield name, _take_tokens(own, len(ids))


def take_pulls(frame: pd.DataFrame, ids: Sequence[str]) -> PulledTokens:
    """The tokens of a table of pulls, response after response in the order of these ids."""
    numbers = frame["id"].map({identity: number for number, identity in enumerate(ids)})
    own = frame.assign(row=numbers)[numbers.notna()].sort_values(["row", "position"], kind="stable")
    counts = np.bincount(own["row"].to_numpy(dtype=np.int64), minlength=len(ids))
    return PulledTokens([0, *np.cumsum(counts).tolist()], own["token"].tolist(), own["pull"].tolist())


def _take_tokens(rows: pd.DataFrame, pairs: int) -> Tokens:
    counts = np.bincount(rows["pair"].to_numpy(dtype=np.int64), minlength=pairs)
    before, after = (rows[f"logprob_{time}"].tolist() for time in ("before", "after"))
    lists = zip(*(rows[name] for name in ("gained", "gained_before", "gained_after")), strict=True)
    gained = [
        _take_gained(*each) if old - new >= LOST else () for each, old, new in zip(lists, before, after, strict=True)
    ]
    return Tokens([0, *np.cumsum(counts).tolist()], rows["token"].tolist(), before, after, gained)


def _take_gained(
    tokens: Sequence[str], before: Sequence[float], after: Sequence[float]
) -> list[tuple[str, float, float]]:
    each = zip(tokens, before, after, strict=True)
    return [(token, float(old), float(new)) for token, old, new in each if new - old >= SHOWN_GAIN]


def _describe(runs: Sequence[RunData], texts: bool) -> str:
    labels = " and ".join(run.label for run in runs)
    said = f"One row for each pair of the dataset, with the numbers of {labels}."
    if not texts:
        said += " The texts are not shown: the dataset cannot be read where the run found it; name it with --data."
    if any(TOKENS in run.files and run.command == "displacement" for run in runs):
        said += (
            f" Tokens that gained probability are listed where the token of the response lost more than {LOST:g} nats."
        )
    return said
