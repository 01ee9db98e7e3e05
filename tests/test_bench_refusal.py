"""scripts/bench_refusal.py in small: both ways choose alike before a time is shown."""

import argparse
import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_refusal.py"
OPTIONS = argparse.Namespace(small=True, device="cpu")


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_refusal", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.SMALL = (5, 32, 2, 2)
    return module


def test_ratios_are_told(bench):
    [row] = bench.bench_refusal(OPTIONS)
    assert 0 < row["ratio_20"] <= row["ratio_median"] <= row["ratio_80"]
    assert row["layer_forwards"] < row["exhaustive_layer_forwards"]


def test_another_choice_gets_no_time(bench, monkeypatch):
    plain = bench.select

    def choose_otherwise(model, directions, sides, exhaustive=False, **options):
        found = plain(model, directions, sides, exhaustive=exhaustive, **options)
        if not exhaustive:
            object.__setattr__(found.direction, "position", -99)
        return found

    monkeypatch.setattr(bench, "select", choose_otherwise)
    with pytest.raises(SystemExit, match="the two ways choose differently; no times are shown"):
        bench.bench_refusal(OPTIONS)
