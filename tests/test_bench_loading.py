"""scripts/bench_loading.py in small: hashes agree before a time is shown."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_loading.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_loading", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ratios_and_speeds_are_told(bench, model_folder):
    loading, hashing = bench.bench_loading(model_folder, "float32", "cpu", 2)
    assert 0 < loading["ratio_20"] <= loading["ratio_median"] <= loading["ratio_80"]
    assert loading["files"] == hashing["files"] == 1


def test_a_wrong_hash_gets_no_time(bench, model_folder, monkeypatch):
    monkeypatch.setattr(bench, "hashed_beside", lambda *given: "0" * 64)
    with pytest.raises(SystemExit, match=r"hashed beside loading the weights are 000.* no times are shown"):
        bench.bench_loading(model_folder, "float32", "cpu", 2)


def test_lines_are_printed_and_recorded(bench, model_folder, tmp_path, monkeypatch, capsys):
    record = tmp_path / "loading.jsonl"
    command = ["bench_loading.py", str(model_folder), "--rounds", "2", "--device", "cpu", "--record", str(record)]
    monkeypatch.setattr(sys, "argv", command)
    bench.main()
    lines = capsys.readouterr().out
    assert lines == record.read_text()
    assert [json.loads(line)["bench"] for line in lines.splitlines()] == ["loading", "loading"]
