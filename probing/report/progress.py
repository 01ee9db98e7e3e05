"""A progress bar in rows, with rates, the time left and failures: in a notebook, on a terminal, or as lines."""

import sys
import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from probing.ranks import current_ranks
from probing.store.progress import Work, Worker, add_counts, tell

DELAY_SECONDS = 2
LIVE_INTERVAL_SECONDS = 0.2
QUIET_INTERVAL_SECONDS = 60.0
SHOWN_STATUSES = 3
_FORMAT = "{{desc}}{{percentage:3.0f}}%|{{bar}}| {{n:.0f}}/{{total_fmt}} {unit} [{{elapsed}}<{{remaining}}{{postfix}}]"

_hidden = False


def hide_progress() -> None:
    """Show no progress in this process from now on."""
    global _hidden
    _hidden = True


def say(text: str) -> None:
    """A line on stderr about what takes a while and has no bar, unless progress is hidden."""
    if not _hidden:
        print(f"probing: {text}", file=sys.stderr, flush=True)


class _Lines:
    """What a bar draws, as lines: where there is no terminal, a carriage return would glue them together."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(text.strip() + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def open_bar(**options: Any) -> "tqdm[Any]":
    """A bar that is shown once the work takes longer than two seconds, unless progress is hidden.

    In a Jupyter kernel with ipywidgets it is the notebook's; on a terminal one line is drawn anew; elsewhere, and where
    a kernel has no ipywidgets, there is a line on stderr every minute.

    Args:
        options: those of tqdm that say what is counted.
    """
    kind = _find_kind()
    live = kind is not tqdm or sys.stderr.isatty()
    return kind(
        delay=DELAY_SECONDS,
        mininterval=LIVE_INTERVAL_SECONDS if live else QUIET_INTERVAL_SECONDS,
        # Otherwise a thread of tqdm's draws lines of its own every ten seconds.
        miniters=0,
        dynamic_ncols=live,
        disable=_hidden,
        file=sys.stderr if live else _Lines(),
        **options,
    )


def _find_kind() -> "type[tqdm[Any]]":
    """The kind of bar that can be shown here.

    ``tqdm.auto`` decides that once, when it is first imported, and warns where a kernel has no ipywidgets.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or "IPKernelApp" not in shell.config:
        return tqdm
    from tqdm import notebook

    # The stubs of tqdm do not know this name: the widget that a bar is made of, or None.
    return tqdm if notebook.IProgress is None else notebook.tqdm_notebook  # type: ignore[attr-defined]


class Progress:
    """A bar in rows, shown as ``open_bar`` says; whoever listens to ``probing.store.progress`` is told of it as well.

    Args:
        total: rows in all.
        done: rows that an earlier run has already done.
        unit: word for a row.
        doing: word for the work, such as "scoring".

    Attributes:
        work: what is done.
        own: what this process has done of it.
    """

    def __init__(self, total: int, done: int = 0, unit: str = "pairs", doing: str = "scoring") -> None:
        self._bar = open_bar(total=total, initial=done, bar_format=_FORMAT.format(unit=unit), desc=f"{doing} ")
        if 0 < done < total and not _hidden:
            self._bar.write(f"probing: {done} of {total} {unit} are done already", file=sys.stderr)
        self._start, self._described = time.monotonic(), -LIVE_INTERVAL_SECONDS
        self.own = Worker()
        self.work = Work(doing, unit, total, done, workers={current_ranks().rank: self.own})
        tell(self.work)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        tell(self.work, ended=True)
        bar = self._bar
        bar.set_postfix_str(describe_rates(self.work), refresh=False)
        shown_before = bar.disable or bar.last_print_t >= bar.start_t + DELAY_SECONDS
        if not shown_before and time.monotonic() - self._start > DELAY_SECONDS:
            # Where a line is due once a minute, a shorter work would end without any.
            bar.refresh()
        bar.close()

    def advance(self, rows: float, tokens: int) -> None:
        """Count rows (fractions are fine) and tokens as done."""
        self.own.rows += rows
        self.own.tokens += tokens
        self.own.seconds = time.monotonic() - self._start
        self._show()

    def count(self, statuses: Mapping[str, int], earlier: bool = False) -> None:
        """Count the statuses of rows that are done, by this run or by an earlier one."""
        # Replaced rather than changed: other threads may be reading them.
        if earlier:
            self.work.earlier_statuses = add_counts(self.work.earlier_statuses, statuses)
        else:
            self.own.statuses = add_counts(self.own.statuses, statuses)

    def hear(self, others: Mapping[int, Worker]) -> None:
        """Show what other processes have done."""
        self.work.workers = {**self.work.workers, **others}
        self._show()

    def leave_to_others(self) -> None:
        """Show this process no more as one that does some of the work: only those that are heard of do."""
        self.work.workers = {}

    def _show(self) -> None:
        now = time.monotonic()
        # Described no more often than a terminal shows it: many short parts would pay for it.
        if now >= self._described + LIVE_INTERVAL_SECONDS:
            self._bar.set_postfix_str(describe_rates(self.work), refresh=False)
            self._described = now
        self._bar.update(max(0.0, self.work.rows - self._bar.n))
        tell(self.work)


def describe_rates(work: Work) -> str:
    """Rows and tokens a second, of all workers and of each, and the failures so far: as the bar shows them."""
    parts = []
    if work.rows_per_second is not None:
        parts.append(f"{work.rows_per_second:,.1f} {work.unit}/s")
    if work.tokens_per_second is not None:
        parts.append(f"{work.tokens_per_second:,.0f} tokens/s")
    if len(work.workers) > 1:
        rates = [worker.rows / worker.seconds if worker.seconds else 0.0 for worker in work.workers.values()]
        parts.append(f"{len(rates)} workers with {min(rates):,.1f} to {max(rates):,.1f}")
    if work.failures:
        parts.append(f"failed: {describe_failures(work.failures)}")
    return ", ".join(parts)


def describe_failures(failures: Mapping[str, int]) -> str:
    """The most frequent statuses of rows without numbers."""
    counted = Counter(failures)
    shown = [f"{count:,} {status}" for status, count in counted.most_common(SHOWN_STATUSES)]
    more = counted.total() - sum(count for _, count in counted.most_common(SHOWN_STATUSES))
    return ", ".join([*shown, f"{more:,} others"] if more else shown)
