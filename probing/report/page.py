"""A report as one page that needs nothing else: checks, sections, rows, and what was asked; no network, no library."""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from probing.report import page_data, page_parts
from probing.report.parts import Page, Section
from probing.report.svg import SVG_STYLE
from probing.shown import to_page_text

GENERATOR = "probing report"
"""What the head of a page names as its generator."""
MOST_BYTES = 8_000_000
REMARK_BYTES = 4_000
"""Room for the sentences about what was left out, which are written last."""
_NAME = re.compile(r"[A-Za-z0-9-]+")


@dataclass(frozen=True)
class Document:
    """A page as it is written.

    Attributes:
        text: the page as an HTML document.
        left_out: what was left out to keep its size, in sentences; or that it is larger all the same.
    """

    text: str
    left_out: Sequence[str]


def write_report(page: Page, most_bytes: int = MOST_BYTES) -> Document:
    """The page as an HTML document.

    The page is whole without JavaScript but for its rows. Where it would be larger than ``most_bytes``, texts and
    tokens of rows are left out, those of the rows in the middle first, and the remarks say so.

    Args:
        page: what the page shows.
        most_bytes: largest size of the page in UTF-8. Figures, tables and sentences are never left out.

    Raises:
        ValueError: Names of sections and tables are not unique or not fit for links, or a figure or section refers to a
            table of rows or a column that is not there.
    """
    check_names(page)
    style, script = SVG_STYLE + _read_asset("page.css"), _read_asset("page.js")
    begin = _write_head(page.title, style, script) + page_parts.write_body(page)
    end = f"<script>{script}</script>\n</body>\n</html>\n"
    # Remarks stand before the data, and tell what of them was left out.
    fixed = len((begin + page_parts.write_remarks(page.remarks) + end).encode("utf-8")) + REMARK_BYTES
    data, left_out = page_data.embed_rows(page.rows, most_bytes - fixed, most_bytes)
    remarks = page_parts.write_remarks([*page.remarks, *left_out])
    written = f'{begin}{remarks}</main>\n<script type="application/json" id="page-data">{data}</script>\n{end}'
    size = len(written.encode("utf-8"))
    if size > most_bytes:
        wanted, needed = f"{most_bytes / 1e6:.3g} MB", f"{size / 1e6:.3g} MB"
        left_out.append(f"The page has {needed}, more than {wanted}: figures and tables are never left out.")
    return Document(written, left_out)


def check_names(page: Page) -> None:
    """Names of sections and tables are unique and fit for links, and what is referred to is there.

    Raises:
        ValueError: One is not.
    """
    sections, tables = [section.name for section in page.sections], [f"rows-{rows.name}" for rows in page.rows]
    names = [*sections, *tables]
    wrong = {name for name in names if not _NAME.fullmatch(name) or name.startswith("page-") or names.count(name) > 1}
    if wrong:
        raise ValueError(
            f"names of sections and tables must be unique, of letters, digits and hyphens: {sorted(wrong)}"
        )
    columns = {rows.name: {column.name for column in rows.columns} for rows in page.rows}
    lost = [rows.name for rows in page.rows if rows.first is not None and rows.first not in columns[rows.name]]
    if lost:
        raise ValueError(f"tables of rows are sorted by a column that they do not have: {lost}")
    for section in page.sections:
        _check_references(section, columns)
    missing = {check.section for check in page.checks} - set(sections)
    if missing:
        raise ValueError(f"checks refer to sections that are not there: {sorted(missing)}")


def _check_references(section: Section, columns: dict[str, set[str]]) -> None:
    """The rows behind a section and its figures are on the page."""
    if section.rows is not None and section.rows not in columns:
        raise ValueError(f"section {section.name}: there is no table of rows {section.rows!r}")
    for figure in section.figures:
        behind = figure.get("rows", {})
        table, column = behind.get("table"), behind.get("column")
        if behind and (table not in columns or (column is not None and column not in columns[table])):
            raise ValueError(f"section {section.name}: a figure refers to rows that are not on the page: {behind}")


def _read_asset(name: str) -> str:
    return resources.files("probing.report").joinpath(name).read_text(encoding="utf-8")


def _write_head(title: str, style: str, script: str) -> str:
    """The head: nothing may be loaded, and no style or script but these two may run."""
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src 'sha256-{_hash(style)}'",
            f"script-src 'sha256-{_hash(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
            # No text can become markup, even by a mistake in the script.
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta name="generator" content="{GENERATOR}">\n'
        f"<title>{to_page_text(title)}</title>\n<style>{style}</style>\n</head>\n"
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
