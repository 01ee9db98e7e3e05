"""scripts/bench_influence.py in small: both ways see the same log-probabilities before a time is shown."""

import importlib.util
from argparse import Namespace
from pathlib import Path

import pytest

import probing

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_influence.py"
OPTIONS = Namespace(small=True, rows=60, device="cpu")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("bench_influence", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_prices_and_memory_are_measured(bench, monkeypatch):
    monkeypatch.setattr(bench, "measure_memory", lambda rows, device: {"rows": rows, "peak_mb": 0.0})
    monkeypatch.setattr(bench, "run_influence", counted := Counted(bench.run_influence))
    rows = bench.bench_influence(OPTIONS)
    assert [(row["figure"], row.get("optimizer")) for row in rows] == [
        ("price", "adamw"),
        ("price", "adamw"),
        ("price", "sgd"),
        ("price", "sgd"),
        ("memory", None),
        ("memory", None),
    ]
    assert all(row["ratio_20"] <= row["ratio_median"] <= row["ratio_80"] for row in rows[:4])
    assert [row["rows"] for row in rows[4:]] == [60, 240]
    # Once to check, and twice for each optimizer and what it is compared with.
    assert counted.calls == 9


class Counted:
    """A function that counts its calls."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *arguments, **options):
        self.calls += 1
        return self.function(*arguments, **options)


def test_nothing_is_timed_where_the_two_ways_disagree(bench, monkeypatch):
    plain = probing.score

    def shifted(**options):
        report = plain(**options)
        path = options["out"] / "scores.parquet"
        frame = bench.pd.read_parquet(path)
        frame.assign(chosen_logprob=frame["chosen_logprob"] * 1.01).to_parquet(path)
        return report

    monkeypatch.setattr(bench.probing, "score", shifted)
    with pytest.raises(SystemExit, match="no times are shown"):
        bench.bench_influence(OPTIONS)


def test_pairs_come_again_with_ids_of_their_own(bench):
    pairs = bench.repeat_pairs(700)
    assert len({pair["id"] for pair in pairs}) == 700
    assert len({str(pair["prompt"]) + str(pair["chosen"]) for pair in pairs}) <= 320
