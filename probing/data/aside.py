"""Values that are put aside on the disk, so that memory does not grow with the number of rows."""

import heapq
import json
import struct
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from operator import itemgetter
from typing import BinaryIO

import numpy as np

from probing.data.lazy import BLOCK, LazySequence, make_in_blocks

RUN_BYTES = 2**23
"""Bytes of keys and contents that are sorted in memory."""
ITEM_BYTES = 160
"""Bytes that Python takes for an item besides its key and its content."""
MOST_RUNS = 64
"""Sorted runs that are merged at once; each is an open file."""
_LENGTHS = struct.Struct("<QQ")
Item = tuple[bytes, bytes]
"""A key to sort by, and the content that belongs to it."""


def keep_aside(texts: Iterable[str]) -> LazySequence[str]:
    """Texts on the disk as a sequence, of which one block at a time is in memory. Their file ends with the sequence."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    ends, count, texts = array("q", [0]), 0, iter(texts)
    try:
        while block := list(islice(texts, BLOCK)):
            # Half of a surrogate pair, which is no UTF-8, is an escape in JSON.
            file.write(json.dumps(block).encode())
            ends.append(file.tell())
            count += len(block)
    except BaseException:
        file.close()
        raise

    def read(start: int, stop: int) -> list[str]:
        block = start // BLOCK
        file.seek(ends[block])
        read: list[str] = json.loads(file.read(ends[block + 1] - ends[block]))
        return read

    kept = make_in_blocks(count, read)
    weakref.finalize(kept, file.close)
    return kept


def sort_aside(items: Iterable[Item]) -> Iterator[Item]:
    """Items in the order of their keys, equal keys as they came; sorted on the disk if they are many."""
    runs: list[BinaryIO] = []
    batch: list[Item] = []
    size = 0
    with ExitStack() as held:
        for item in items:
            batch.append(item)
            size += len(item[0]) + len(item[1]) + ITEM_BYTES
            if size >= RUN_BYTES:
                runs.append(_write_run(sorted(batch, key=itemgetter(0)), held))
                batch, size = [], 0
            if len(runs) == MOST_RUNS:
                runs = [_write_run(_merge(runs), held)]
        batch.sort(key=itemgetter(0))
        yield from heapq.merge(*map(_read_run, runs), batch, key=itemgetter(0))


def _merge(runs: Sequence[BinaryIO]) -> Iterator[Item]:
    yield from heapq.merge(*map(_read_run, runs), key=itemgetter(0))
    for run in runs:
        run.close()


def _write_run(items: Iterable[Item], held: ExitStack) -> BinaryIO:
    """Items in their order as a file, which the stack closes."""
    file: BinaryIO = held.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    for key, content in items:
        file.write(_LENGTHS.pack(len(key), len(content)) + key + content)
    return file


def _read_run(file: BinaryIO) -> Iterator[Item]:
    file.seek(0)
    while lengths := file.read(_LENGTHS.size):
        key, content = _LENGTHS.unpack(lengths)
        yield file.read(key), file.read(content)


def find_repeated(values: Sequence[str]) -> tuple[int, int] | None:
    """The first value that was there before: the number of the earlier one, and its own; None where all differ.

    Eight bytes a value are kept: values with one hash are compared themselves.
    """
    hashes = np.fromiter(map(hash, values), np.int64, len(values))
    # In place: they are hashed again in the rare case that two are the same.
    hashes.sort()
    suspected = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not suspected:
        return None
    seen: dict[str, int] = {}
    for index, value in enumerate(values):
        earlier = seen.setdefault(value, index) if hash(value) in suspected else index
        if earlier != index:
            return earlier, index
    return None


def is_in_memory(rows: Sequence[object]) -> bool:
    """Whether rows are held in memory, rather than made when they are asked for."""
    return not isinstance(rows, LazySequence)
