"""How far labelled points lie apart: cluster indices and the alignment quality index.

The formulas stand in ``indices``; ``evaluate`` computes them of labelled points.
"""

from probing.metrics.clusters.evaluate import (
    aqi,
    calinski_harabasz,
    cluster_indices,
    davies_bouldin,
    dunn,
    silhouette,
    xie_beni,
)
from probing.metrics.clusters.indices import ALL_INDICES, INDICES, LOWER_IS_BETTER

__all__ = [
    "ALL_INDICES",
    "INDICES",
    "LOWER_IS_BETTER",
    "aqi",
    "calinski_harabasz",
    "cluster_indices",
    "davies_bouldin",
    "dunn",
    "silhouette",
    "xie_beni",
]
