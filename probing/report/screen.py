"""The one gate to the screen: what comes from data, models and libraries is shown, and never obeyed.

A control character in an id, a label, a name or a message could move the cursor, change the title of the terminal or
turn the direction of a line. Everything that the command line writes passes ``guard_screen``, which spells such
characters out (``\\x1b``, ``\\u202e``); cells of tables, messages and pages of plots are made fit for one line before.
"""

import contextlib
import json
import logging
import math
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from probing.shown import escape_controls, is_shown, to_message, to_page_text

_COLOR = re.compile(r"\x1b\[[0-9;]*m")


def to_page(value: Any) -> Any:
    """A figure with all its texts made fit for a page: neither markup nor control characters."""
    if isinstance(value, str):
        return to_page_text(value)
    if isinstance(value, Mapping):
        return {name: to_page(inner) for name, inner in value.items()}
    return [to_page(inner) for inner in value] if isinstance(value, list | tuple) else value


def to_json(value: Any) -> str:
    """JSON with null for numbers that it has no word for; a character that does not print is written as an escape."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str)
    return (
        text
        if text.isprintable()
        else "".join(
            character if is_shown(character) or character == "\n" else json.dumps(character)[1:-1] for character in text
        )
    )


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Screen:
    """A stream that spells out what does not print; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text; a progress bar may begin with a return to the start of its line."""
        returns = "\r" if text.startswith("\r") else ""
        # Libraries colour their words on a terminal, which is harmless and not needed.
        plain = _COLOR.sub("", text.removeprefix("\r"))
        return self._stream.write(returns + escape_controls(plain, keep="\n\t"))

    def writelines(self, lines: Any) -> None:
        """Write every line."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def guard_screen() -> Iterator[None]:
    """Everything that is written to stdout and stderr passes the gate, also when the block ends with a traceback."""
    plain = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Screen(plain[0]), Screen(plain[1])
    try:
        yield
    except SystemExit:
        sys.stdout, sys.stderr = plain
        raise
    sys.stdout, sys.stderr = plain


class OneLine(logging.Formatter):
    """Every record of the log on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The message after the name of the program."""
        return f"probing: {to_message(record.getMessage())}"
