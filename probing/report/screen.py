"""The one gate to the screen: what comes from data, models and libraries is shown, and never obeyed.

A control character in an id, a label, a name or a message could move the cursor, change the title of the terminal or
turn the direction of a line. Everything that the command line writes passes ``guard_screen``, which spells such
characters out (``\\x1b``, ``\\u202e``); cells of tables, messages and pages of plots are made fit for one line before.
"""

import contextlib
import html
import json
import logging
import math
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

LONGEST_MESSAGE = 4000
LONGEST_CELL = 400
_COLOR = re.compile(r"\x1b\[[0-9;]*m")


def escape_controls(text: str, keep: str = "") -> str:
    """The text with every character that does not print spelled out: controls, marks of direction, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(character if _is_shown(character) or character in keep else _spell(character) for character in text)


def to_message(text: object, longest: int = LONGEST_MESSAGE) -> str:
    """Text of any origin on one line, at most so many characters long."""
    line = escape_controls(" ".join(str(text).splitlines()))
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def to_page(value: Any) -> Any:
    """A figure with all its texts made fit for a page: neither markup nor control characters."""
    if isinstance(value, str):
        return html.escape(to_message(value), quote=False)
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
            character if _is_shown(character) or character == "\n" else json.dumps(character)[1:-1]
            for character in text
        )
    )


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_shown(character: str) -> bool:
    """Whether a character is one that prints, or a space of some width."""
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _spell(character: str) -> str:
    return character.encode("unicode_escape").decode()


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
