"""scripts/bench_scale.py in small: ratios of all ways, and no time where their numbers differ."""

import importlib.util
from argparse import Namespace
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_scale.py"
OPTIONS = Namespace(small=True, rows=80, device="cpu")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("bench_scale", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_scores(change):
    """A stand-in for a scoring, whose numbers change by so much where several processes make them."""

    def run(model, data, out, device, way):
        several = way != "one process"
        out.mkdir()
        frame = pd.DataFrame({"id": ["a", "b"], "ches": [1.0, 2.0 + change * several]})
        frame.iloc[:: -1 if several else 1].to_parquet(out / "scores.parquet")
        return {"whole": 4.0 - several, "work": 3.0 - several}

    return run


def test_ratios_are_those_of_seconds(bench, monkeypatch):
    monkeypatch.setattr(bench, "run_scoring", write_scores(1e-9))
    two, ray, two_at_work, ray_at_work = bench.bench_scale(OPTIONS)
    assert two["ratio_median"] == pytest.approx(4 / 3, abs=1e-3)
    assert ray["ratio_median"] == 0.75
    assert two_at_work["ratio_median"] == 1.5
    assert ray_at_work["ratio_median"] == pytest.approx(2 / 3, abs=1e-3)
    assert two["pairs"] == 80


def test_no_time_is_shown_where_numbers_differ(bench, monkeypatch):
    monkeypatch.setattr(bench, "run_scoring", write_scores(1e-4))
    with pytest.raises(SystemExit, match="differ by"):
        bench.bench_scale(OPTIONS)
