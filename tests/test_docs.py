"""The docs show what commands print, name every public thing once, and need no network."""

import re
from collections import Counter
from pathlib import Path

import pytest
import write_docs

import probing

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# These take minutes. ``python scripts/write_docs.py`` runs them too.
TOO_LONG = ("probing ccs", "probing clusters")

PAGE = """
A command:

    $ probing a --out b
    Title
    id      value
    accuracy  1.004 [...]
    [...]
    wrote b

    $ probing without-output

```console
$ probing c
[...]
last line
```
"""
PRINTED = ["Title", "id value", "accuracy 1.01 more 7", "y 2", "", "wrote b"]


@pytest.mark.slow
def test_the_pages_show_what_their_commands_print(tmp_path):
    texts = {page: page.read_text(encoding="utf-8") for page in write_docs.list_pages()}
    printed = write_docs.run_blocks(texts, tmp_path, leave_out=TOO_LONG)
    assert len(printed) >= 12
    differences = [difference for text in texts.values() for difference in write_docs.find_differences(text, printed)]
    assert not differences, "\n".join(["run: python scripts/write_docs.py --write", *differences])


def test_commands_with_output_are_found_and_others_are_not():
    first, second = write_docs.find_blocks(PAGE)
    assert first.command == "probing a --out b"
    assert first.shown[0] == "Title"
    assert first.shown[-1] == "wrote b"
    assert (second.command, second.shown) == ("probing c", ["[...]", "last line"])


def test_output_is_compared_but_for_spaces_rounding_and_what_is_left_out():
    block = write_docs.find_blocks(PAGE)[0]
    assert write_docs.describe_difference(block, PRINTED) is None
    assert write_docs.describe_difference(block, [*PRINTED, "next: probing c"]) is None
    for planted in (
        ["Another title", *PRINTED[1:]],
        [*PRINTED[:2], "accuracy 1.03 more 7", *PRINTED[3:]],
        [*PRINTED[:1], "a new line", *PRINTED[1:]],
        [*PRINTED, "one line more"],
        PRINTED[:1],
    ):
        assert "$ probing a --out b" in write_docs.describe_difference(block, planted)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a  1.00", "a 1.01", True),
        ("a  1.00", "a 1.03", False),
        ("a -1.00", "a 1.00", False),
        ("a 0.000", "a 0.001", False),
        ("p [...] end", "p 1 2 end", True),
        ("p [...] end", "p 1 2 enf", False),
        ("(a+b)", "(a+b)", True),
        ("x 1e-07", "x 1.01e-07", True),
        ("", "", True),
        ("", "x", False),
    ],
)
def test_lines_are_compared(shown, printed, same):
    assert write_docs.is_same(shown, printed) is same


def test_a_page_is_rewritten_with_the_same_things_left_out():
    now = ["Title", "id value note", "accuracy 5.5 more 7", "y 3", "", "wrote b, c"]
    printed = {"probing a --out b": now, "probing c": ["first", "last line"]}
    text = write_docs.rewrite(PAGE, printed)
    assert write_docs.find_differences(PAGE, printed)
    assert write_docs.find_differences(text, printed) == []
    assert "    id value note\n" in text
    assert "    accuracy 5.5 more 7\n    [...]\n    wrote b, c\n\n    $ probing without-output" in text
    assert text.split("```")[1] == PAGE.split("```")[1]
    with pytest.raises(ValueError, match="nothing like this line"):
        write_docs.rewrite(PAGE, printed | {"probing a --out b": ["quite", "other"]})


def test_a_command_sees_what_its_own_page_made(tmp_path, monkeypatch):
    def run(command):
        name, made = command.split()[1:]
        assert name == "make" or Path(made).exists(), f"{made} is not there"
        Path(made).mkdir(exist_ok=True)
        return [command]

    monkeypatch.setattr(write_docs, "run_command", run)
    pages = ["$ probing make a\nx\n$ probing read a\nx", "$ probing make a\nx\n$ probing read a\nx"]
    printed = write_docs.run_blocks(dict(enumerate(pages)), tmp_path / "here", leave_out=("probing left",))
    assert list(printed) == ["probing make a", "probing read a"]
    with pytest.raises(AssertionError, match="a is not there"):
        write_docs.run_blocks({0: pages[0], 1: "$ probing read  a\nx"}, tmp_path / "there")


def test_every_public_name_stands_on_one_page_of_the_api():
    pages = [page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md")]
    named = Counter(name for page in pages for name in re.findall(r"^::: probing\.(\w+)$", page, re.MULTILINE))
    assert named == Counter(probing.__all__)


def test_links_of_the_readme_lead_to_files():
    links = re.findall(r"\]\(\s*([^)#\s]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_site_takes_nothing_from_a_network():
    sources = [ROOT / "mkdocs.yml", *(DOCS / "assets").iterdir()]
    assert [
        source.name for source in sources if re.search(r"https?:|//[a-z]", source.read_text(encoding="utf-8"))
    ] == []
    assert "font: false" in sources[0].read_text(encoding="utf-8")
