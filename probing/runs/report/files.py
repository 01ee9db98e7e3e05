"""The file of ``probing report``: written whole or not at all, and never over a file that is no report."""

import os
from pathlib import Path

from probing.errors import UsageError
from probing.report.page import GENERATOR
from probing.store.files import is_special, new_file

BEGINNING = 4000
"""Bytes in which a report says what made it."""


def check_target(out: Path, overwrite: bool) -> None:
    """Raise before anything is read if the page could not be written there.

    Raises:
        UsageError: there is a folder, a device, or a file that is no report.
    """
    if out.is_dir():
        raise UsageError(f"{out}: is a folder; give a file as --out, such as {out / 'report.html'}")
    if is_special(out):
        raise UsageError(f"{out}: is a device or a pipe, which is not replaced; choose another --out")
    if os.path.lexists(out) and not overwrite and not _is_report(out):
        raise UsageError(
            f"{out}: exists already and is no report; choose another --out, or replace it with --overwrite"
        )


def _is_report(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as opened:
        return GENERATOR.encode() in opened.read(BEGINNING)


def write_page(page: str, out: Path) -> None:
    """Write the page under its name once it is complete."""
    with new_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
