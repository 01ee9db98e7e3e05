"""Cluster indices of points on a card against float64 on the CPU."""

import pytest
import torch

from probing import cluster_indices
from probing.metrics.clusters import ALL_INDICES

POINTS, WIDTH = 400, 96


def points_of(kind, generator):
    """Three clusters that overlap: plain, far from the origin, or with two dimensions that dwarf all others."""
    labels = torch.arange(POINTS) % 3
    points = torch.randn(POINTS, WIDTH, generator=generator) + 0.3 * labels[:, None]
    if kind == "far":
        points += 3
    if kind == "massive":
        points[:, :2] = 300 * (1 + 0.01 * points[:, :2])
    return points, labels


def said(name):
    """Which index it is, before what torch says of it."""
    return lambda text: f"{name}: {text}"


@pytest.mark.parametrize("kind", ["plain", "far", "massive"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_in_float64(device, generator, kind, dtype):
    """Dunn's two distances are computed again in float64, so exactly; sums of float32 distances to 1e-5.

    Of massive dimensions the float32 sums that the silhouette is made of are off by more of each distance.
    """
    points, labels = points_of(kind, generator)
    points = points.to(dtype)
    found = cluster_indices(points.to(device), labels, ALL_INDICES)
    exact = cluster_indices(points.double(), labels, ALL_INDICES, impl="torch")
    for name in ALL_INDICES:
        near = {"dunn": 1e-9, "silhouette": 1e-3 if kind == "massive" else 1e-5}.get(name, 1e-5)
        torch.testing.assert_close(found[name], exact[name], rtol=near, atol=near * 1e-2, msg=said(name))


def test_several_layers_at_once(device, generator):
    points, labels = points_of("plain", generator)
    layers = torch.stack([points, points * 2 + 1, points.flip(1)]).to(device)
    found = cluster_indices(layers, labels)
    for name, values in found.items():
        torch.testing.assert_close(values[0].expand(3), values, rtol=1e-4, atol=1e-6, msg=said(name))
