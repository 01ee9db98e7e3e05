"""scripts/bench_ccs.py in small: both ways train the same probes before a time is shown."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_ccs.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_ccs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def sizes(bench):
    return bench.Sizes(**bench.SMALL)


def test_the_ratio_is_told_and_how_many_were_timed(bench, sizes):
    row = bench.compare(sizes, "cpu")
    assert 0 < row["ratio_20"] <= row["ratio_median"] <= row["ratio_80"]
    assert row["alone"] == "timed 3 of 4 probes, scaled"
    assert 0 <= row["worst_difference"] <= bench.AGREE


def test_every_probe_can_be_timed(bench):
    row = bench.compare(bench.Sizes(**bench.SMALL | {"sample": 99}), "cpu")
    assert row["alone"] == "timed 4 of 4 probes, scaled"


@pytest.mark.parametrize(("scale", "told"), [(1.1, r"\d\.\de-0\d"), (float("nan"), "nan")])
def test_a_wrong_way_gets_no_time(bench, sizes, monkeypatch, scale, told):
    train = bench.train_alone

    def wrong(*arguments):
        weight, bias = train(*arguments)
        return weight * scale, bias

    monkeypatch.setattr(bench, "train_alone", wrong)
    with pytest.raises(SystemExit, match=f"probabilities of the two ways differ by {told}; no times are shown"):
        bench.compare(sizes, "cpu")


def test_the_planted_answer_is_learned(bench):
    """Else both ways would agree on nothing."""
    states, centers = bench.inputs(bench.Sizes(layers=2, pairs=60, width=16), "cpu")
    trained = bench.train_ours(states, centers, bench.CCSOptions(restarts=3, epochs=300))
    assert (trained.loss < 0.05).all()
    torch.testing.assert_close(states.norm(dim=-1), torch.ones(2, 2, 60))
