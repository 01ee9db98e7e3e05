"""scripts/bench_kernels.py in small: what it prints can be trusted, and a wrong kernel gets no time."""

import argparse
import importlib.util
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_kernels.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_kernels", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_on_a_cpu_the_torch_form_is_timed_and_the_others_say_why_not(bench, monkeypatch):
    monkeypatch.setattr(bench, "ROUNDS", 4)  # of three, the 20th percentile is a guess below them all
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    rows = bench.bench_kernels(argparse.Namespace(device="cpu", small=True))
    assert {row["way"] for row in rows} == {"torch", "in place", "compiled", "triton"}
    assert {row["kernel"] for row in rows} == {
        "segment_sum",
        "row_stats",
        "ccs_gradient",
        "pair_distances",
        "project_out",
    }
    for row in rows:
        if row["way"] in ("torch", "in place"):
            assert 0 < row["ms_20"] <= row["ms_median"] <= row["ms_80"]
            assert row["way"] == "in place" or row["ratio_median"] == 1
            assert row["kernel"] != "pair_distances" or row["tflop_s"] > 0
        else:
            assert "ms_median" not in row
            assert row["not_run"]
    assert "on the cpu" in next(row["not_run"] for row in rows if row["way"] == "triton")


def test_the_form_for_the_compiler_is_the_same_sum(bench, generator):
    values, starts, stops = torch.randn(9, 4, generator=generator), torch.tensor([0, 5, 2]), torch.tensor([3, 9, 2])
    expected = bench.segment_sum_reference(values, starts, stops)
    torch.testing.assert_close(bench.padded_segment_sum(values, starts, stops, 4), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_panels_find_the_same_distances(bench, generator, dtype):
    points = torch.randn(120, 5, generator=generator).to(dtype)
    distances = torch.cdist(points.double(), points.double())
    half = distances[:, :60], distances[:, 60:]
    least, greatest = half[1][:60].min().square(), max(half[0][:60].max(), half[1][60:].max()).square()
    expected = torch.cat(
        (torch.stack([side.sum(dim=1) for side in half], dim=1).flatten(), least[None], greatest[None])
    )
    for found in (
        bench.gist(bench.pair_distances(points[None], [0, 60, 120])),
        bench.distances_by_panels(bench.panel_distances, points),
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_a_wrong_way_gets_no_time(bench, monkeypatch, wrong):
    monkeypatch.setattr(bench, "ROUNDS", 4)
    exact = torch.ones(3, 2, dtype=torch.float64)
    ways = {"torch": lambda: exact.float(), "triton": lambda: exact.float() * wrong}
    right, other = bench.figures_of({}, ways, {}, exact, 0, None)
    assert right["ms_median"] > 0
    assert other["way"] == "triton"
    assert "ms_median" not in other
    off = "nan" if wrong != wrong else "1.0e-03"
    assert other["not_run"] == f"6 of 6 elements are off, by up to {off}; no times are shown"
