"""How far runs are, as text for people and as tables for programs."""

import shutil
import textwrap
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta

import pandas as pd

from probing.report.progress import describe_failures
from probing.runs.status.data import RunStatus
from probing.shown import to_message
from probing.store.progress import Work
from probing.types import Report

EXIT_STATUS = {"running": 0, "finished": 0, "dead": 1, "unreadable": 1, "no run": 2}
WIDTH = 100
LABEL = 12
PART_COLUMNS = (
    *("folder", "within", "doing", "unit", "rows", "of", "earlier", "tokens", "seconds"),
    *("rows per second", "tokens per second", "seconds left"),
)
WORKER_COLUMNS = ("folder", "within", "doing", "worker", "rows", "tokens", "seconds", "pid", "host")
SECONDS = {"s": 60, "min": 60, "h": 24}


def report_status(found: Sequence[RunStatus]) -> Report:
    """Text, tables and exit status of some runs."""
    now = time.time()
    text = "\n\n".join("\n".join(describe_run(status, now)) for status in found)
    tables = {
        "Runs": pd.DataFrame([_describe_state(status, now) for status in found]),
        "Parts": pd.DataFrame(_list_parts(found), columns=list(PART_COLUMNS)),
        "Failures by status": pd.DataFrame(_list_failures(found), columns=["folder", "doing", "status", "rows"]),
        "Workers": pd.DataFrame(_list_workers(found), columns=list(WORKER_COLUMNS)),
    }
    return Report(tables, {}, text, max(EXIT_STATUS[status.state] for status in found))


def _describe_state(status: RunStatus, now: float) -> dict[str, object]:
    note = status.note
    return {
        "folder": str(status.folder),
        "command": status.command,
        "state": status.state,
        "noted seconds ago": None if note is None else round(max(0.0, now - note.time), 1),
        "pid": None if note is None else note.pid,
        "host": None if note is None else note.host,
        "ended by": None if note is None else note.ended,
        "counted": status.counted,
        "seconds": status.seconds,
        "why": status.why,
    }


def _list_parts(found: Sequence[RunStatus]) -> list[tuple[object, ...]]:
    return [
        (
            *(str(status.folder), within, work.doing, work.unit, work.rows, work.total, work.earlier, work.tokens),
            *(work.seconds, work.rows_per_second, work.tokens_per_second, work.seconds_left),
        )
        for status in found
        for within, work in status.parts
    ]


def _list_failures(found: Sequence[RunStatus]) -> list[tuple[object, ...]]:
    return [
        (str(status.folder), work.doing, reason, count)
        for status in found
        for _, work in status.parts
        for reason, count in work.failures.items()
    ]


def _list_workers(found: Sequence[RunStatus]) -> list[tuple[object, ...]]:
    # What an earlier process did is not known by worker: neither of finished runs, nor where files were counted.
    return [
        (
            str(status.folder),
            within,
            work.doing,
            rank,
            worker.rows,
            worker.tokens,
            worker.seconds,
            worker.pid,
            worker.host,
        )
        for status in found
        if status.note is not None
        for within, work in status.parts
        for rank, worker in work.workers.items()
    ]


def describe_run(status: RunStatus, now: float) -> Iterator[str]:
    """Lines that say how far a run is."""
    yield _fill("", f"{status.folder}: {_describe_heading(status, now)}", indent=2)
    for within, work in status.parts:
        yield _fill(
            f"  {within or work.doing:<{LABEL}} ", _describe_amount(work, status, f"{work.doing}, " if within else "")
        )
        if len(work.workers) > 1:
            for rank, worker in sorted(work.workers.items()):
                alone = Work(work.doing, work.unit, None, workers={rank: worker})
                yield _fill(f"    {f'worker {rank}':<{LABEL - 2}} ", ", ".join(_describe_rows(alone)))
        if work.failures:
            yield _fill(f"    {'failed':<{LABEL - 2}} ", describe_failures(work.failures))


def _fill(label: str, text: str, indent: int = LABEL + 3) -> str:
    """A label and a text in lines that fit the terminal; a long word, such as the name of a folder, stays whole."""
    return textwrap.fill(
        to_message(text),
        max(40, min(WIDTH, shutil.get_terminal_size((80, 24)).columns)),
        initial_indent=label,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _describe_heading(status: RunStatus, now: float) -> str:
    if status.state in ("no run", "unreadable"):
        return f"{status.state}, {status.why}"
    named = f"'probing {status.command}' " if status.command else "a command "
    if status.state == "finished":
        took = "" if status.seconds is None else f"; the command took {spell_duration(status.seconds)}"
        return f"{named}is finished{took}"
    note = status.note
    ended = f" of {note.ended}" if note is not None and note.ended else ""
    word = "is running" if status.state == "running" else f"died{ended}; the same command goes on from there"
    if note is None:
        why = f" ({status.why})" if status.why else ""
        return f"{named}{word}{why}" + ("; counted from the parts that are there" if status.counted else "")
    return f"{named}{word}; noted {spell_ago(now - note.time)} ago by process {note.pid} on {note.host}"


def _describe_amount(work: Work, status: RunStatus, prefix: str) -> str:
    parts = _describe_rows(work)
    if status.state == "running" and work.seconds_left:
        parts.append(f"{spell_duration(work.seconds_left)} left")
    if status.state == "finished" and len(parts) > 1:
        # A record has the seconds of all processes together.
        parts.append("for each process")
    return prefix + ", ".join(parts)


def _describe_rows(work: Work) -> list[str]:
    """Amounts and rates."""
    parts = [f"{work.rows:,.0f} {work.unit}"]
    if work.total is not None and work.rows < work.total:
        parts = [f"{work.rows:,.0f} of {work.total:,.0f} {work.unit} ({work.rows / work.total:.0%})"]
    if work.rows_per_second is not None:
        parts.append(f"{work.rows_per_second:,.1f} {work.unit}/s")
    if work.tokens_per_second is not None:
        parts.append(f"{work.tokens_per_second:,.0f} tokens/s")
    return parts


def spell_duration(seconds: float) -> str:
    """``0:02:10``, or ``1.3 s``."""
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def spell_ago(seconds: float) -> str:
    """A rough duration: ``3 min``."""
    amount = max(0.0, seconds)
    for unit, most in SECONDS.items():
        if amount < most:
            return f"{amount:.0f} {unit}"
        amount /= most
    return f"{amount:.0f} days"
