"""Parts of a job, each saved when it is made, and known again after a restart: one loop for all jobs."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import pandas as pd
import pyarrow as pa

from probing.data.lazy import pick
from probing.data.pairs import LazyPairs, content_sha256
from probing.data.tables import Table
from probing.errors import StoreCorrupt
from probing.instruments.problems import LISTED_PROBLEMS
from probing.ranks import current_ranks, deal_out
from probing.report.progress import Progress
from probing.runs.common.budget import KeptBudget, RecordedBudget
from probing.runs.common.makers import Block, Made, MadeElsewhere, Maker
from probing.store.manifest import RunFolder
from probing.store.progress import Worker, add_counts
from probing.store.shards import count_statuses, read_shard, shard_path, write_shard
from probing.types import PreferencePair, Problem

Part = TypeVar("Part")
TOLD_SECONDS = 0.5
"""How often the processes that do not lead tell what they have done."""


def complete_parts(
    known: Sequence[Part | None],
    make: Maker[Made] | MadeElsewhere[Made],
    write: Callable[[int, Made], Part],
    bar: Progress,
    adopt: Callable[[Part], None] = lambda part: None,
    spread: "Spread[Part] | None" = None,
) -> list[Part]:
    """Complete all parts of a job: read those of an earlier run, and make the others.

    Where the command was launched in several processes, each makes its share of those that are missing; or all of them
    make the same, where they hold one model together, and the first writes.

    When this ends, even by an error or an interrupt, the threads of the maker end; the parts before are written.

    Args:
        known: the parts that are there and whole; None for one that has to be made.
        make: makes the missing ones, as ``make_one_after_another``, ``make_with_next_prepared`` and
            ``make_several_at_once`` return it; or tells where they are made.
        write: writes a part that was made, and answers what is remembered of it.
        bar: shows how far it is.
        adopt: told of every part, old or new, before the next one is made.
        spread: how processes share the work; None where the one that leads has to make all parts.
    """
    if isinstance(make, MadeElsewhere):
        return _complete_as_they_come(known, make, write, bar)
    if spread is not None and current_ranks().share_model:
        known, write = _follow_leader(known, write, spread)
    elif spread is not None and current_ranks().size > 1:
        return _complete_together(known, make, write, bar, adopt, spread)
    missing = [number for number, part in enumerate(known) if part is None]
    parts = []
    with bar, closing(make(missing, bar.advance)) as made:
        for number, part in enumerate(known):
            whole = part if part is not None else write(number, next(made))
            adopt(whole)
            bar.count(_count_statuses(whole), earlier=part is not None)
            parts.append(whole)
    return parts


def _complete_as_they_come(
    known: Sequence[Part | None], make: MadeElsewhere[Made], write: Callable[[int, Made], Part], bar: Progress
) -> list[Part]:
    """Write the parts that other processes make, in the order in which they are done.

    Raises:
        StoreCorrupt: a part did not come.
    """
    parts = dict(enumerate(known))
    bar.leave_to_others()
    for earlier in known:
        if earlier is not None:
            bar.count(_count_statuses(earlier), earlier=True)
    statuses: dict[int, dict[str, int]] = {}
    with bar, closing(make.receive()) as made:
        for part in made:
            parts[part.number] = whole = write(part.number, part.made)
            statuses[part.rank] = add_counts(statuses.get(part.rank, {}), _count_statuses(whole))
            bar.hear({part.rank: replace(part.worker, statuses=statuses[part.rank])})
    missing = [number for number, part in parts.items() if part is None]
    if missing:
        raise StoreCorrupt(f"{len(missing)} parts of the run were not made; run the same command again")
    return [part for part in parts.values() if part is not None]


def _count_statuses(part: object) -> dict[str, int]:
    """Number of rows of each status in a part; none where its rows have no status."""
    return part.statuses if isinstance(part, Shard) else {}


@dataclass(frozen=True)
class Spread(Generic[Part]):
    """How several processes share the parts of a job.

    Attributes:
        find: reads a part that another process wrote; None if it is not there.
        weights: of every part: about how much work it is.
    """

    find: Callable[[int], Part | None]
    weights: Callable[[], Sequence[float]]


def _follow_leader(
    known: Sequence[Part | None], write: Callable[[int, Made], Part], spread: Spread[Part]
) -> tuple[list[Part | None], Callable[[int, Made], Part]]:
    """What ``complete_parts`` gets in each of several processes that make the same parts.

    Returns:
        The parts that are there for the leader, and a function with which the leader writes a part, and the others wait
        for that and read it.

    Raises:
        StoreCorrupt: a part is there for the leader and not for this process.
    """
    ranks = current_ranks()

    def find(number: int) -> Part:
        part = spread.find(number)
        if part is None:
            raise StoreCorrupt(
                f"part {number} of the run is not there for process {ranks.rank} of the launch; all processes have to "
                f"see the output folder under the same path"
            )
        return part

    def write_once(number: int, made: Made) -> Part:
        part = write(number, made) if ranks.leads else None
        ranks.wait_for_leader()
        return find(number) if part is None else part

    there = ranks.share(lambda: [part is not None for part in known])
    agreed = [(find(number) if part is None else part) if there[number] else None for number, part in enumerate(known)]
    # Nobody looks for parts after the leader has gone on.
    ranks.gather()
    return agreed, write_once


def _complete_together(
    known: Sequence[Part | None],
    make: Maker[Made],
    write: Callable[[int, Made], Part],
    bar: Progress,
    adopt: Callable[[Part], None],
    spread: Spread[Part],
) -> list[Part]:
    """Make the share of this process, wait for the others, and read what they wrote.

    Raises:
        StoreCorrupt: a part is missing after all.
    """
    ranks = current_ranks()

    def deal() -> list[list[int]]:
        missing, weights = [number for number, part in enumerate(known) if part is None], spread.weights()
        hands = deal_out([weights[number] for number in missing], ranks.size)
        return [[missing[at] for at in hand] for hand in hands]

    own = ranks.share(deal)[ranks.rank]
    for part in known:
        if part is not None:
            adopt(part)
            bar.count(_count_statuses(part), earlier=True)
    shared = SharedBar(bar)
    with bar, closing(make(own, shared.advance)) as made:
        for number in own:
            whole = write(number, next(made))
            adopt(whole)
            bar.count(_count_statuses(whole))
        shared.flush()
        ranks.gather(shared.flush)
        shared.flush()
    parts = [spread.find(number) for number in range(len(known))]
    if any(part is None for part in parts):
        raise StoreCorrupt("a part of the run that another process wrote is not there; run the same command again")
    return [part for part in parts if part is not None]


class SharedBar:
    """A progress bar of the process that leads, which shows what all do.

    Args:
        bar: the bar; the others show none.
    """

    def __init__(self, bar: Progress) -> None:
        self._bar, self._ranks = bar, current_ranks()
        self._topic, self._told = self._ranks.open_topic(), time.monotonic()

    def advance(self, rows: float, tokens: int) -> None:
        """Count rows and tokens that this process has done."""
        self._bar.advance(rows, tokens)
        if time.monotonic() - self._told >= TOLD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Tell the leader what this process has done, or hear it of the others and show it."""
        self._told = time.monotonic()
        if self._ranks.leads:
            told = self._ranks.hear(self._topic)
            self._bar.hear({rank: Worker(**facts) for rank, facts in told.items()})
        else:
            self._ranks.tell(self._topic, asdict(self._bar.own))


@dataclass(frozen=True)
class Shard:
    """Some rows, and the facts of how they were made."""

    rows: pa.Table
    facts: dict[str, Any]

    @property
    def statuses(self) -> dict[str, int]:
        """Number of rows of each status; see ``count_statuses``."""
        return count_statuses(self.rows)


class StoredShard(Shard):
    """A shard whose rows are read when they are asked for, and not kept in memory.

    Args:
        read: reads the rows.
        facts: facts of their making.
        statuses: number of rows of each status; None where they are counted when they are asked for.
    """

    def __init__(
        self, read: Callable[[], pa.Table], facts: dict[str, Any], statuses: dict[str, int] | None = None
    ) -> None:
        self.__dict__.update(_read=read, facts=facts, _statuses=statuses)

    @classmethod
    def of(cls, shard: Shard, path: Path) -> "StoredShard":
        """A shard that is written there; reading its rows raises ``StoreCorrupt`` if that was damaged since."""
        schema = shard.rows.schema

        def read() -> pa.Table:
            found = read_shard(path, schema)
            if found is None:
                raise StoreCorrupt(f"{path}: gone or damaged; run the same command again")
            return found[0]

        return cls(read, shard.facts, shard.statuses)

    @property
    def rows(self) -> pa.Table:
        """The rows."""
        return self.__dict__["_read"]()

    @property
    def statuses(self) -> dict[str, int]:
        """Number of rows of each status."""
        known: dict[str, int] | None = self.__dict__["_statuses"]
        return super().statuses if known is None else known


def find_shard(path: Path, schema: pa.Schema, columns: Mapping[str, Sequence[object]]) -> Shard | None:
    """A shard that an earlier run wrote; None unless it is whole and has these values in these columns."""
    read = read_shard(path, schema)
    if read is None or any(read[0][name].to_pylist() != list(values) for name, values in columns.items()):
        return None
    return Shard(*read)


class WithId(Protocol):
    """A row of a dataset that is told from others by its id."""

    @property
    def id(self) -> str:
        """The id."""


OneRow = TypeVar("OneRow", bound=WithId)


@dataclass(frozen=True)
class Blocks(Generic[OneRow]):
    """Rows of a table, cut into blocks.

    Attributes:
        table: the table.
        rows: one a row of the table.
        size: number of rows in a block.
    """

    table: Table
    rows: Sequence[OneRow]
    size: int

    @cached_property
    def blocks(self) -> list[range]:
        """Indices of the rows that make one part; where there are no rows, one part without any has the columns."""
        every = range(len(self.rows))
        return [every[start : start + self.size] for start in range(0, len(every), self.size)] or [every]

    @property
    def weights(self) -> list[float]:
        """About how much work each block is; see ``weigh_rows``."""
        return weigh_rows(self.of(block) for block in self.blocks)

    def of(self, block: range) -> list[OneRow]:
        """The rows of one block."""
        return list(self.pick(block))

    def pick(self, block: range) -> Sequence[OneRow]:
        """The same, made when they are asked for where all rows are."""
        return pick(self.rows, block)

    def where(self, block: range) -> Callable[[int], str]:
        """The name of a row of a block in messages."""
        return lambda row: f"{self.table.where(block[row])} (id '{self.ids[block[row]]}')"

    @cached_property
    def ids(self) -> Sequence[str]:
        """The id of each row."""
        return self.rows.ids if isinstance(self.rows, LazyPairs) else [row.id for row in self.rows]

    def with_places(self, shards: Iterable["Shard"], of: str = "id") -> Iterator[pa.Table]:
        """The rows of all shards with where each comes from: ``row``, and ``file`` where several were read.

        Args:
            shards: of all rows, in their order.
            of: column of the shards with the id of the row of the dataset; a shard may have several rows of one.
        """
        known = enumerate(self.ids)
        index, identity = -1, None
        for shard in shards:
            rows, indices = shard.rows, []
            for name in rows[of].to_pylist():
                while identity != name:
                    index, identity = next(known)
                indices.append(index)
            placed = rows.append_column("row", pa.array(map(self.table.row_of, indices), pa.int64()))
            if self.table.files is not None:
                placed = placed.append_column("file", pa.array(map(self.table.file_of, indices), pa.string()))
            yield placed


@dataclass(frozen=True)
class Dataset(Blocks[PreferencePair]):
    """Pairs of a table, cut into blocks."""

    @property
    def pairs(self) -> Sequence[PreferencePair]:
        """The pairs."""
        return self.rows

    def facts(self) -> dict[str, Any]:
        """Facts of the data for the record."""
        return self.table.facts() | {"rows": len(self.rows), "pairs_sha256": content_sha256(self.rows)}


def list_ids(rows: Sequence[WithId]) -> Mapping[str, Sequence[object]]:
    """The ids of some rows, where a shard has one row for each."""
    return {"id": rows.ids if isinstance(rows, LazyPairs) else [row.id for row in rows]}


@dataclass(frozen=True)
class Shards:
    """Where the shards of a dataset are, and how one is known to be whole.

    Attributes:
        folder: folder of the shards.
        data: dataset that the shards are made from.
        schema: schema of a shard's rows.
        whole: whether the further files of a shard that is there are there as well.
        columns: values that a shard of some rows has in some columns, by which it is known to be of them.
        prefix: prefix of the names of files.
    """

    folder: Path
    data: Blocks[Any]
    schema: pa.Schema
    whole: Callable[[int], bool] = lambda number: True
    columns: Callable[[Sequence[Any]], Mapping[str, Sequence[object]]] = list_ids
    prefix: str = ""

    def path(self, number: int) -> Path:
        """The file of one shard."""
        return shard_path(self.folder, number, self.prefix)

    def find(self, number: int) -> Shard | None:
        """A shard that an earlier run wrote; None if it has to be made."""
        path = self.path(number)
        if not path.is_file():
            return None
        shard = find_shard(path, self.schema, self.columns(self.data.pick(self.data.blocks[number])))
        return StoredShard.of(shard, path) if shard is not None and self.whole(number) else None

    def block(self, number: int) -> Block:
        """The rows of one shard."""
        rows = self.data.blocks[number]
        return Block(number, self.data.of(rows), self.data.where(rows))

    def missing(self, run: RunFolder) -> Iterator[Block]:
        """The rows of every shard that has to be made; of none where the run is finished."""
        numbers = range(0) if run.finished else range(len(self.data.blocks))
        return (self.block(number) for number in numbers if self.find(number) is None)

    def complete(
        self,
        maker: Maker[Made] | MadeElsewhere[Made],
        finish: Callable[[int, Made], Shard],
        *,
        budget: KeptBudget | RecordedBudget | None = None,
        doing: str = "scoring",
    ) -> list[Shard]:
        """Complete all shards: read those of an earlier run, and make the others.

        Args:
            maker: makes the missing ones.
            finish: writes the further files of what was made, and answers its shard.
            budget: token budget, which goes on as it was after each shard.
            doing: label of the progress bar.
        """

        def write(number: int, made: Made) -> Shard:
            shard = finish(number, made)
            write_shard(self.path(number), shard.rows, shard.facts)
            return StoredShard.of(shard, self.path(number))

        def adopt(shard: Shard) -> None:
            if budget is not None:
                budget.adopt(shard.facts)

        blocks = self.data.blocks
        known = [self.find(number) for number in range(len(blocks))]
        done = sum(len(block) for block, shard in zip(blocks, known, strict=True) if shard is not None)
        bar = Progress(len(self.data.rows), done, doing=doing)
        return complete_parts(known, maker, write, bar, adopt, Spread(self.find, lambda: self.data.weights))


def keep_shard(number: int, shard: Shard) -> Shard:
    """The shard itself: for ``Shards.complete`` where a shard is all that is made."""
    return shard


def note_making(
    rows: pa.Table, problems: Sequence[Problem], tokens: int, began: float, batch_tokens: Mapping[str, Any]
) -> Shard:
    """A shard with the facts of its making.

    Args:
        rows: the rows.
        problems: of the rows that have no number.
        tokens: number of tokens that were run.
        began: start of the making, by ``time.monotonic``.
        batch_tokens: facts of the token budget after the making.
    """
    facts = {
        "tokens": tokens,
        "seconds": time.monotonic() - began,
        "batch_tokens": dict(batch_tokens),
        "problems": [asdict(problem) for problem in problems],
    }
    return Shard(rows, facts)


def weigh_rows(blocks: Iterable[Sequence[object]]) -> list[float]:
    """About how much work each block of rows is: the length of its rows, in characters."""
    return [float(sum(len(repr(row)) for row in block)) for block in blocks]


def to_rows(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """A frame as the rows of a shard."""
    return pa.Table.from_pandas(frame, schema=schema, preserve_index=False).replace_schema_metadata(None)


def status_facts(shards: Sequence[Shard], data: Blocks[Any] | None = None) -> dict[str, Any]:
    """Facts of the rows of all shards: the number of each status, and the first problems.

    Args:
        shards: all shards, each of which has ``problems`` among its facts, and where these are only the first ones
            ``problems_in_all``, their number.
        data: the dataset, for the line of a problem; None where it is not told.
    """
    listed = (problem for shard in shards for problem in shard.facts["problems"])
    problems = list(islice(listed, LISTED_PROBLEMS))
    if data is not None and problems:
        wanted = {problem["id"] for problem in problems}
        lines = {id: data.table.place(index) for index, id in enumerate(data.ids) if id in wanted}
        problems = [{**problem, "line": lines[problem["id"]]} for problem in problems]
    statuses = add_counts(*(shard.statuses for shard in shards))
    return {
        "rows_by_status": dict(sorted(statuses.items())),
        "problems": problems,
        "problems_in_all": sum(s.facts.get("problems_in_all", len(s.facts["problems"])) for s in shards),
    }


def pair_facts(shards: Sequence[Shard], data: Blocks[Any]) -> dict[str, Any]:
    """Facts of all shards: rows by status, the first problems with their lines, speed. Args: see ``status_facts``."""
    tokens, seconds = (sum(shard.facts[name] for shard in shards) for name in ("tokens", "seconds"))
    return {
        **status_facts(shards, data),
        "batch_tokens": shards[-1].facts["batch_tokens"],
        "tokens": tokens,
        "scoring_seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
    }
