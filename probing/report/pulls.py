"""Which tokens pull most: tables of a file with a row a token, however large it is."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from probing.report.layout import shorten
from probing.report.tables import ID_WIDTH, to_line

LISTED_TOKENS = 10
"""Tokens that are summed over the dataset."""
LISTED_PLACES = 5
"""Tokens that are shown where they stand."""
TOKEN_WIDTH = 16
BEFORE, AFTER = 12, 4
"""Tokens of the context on either side."""
BEFORE_WIDTH = 24
BATCH_ROWS = 1 << 18


def pull_tables(tokens: Path, of: str = "ln p(chosen)") -> dict[str, pd.DataFrame]:
    """The tokens with the largest sums of pulls, and the single tokens with the largest pulls, in their context.

    Args:
        tokens: file with a row a token: id, position, token_id, token, pull.
        of: what the pulls are on, for the titles.
    """
    sums, single = [], []
    for batch in _read_batches(tokens):
        sums.append(_sum_up(batch))
        single.append(_find_largest(batch))
    return {
        f"Tokens that pull most, summed over the dataset (above 0: lowering the token lowers {of})": _list_most(sums),
        f"Single tokens that pull most (above 0: lowering the token lowers {of})": _show_places(tokens, single),
    }


def _read_batches(tokens: Path) -> Iterator[pd.DataFrame]:
    with pq.ParquetFile(tokens) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            yield batch.to_pandas()


def _find_largest(rows: pd.DataFrame) -> pd.DataFrame:
    ordered = rows.sort_values(["pull", "id", "position"], ascending=[False, True, True])
    return ordered[ordered["pull"] > 0].head(LISTED_PLACES)


def list_pulling_tokens(rows: pd.DataFrame) -> pd.DataFrame:
    """The tokens with the largest sums of pulls, of a frame with a row a token."""
    return _list_most([_sum_up(rows)])


def _sum_up(rows: pd.DataFrame) -> pd.DataFrame:
    by_token = rows.groupby("token_id", as_index=False)
    return by_token.agg(token=("token", "first"), times=("pull", "size"), total=("pull", "sum"))


def _list_most(parts: list[pd.DataFrame]) -> pd.DataFrame:
    joined = pd.concat([pd.DataFrame(columns=["token_id", "token", "times", "total"]), *parts], ignore_index=True)
    whole = joined.groupby("token_id", as_index=False).agg(
        token=("token", "first"), times=("times", "sum"), total=("total", "sum")
    )
    most = whole[whole["total"] > 0].sort_values(["total", "token_id"], ascending=[False, True]).head(LISTED_TOKENS)
    return pd.DataFrame(
        {
            "token": [_spell(token) for token in most["token"]],
            "times": most["times"].astype("int64"),
            "sum of pulls": most["total"].astype("float64"),
            "mean pull": (most["total"] / most["times"]).astype("float64"),
        }
    )


def _show_places(tokens: Path, parts: list[pd.DataFrame]) -> pd.DataFrame:
    columns = ["pull", "id", "position", "context"]
    most = _find_largest(pd.concat(parts, ignore_index=True)) if parts else pd.DataFrame()
    if most.empty:
        return pd.DataFrame(columns=columns)
    near = pq.read_table(tokens, filters=[("id", "in", sorted(set(most["id"])))]).to_pandas()
    contexts = [
        _write_context(near[near["id"] == identity].sort_values("position")["token"].tolist(), int(position))
        for identity, position in zip(most["id"], most["position"], strict=True)
    ]
    shown = [shorten(to_line(identity), ID_WIDTH) for identity in most["id"]]
    return most.assign(id=shown, context=contexts)[columns]


def _write_context(response: list[str], position: int) -> str:
    """The tokens around one of a response, which stands in brackets."""
    before = to_line("".join(response[max(position - BEFORE, 0) : position]))
    after = "".join(response[position + 1 : position + 1 + AFTER])
    return to_line(f"{shorten(before, BEFORE_WIDTH, end=True)}[{response[position]}]{after}")


def _spell(token: str) -> str:
    return shorten(repr(token), TOKEN_WIDTH)
