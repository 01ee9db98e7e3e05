"""The page for contributors is true: its tree is that of the docstrings, and its toy job can be added as it says."""

import ast
import importlib
import json
import re
import shutil
import sys

import print_tree
import pytest
import test_architecture

import probing.runs
from probing import cli, open_store, silhouette
from probing.data.bundled import BUNDLED
from probing.runs import demo

PAGE = print_tree.PAGE.read_text(encoding="utf-8")
BLOCKS = {name: code for name, code in re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)}
PACKAGE = "probing/runs/toy/"


def test_the_tree_is_that_of_the_docstrings():
    written = PAGE.split(print_tree.BEGIN)[1].split(print_tree.END)[0]
    assert written == print_tree.print_tree(), "run: python scripts/print_tree.py --write"


def test_a_module_without_a_docstring_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(print_tree, "ROOT", tmp_path)
    (tmp_path / "good.py").write_text('"""Says what it is.\n\nAnd more."""\n')
    assert print_tree.describe(tmp_path / "good.py") == "Says what it is"
    (tmp_path / "bare.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"bare\.py has no docstring"):
        print_tree.describe(tmp_path / "bare.py")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The toy job, added to this process as the page says."""
    for name, code in BLOCKS.items():
        if name.startswith(PACKAGE):
            path = tmp_path / "added" / name.removeprefix("probing/runs/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code)
    monkeypatch.setattr(probing.runs, "__path__", [*probing.runs.__path__, str(tmp_path / "added")])
    line = ast.literal_eval(f"{{{BLOCKS['probing/cli.py']}}}")
    monkeypatch.setattr(cli, "COMMANDS", cli.COMMANDS | line)
    yield importlib.import_module("probing.runs.toy")
    for name in [name for name in sys.modules if name.startswith("probing.runs.toy")]:
        del sys.modules[name]


def test_the_toy_job_keeps_the_rules_of_the_house(tmp_path):
    root = test_architecture.ROOT / "probing"
    bundled = shutil.ignore_patterns("bundled", "__pycache__", "kernels")
    shutil.copytree(root, tmp_path / "probing", ignore=bundled)
    (tmp_path / "kernels").symlink_to(test_architecture.ROOT / "kernels")
    for name, code in BLOCKS.items():
        if name.startswith(PACKAGE):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(code)
    assert test_architecture.find_violations(tmp_path / "probing") == []
    assert test_architecture.find_circles(tmp_path / "probing") == []


def test_the_toy_job_runs_is_resumed_and_has_help(toy, tmp_path, capsys, monkeypatch):
    arguments = ["toy", "--model", "bundled", "--data", "bundled", "--chat", "--over", "template"]
    arguments += ["--places", "resid_post:0,resid_post:-1", "--out", str(tmp_path / "out"), "--json"]
    with pytest.raises(SystemExit) as done:
        cli.main(arguments)
    first = json.loads(capsys.readouterr().out)
    assert done.value.code == 0
    values = {row["place"]: row["silhouette"] for row in first["tables"]["By place"]}
    store = open_store(tmp_path / "out" / "states")
    labels = store.rows["label"].tolist()
    for place, value in values.items():
        assert value == pytest.approx(float(silhouette(store.read(place).float(), labels)))
    monkeypatch.setattr("probing.runs.toy.stages.capture_states", None)  # the run is done
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert json.loads(capsys.readouterr().out)["tables"] == first["tables"]
    with pytest.raises(SystemExit):
        cli.main(["toy", "--help"])
    assert "--metric {euclidean,cosine}" in capsys.readouterr().out


def test_the_entry_of_the_toy_job_in_the_demo_is_of_its_options(toy, tmp_path):
    names = {"toy": toy, "BUNDLED": BUNDLED, "LABELLED": demo.LABELLED}
    (entry,) = eval(f"{{{BLOCKS['probing/runs/demo.py']}}}", names).values()
    assert entry(tmp_path) == toy.ToyConfig(model=BUNDLED, out=tmp_path / "toy", **demo.LABELLED)
