"""Tables with a row a token, written shard by shard beside those of the rows, and joined from their files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from probing.store.shards import read_shard, shard_path, stream_shards, write_shard

if TYPE_CHECKING:
    from probing.runs.common.parts import Shard

TOKENS_FILE = "tokens.parquet"
PREFIX = "tokens_"
WithTokens = tuple["Shard", pa.Table | None]
"""A shard, and the table of the tokens of its rows, where one is made."""
JoinTokens = Callable[[Path], list[str]]
"""Joins the tokens of all shards into one file in a folder; returns the names of the files."""


@dataclass(frozen=True)
class TokenShards:
    """The token tables of the shards of a run.

    Attributes:
        folder: folder of the shards.
        schema: columns of the tables.
        wanted: whether the run writes them at all; if not, every method does nothing.
    """

    folder: Path
    schema: pa.Schema
    wanted: bool = True

    def write(self, number: int, tokens: pa.Table | None) -> None:
        """Write the tokens of a shard; before the shard itself, so that a whole shard has its tokens."""
        if self.wanted and tokens is not None:
            write_shard(self._path(number), tokens, {})

    def keep(self, number: int, made: WithTokens) -> "Shard":
        """Write the tokens of a shard that was made with them; answers the shard."""
        shard, tokens = made
        self.write(number, tokens)
        return shard

    def is_whole(self, number: int) -> bool:
        """Whether the tokens of a shard are there and intact."""
        return not self.wanted or read_shard(self._path(number), self.schema) is not None

    def joiner(self, count: int) -> JoinTokens:
        """What joins the tokens of so many shards; raises ``StoreCorrupt`` where a part is damaged."""
        paths = [self._path(number) for number in range(count)]

        def join(folder: Path) -> list[str]:
            if not self.wanted:
                return []
            stream_shards(paths, self.schema, folder / TOKENS_FILE)
            return [TOKENS_FILE]

        return join

    def _path(self, number: int) -> Path:
        return shard_path(self.folder, number, PREFIX)
