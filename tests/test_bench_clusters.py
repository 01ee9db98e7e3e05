"""scripts/bench_clusters.py in small: both ways find the same indices before a time is shown."""

import importlib.util
import sys
from pathlib import Path

import pytest

from probing.metrics.clusters import tiles

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_clusters.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_clusters", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_ratio_is_told(bench):
    row = bench.compare(bench.SMALL, "cpu")
    assert 0 < row["ratio_20"] <= row["ratio_median"] <= row["ratio_80"]
    assert (row["layers"], row["points"], row["permutations"]) == (2, 120, 20)
    assert 0 <= row["worst_difference"] <= bench.AGREE


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_no_time_of_another_result(bench, monkeypatch, factor):
    right = bench.plain

    def wrong(*arguments):
        return {name: value * factor for name, value in right(*arguments).items()}

    monkeypatch.setattr(bench, "plain", wrong)
    with pytest.raises(SystemExit, match="no times are shown"):
        bench.compare(bench.SMALL, "cpu")


def test_the_plain_form_is_compared(bench):
    row = bench.compare_with_before(bench.SMALL_CHANGES[0], bench.SMALL_ROUNDS, "cpu")
    assert 0 < row["ratio_20"] <= row["ratio_median"] <= row["ratio_80"]
    assert 0 < row["worst_difference"] <= bench.AGREE_DRAWS
    assert (row["points"], row["permutations"], row["resamples"]) == (120, 20, 20)


@pytest.mark.parametrize("kind", ["values", "null", "draws"])
@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_no_time_of_another_result_than_the_plain_one(bench, monkeypatch, kind, factor):
    right = bench.measure_clusters

    def wrong(*arguments):
        found = right(*arguments)
        if tiles.squares is tiles.squares_in_float64:
            getattr(found, kind)["xie_beni"] *= factor
        return found

    monkeypatch.setattr(bench, "measure_clusters", wrong)
    with pytest.raises(SystemExit, match="no times are shown"):
        bench.compare_with_before(bench.SMALL_CHANGES[0], 1, "cpu")


def test_time_and_memory_of_a_process_of_its_own(bench):
    found = bench.alone(1, 300, 16, 10, "cpu")
    assert found["seconds"] > 0
    assert 0 <= found["peak_mb"] < 300


def test_memory_does_not_grow_with_the_distances(bench):
    """All distances of 12,000 points would take 550 MB in float32."""
    assert bench.alone(1, 12000, 4, 0, "cpu")["peak_mb"] < 150
