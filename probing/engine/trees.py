"""Which tokens are run: rows that begin alike as one tree, their beginning once, in batches that fill a budget."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_PACKED = 16
"""A batch of fewer tokens is filled up: matrix products of a few rows round differently from those of many."""
LEAST_SHARED = 8
"""A common beginning shorter than this is not worth a second piece of attention."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A token sequence and the positions whose states count: ``start .. stop - 1``.

    Attributes:
        ids: token ids; those from ``stop`` on are not run where no state that counts can see them.
        start: first position that counts.
        stop: one past the last position that counts.
        prompt: number of leading tokens that make the prompt; rows with the same prompt may be run as one tree.
    """

    ids: Sequence[int]
    start: int
    stop: int
    prompt: int = 0


@dataclass(frozen=True, slots=True)
class Tree:
    """Rows that begin with the same tokens.

    Attributes:
        rows: numbers of the rows.
        shared: leading tokens that are run once for all of them.
        tokens: number of tokens that are run in all.
    """

    rows: tuple[int, ...]
    shared: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Path:
    """A run of packed tokens, and what it attends to besides itself.

    Attributes:
        start: first packed token of the run.
        stop: one past the last packed token of the run.
        before: the packed tokens that it continues, as (start, stop); equal where it begins a sequence.
    """

    start: int
    stop: int
    before: tuple[int, int]

    @property
    def offset(self) -> int:
        """Position of its first token in its own sequence."""
        return self.before[1] - self.before[0]


@dataclass(frozen=True, eq=False)
class Batch:
    """Token ids of one pass, and where the states of each row come to lie in it.

    Attributes:
        rows: numbers of the rows, in the order of everything below.
        ids: [sequence token]; one packed sequence where ``paths`` are given.
        positions: [1 token] of a packed sequence; None where the model counts by itself.
        paths: paths of a packed sequence.
        early: packed tokens of each row's shared part that count, as (start, stop).
        late: packed tokens of each row's own part that count, as (start, stop).
    """

    rows: tuple[int, ...]
    ids: Tensor
    positions: Tensor | None
    paths: tuple[Path, ...]
    early: tuple[tuple[int, int], ...]
    late: tuple[tuple[int, int], ...]


def plant(segments: Sequence[Segment], lengths: Sequence[int], sharing: bool) -> list[Tree]:
    """Rows as trees, largest first: rows with the same prompt together if ``sharing``, otherwise each row alone.

    The whole prompt is shared, and a row that shares it with no other is computed in the same two steps, so that not
    even the last bits of a row depend on the other rows.

    Args:
        segments: the rows.
        lengths: number of tokens of each row that are run (or, where a row runs alone, that it is padded to).
        sharing: whether rows may share their prompts.
    """
    groups: dict[object, list[int]] = defaultdict(list)
    for row, segment in enumerate(segments):
        apart = not sharing or not LEAST_SHARED <= segment.prompt < lengths[row]
        groups[row if apart else tuple(segment.ids[: segment.prompt])].append(row)
    trees = []
    for key, rows in groups.items():
        trees.append(_tree(rows, len(key) if isinstance(key, tuple) else 0, lengths))
    return sorted(trees, key=lambda tree: -tree.tokens)


def _tree(rows: Sequence[int], shared: int, lengths: Sequence[int]) -> Tree:
    return Tree(tuple(rows), shared, shared + sum(lengths[row] - shared for row in rows))


def split_tree(tree: Tree, lengths: Sequence[int]) -> list[Tree]:
    """The same rows as two trees, each with what they share."""
    middle = len(tree.rows) // 2
    return [_tree(rows, tree.shared, lengths) for rows in (tree.rows[:middle], tree.rows[middle:])]


def count_fitting(trees: Sequence[Tree], budget: int, alike: bool) -> int:
    """The number of trees from the front that fit the budget together; at least one.

    Args:
        trees: trees in the order in which they are run.
        budget: tokens.
        alike: whether only trees of the same size may go together, because they are stacked and not packed.
    """
    tokens, count = trees[0].tokens, 1
    while count < len(trees) and tokens + trees[count].tokens <= budget:
        if alike and trees[count].tokens != trees[0].tokens:
            break
        tokens += trees[count].tokens
        count += 1
    return count


def stack_rows(trees: Sequence[Tree], segments: Sequence[Segment], causal: bool) -> Batch:
    """Rows of one length under each other, [row token].

    A shorter row is filled up with a token of its own: attention multiplies even masked values, by zero, and a pad
    whose state is NaN would spoil the whole row.

    Args:
        trees: trees of the same size, one row each.
        segments: all rows.
        causal: whether tokens after the last that counts can be left out.
    """
    rows = [row for tree in trees for row in tree.rows]
    length = trees[0].tokens
    ids = torch.empty((len(rows), length), dtype=torch.long)
    late = []
    for at, row in enumerate(rows):
        segment = segments[row]
        own = segment.ids[: segment.stop] if causal else segment.ids
        ids[at, : len(own)] = torch.tensor(own)
        ids[at, len(own) :] = own[-1]
        late.append((at * length + segment.start, at * length + segment.stop))
    return Batch(tuple(rows), ids, None, (), ((0, 0),) * len(rows), tuple(late))


def pack_trees(trees: Sequence[Tree], segments: Sequence[Segment], lengths: Sequence[int]) -> Batch:
    """Trees one after the other in a single sequence: what is shared, then each row's own tokens."""
    ids: list[int] = []
    positions: list[int] = []
    paths, early, late, rows = [], [], [], []

    def append(tokens: Sequence[int], offset: int, before: tuple[int, int]) -> int:
        start = len(ids)
        ids.extend(tokens)
        positions.extend(range(offset, offset + len(tokens)))
        paths.append(Path(start, len(ids), before))
        return start

    for tree in trees:
        root = append(segments[tree.rows[0]].ids[: tree.shared], 0, (0, 0)) if tree.shared else 0
        for row in tree.rows:
            segment = segments[row]
            start = append(segment.ids[tree.shared : lengths[row]], tree.shared, (root, root + tree.shared))
            low, high = min(segment.start, tree.shared), min(segment.stop, tree.shared)
            early.append((root + low, root + high))
            low, high = max(segment.start, tree.shared), max(segment.stop, tree.shared)
            late.append((start + low - tree.shared, start + high - tree.shared))
            rows.append(row)
    if len(ids) < LEAST_PACKED:
        append(ids[:1] * (LEAST_PACKED - len(ids)), 0, (0, 0))
    return Batch(tuple(rows), torch.tensor([ids]), torch.tensor([positions]), tuple(paths), tuple(early), tuple(late))
