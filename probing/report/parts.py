"""What a report consists of: checks, sections with their figures and tables, and the rows behind the numbers."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from probing.report.figures import Figure

if TYPE_CHECKING:
    import pandas as pd

State = Literal["ok", "WARN", "unclear", "not judged"]
TEXTS = ("prompt", "chosen", "rejected")
"""Texts of a preference pair, in the order in which they are shown."""


@dataclass(frozen=True)
class Check:
    """One number of a run, held against a threshold.

    Attributes:
        name: stable name of the check, as ``--threshold`` takes it.
        run: label of the run.
        state: "WARN" where the whole interval lies beyond the threshold, "unclear" where only a part of it does,
            "not judged" where there is no number.
        sentence: number, interval, rows and threshold in words.
        value: the number; NaN where there is none.
        low: lower end of its 95 % interval; NaN where it has none.
        high: upper end.
        n: rows that it was made from.
        threshold: the value beyond which the check warns.
        side: on which side of the threshold it warns.
        section: name of the section that shows the number.
    """

    name: str
    run: str
    state: State
    sentence: str
    value: float
    low: float
    high: float
    n: int
    threshold: float
    side: Literal["above", "below"]
    section: str


@dataclass(frozen=True)
class RowColumn:
    """A column of the rows behind the numbers.

    Attributes:
        name: name of the column in the file it comes from.
        title: what it holds, with its unit.
        values: one a row: numbers (NaN for none), bools, or texts.
        kind: how it is shown and sorted.
    """

    name: str
    title: str
    values: Sequence[Any]
    kind: Literal["number", "flag", "text"]


@dataclass(frozen=True)
class Tokens:
    """The tokens of one response of every row, one after the other.

    Attributes:
        offsets: [row + 1], where the tokens of each row begin; a row that has none begins where it ends.
        tokens: [token], texts of the tokens.
        before: [token], log-probability under the reference, nats.
        after: [token], the same under the policy.
        gained: [token], for each token the tokens that gained most probability in its place: (text, probability before,
            probability after), most gained first.
    """

    offsets: Sequence[int]
    tokens: Sequence[str]
    before: Sequence[float]
    after: Sequence[float]
    gained: Sequence[Sequence[tuple[str, float, float]]]


@dataclass(frozen=True)
class PulledTokens:
    """The tokens of one response of every row with the pull of each, one after the other.

    Attributes:
        offsets: [row + 1], where the tokens of each row begin; a row that has none begins where it ends.
        tokens: [token], texts of the tokens.
        pulls: [token], above 0 where lowering the token lowers the response that is wanted.
    """

    offsets: Sequence[int]
    tokens: Sequence[str]
    pulls: Sequence[float]


@dataclass(frozen=True)
class RowTable:
    """Rows behind the numbers: they are searched, sorted, and shown one by one.

    Attributes:
        name: name by which figures and links refer to it: letters, digits, hyphens.
        title: heading.
        ids: ids of the rows, each once.
        columns: numbers and texts of the rows.
        texts: texts by what they are ("prompt", "chosen", ...), one a row; None where a row has none.
        tokens: tokens of responses by the name of their text, and of the run that they are from where there are
            several: {"chosen": ...} or {"chosen, run-b": ...}.
        first: column by which the rows are sorted at first, lowest first.
        about: what the rows are and where their texts come from, in a sentence.
    """

    name: str
    title: str
    ids: Sequence[str]
    columns: Sequence[RowColumn]
    texts: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    tokens: Mapping[str, Tokens | PulledTokens] = field(default_factory=dict)
    first: str | None = None
    about: str = ""


@dataclass(frozen=True)
class Section:
    """What a run says to one question.

    Attributes:
        name: name of the section for links: letters, digits, hyphens; unique on a page.
        question: the question, as a person would ask it; sections of one question stand side by side.
        run: label of the run.
        says: sentences about what the numbers show, and what they do not.
        figures: pictures; one whose ``rows`` is {"table": name, "column": name} leads to the rows behind its bars.
        tables: small tables by title, shown whole.
        rows: name of the table of rows behind the numbers, if there is one.
    """

    name: str
    question: str
    run: str
    says: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Mapping[str, "pd.DataFrame"] = field(default_factory=dict)
    rows: str | None = None


@dataclass(frozen=True)
class Provenance:
    """What a run was asked, and with what.

    Attributes:
        run: label of the run: the name of its folder.
        command: the command with its options, as it is typed.
        facts: model, data, date, versions, hashes and so on, by name.
        folder: path of its folder.
    """

    run: str
    command: str
    facts: Mapping[str, str]
    folder: str


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: title of the page.
        checks: the strip at its beginning.
        sections: sections, those of one question together.
        rows: tables of rows.
        runs: what each run was asked.
        remarks: what was left out and why, in sentences.
    """

    title: str
    checks: Sequence[Check]
    sections: Sequence[Section]
    rows: Sequence[RowTable]
    runs: Sequence[Provenance]
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class RunData:
    """A finished run, read back: what the sections of a page are made from.

    Attributes:
        label: label of the run: the name of its folder, told apart from others of the same name.
        command: name of its command ("refusal extract").
        record: its record (run.json or manifest.json), checked.
        files: its Parquet tables by file name.
        summary: its printed tables by title.
        texts: texts of its rows by id and by what they are; empty where the dataset cannot be read any more.
        groups: value of each row by which its tables are grouped, by id; empty where they are not grouped.
        units: number of the group of each row of its pair table, for intervals; None where texts are not known.
        marks: values that figures mark with a line and what is there, by column.
        number: which of the runs it is whose labels would give the same name for links, from 1.
    """

    label: str
    command: str
    record: Mapping[str, Any]
    files: Mapping[str, "pd.DataFrame"]
    summary: Mapping[str, "pd.DataFrame"] = field(default_factory=dict)
    texts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    units: Any = None
    marks: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    number: int = 1

    @property
    def anchor(self) -> str:
        """The label as a name for links: letters, digits, hyphens."""
        return make_anchor(self.label, self.number)


def make_anchor(label: str, number: int = 1) -> str:
    """A label as a name for links: letters, digits, hyphens, and from 2 on its number."""
    name = re.sub(r"[^0-9A-Za-z]+", "-", label).strip("-") or "run"
    return name if number == 1 else f"{name}-{number}"


def number_anchors(labels: Sequence[str]) -> list[int]:
    """A number for each label that makes its name for links another one than those before it."""
    taken: set[str] = set()
    numbers = []
    for label in labels:
        number = next(number for number in itertools.count(1) if make_anchor(label, number) not in taken)
        taken.add(make_anchor(label, number))
        numbers.append(number)
    return numbers


@dataclass(frozen=True)
class RunReport:
    """What one run contributes to a page.

    Attributes:
        sections: its sections.
        checks: its checks.
        rows: its tables of rows.
    """

    sections: Sequence[Section]
    checks: Sequence[Check] = ()
    rows: Sequence[RowTable] = ()
