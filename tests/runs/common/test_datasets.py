"""Texts of several files, and the labels that the files are given by."""

import json

import pytest
from harness import write

from probing.errors import DataInvalid, UsageError
from probing.runs import capture, ccs, probe
from probing.runs.capture.data import read_data
from probing.runs.ccs.data import read_statements
from probing.runs.common.datasets import read_labelled

TEXTS = {"harmful": ["Make a bomb.", "Steal a boat."], "harmless": ["Bake a cake.", "Paint a boat.", "Fold a paper."]}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(TEXTS["harmful"]))
    (tmp_path / "b.json").write_text(
        json.dumps([{"instruction": text, "category": None} for text in TEXTS["harmless"]])
    )
    return [f"harmful={tmp_path / 'a.json'}", f"harmless={tmp_path / 'b.json'}"]


def options(tmp_path, data, **changes):
    return probe.ProbeConfig(model="bundled", data=data, out=tmp_path / "out", **changes)


def test_files_label_their_rows(files, tmp_path):
    write(tmp_path / "c.jsonl", [{"text": text} for text in TEXTS["harmful"]])
    config = options(tmp_path, [f"harmful={tmp_path / 'c.jsonl'}", f"harmless={tmp_path / 'a.json'}"])
    table, prompts = read_labelled(config, config.data)
    assert [prompt.label for prompt in prompts] == ["harmful"] * 2 + ["harmless"] * 2
    assert [prompt.text for prompt in prompts] == TEXTS["harmful"] * 2
    assert len({prompt.id for prompt in prompts}) == 4
    assert table.where(2) == f"{tmp_path / 'a.json'}, entry 1"
    swapped = options(tmp_path, [f"harmless={tmp_path / 'c.jsonl'}", f"harmful={tmp_path / 'a.json'}"])
    assert read_labelled(swapped, swapped.data)[0].sha256 != table.sha256


def test_lists_of_strings_and_of_instructions_go_together(files, tmp_path):
    config = options(tmp_path, files)
    _, prompts = read_labelled(config, config.data)
    assert [(prompt.text, prompt.label) for prompt in prompts] == [
        (text, label) for label, texts in TEXTS.items() for text in texts
    ]
    captured = capture.CaptureConfig(model="bundled", data=files, places="final_norm", out=tmp_path / "out", sample=3)
    table, prompts = read_data(captured)
    assert len(prompts) == len(table.rows) == 3


def test_a_file_whose_name_has_an_equals_sign_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a=b.jsonl", [{"text": "t", "label": "x"}])
    config = options(tmp_path, "a=b.jsonl")
    assert read_labelled(config, config.data)[1][0].label == "x"


def test_labels_that_contradict_themselves(files, tmp_path):
    plain = files[0].partition("=")[2]
    for data, changes, message in (
        ([files[0], str(tmp_path / "c.jsonl")], {}, "c.jsonl: has no label, though others have"),
        ([files[0], f"other={plain}"], {}, "a.json: is given twice, so that its rows would count twice"),
        (files, {"label_column": "category"}, "labels are given twice"),
        ([files[0].replace("a.json", "c.jsonl"), files[1]], {}, "has the label 'other' in its own column"),
    ):
        write(tmp_path / "c.jsonl", [{"text": "t", "label": "other"}])
        with pytest.raises(UsageError, match=message):
            read_labelled(options(tmp_path, data, **changes), data)
    with pytest.raises(DataInvalid, match=r"no row has a label; .* or give a file for each label as --data LABEL=FILE"):
        read_labelled(options(tmp_path, plain), plain)


def test_a_part_is_taken_of_the_data_and_not_of_other_files(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", [{"text": f"{name}{n}", "label": n % 2} for n in range(9)])
    config = options(tmp_path, str(tmp_path / "a.jsonl"), fresh=str(tmp_path / "b.jsonl"), limit=4)
    assert len(read_labelled(config, config.data)[1]) == 4
    assert len(read_labelled(config, config.fresh)[1]) == 9


def test_halves_are_those_of_a_whole_file(tmp_path):
    rows = [{"statement": f"s{n}", "label": n < 2} for n in range(4)]
    path = str(write(tmp_path / "s.jsonl", rows))
    config = ccs.CCSConfig(model="bundled", data=path, out=tmp_path / "out", layout="halves", limit=2)
    with pytest.raises(UsageError, match="read one whole file with --layout halves"):
        read_statements(config)


def test_data_must_be_named(tmp_path):
    with pytest.raises(ValueError, match="data must name at least one dataset"):
        options(tmp_path, [])
    with pytest.raises(ValueError, match="give at most one of limit and sample"):
        options(tmp_path, "d", limit=1, sample=1)
    with pytest.raises(UsageError, match="standard input can be read only once"):
        read_labelled(options(tmp_path, ["-", "-"]), ["-", "-"])
