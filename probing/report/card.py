"""Parts of a card (README.md): front matter, code, tables; in which no text of any origin is markup."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]

from probing.shown import LONGEST_CELL, to_message

if TYPE_CHECKING:
    import pandas as pd

CARD_FILE = "README.md"
LONGEST_CARD = 1 << 20
"""Most bytes of a card that is read back."""
MARKS = re.compile(r"[!-/:-@\[-`{-~]")
"""Characters that Markdown or HTML may take for marks."""
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def write_front_matter(facts: Mapping[str, Any]) -> str:
    """Facts as YAML between two lines of dashes; texts must be fit for one line."""
    written = yaml.safe_dump(dict(facts), sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{written}---\n"


def read_front_matter(file: Path) -> Mapping[str, Any]:
    """The facts at the beginning of a card; empty where there are none that can be read."""
    try:
        with file.open("rb") as opened:
            text = opened.read(LONGEST_CARD).decode()
        found = FRONT_MATTER.match(text)
        facts = yaml.safe_load(found[1]) if found else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, Mapping) else {}


def write_code(text: object, longest: int = LONGEST_CELL) -> str:
    """Text of any origin as code within a line, where Markdown reads neither marks nor HTML."""
    line = to_message(text, longest)
    ticks = _find_ticks(line, 1)
    # One space on either side is not part of the code; without it a text could neither begin with a tick nor be empty.
    space = " " if line[:1] in ("`", " ", "") or line[-1:] in ("`", " ") else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def write_block(lines: Sequence[str], language: str = "text") -> list[str]:
    """Lines of any origin as a block of code, between marks that none of them can end."""
    shown = [to_message(line) for line in lines]
    ticks = _find_ticks("\n".join(shown), 3)
    return [f"{ticks}{language}", *shown, ticks]


def write_table(table: "pd.DataFrame") -> list[str]:
    """A table in Markdown: numbers as four digits, texts as code."""
    heading = [str(name) for name in table.columns]
    rule = ["---:" if table[name].dtype.kind in "if" else "---" for name in table.columns]
    rows = [[_write_cell(value) for value in row] for row in table.itertuples(index=False)]
    return ["| " + " | ".join(cells) + " |" for cells in (heading, rule, *rows)]


def _write_cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if value != value else f"{value:.4g}"
    if isinstance(value, int):
        return str(value)
    # The mark between columns ends code too, and a backslash before it does not always help.
    return write_code(value) if "|" not in str(value) else MARKS.sub(_write_entity, to_message(value, LONGEST_CELL))


def _write_entity(found: re.Match[str]) -> str:
    return f"&#{ord(found[0])};"


def _find_ticks(text: str, least: int) -> str:
    """More ticks than stand together anywhere in the text."""
    return "`" * max(least, *(len(found) + 1 for found in re.findall("`+", text)), 0)
