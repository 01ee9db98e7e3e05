"""The formulas: Davies-Bouldin, Dunn, Calinski-Harabasz, Xie-Beni, silhouette, and the alignment quality index.

Each is a function of what it is made of, such as sizes and centroids of clusters; ``draws`` makes these ingredients
from one pass over the distances of labelled points. For K clusters: n points in all, n_i in cluster i; c_i its
centroid; s_i the mean distance of its points to c_i; W the sum of the squared distances of all points to the centroids
of their clusters. Every leading index is a draw of its own, such as a permutation of the labels or a bootstrap
replicate.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from probing.metrics.clusters.grouped import members

INDICES = ("davies_bouldin", "dunn", "calinski_harabasz", "xie_beni", "silhouette")
ALL_INDICES = (*INDICES, "dunn_centroid", "welch")
LOWER_IS_BETTER = frozenset(("davies_bouldin", "xie_beni"))
AqiForm = Literal["paper", "dbs_dunn", "size_free"]
FARTHER = 1e30
"""Larger than any distance; it is added to a mean distance that must not count."""


def davies_bouldin_index(
    spreads: Float[Tensor, "*draw cluster"], gaps: Float[Tensor, "*draw cluster cluster"]
) -> Float[Tensor, "*draw"]:
    """Mean over clusters i of ``max_j (s_i + s_j) / |c_i - c_j|``; lower is better.

    Infinite where two centroids are the same.

    Args:
        spreads: s, the mean distance of the points of each cluster to its centroid.
        gaps: squared distances between the centroids.

    Source: Davies and Bouldin 1979, with q = 1 and p = 2.
    """
    apart = _mask_own(gaps)
    ratios = (spreads[..., :, None] + spreads[..., None, :]) / apart.sqrt()
    ratios = torch.where(apart == 0, torch.inf, ratios)
    return ratios.amax(dim=-1).mean(dim=-1)


def dunn_index(least: Float[Tensor, "*draw"], greatest: Float[Tensor, "*draw"]) -> Float[Tensor, "*draw"]:
    """Least distance of two points of different clusters over the greatest of two points of one; higher is better.

    NaN where every cluster is a single place.

    Args:
        least: the least distance of two points of different clusters.
        greatest: the greatest distance of two points of one cluster.

    Source: Dunn 1974.
    """
    ratio = least / greatest
    return torch.where(ratio.isfinite(), ratio, torch.nan)


def dunn_centroid_index(
    gaps: Float[Tensor, "*draw cluster cluster"], greatest: Float[Tensor, "*draw"]
) -> Float[Tensor, "*draw"]:
    """Least distance of two centroids over the greatest of two points of one cluster; higher is better.

    NaN where every cluster is a single place.

    Args:
        gaps: squared distances between the centroids.
        greatest: the greatest squared distance of two points of one cluster.

    Source: nu_41 of Bezdek and Pal 1998; published code calls it Dunn's index.
    """
    ratio = (least_gap(gaps) / greatest).sqrt()
    return torch.where(ratio.isfinite(), ratio, torch.nan)


def calinski_harabasz_index(
    counts: Float[Tensor, "*draw cluster"],
    squares: Float[Tensor, "*draw cluster"],
    gaps: Float[Tensor, "*draw cluster cluster"],
) -> Float[Tensor, "*draw"]:
    """``[B / (K - 1)] / [W / (n - K)]``; higher is better, and it grows with n.

    B is the sum over clusters of n_i times the squared distance of c_i to the mean of all points, here from the
    distances between centroids: ``sum_ij n_i n_j |c_i - c_j|^2 / (2 n)``, which is the same.

    Args:
        counts: n_i.
        squares: the contribution of each cluster to W.
        gaps: squared distances between the centroids.

    Source: Calinski and Harabasz 1974.
    """
    n, clusters = counts.sum(dim=-1), counts.shape[-1]
    weights = counts[..., :, None] * counts[..., None, :]
    between = (weights * gaps).sum(dim=(-2, -1)) / (2 * n)
    return between / (clusters - 1) / (squares.sum(dim=-1) / (n - clusters))


def xie_beni_index(
    counts: Float[Tensor, "*draw cluster"],
    squares: Float[Tensor, "*draw cluster"],
    gaps: Float[Tensor, "*draw cluster cluster"],
) -> Float[Tensor, "*draw"]:
    """``W / (n min_ij |c_i - c_j|^2)``; lower is better. Infinite where two centroids are the same.

    Args:
        counts: n_i.
        squares: the contribution of each cluster to W.
        gaps: squared distances between the centroids.

    Source: Xie and Beni 1991, for hard labels.
    """
    return squares.sum(dim=-1) / (counts.sum(dim=-1) * least_gap(gaps))


def welch_index(
    counts: Float[Tensor, "*draw cluster"],
    squares: Float[Tensor, "*draw cluster"],
    gaps: Float[Tensor, "*draw cluster cluster"],
) -> Float[Tensor, "*draw"]:
    """Mean over pairs of clusters of ``|c_i - c_j|^2 / (V_i + V_j)``, ``V = W_i / (n_i (n_i - 1))``; higher is better.

    V_i is how far the centroid of n_i points lies from that of many points by chance, squared: about 1 where centroids
    are in one place, whatever the spread and the size of each cluster. Permuted labels then test the centroids alone;
    under the other indices clusters of unequal spread look unlike permuted ones too.

    Args:
        counts: n_i.
        squares: the contribution of each cluster to W.
        gaps: squared distances between the centroids.

    Source: Alekseyenko 2016 (Welch's statistic of distances), for pairs of clusters.
    """
    noise = squares / (counts * (counts - 1)).clamp_min(1)
    first, second = torch.triu_indices(counts.shape[-1], counts.shape[-1], 1)
    return (gaps[..., first, second] / (noise[..., first] + noise[..., second])).mean(dim=-1)


def silhouette_coefficients(sums: Sequence[Tensor], sizes: Sequence[Tensor], own: Tensor, copies: Tensor) -> Tensor:
    """``(b - a) / max(a, b)`` of every point; the silhouette index is their mean, in [-1, 1]; higher is better.

    a is the point's mean distance to the others of its cluster, b its mean distance to the points of the nearest other
    cluster. 0 for the only point of a cluster, and where a and b are both 0.

    Args:
        sums: for each cluster, the sum of distances to its points, [n] or [n draw].
        sizes: size of each cluster, one number or [draw].
        own: the cluster of every point; fits to the sums, like the next.
        copies: how often each point itself is in its cluster (1, or its weight in a replicate): a point is no neighbour
            of its own copies.

    Source: Rousseeuw 1987, section 2.
    """
    within, nearest = torch.zeros_like(sums[0]), torch.full_like(sums[0], torch.inf)
    alone = torch.zeros((), dtype=within.dtype, device=within.device)
    for cluster, (total, size) in enumerate(zip(sums, sizes, strict=True)):
        mine, others = members(own, cluster, within.dtype), (size - copies).to(within)
        within.add_((total / others.clamp_min(1)).mul_(mine))
        if bool(others.amin() <= 0):
            alone = alone + mine * (others <= 0)
        mean = (total / size.clamp_min(1)).add_(torch.where(size > 0, 0.0, torch.inf))
        torch.minimum(nearest, mean.add_(mine, alpha=FARTHER), out=nearest)
    coefficients = (nearest - within).div_(torch.maximum(nearest, within))
    return coefficients.nan_to_num_(0.0).mul_(1 - alone)


def alignment_quality_index(
    parts: Mapping[str, Float[Tensor, "*axes"]],
    form: str,
    weight: float,
    n: int | float | Tensor,
    clusters: int,
) -> Float[Tensor, "*axes"]:
    """The alignment quality index of labels such as safe and unsafe, from the indices it is made of; higher is better.

    "paper": ``weight / XB + (1 - weight) CH``; "size_free": ``weight / XB + (1 - weight) CH / (n - K)``; "dbs_dunn":
    ``weight / (1 + DB) + (1 - weight) DI / (1 + DI)``, with the indices of Xie and Beni, Calinski and Harabasz, Davies
    and Bouldin, and Dunn.

    Args:
        parts: the indices that ``parts_of_aqi`` names, by name.
        form: one of the three.
        weight: weight of the first term, in [0, 1].
        n: number of points.
        clusters: K, how many.

    Raises:
        ValueError: there is no such form, or the weight is not in [0, 1].

    Source: arXiv 2506.13901; "dbs_dunn" is of the first published code, "size_free" is ours.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be in [0, 1], not {weight}")
    first, second = (parts[name] for name in parts_of_aqi(form))
    if form == "dbs_dunn":
        return weight / (1 + first) + (1 - weight) * second / (1 + second)
    return weight / first + (1 - weight) * (second if form == "paper" else second / (n - clusters))


def parts_of_aqi(form: str) -> tuple[str, str]:
    """The indices that a form is made of.

    Raises:
        ValueError: there is no such form.
    """
    if form not in get_args(AqiForm):
        raise ValueError(f"form is one of {', '.join(map(repr, get_args(AqiForm)))}, not {form!r}")
    return ("davies_bouldin", "dunn") if form == "dbs_dunn" else ("xie_beni", "calinski_harabasz")


def least_gap(gaps: Float[Tensor, "*draw cluster cluster"]) -> Float[Tensor, "*draw"]:
    """Least squared distance of two centroids."""
    return _mask_own(gaps).amin(dim=(-2, -1))


def _mask_own(gaps: Float[Tensor, "*draw cluster cluster"]) -> Float[Tensor, "*draw cluster cluster"]:
    """Infinite for a cluster and itself."""
    own = torch.eye(gaps.shape[-1], dtype=torch.bool, device=gaps.device)
    return gaps.masked_fill(own, torch.inf)
