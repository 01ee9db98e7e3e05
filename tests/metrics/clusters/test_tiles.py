"""Tiles in float32 against the same in float64, and lists of extremes against all pairs."""

import pytest
import torch

from probing.metrics.clusters import cluster_indices
from probing.metrics.clusters import extremes as extremes_module
from probing.metrics.clusters import grouped as grouped_module
from probing.metrics.clusters import tiles as tiles_module
from probing.metrics.clusters.extremes import Extremes
from probing.metrics.clusters.grouped import Grouped, exact_squares
from probing.metrics.clusters.tiles import squares, squares_in_float64, tiles


def grouped_of(points, clusters=3):
    return Grouped.of(points, torch.arange(len(points)) % clusters, clusters)


def blobs(generator, n=90, width=40, apart=1.0, clusters=3):
    centers = apart * torch.randn(clusters, width, generator=generator, dtype=torch.float64)
    return torch.randn(n, width, generator=generator, dtype=torch.float64) + centers[torch.arange(n) % clusters]


@pytest.fixture(params=[16, 1], ids=["clusters apart", "across clusters"])
def several_tiles(request, monkeypatch):
    monkeypatch.setattr(tiles_module, "MANY_CLUSTERS", request.param)
    monkeypatch.setattr(tiles_module, "TILE_ROWS", 7)
    monkeypatch.setattr(tiles_module, "TILE_COLUMNS", 11)


def worst_error(grouped):
    """Of all distances, relative; those of points in one place have to be 0, or what float64 leaves of it."""
    worst, pairs = 0.0, 0
    for tile in tiles(grouped):
        left, right = (grouped.at(torch.arange(*side)) for side in (tile.rows, tile.columns))
        exact = exact_squares(left, right)
        assert (tile.squared[exact == 0] <= 1e-14 * grouped.norms.max()).all()
        errors = (tile.squared / exact).sqrt()[exact > 0] - 1
        worst = max(worst, float(errors.abs().max())) if len(errors) else worst
        pairs += len(left) * (len(left) - 1) // 2 if tile.diagonal else exact.numel()
    assert pairs == len(grouped.order) * (len(grouped.order) - 1) // 2
    return worst


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_tiles_are_as_good_as_float32(generator, several_tiles, offset):
    points = blobs(generator).float() + offset
    grouped = grouped_of(points)
    assert grouped.centered.dtype == torch.float32
    assert worst_error(grouped) < 2e-6


def test_tiles_of_float64_points_are_as_good_as_float64(generator, several_tiles):
    grouped = grouped_of(blobs(generator) + 1000)
    assert grouped.centered.dtype == torch.float64
    assert worst_error(grouped) < 1e-12


@pytest.mark.parametrize("many", [False, True], ids=["pair by pair", "whole tiles"])
def test_near_points_far_from_the_middle_keep_their_digits(generator, several_tiles, monkeypatch, many):
    """Points of each cluster are in several heaps, of a width of 1e-4 of their distance, and some are in one place."""
    monkeypatch.setattr(tiles_module, "LOST_PAIRS", 0.0 if many else 1.0)
    points = torch.randn(90, 40, generator=generator) * 1e-4
    points[torch.arange(90) % 7 < 4] += 8 * torch.randn(40, generator=generator)
    points[10] = points[40] = points[41]
    grouped = grouped_of(points)
    assert worst_error(grouped) < 2e-5
    monkeypatch.setattr(tiles_module, "LOST", 0.0)
    with pytest.raises(AssertionError):
        assert worst_error(grouped_of(points)) < 1e-2


def test_the_plain_form_of_a_tile(generator):
    grouped = grouped_of(blobs(generator).float())
    for rows, columns, clusters in (((0, 20), (0, 20), (0, 0)), ((3, 9), (30, 50), (0, 1)), ((0, 50), (40, 90), None)):
        found = squares(grouped, rows, columns, clusters)
        plain = squares_in_float64(grouped, rows, columns, clusters)
        torch.testing.assert_close(found.double(), plain, rtol=2e-6, atol=2e-6)


def test_clusters_far_apart_cost_no_digits_in_float32(generator):
    """They lie 2**20 apart, and their spread is 1."""
    points = blobs(generator, apart=0.0).float()
    points = (points * 2**3).round() / 2**3 + 2.0**20 * (torch.arange(90) % 3)[:, None]
    found = cluster_indices(points, torch.arange(90) % 3)
    exact = cluster_indices(points.double(), torch.arange(90) % 3)
    for name, value in exact.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-6), name


@pytest.mark.parametrize("sampled", [1, 5, 10**9])
@pytest.mark.parametrize("size", [1, 40, 10**4])
@pytest.mark.parametrize("which", ["within", "between", "all"])
@pytest.mark.parametrize("farthest", [True, False])
def test_lists_hold_the_extremes_of_all_pairs(generator, several_tiles, monkeypatch, farthest, which, size, sampled):
    """Whatever a sample of a tile says of it."""
    monkeypatch.setattr(extremes_module, "SAMPLED", sampled)
    grouped = grouped_of(blobs(generator).float())
    listed = Extremes(size, farthest, which)
    for tile in tiles(grouped):
        listed.add(tile, grouped.codes)
    listed.settle(grouped)
    at = grouped.at(torch.arange(90))
    left, right = torch.triu_indices(90, 90, 1)
    same = grouped.codes[left] == grouped.codes[right]
    chosen = {"within": same, "between": ~same, "all": torch.ones_like(same)}[which]
    expected = exact_squares(at, at)[left, right][chosen].sort(descending=farthest).values[:size]
    torch.testing.assert_close(listed.values, expected, rtol=2e-6, atol=0)
    assert float(listed.values[0]) == pytest.approx(float(expected[0]), rel=1e-14)
    assert listed.seen == int(chosen.sum())
    assert listed.complete == (size >= int(chosen.sum()))


def test_what_rounding_put_behind_the_head_is_found(generator, monkeypatch):
    """All points are equally far apart, but for what float32 cannot tell."""
    monkeypatch.setattr(extremes_module, "LEAST_PAIRS", 1)
    points = torch.linalg.qr(torch.randn(60, 60, generator=generator, dtype=torch.float64))[0].float()
    grouped = grouped_of(points, 2)
    exact = exact_squares(points.double(), points.double())
    squared = exact[torch.arange(60) % 2 == 0][:, torch.arange(60) % 2 == 1]

    def closest():
        listed = Extremes(2000, False, "between")
        for tile in tiles(grouped):
            listed.add(tile, grouped.codes)
        listed.settle(grouped)
        return float(listed.values[0])

    assert closest() == pytest.approx(float(squared.min()), rel=1e-14)
    monkeypatch.setattr(grouped_module, "ROUNDINGS", 0.0)
    assert closest() != pytest.approx(float(squared.min()), rel=1e-10), "float32 tells them apart: nothing is tested"


def test_a_sample_that_says_too_much_of_a_tile(generator, monkeypatch):
    """Every point has a twin in the other cluster, and the pairs that are asked for are all farther apart."""
    monkeypatch.setattr(tiles_module, "MANY_CLUSTERS", 1)
    monkeypatch.setattr(extremes_module, "SAMPLED", 1)
    points = torch.randn(12, 5, generator=generator)
    points[1::2] = points[::2] + 1e-3
    grouped = grouped_of(points, 2)
    listed = Extremes(1, False, "within")
    for tile in tiles(grouped):
        assert listed._choose_limits(tile.squared)[0] < 1e-2
        listed.add(tile, grouped.codes)
    listed.settle(grouped)
    squared = torch.stack([exact_squares(part.double(), part.double()) for part in (points[::2], points[1::2])])
    assert float(listed.values) == pytest.approx(float(squared[squared > 0].min()), rel=1e-6)
