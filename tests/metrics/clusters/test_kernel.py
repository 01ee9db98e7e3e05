"""The recheck behind the kernel, against products as a tensor core sums them: cut off, not rounded."""

import numpy as np
import pytest
import torch

from probing.kernels import pair_distances as distances
from probing.kernels.pair_distances import pair_distances_reference
from probing.metrics.clusters import kernel as kernel_module
from probing.metrics.clusters.grouped import Grouped, exact_squares
from probing.metrics.clusters.kernel import error_of_squares, measure_by_kernel, products_error

HOPPER = (16, 2)
"""Products that are added at a time, and digits beyond those of float32 that are kept while they are."""
OLD_ERROR = 1e-5
"""Of a squared distance, relative to the largest squared norm: as if sums were rounded to nearest."""


def cut_off_sums(left, right, at_once, digits):
    """``left @ right.T`` in float64, every sum cut off as float32 would be that rounds toward zero."""
    left, right = left.double().numpy(), right.double().numpy()
    total = np.zeros((len(left), len(right)))
    for start in range(0, left.shape[1], at_once):
        part = slice(start, start + at_once)
        terms = np.concatenate((left[:, None, part] * right[:, part], total[:, :, None]), axis=2)
        _, exponent = np.frexp(np.abs(terms).max(axis=2, keepdims=True))
        unit = np.ldexp(1.0, exponent - 24 - digits)
        mantissa, exponent = np.frexp((np.trunc(terms / unit) * unit).sum(axis=2))
        total = np.ldexp(np.trunc(mantissa * 2**24), exponent - 24)
    return torch.from_numpy(total)


def points_of(kind, n, width, generator):
    points = torch.randn(n, width, generator=generator)
    if kind.startswith("mean"):
        points += float(kind.removeprefix("mean "))
    else:  # two massive dimensions that all share
        points[:, :2] = 300 * (1 + 0.01 * points[:, :2])
    return points.bfloat16()


def error_of_cut_off_sums(points, at_once, digits):
    """Of every squared distance, relative to the sum of both squared norms."""
    wide = points.double()
    norms = wide.square().sum(dim=1)
    sizes = norms[:, None] + norms
    rounded = norms.float().double()
    found = rounded[:, None] + rounded - 2 * cut_off_sums(points, points, at_once, digits)
    return ((found - exact_squares(wide, wide)) / sizes)[tuple(torch.triu_indices(len(points), len(points), 1))]


@pytest.mark.parametrize("width", [64, 512, 4096, 8192])
@pytest.mark.parametrize("kind", ["mean 0", "mean 1", "mean 3", "massive"])
def test_the_bound_covers_sums_that_are_cut_off(generator, kind, width):
    errors = error_of_cut_off_sums(points_of(kind, 16, width, generator), *HOPPER)
    assert 0 < errors.abs().max() < error_of_squares(width) / 4
    if kind != "mean 0" and width > 64:
        assert errors.mean() > errors.abs().max() / 3, "the error has no sign: nothing is emulated"


@pytest.mark.parametrize("core", [(16, 0), (8, 1), (4, 0)], ids=str)
def test_the_bound_covers_other_tensor_cores(generator, core):
    errors = error_of_cut_off_sums(points_of("mean 3", 16, 4096, generator), *core)
    assert errors.abs().max() < error_of_squares(4096)


def test_the_bound_covers_the_worst_there_is():
    """One large product first, then products just below what the sum keeps: all of them are lost."""
    for width in (64, 1024):
        points = torch.full((2, width), 1.99 * 2.0**-13, dtype=torch.float64)
        points[:, 0] = 1
        points[1] *= 1 + 2.0**-7
        errors = error_of_cut_off_sums(points.bfloat16(), 16, 0)
        assert error_of_squares(width) / 50 < errors.abs().max() < error_of_squares(width)


def near_ties(generator, width=8192):
    """Two clusters whose closest points are far from zero, where products are off most; near zero lie some that are
    only a little less close."""
    points = torch.randn(24, width, generator=generator) + 3
    points[12:] = points[:12] + torch.randn(12, width, generator=generator)
    points[[5, 17]] = points[5] / 8
    points = points.bfloat16()
    points[12], points[17] = points[0], points[5]
    changed = (points[0] < 2.9).nonzero()[:40, 0]
    points[12, changed] += 1
    points[17, changed] += 1.015625
    return Grouped.of(points, torch.arange(24) // 12, 2)


@pytest.fixture
def cut_off_kernel(monkeypatch):
    """In place of the kernel: tiles of four points by four, their products cut off."""
    monkeypatch.setattr(distances, "_products", lambda left, right, dtype: cut_off_sums(left, right, *HOPPER))
    monkeypatch.setattr(
        kernel_module, "pair_distances", lambda points, bounds, impl: pair_distances_reference(points, bounds, 4)
    )


def exact_ends(grouped):
    squared = exact_squares(grouped.at(torch.arange(24)), grouped.at(torch.arange(24)))
    return float(squared[:12, 12:].min()), float(torch.stack((squared[:12, :12], squared[12:, 12:])).max())


def test_near_ties_are_decided_though_sums_are_cut_off(generator, cut_off_kernel):
    grouped = near_ties(generator)
    _, least, greatest = measure_by_kernel(grouped, "auto")
    assert (least, greatest) == pytest.approx(exact_ends(grouped), rel=1e-13)


def test_the_error_of_sums_that_are_rounded_would_not_have_done(generator, cut_off_kernel, monkeypatch):
    """Else the test above proves nothing."""
    grouped = near_ties(generator)
    monkeypatch.setattr(kernel_module, "error_of_squares", lambda width: OLD_ERROR / 2)
    _, least, _ = measure_by_kernel(grouped, "auto")
    assert least > exact_ends(grouped)[0] * (1 + 1e-4)


def test_the_error_of_products_is_measured(generator, monkeypatch):
    points = points_of("mean 3", 20, 512, generator)
    rounded = products_error(points)
    assert 0 < rounded.worst < rounded.bound == error_of_squares(512)
    monkeypatch.setattr(distances, "_products", lambda left, right, dtype: cut_off_sums(left, right, *HOPPER))
    cut_off = products_error(points)
    assert cut_off.mean > 3 * abs(rounded.mean)
    assert cut_off.worst == pytest.approx(float(error_of_cut_off_sums(points, *HOPPER).abs().max()), rel=0.1)
