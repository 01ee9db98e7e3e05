"""A progress bar in rows, with tokens a second and the time left: in a notebook, on a terminal, or as lines."""

import sys
import time
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

DELAY_SECONDS = 2
LIVE_INTERVAL_SECONDS = 0.2
QUIET_INTERVAL_SECONDS = 10.0
_FORMAT = "{{desc}}{{percentage:3.0f}}%|{{bar}}| {{n:.0f}}/{{total_fmt}} {unit} [{{elapsed}}<{{remaining}}{{postfix}}]"

_hidden = False


def hide_progress() -> None:
    """Show no progress in this process from now on."""
    global _hidden
    _hidden = True


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
    a kernel has no ipywidgets, there is a line on stderr every ten seconds.

    Args:
        options: those of tqdm that say what is counted.
    """
    kind = _find_kind()
    live = kind is not tqdm or sys.stderr.isatty()
    return kind(
        delay=DELAY_SECONDS,
        mininterval=LIVE_INTERVAL_SECONDS if live else QUIET_INTERVAL_SECONDS,
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
    """A bar in rows, shown as ``open_bar`` says.

    Args:
        total: rows in all.
        done: rows that an earlier run has already done.
        unit: word for a row.
        doing: word for the work, such as "scoring".
    """

    def __init__(self, total: int, done: int = 0, unit: str = "pairs", doing: str = "scoring") -> None:
        self._bar = open_bar(total=total, initial=done, bar_format=_FORMAT.format(unit=unit), desc=f"{doing} ")
        if 0 < done < total and not _hidden:
            self._bar.write(f"probing: {done} of {total} {unit} are done already", file=sys.stderr)
        self._total, self._tokens = total, 0
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def advance(self, rows: float, tokens: int) -> None:
        """Count rows (fractions are fine) and tokens as done."""
        self._tokens += tokens
        elapsed = max(time.monotonic() - self._start, 1e-9)
        if self._tokens:
            self._bar.set_postfix_str(f"{self._tokens / elapsed:,.0f} tokens/s", refresh=False)
        # Rounded fractions may add up to slightly more than the total.
        self._bar.update(min(rows, self._total - self._bar.n))
