"""The static parts of a report page as HTML: they are read without JavaScript, and every text in them is escaped."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from probing.report.parts import Check, Page, Provenance, RowTable, Section, State
from probing.report.svg import draw_svg
from probing.shown import LONGEST_CELL, count_of, to_message, to_page_text

MARKS: Mapping[State, str] = {"WARN": "▲", "unclear": "?", "not judged": "–", "ok": "✓"}
"""States in the order of the strip, each with a sign, so that no state is told by its colour alone."""
HOW_JUDGED = (
    "WARN: the whole 95 % interval lies beyond the threshold. Unclear: a part of it does. "
    "Not judged: there is no number. A number without an interval is taken as exact."
)
MOST_FINE = 6
"""So many checks that are ok are shown; more are folded away."""
MOST_TABLES = 3
"""So many tables of a section are shown; more are folded away."""
ROWS_TITLE, ASKED_TITLE, REMARKS_TITLE = "Rows behind the numbers", "What was asked, and with what", "What was left out"


def write_body(page: Page) -> str:
    """The body up to the remarks, which stand at the end of the element "main"."""
    parts = (
        '<body>\n<a class="skip" href="#page-main">Skip to the checks</a>\n',
        f'<header>\n<h1 dir="auto">{to_page_text(page.title)}</h1>\n</header>\n<main id="page-main" tabindex="-1">\n',
        _write_checks(page.checks),
        _write_contents(page),
        *(_write_question(text, some) for text, some in _group_by_question(page.sections).items()),
        _write_rows(page.rows),
        _write_asked(page.runs),
    )
    return "".join(parts)


def write_remarks(remarks: Sequence[str]) -> str:
    """What was left out and why, a sentence each; nothing where all is there."""
    if not remarks:
        return ""
    items = "".join(f"<li>{to_page_text(remark)}</li>\n" for remark in remarks)
    return f'<section id="page-remarks">\n<h2>{REMARKS_TITLE}</h2>\n<ul>\n{items}</ul>\n</section>\n'


def _write_checks(checks: Sequence[Check]) -> str:
    """The strip: what warns comes first, and many checks that are ok are folded away."""
    listed = {state: "".join(_write_check(check) for check in checks if check.state == state) for state in MARKS}
    fine = sum(check.state == "ok" for check in checks)
    folded = listed.pop("ok") if fine > MOST_FINE else ""
    inner = f'<ul class="checks">\n{"".join(listed.values())}</ul>\n' if any(listed.values()) else ""
    if folded:
        inner += f'<details>\n<summary>{fine} checks are ok</summary>\n<ul class="checks">\n{folded}</ul>\n</details>\n'
    explained = f'<p class="small">{HOW_JUDGED}</p>\n' if checks else ""
    return f'<section id="page-checks">\n<h2>{_count_warnings(checks)}</h2>\n{explained}{inner}</section>\n'


def _count_warnings(checks: Sequence[Check]) -> str:
    """The headline of the strip: "2 of 9 checks warn; 1 is unclear"."""
    if not checks:
        return "No check was made"
    count = {state: sum(check.state == state for check in checks) for state in MARKS}
    warned = count["WARN"]
    verb = "warns" if warned == 1 else "warn"
    head = f"{warned or 'None'} of {count_of(len(checks), 'check')} {verb if warned else 'warns'}"
    unclear = f"; {count['unclear']} {'is' if count['unclear'] == 1 else 'are'} unclear" if count["unclear"] else ""
    unknown = count["not judged"]
    return head + unclear + (f"; {unknown} {'was' if unknown == 1 else 'were'} not judged" if unknown else "")


def _write_check(check: Check) -> str:
    state = check.state
    return (
        f'<li class="{state.lower().replace(" ", "-")}"><strong class="state">'
        f'<span aria-hidden="true">{MARKS[state]}</span> {state}</strong> '
        f"<span>{to_page_text(check.sentence)}</span> "
        f'<a href="#{check.section}">{_write_label(check.run)}: {to_page_text(check.name)}</a></li>\n'
    )


def _write_label(label: str) -> str:
    """A name from outside, which cannot turn the direction of what stands beside it."""
    return f"<bdi>{to_page_text(label, LONGEST_CELL)}</bdi>"


def _group_by_question(sections: Sequence[Section]) -> dict[str, list[Section]]:
    """Sections by question, in the order in which the questions come first."""
    grouped: dict[str, list[Section]] = {}
    for section in sections:
        grouped.setdefault(section.question, []).append(section)
    return grouped


def _write_contents(page: Page) -> str:
    items = [_write_entry(text, some) for text, some in _group_by_question(page.sections).items()]
    if page.rows:
        inner = "".join(f'<li><a href="#rows-{rows.name}">{to_page_text(rows.title)}</a></li>' for rows in page.rows)
        items.append(f'<li><a href="#page-rows">{ROWS_TITLE}</a><ul>{inner}</ul></li>\n')
    items.append(f'<li><a href="#page-asked">{ASKED_TITLE}</a></li>\n')
    title = '<h2 id="page-contents-title">Contents</h2>'
    return f'<nav aria-labelledby="page-contents-title">\n{title}\n<ul>\n{"".join(items)}</ul>\n</nav>\n'


def _write_entry(question: str, sections: Sequence[Section]) -> str:
    """A question in the contents; with several runs, also their sections."""
    first = f'<li><a href="#{sections[0].name}">{to_page_text(question)}</a>'
    if len(sections) == 1:
        return f"{first}</li>\n"
    inner = "".join(f'<li><a href="#{section.name}">{_write_label(section.run)}</a></li>' for section in sections)
    return f"{first}<ul>{inner}</ul></li>\n"


def _write_question(question: str, sections: Sequence[Section]) -> str:
    """A question with the sections of all runs side by side."""
    inner = "".join(_write_section(section) for section in sections)
    title = f"<h2>{to_page_text(question)}</h2>"
    return f'<section class="question">\n{title}\n<div class="runs">\n{inner}</div>\n</section>\n'


def _write_section(section: Section) -> str:
    says = "".join(f"<p>{to_page_text(sentence)}</p>\n" for sentence in section.says)
    figures = "".join(f"{draw_svg(figure, f'{section.name}-{at}')}\n" for at, figure in enumerate(section.figures, 1))
    tables = [write_table(title, table) for title, table in section.tables.items()]
    rows = f'<p><a href="#rows-{section.rows}">The rows behind these numbers</a></p>\n' if section.rows else ""
    return (
        f'<section class="run" id="{section.name}" tabindex="-1">\n<h3>{_write_label(section.run)}</h3>\n'
        f'{says}<div class="figures">\n{figures}</div>\n{_fold_tables(tables)}{rows}</section>\n'
    )


def _fold_tables(tables: Sequence[str]) -> str:
    """The first tables of a section, and more of them folded away."""
    more = len(tables) - MOST_TABLES
    if more < 2:
        return "".join(tables)
    folded = "".join(tables[MOST_TABLES:])
    return f"{''.join(tables[:MOST_TABLES])}<details>\n<summary>{more} more tables</summary>\n{folded}</details>\n"


def write_table(title: str, table: pd.DataFrame) -> str:
    """A small table, shown whole: numbers with four digits, "none" for what is missing."""
    if not len(table):
        return f'<p class="caption">{to_page_text(title)}: none</p>\n'
    numeric = [is_number(table.iloc[:, at]) for at in range(table.shape[1])]
    right = [' class="number"' if number else "" for number in numeric]
    heads = "".join(_write_heading(str(name), side) for name, side in zip(table, right, strict=True))
    rows = "".join(f"<tr>{_write_cells(cells, right)}</tr>\n" for cells in table.itertuples(index=False, name=None))
    label = html.escape(to_message(title), quote=True)
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{label}">\n<table>\n'
        f"<caption><span>{to_page_text(title)}</span></caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>\n"
        "</table>\n</div>\n"
    )


def _write_heading(name: str, side: str) -> str:
    """The heading of a column; one without a name is no heading."""
    return f'<th scope="col"{side}>{to_page_text(name, LONGEST_CELL)}</th>' if name.strip() else "<td></td>"


def is_number(column: "pd.Series[Any]") -> bool:
    """Whether a column holds numbers that are compared by their digits."""
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _write_cells(cells: Sequence[Any], right: Sequence[str]) -> str:
    """The cells of a row; a text at its beginning names the row."""
    first, *others = (_write_cell(cell) for cell in cells)
    named = f"<td{right[0]}>{first}</td>" if right[0] else f'<th scope="row">{first}</th>'
    return named + "".join(f"<td{side}>{cell}</td>" for cell, side in zip(others, right[1:], strict=True))


def _write_cell(cell: Any) -> str:
    if cell is None or cell is pd.NA or cell is pd.NaT or (isinstance(cell, float | np.floating) and math.isnan(cell)):
        return '<span class="none">none</span>'
    if isinstance(cell, bool | np.bool_):
        return "yes" if cell else "no"
    if isinstance(cell, float | np.floating):
        return f"{cell:.4g}"
    return str(cell) if isinstance(cell, int | np.integer) else _write_label(str(cell))


def _write_rows(tables: Sequence[RowTable]) -> str:
    if not tables:
        return ""
    inner = "".join(
        f'<section class="rows" id="rows-{rows.name}" data-rows="{rows.name}" tabindex="-1" '
        f'aria-labelledby="rows-{rows.name}-title">\n'
        f'<h3 id="rows-{rows.name}-title">{to_page_text(rows.title)}</h3>\n<p>{to_page_text(rows.about)}</p>\n'
        f"<noscript><p>The {count_of(len(rows.ids), 'row')} of this table are shown, searched and sorted by a script. "
        "This browser runs none; all that stands above is whole without it.</p></noscript>\n</section>\n"
        for rows in tables
    )
    return f'<section id="page-rows">\n<h2>{ROWS_TITLE}</h2>\n{inner}</section>\n'


def _write_asked(runs: Sequence[Provenance]) -> str:
    inner = "".join(map(_write_provenance, runs))
    return f'<section id="page-asked">\n<h2>{ASKED_TITLE}</h2>\n<div class="runs">\n{inner}</div>\n</section>\n'


def _write_provenance(run: Provenance) -> str:
    facts = "".join(
        f"<div><dt>{to_page_text(name)}</dt><dd>{_write_label(value)}</dd></div>\n"
        for name, value in {"folder": run.folder, **run.facts}.items()
    )
    # Lines break between options, not at the hyphens in them.
    command = " ".join(f"<span>{word}</span>" for word in to_page_text(run.command).split(" "))
    return (
        f'<section class="run">\n<h3>{_write_label(run.run)}</h3>\n'
        f'<p><code>{command}</code></p>\n<dl class="asked">\n{facts}</dl>\n</section>\n'
    )
