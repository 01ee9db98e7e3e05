"""scripts/bench_likelihood.py in small: both ways agree before a time is shown, and memory is what it says."""

import importlib.util
from pathlib import Path

import pytest
import tiny
import torch

from probing.instruments.pair_scores import as_pairs

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_likelihood.py"
ROWS = [{"prompt": f"Q{n}", "chosen": " yes, always", "rejected": " no, never"} for n in range(4)]


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_likelihood", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ratios_are_told(bench, monkeypatch):
    monkeypatch.setattr(bench, "BLOCKS", 2)
    row = bench.compare_ways((40, 300, 8), "cpu")
    assert 0 < row["ratio_20"] <= row["ratio_median"] <= row["ratio_80"]
    rows = bench.compare_columns(tiny.make_model(), as_pairs(ROWS))
    assert [row["figure"] for row in rows] == [
        "time of columns 'all' over CHES alone",
        "time of columns 'all and rate' over CHES alone",
    ]


def test_a_wrong_way_gets_no_time(bench, monkeypatch):
    monkeypatch.setitem(bench.WAYS, "ours", lambda *tensors: bench.full_logits(*tensors) + 0.01)
    with pytest.raises(SystemExit, match=r"the two ways disagree by 1\.0e-02; no times are shown"):
        bench.compare_ways((40, 300, 8), "cpu")


def test_the_top_is_the_same_before_its_time_is_told(bench, monkeypatch):
    row = bench.compare_top((40, 1000, 8), "cpu")
    assert 0 < row["ratio_20"] <= row["ratio_median"] <= row["ratio_80"]
    monkeypatch.setattr(bench, "top_columns", lambda logits, count: [logits[:, :count]])
    with pytest.raises(SystemExit, match="the two differ by"):
        bench.compare_top((40, 1000, 8), "cpu")


def test_what_only_a_card_can_show_is_not_made_up(bench):
    rows = bench.compare_on_a_card((40, 300, 8), "cpu")
    assert [row["not_run"] for row in rows] == ["only measured on a card"] * 3
    assert all("ratio_median" not in row for row in rows)


def test_full_logits_take_more_memory_than_ours(bench):
    """Each in a process of its own: 12,000 x 8,000 logits are 366 MB, and their log-softmax as much again."""
    peaks = {way: bench.memory_of(way, (12000, 8000, 8), "cpu")["peak_mb"] for way in bench.WAYS}
    assert peaks["plain"] > 720
    assert peaks["ours"] < peaks["plain"] / 3
    assert torch.get_num_threads() == 1
