"""scripts/bench_refusal.py in small: both ways choose alike before a time is shown."""

import argparse
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_refusal.py"
OPTIONS = argparse.Namespace(small=True, device="cpu")


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_refusal", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.SMALL = (4, 16, 2, 2)
    return module


def test_ratios_are_told(bench):
    [row] = bench.bench_refusal(OPTIONS)
    assert 0 < row["ratio_20"] <= row["ratio_median"] <= row["ratio_80"]
    assert row["layer_forwards"] < row["exhaustive_layer_forwards"]


def test_another_choice_gets_no_time(bench, monkeypatch):
    table = pd.DataFrame({"induce": [1.0], "kl": [0.1], "bypass": [-1.0]})

    def choose_otherwise(model, directions, sides, exhaustive=False, **options):
        direction = SimpleNamespace(place="resid_pre:1", position=-1 if exhaustive else -2)
        return SimpleNamespace(direction=direction, table=table, layer_forwards={"kl": 1})

    monkeypatch.setattr(bench, "select", choose_otherwise)
    with pytest.raises(SystemExit, match="the two ways choose differently; no times are shown"):
        bench.bench_refusal(OPTIONS)
