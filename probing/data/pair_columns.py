"""Which columns of a preference dataset hold its pairs: those that are named, or those of a layout that is known."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from probing.data.cells import is_empty, plain_value
from probing.data.columns import ColumnResolver
from probing.data.formats import Row
from probing.data.rows import Where
from probing.errors import DataInvalid, UsageError

log = logging.getLogger(__name__)

PROMPT = "prompt"
PROMPT_COLUMNS = ("question", "instruction", "input", "query", "context", "history", "conversations", "conversation")
"""Usual names of the prompts, where there is no column ``prompt``; two of them that hold something are ambiguous."""
SYSTEM_COLUMNS = ("system", "system_prompt")


@dataclass(frozen=True)
class PairColumns:
    """How pairs are read; by default as ``pairs_from_rows`` says.

    Attributes:
        prompt: column of the prompts.
        chosen: column of the chosen responses.
        rejected: column of the rejected responses.
        system: column of the system prompts. With it every row is a conversation.
        implicit_prompt: whether the prompt of a row without one is what its two responses, in plain text, begin with.
    """

    prompt: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    system: str | None = None
    implicit_prompt: bool = False

    @property
    def named(self) -> dict[str, str]:
        """The columns that are named, by their role."""
        roles = (PROMPT, "chosen", "rejected", "system")
        return {role: getattr(self, role) for role in roles if getattr(self, role) is not None}


@dataclass(frozen=True)
class Verdict:
    """A column that says which of two responses was preferred.

    Attributes:
        column: name of the column.
        kind: "sign": below 0 the first, above 0 the second, 0 is a tie. "index": 0 the first, 1 the second.
            "flag": 1 the first, 0 the second.
    """

    column: str
    kind: Literal["sign", "index", "flag"]

    def first_is_chosen(self, row: Row, where: str) -> bool | None:
        """Whether the first response was preferred; None where it is a tie.

        Raises:
            DataInvalid: the cell holds nothing that says which.
        """
        cell = plain_value(row.get(self.column))
        try:
            value = float(cell) if isinstance(cell, int | float | str) else math.nan
        except (ValueError, OverflowError):
            value = math.nan
        if self.kind == "sign" and math.isfinite(value):
            return None if value == 0 else value < 0
        if self.kind != "sign" and value in (0, 1):
            return bool(value) == (self.kind == "flag")
        raise DataInvalid(
            f"{where}: {row.get(self.column)!r:.40} in column '{self.column}' does not say which response was "
            f"preferred; name the columns with --chosen-column and --rejected-column"
        )


@dataclass(frozen=True)
class Layout:
    """Two columns of responses: the chosen and the rejected ones, or, with a verdict, the first and the second ones."""

    chosen: str
    rejected: str
    verdicts: tuple[Verdict, ...] = ()


OWN = Layout("chosen", "rejected")
LAYOUTS = (
    OWN,
    Layout("chosen_response", "rejected_response"),
    Layout("response_w", "response_l"),
    Layout("response1", "response2", (Verdict("overall_preference", "sign"), Verdict("preference", "sign"))),
    Layout("response_1", "response_2", (Verdict("preference_strength", "sign"), Verdict("preference", "sign"))),
    Layout("response_0", "response_1", (Verdict("better_response_id", "index"),)),
    Layout("human_ref_A", "human_ref_B", (Verdict("labels", "flag"),)),
)
"""The layouts that are known, of which the first that the columns allow is taken."""


@dataclass(frozen=True)
class FoundColumns:
    """The columns of some rows.

    Attributes:
        prompt: column of the prompts; None where there is none.
        system: column of the system prompts that is read.
        chosen: column of the chosen (or, with a verdict, the first) responses.
        rejected: column of the others.
        verdict: says which of the two was preferred.
        rivals: columns that could each be the prompts, where none was taken.
        recognised: whether the prompts or the responses are in columns with other names than their own, which were not
            named either.
        given: how the rows were to be read.
        present: names of all columns.
    """

    prompt: str | None
    system: str | None
    chosen: str
    rejected: str
    verdict: Verdict | None
    rivals: tuple[str, ...]
    recognised: bool
    given: PairColumns
    present: tuple[str, ...]

    @property
    def read(self) -> set[str]:
        """Names of all columns that are read."""
        names = (self.prompt, self.system, self.chosen, self.rejected, self.preference)
        return {name for name in names if name is not None}

    @property
    def preference(self) -> str | None:
        """Column that says which response was preferred."""
        return None if self.verdict is None else self.verdict.column

    def order(self, row: Row, where: str) -> tuple[str, str]:
        """Columns of the chosen and of the rejected response of a row.

        Raises:
            DataInvalid: the row is a tie.
        """
        first = True if self.verdict is None else self.verdict.first_is_chosen(row, where)
        if first is None:
            raise DataInvalid(
                f"{where}: a tie by column '{self.preference}', so neither response is the chosen one; leave such rows "
                f"out"
            )
        return (self.chosen, self.rejected) if first else (self.rejected, self.chosen)

    def explain_no_prompt(self, row: Row, where: str) -> DataInvalid:
        """The error to raise where a row with plain responses has no prompt."""
        if self.rivals:
            return DataInvalid(
                f"{where}: the prompt could be {' or '.join(map(repr, self.rivals))}; name its column with "
                f"--prompt-column (in Python: prompt_column)"
            )
        unread = [name for name, value in row.items() if name not in self.read | {"id"} and _is_text(value)]
        said = f"; the text in {', '.join(map(repr, unread[:5]))} is not read" if unread else ""
        return DataInvalid(
            f"{where}: there is no '{PROMPT}'{said}. Name the column of the prompts with --prompt-column, or say "
            f"--implicit-prompt if the prompt is what both responses begin with (in Python: prompt_column, "
            f"implicit_prompt)"
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def find_columns(rows: Sequence[Row], columns: PairColumns, where: Where) -> FoundColumns:
    """The columns that hold the pairs of some rows.

    Raises:
        UsageError: a column that is named does not exist.
        DataInvalid: there are no columns of responses.
    """
    resolver = ColumnResolver.of(rows, "the data")
    for role, name in columns.named.items():
        resolver.check(name, f" of the {role} {'prompts' if role == 'system' else 'texts'}")
    layout, verdict = _find_layout(resolver, columns)
    if columns.prompt is not None or any(not is_missing(row.get(PROMPT)) for row in rows):
        prompts = [columns.prompt or PROMPT]
    else:
        free = [name for name in PROMPT_COLUMNS if name not in (layout.chosen, layout.rejected)]
        prompts = [name for name in free if any(not is_empty(row.get(name)) for row in rows)]
    prompt = prompts[0] if len(prompts) == 1 else None
    system = columns.system
    if system is None and columns.prompt is None and prompt not in (None, PROMPT):
        system = resolver.find(None, SYSTEM_COLUMNS)
    found = FoundColumns(
        prompt,
        system,
        columns.chosen or layout.chosen,
        columns.rejected or layout.rejected,
        verdict,
        rivals=tuple(prompts) if len(prompts) > 1 else (),
        recognised=layout is not OWN or (columns.prompt is None and prompt not in (None, PROMPT)),
        given=columns,
        present=resolver.present,
    )
    if rows:
        _check_responses(found, resolver, where)
    return found


def is_missing(value: Any) -> bool:
    """Whether a cell of a prompt holds nothing; text of white space only is a prompt, which gets a status."""
    return value is None or (not isinstance(value, str) and is_empty(value))


def _find_layout(resolver: ColumnResolver, columns: PairColumns) -> tuple[Layout, Verdict | None]:
    if columns.chosen is not None or columns.rejected is not None:
        return OWN, None
    present = set(resolver.present)
    for layout in LAYOUTS:
        if not {layout.chosen, layout.rejected} <= present:
            continue
        verdict = next((verdict for verdict in layout.verdicts if verdict.column in present), None)
        if verdict is not None or not layout.verdicts:
            return layout, verdict
    return OWN, None


def _check_responses(found: FoundColumns, resolver: ColumnResolver, where: Where) -> None:
    for role, name in (("chosen", found.chosen), ("rejected", found.rejected)):
        if name not in resolver.present:
            raise DataInvalid(
                f"{where(0)}: there is no column '{name}'; the columns are {resolver.listing}; name the {role} "
                f"responses with --{role}-column"
            )
    if found.chosen == found.rejected:
        raise UsageError(f"{resolver.name}: '{found.chosen}' is named as both the chosen and the rejected responses")


def find_ties(rows: Sequence[Row], columns: PairColumns, where: Where) -> list[int]:
    """Numbers of the rows in which neither response was preferred."""
    verdict = find_columns(rows, columns, where).verdict
    if verdict is None:
        return []
    return [index for index, row in enumerate(rows) if verdict.first_is_chosen(row, where(index)) is None]


def tell_columns(found: FoundColumns, rows: Sequence[Row], mapped: int) -> None:
    """Say which columns were read where these have other names than their own, and which system prompts were not.

    Args:
        found: columns of the rows.
        rows: all rows.
        mapped: number of rows whose prompt came from a column.
    """
    prompt, system = (found.prompt, found.system) if mapped else (None, found.given.system)
    if found.recognised and (mapped or found.chosen != OWN.chosen):
        used: Mapping[str, str | None] = {
            "prompt": prompt,
            "system": system,
            "chosen and rejected": f"{found.chosen} and {found.rejected}",
            "preference": found.preference,
        }
        said = ", ".join(f"{role} from {name}" for role, name in used.items() if name is not None)
        log.warning("columns that are read: %s; others are named with --prompt-column and the like", said)
    for name in SYSTEM_COLUMNS:
        unread = name in found.present and name not in (system, found.prompt)
        if unread and any(_is_text(row.get(name)) for row in rows):
            log.warning("the column '%s' is not read; name it with --system-column if it holds system prompts", name)
