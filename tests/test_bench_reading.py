"""scripts/bench_reading.py in small: what it generates, and the lines that it makes of two peaks."""

import importlib.util
import json
from argparse import Namespace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from probing.data.pairs import pairs_from_table
from probing.data.tables import read_table

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_reading.py"


@pytest.fixture
def bench():
    spec = importlib.util.spec_from_file_location("bench_reading", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_scores_are_of_the_pairs(bench, tmp_path, form):
    ids = bench.write_pairs(20, 3, tmp_path / f"p.{form}")
    bench.write_scores(ids, tmp_path / "s.parquet")
    assert [pair.id for pair in pairs_from_table(read_table(str(tmp_path / f"p.{form}")))] == ids
    assert pq.read_table(tmp_path / "s.parquet")["id"].to_pylist() == ids


def test_a_line_tells_bytes_a_row(bench, monkeypatch):
    monkeypatch.setattr(bench, "run_measured", lambda given: (100.0 if "-20." in "".join(given) else 118.0, 2.0))
    lines = bench.bench_reading(Namespace(small=True))
    assert [line["figure"] for line in lines] == [f"peak memory of {what}" for what in bench_cases()]
    assert json.dumps(lines)
    for line in lines:
        assert (line["rows"], line["ratio"], line["rows_per_second"]) == (200, 1.18, 100)
        assert line["bytes_a_row"] == round(18 * 2**20 / 180)


def bench_cases():
    return ("filter, jsonl", "filter, parquet", "score, jsonl")


def test_a_peak_is_measured(bench):
    peak, seconds = bench.run_measured(["--version"])
    assert 5 < peak < 500
    assert seconds > 0
