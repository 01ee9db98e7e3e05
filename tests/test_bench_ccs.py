"""scripts/bench_ccs.py in small: both ways train the same probes before a time is shown."""

import importlib.util
import json
import sys
from pathlib import Path

import bench_ccs_layer
import bench_ccs_run
import pytest
import torch

from probing.data.layouts import StatementColumns
from probing.data.statements import contrast_pairs_from_table
from probing.data.tables import read_table

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


def test_a_layer_against_its_plain_form():
    rows = bench_ccs_layer.bench_layer(True, "cpu")
    assert [row["figure"].split(" by ")[0] for row in rows] == [
        "time of a layer's trainings one",
        "time of closed forms",
    ]
    for row, most in zip(rows, (bench_ccs_layer.AGREE, bench_ccs_layer.SAME_DIRECTION), strict=True):
        # Times of a moment, less others, can be below 0 on a busy machine.
        assert row["ratio_20"] <= row["ratio_median"] <= row["ratio_80"]
        assert 0 <= row["worst_difference"] <= most


@pytest.mark.parametrize("scale", [1.1, float("nan")])
@pytest.mark.parametrize("way", ["train_plainly", "closed_plainly"])
def test_a_wrong_layer_gets_no_time(monkeypatch, way, scale):
    plain = getattr(bench_ccs_layer, way)

    def wrong(*arguments):
        first, *others = plain(*arguments)
        return [(first[0] * scale, first[1]) if way == "train_plainly" else first * scale, *others]

    monkeypatch.setattr(bench_ccs_layer, way, wrong)
    with pytest.raises(SystemExit, match=r"the two ways differ by .*; no times are shown"):
        bench_ccs_layer.bench_layer(True, "cpu")


def test_statements_of_a_whole_run_are_different_and_half_of_them_true(tmp_path):
    rows = bench_ccs_run.statements(600)
    data = tmp_path / "statements.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pairs = contrast_pairs_from_table(read_table(str(data), None), StatementColumns(), "auto")
    assert len({text for pair in pairs for text in (pair.statement, pair.opposite)}) == 1200
    assert sum(pair.label for pair in pairs) == 300
    for pair in pairs:  # sums and sizes can be checked
        words = pair.statement.rstrip(".").split()
        if pair.category == "sums":
            assert pair.label == (int(words[3]) + int(words[5]) == int(words[7]))
        if pair.category == "sizes":
            assert pair.label == (int(words[0]) > int(words[4]))


def test_more_statements_than_there_are():
    with pytest.raises(ValueError, match="not 100000"):
        bench_ccs_run.statements(100_000)
