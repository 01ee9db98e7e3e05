"""Print every module with the first sentence of its docstring; ``--write`` puts the tree into docs/contributing.md."""

import ast
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "contributing.md"
BEGIN, END = "<!-- the tree: scripts/print_tree.py --write -->\n", "<!-- end of the tree -->\n"
FOLDERS = ("kernels", "probing", "scripts")
WIDTH = 116


def describe(path: Path) -> str:
    """The first sentence of a module's docstring, without the full stop and the marks of code.

    Raises:
        ValueError: the module has none.
    """
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(f"{path.relative_to(ROOT)} has no docstring")
    return " ".join(docstring.split("\n\n")[0].split()).rstrip(".").replace("``", "")


def print_folder(folder: Path, depth: int = 0) -> list[str]:
    """Lines of a folder: its own, then its modules, then its folders, each indented by its depth."""
    init = folder / "__init__.py"
    lines = [_line(f"{folder.name}/", describe(init) if init.is_file() else "", depth)]
    modules = sorted(path for path in folder.glob("*.py") if path != init and not path.is_symlink())
    lines += [_line(path.name, describe(path), depth + 1) for path in modules]
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()):
        if any(inner.glob("*.py")) or any(inner.glob("*/*.py")):
            lines += print_folder(inner, depth + 1)
    return lines


def _line(name: str, what: str, depth: int) -> str:
    """An entry; what does not fit into one line goes on below its beginning."""
    head = f"{'  ' * depth}{name}".ljust(26) + " "
    return textwrap.fill(what, WIDTH, initial_indent=head, subsequent_indent=" " * len(head)) or head.rstrip()


def print_tree() -> str:
    """The whole tree as a block of Markdown."""
    lines = [line for folder in FOLDERS for line in print_folder(ROOT / folder)]
    return textwrap.indent("\n".join(lines) + "\n", "    ")


def main() -> None:
    """Print the tree, or write it into the page between its marks."""
    if sys.argv[1:] != ["--write"]:
        print(print_tree(), end="")
        return
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}{print_tree()}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
