"""Every status word is defined once, is written by the code, and is explained in the docs by its own sentence."""

import ast
from pathlib import Path

import pytest

from probing.types import (
    LABEL_STATUSES,
    PAIR_STATUSES,
    ROLLOUT_STATUSES,
    STATEMENT_STATUSES,
    STATUS_MEANINGS,
    STATUSES,
    TEXT_STATUSES,
)

ROOT = Path(__file__).parents[2]
TABLES = {
    "scores": PAIR_STATUSES,
    "rollouts": ROLLOUT_STATUSES,
    "capture": TEXT_STATUSES,
    "probes": (*STATEMENT_STATUSES, "no_label", "not_fresh"),
    "clusters": ("no_label", "other_label"),
}
HEAD = "| status | meaning |\n|---|---|\n"
OF_RUNS = {"running", "done"}
"""What ``run.json`` says of a whole run under the same key; no row has these."""
TITLES = ("pair_titles.py", "cli.py")
"""Modules that name the column of statuses, or the command of that name, in words, as sections of reports do."""


def is_status(node):
    """Whether an expression reads a status: ``x.status``, ``x["status"]``, ``x.get("status")`` or ``status``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
        return bool(node.args) and ast.unparse(node.args[0]) == "'status'"
    if isinstance(node, ast.Subscript):
        return ast.unparse(node.slice) == "'status'"
    return (node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)) == "status"


def given(node):
    """The expressions that stand for a status in one node of a syntax tree."""
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        place = {"Problem": 1, "problem": 0}.get(name)
        if place is not None:
            yield from node.args[place : place + 1]
        yield from (keyword.value for keyword in node.keywords if keyword.arg == "status")
    elif isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        yield from (value for key, value in pairs if isinstance(key, ast.Constant) and key.value == "status")
    elif isinstance(node, ast.Compare) and any(map(is_status, [node.left, *node.comparators])):
        yield from [node.left, *node.comparators]
    elif isinstance(node, ast.Assign) and any(map(is_status, node.targets)):
        yield node.value
    elif isinstance(node, ast.FunctionDef) and node.name == "status":
        yield from (inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return) and inner.value)


def words_written(code):
    """All literals that stand for a status in some code, in either branch of a condition too."""
    words = set()
    for expression in (each for node in ast.walk(ast.parse(code)) for each in given(node)):
        branches = (expression.body, expression.orelse) if isinstance(expression, ast.IfExp) else (expression,)
        words |= {branch.value for branch in branches if isinstance(branch, ast.Constant)}
    return words


def test_every_word_has_a_meaning():
    assert set(STATUS_MEANINGS) == set(STATUSES)
    assert set(STATUSES) == {*PAIR_STATUSES, *ROLLOUT_STATUSES, *TEXT_STATUSES, *LABEL_STATUSES, *STATEMENT_STATUSES}
    for meaning in STATUS_MEANINGS.values():
        assert meaning
        assert "\n" not in meaning
        assert not meaning.endswith(".")


def test_the_code_writes_these_words_and_no_others():
    paths = sorted(path for path in (ROOT / "probing").rglob("*.py") if path.parts[-2:][0] != "sections")
    code = [path.read_text(encoding="utf-8") for path in paths if path.name not in TITLES]
    assert set().union(*map(words_written, code)) == {*STATUSES, *OF_RUNS}


@pytest.mark.parametrize(
    "line",
    [
        "Problem(row.id, 'lost', 'why')",
        "Problem(id='x', status='lost', detail='why')",
        "row.problem('lost', 'why')",
        "row = {'id': id, 'status': 'lost'}",
        "row = {'id': id, 'status': 'lost' if problem else 'ok'}",
        "row['status'] = 'lost'",
        "good = frame['status'] != 'lost'",
        "if facts.get('status') == 'lost': pass",
        "bad = [row for row in rows if row.status == 'lost']",
        "def status(self):\n    return 'lost'",
    ],
)
def test_another_word_is_found(line):
    assert "lost" in words_written(line)


@pytest.mark.parametrize("page", TABLES)
def test_the_docs_list_them_with_their_meanings(page):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    rows = "".join(f"| `{word}` | {STATUS_MEANINGS[word]} |\n" for word in TABLES[page])
    assert text.count("| status |") == 1
    assert f"{HEAD}{rows}\n" in text


def test_every_word_is_in_the_docs():
    assert {word for words in TABLES.values() for word in words} == set(STATUSES)
