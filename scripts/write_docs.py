"""Run the commands whose output the docs show, and compare; ``--write`` puts what they print now into the pages.

    python scripts/write_docs.py [--write] [--print] [PAGE ...]

A line ``$ probing ...`` with lines behind it is a command with its output, as a terminal of 100 columns shows it. A
line ``[...]`` stands for any number of lines, and ``[...]`` within a line for a part of it. Commands without output are
not run. What a command wrote and what it says could come next may be missing at the end. The commands of a page run in
one folder, in their order.
"""

import argparse
import contextlib
import difflib
import io
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COLUMNS = 100
ELISION = "[...]"
ALIKE = 0.5
"""Lines that are less alike than this are not one line before and after a change."""
DIGITS = 0.02
"""Numbers may differ by this share: other processors round otherwise, and that can move the end of an interval."""
ENDS = ("wrote ", "next: ")
"""What a command says when it is done, on stderr."""
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A command of a page with the output that is shown.

    Attributes:
        command: what is typed, without the ``$``.
        shown: lines of output, without their indentation.
        begin: number of the first line of output in the page, from 0.
        end: number of the line behind the last one.
        indent: what stands before every line.
    """

    command: str
    shown: Sequence[str]
    begin: int
    end: int
    indent: str


def list_pages() -> list[Path]:
    """The pages whose output is run anew: the README, and those of the docs but for the benchmarks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/questions").glob("*.md"))]


def find_blocks(text: str) -> list[Block]:
    """The commands of a page that have output."""
    lines = text.split("\n")
    begins = [(number, re.match(r"( *)\$ (probing .*)", line)) for number, line in enumerate(lines)]
    blocks = []
    for number, found in begins:
        if found is None:
            continue
        indent, command = found.groups()
        end = _find_end(lines, number + 1, indent)
        if end > number + 1:
            shown = [line.removeprefix(indent) for line in lines[number + 1 : end]]
            blocks.append(Block(command, shown, number + 1, end, indent))
    return blocks


def _find_end(lines: Sequence[str], begin: int, indent: str) -> int:
    """The line behind the output: before the next command, the end of the fence or of what is indented."""
    end = begin
    for number in range(begin, len(lines)):
        line = lines[number]
        if line.startswith((f"{indent}$ ", f"{indent}```")) or (line and not line.startswith(indent)):
            break
        end = number + 1 if line.strip() else end
    return end


def describe_difference(block: Block, printed: Sequence[str]) -> str | None:
    """Where the output of a block is not what the command prints; None where it is."""
    printed = cut_end(block.shown, printed)
    at, anywhere = 0, False
    for line in block.shown:
        if line.strip() == ELISION:
            anywhere = True
            continue
        until = len(printed) if anywhere else min(at + 1, len(printed))
        found = next((number for number in range(at, until) if is_same(line, printed[number])), None)
        if found is None:
            return f"$ {block.command}\n  shown:   {line}\n  printed: {_find_nearest(line, printed[at:])}"
        at, anywhere = found + 1, False
    if at < len(printed) and not anywhere:
        return f"$ {block.command}\n  printed and not shown: {printed[at]}"
    return None


def cut_end(shown: Sequence[str], printed: Sequence[str]) -> list[str]:
    """What is printed, without the lines of the end that the page has none of."""
    missing = tuple(begin for begin in ENDS if not any(line.startswith(begin) for line in shown))
    kept = [line for line in printed if not line.startswith(missing)]
    while kept and not kept[-1]:
        kept.pop()
    return kept


def is_same(shown: str, printed: str) -> bool:
    """Whether a line of a page is the printed one: equal words, and numbers that agree up to rounding."""
    parts = [" ".join(part.split()) for part in shown.split(ELISION)]
    words = [f"({NUMBER.pattern})".join(map(re.escape, NUMBER.split(part))) for part in parts]
    found = re.fullmatch(r" ?.*? ?".join(words), " ".join(printed.split()))
    numbers = [float(number) for part in parts for number in NUMBER.findall(part)]
    return found is not None and all(
        abs(before - float(now)) <= DIGITS * abs(before) for before, now in zip(numbers, found.groups(), strict=True)
    )


def _find_nearest(line: str, printed: Sequence[str]) -> str:
    near = difflib.get_close_matches(line, printed, n=1, cutoff=0)
    return near[0] if near else "(nothing more)"


def renew(shown: Sequence[str], printed: Sequence[str]) -> list[str]:
    """The output of a block as it is printed now, with the same things left out.

    Raises:
        ValueError: a line has nothing like it in what is printed now; the page has to be looked at.
    """
    printed = cut_end(shown, printed)
    lines: list[str] = []
    at, anywhere = 0, False
    for line in shown:
        if line.strip() == ELISION:
            lines.append(line)
            anywhere = True
            continue
        likeness = {number: _compare(line, printed[number]) for number in range(at, len(printed))}
        best = max(likeness, key=lambda number: (likeness[number], -number), default=at)
        if likeness.get(best, 0) < ALIKE:
            raise ValueError(f"nothing like this line is printed any more: {line!r}")
        lines += ([] if anywhere else printed[at:best]) + [printed[best]]
        at, anywhere = best + 1, False
    return lines + ([] if anywhere else list(printed[at:]))


def _compare(line: str, printed: str) -> float:
    """How much two lines have in common, whatever their numbers are."""
    before, now = (NUMBER.sub("0", " ".join(text.replace(ELISION, "").split())) for text in (line, printed))
    return difflib.SequenceMatcher(None, before, now, autojunk=False).ratio() if line and printed else line == printed


class Terminal(io.StringIO):
    """A terminal, as far as a command asks."""

    def isatty(self) -> bool:
        """Whether somebody looks at it."""
        return True


def run_command(command: str) -> list[str]:
    """Run a command in the current folder: what a terminal shows of it, without progress and warnings.

    Raises:
        ValueError: it did not end well.
    """
    from probing.cli import main

    screen, told = Terminal(), io.StringIO()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(told):
        try:
            main(shlex.split(command)[1:])
        except SystemExit as left:
            status = left.code
    if status:
        raise ValueError(f"{command}: left with {status}: {told.getvalue().strip()}")
    ends = [line for line in told.getvalue().splitlines() if line.startswith(ENDS)]
    return [line.rstrip() for line in [*screen.getvalue().splitlines(), *([""] if ends else []), *ends]]


@contextlib.contextmanager
def open_folder(folder: Path) -> Iterator[None]:
    """Commands run in this folder, on a terminal of 100 columns."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(COLUMNS)
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns


def run_blocks(texts: Mapping[Path, str], folder: Path, leave_out: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """What every command of the pages prints, by command, but for those that begin with what is left out.

    Every page has a folder of its own, so that it can show no command that needs what another page made. A command that
    ran for another page does not run again: what it wrote is copied.
    """
    printed: dict[str, list[str]] = {}
    written: dict[str, list[Path]] = {}
    for number, text in enumerate(texts.values()):
        here = folder / str(number)
        here.mkdir(parents=True)
        for block in find_blocks(text):
            if block.command.startswith(leave_out):
                continue
            if block.command in printed:
                copy_paths(written[block.command], here)
                continue
            before = set(here.iterdir())
            with open_folder(here):
                printed[block.command] = run_command(block.command)
            written[block.command] = sorted(set(here.iterdir()) - before)
    return printed


def copy_paths(paths: Sequence[Path], to: Path) -> None:
    """Copy files and folders into a folder."""
    for path in paths:
        if path.is_dir():
            shutil.copytree(path, to / path.name)
        else:
            shutil.copy2(path, to / path.name)


def find_differences(text: str, printed: Mapping[str, Sequence[str]]) -> list[str]:
    """Where a page shows something else than what its commands print; those that did not run are not looked at."""
    blocks = [block for block in find_blocks(text) if block.command in printed]
    found = [describe_difference(block, printed[block.command]) for block in blocks]
    return [difference for difference in found if difference is not None]


def rewrite(text: str, printed: Mapping[str, Sequence[str]]) -> str:
    """The page with what its commands print now; blocks that agree already stay as they are."""
    lines = text.split("\n")
    for block in reversed(find_blocks(text)):
        if describe_difference(block, printed[block.command]) is not None:
            now = renew(block.shown, printed[block.command])
            lines[block.begin : block.end] = [f"{block.indent}{line}".rstrip() for line in now]
    return "\n".join(lines)


def main() -> int:
    """Compare the pages, or write them; 1 where one shows something else."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE", help="pages; all where none is named")
    parser.add_argument("--write", action="store_true", help="put what the commands print into the pages")
    parser.add_argument("--print", action="store_true", help="print the whole output of every command")
    given = parser.parse_args()
    texts = {page: page.read_text(encoding="utf-8") for page in [p.resolve() for p in given.pages] or list_pages()}
    with tempfile.TemporaryDirectory() as folder:
        printed = run_blocks(texts, Path(folder))
    if given.print:
        print("\n\n".join("\n".join([f"$ {command}", *lines]) for command, lines in printed.items()))
    differences = 0
    for page, text in texts.items():
        if given.write:
            page.write_text(rewrite(text, printed), encoding="utf-8")
            continue
        for difference in find_differences(text, printed):
            differences += 1
            print(f"{page.relative_to(ROOT)}: {difference}")
    return int(differences > 0)


if __name__ == "__main__":
    sys.exit(main())
