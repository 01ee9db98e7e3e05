"""What every instrument does with a model and its rows: set up, stream, limits, problems, blocks read one by one."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd
import torch

from probing.engine.budget import TokenBudget, find_budget
from probing.engine.modes import choose_mode
from probing.engine.stream import ONE_AT_A_TIME, Stream, first_nonfinite_place
from probing.engine.trees import Segment
from probing.errors import DataInvalid, UsageError
from probing.instruments.prefetch import prefetch
from probing.models.load import LanguageModel
from probing.models.stack import Site, Stack
from probing.report.progress import Progress
from probing.tokens.tokenized_row import TokenizedRow
from probing.types import Pooling, Problem

Advance = Callable[[float, int], None]
"""Called with the number of rows (in fractions, as tokens finish) and the number of tokens that were done."""
Row = TypeVar("Row")
Tokenized = TypeVar("Tokenized")
Block = TypeVar("Block")
NOT_FINITE = "states are NaN or infinite"


@contextlib.contextmanager
def set_up(language_model: LanguageModel) -> Iterator[None]:
    """Reserve a model for this thread, with a caller's autocast off."""
    device = language_model.device.type
    with ONE_AT_A_TIME, torch.autocast(device, enabled=False):
        yield


def open_stream(
    stack: Stack, sites: Sequence[Site], poolings: Sequence[Pooling], batch_tokens: int | None, **kept: Any
) -> Stream:
    """A stream that runs a model in the fastest way that proves right on it.

    Args:
        stack: the model, set up.
        sites: places to read.
        poolings: values to keep at each place.
        batch_tokens: tokens a batch; found by trials when None.
        kept: further fields of ``Stream``.

    Raises:
        UsageError: a budget of less than one token a batch.
    """
    stream = Stream(stack, choose_mode(stack), sites, poolings, TokenBudget(1, "not found yet"), **kept)
    stream.budget = find_budget(stack, batch_tokens, stream.run_trial)
    return stream


@dataclass
class NonFiniteExplainer:
    """Names the first place whose states are not finite; looked up for the first such row alone, since it costs a pass.

    Args:
        stream: stream that reads the model.
    """

    stream: Stream
    _asked: bool = False

    def explain(self, segments: Sequence[Segment], otherwise: str) -> str:
        """Why the numbers of a row are not finite, in words.

        Args:
            segments: the sequences of the row.
            otherwise: the answer where the states of all of them are finite.
        """
        if self._asked:
            return NOT_FINITE
        self._asked = True
        stack = self.stream.stack
        for segment in segments:
            with set_up(stack.language_model):
                place = first_nonfinite_place(stack, self.stream.mode, segment, self.stream.budget)
            if place:
                return f"{NOT_FINITE} from {place} on"
        return otherwise


def check_max_length(max_length: int | None, positions: int | None) -> int | None:
    """The longest sequence to run: as asked for, but never more than the model has positions for.

    Raises:
        UsageError: less than 2 tokens, or more than there are positions.
    """
    if max_length is None:
        return positions
    if max_length < 2:
        raise UsageError(f"max_length must be at least 2 tokens, not {max_length}")
    if positions is not None and max_length > positions:
        raise UsageError(f"max_length is {max_length}, but the model only has positions for {positions} tokens")
    return max_length


Runnable = TypeVar("Runnable", bound=TokenizedRow)


def split_runnable(tokenized: Sequence[Runnable], report: Advance | None) -> tuple[list[Runnable], dict[str, Problem]]:
    """The rows that can be run; the problems of the others by id, which are reported as done."""
    problems = {row.problem.id: row.problem for row in tokenized if row.problem is not None}
    if report is not None:
        report(len(problems), 0)
    return [row for row in tokenized if row.problem is None], problems


def report_tokens(report: Advance | None, rows: int, tokens: int) -> Callable[[int], None] | None:
    """Report a stream's tokens as shares of the rows, so that the estimated time left follows the tokens."""
    return None if report is None else lambda done: report(done * rows / tokens, done)


def read_blocks(
    rows: Sequence[Row],
    size: int,
    tokenize: Callable[[Sequence[Row]], Tokenized],
    read: Callable[[Tokenized, Advance], Block],
    bar: Progress,
) -> list[Block]:
    """Rows in blocks, in order; while one is being read, a thread tokenises the next."""
    parts = (rows[start : start + size] for start in range(0, len(rows), size))
    with bar, contextlib.closing(prefetch(tokenize, parts)) as tokenized:
        return [read(block, bar.advance) for block in tokenized]


def list_rows(given: Any) -> list[Any]:
    """Rows from a ``DataFrame``, whose missing values become None, or from anything else that gives them in turn."""
    if isinstance(given, pd.DataFrame):
        given = given.astype(object).where(given.notna(), None).to_dict("records")
    return list(given)


def check_unique(ids: Sequence[str], kind: str) -> None:
    """Raise unless every id is there once.

    Args:
        ids: ids of all rows, in order.
        kind: word for a row in messages.

    Raises:
        DataInvalid: names the first row whose id was already used.
    """
    again = pd.Series(ids).duplicated()
    if again.any():
        at = int(again.argmax())
        raise DataInvalid(f"{kind} {at}: the id '{ids[at]}' was already used")
