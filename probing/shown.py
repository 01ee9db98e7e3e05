"""What is shown of values: text on one line that no terminal or page obeys, and short forms of large objects."""

import html
import reprlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

LONGEST_MESSAGE = 4000
LONGEST_CELL = 400
LONGEST_REPR = 300
LONGEST_FIELD = 60
LISTED = 3
"""Largest number of places or names that are listed."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = LONGEST_FIELD
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 2


def escape_controls(text: str, keep: str = "") -> str:
    """The text with every character that does not print spelled out: controls, marks of direction, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(character if is_shown(character) or character in keep else _spell(character) for character in text)


def to_message(text: object, longest: int = LONGEST_MESSAGE) -> str:
    """Text of any origin on one line, at most so many characters long."""
    line = escape_controls(" ".join(str(text).splitlines()))
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def to_page_text(text: object, longest: int = LONGEST_MESSAGE) -> str:
    """Text of any origin for a page: neither markup nor control characters."""
    return html.escape(to_message(text, longest), quote=False)


def is_shown(character: str) -> bool:
    """Whether a character is one that prints, or a space of some width."""
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _spell(character: str) -> str:
    return character.encode("unicode_escape").decode()


def count_of(count: int, noun: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def list_some(values: Sequence[object]) -> str:
    """``a, b, c``, or of many values the number, the first and the last."""
    if len(values) <= LISTED:
        return ", ".join(map(str, values))
    return f"{len(values)} ({values[0]} .. {values[-1]})"


def show_fields(value: Any) -> str:
    """A dataclass as it is made, with long values shortened, and without those that are None."""
    given = {entry.name: getattr(value, entry.name) for entry in fields(value)}
    shown = [f"{name}={_shorten(inner)}" for name, inner in given.items() if inner is not None]
    return to_message(f"{type(value).__name__}({', '.join(shown)})", LONGEST_REPR)


def _shorten(value: object) -> str:
    return to_message(_SHORT.repr(value), LONGEST_FIELD)


class Shown:
    """An object of which its main facts are shown: on one line, and as a small table in a notebook."""

    __slots__ = ()

    def shown_facts(self) -> Mapping[str, object]:
        """The facts by name."""
        raise NotImplementedError

    def __repr__(self) -> str:
        facts = [f"{name}: {to_message(value, LONGEST_FIELD)}" for name, value in self.shown_facts().items()]
        return to_message(f"{type(self).__name__}({'; '.join(facts)})", LONGEST_REPR)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{to_page_text(name)}</th><td>{to_page_text(value, LONGEST_CELL)}</td></tr>"
            for name, value in self.shown_facts().items()
        )
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"
