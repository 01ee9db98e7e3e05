"""What happened inside an open-weight language model: numbers from its hidden states that can be trusted.

Every public name is imported when it is first used, so that ``import probing`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probing.errors import (
        DataInvalid,
        FolderBusy,
        KernelUnavailable,
        LayerNotFound,
        ModelInvalid,
        NotFinite,
        OutOfMemory,
        ProbingError,
        SourceMismatch,
        StoreCorrupt,
        UsageError,
    )
    from probing.instruments.capture import capture
    from probing.instruments.filtering import filter_pairs
    from probing.instruments.pair_scores import score_pairs
    from probing.kernels.token_stats import TokenStats, Unembedding, token_stats
    from probing.metrics.clusters import (
        aqi,
        calinski_harabasz,
        cluster_indices,
        davies_bouldin,
        dunn,
        silhouette,
        xie_beni,
    )
    from probing.metrics.likelihood import dataset_rank_surprisal_ratio, rank_surprisal_ratio
    from probing.metrics.ranking import (
        RankingAccuracy,
        idealized_ranking_accuracy,
        ranking_accuracy,
        ranking_difficulty,
    )
    from probing.metrics.similarity import ches, ches_normalized, edit_similarity, last_state_similarity
    from probing.models.load import LanguageModel, load
    from probing.probes.ccs import CCSOptions, CCSProbe, fit_ccs
    from probing.probes.polarity import contradiction_index, polar_consistency
    from probing.store.activations import open_store
    from probing.store.probes import SavedProbes, open_probes
    from probing.types import (
        Activations,
        Capture,
        ContrastPair,
        Estimate,
        LabelledPrompt,
        Place,
        PreferencePair,
        Report,
        Source,
        TokenActivations,
    )

_PLACES = {
    "TokenStats": "probing.kernels.token_stats",
    "Unembedding": "probing.kernels.token_stats",
    "token_stats": "probing.kernels.token_stats",
    "aqi": "probing.metrics.clusters",
    "calinski_harabasz": "probing.metrics.clusters",
    "cluster_indices": "probing.metrics.clusters",
    "davies_bouldin": "probing.metrics.clusters",
    "dunn": "probing.metrics.clusters",
    "silhouette": "probing.metrics.clusters",
    "xie_beni": "probing.metrics.clusters",
    "dataset_rank_surprisal_ratio": "probing.metrics.likelihood",
    "rank_surprisal_ratio": "probing.metrics.likelihood",
    "RankingAccuracy": "probing.metrics.ranking",
    "idealized_ranking_accuracy": "probing.metrics.ranking",
    "ranking_accuracy": "probing.metrics.ranking",
    "ranking_difficulty": "probing.metrics.ranking",
    "ches": "probing.metrics.similarity",
    "ches_normalized": "probing.metrics.similarity",
    "edit_similarity": "probing.metrics.similarity",
    "last_state_similarity": "probing.metrics.similarity",
    "LanguageModel": "probing.models.load",
    "load": "probing.models.load",
    "CCSOptions": "probing.probes.ccs",
    "CCSProbe": "probing.probes.ccs",
    "fit_ccs": "probing.probes.ccs",
    "contradiction_index": "probing.probes.polarity",
    "polar_consistency": "probing.probes.polarity",
    "capture": "probing.instruments.capture",
    "filter_pairs": "probing.instruments.filtering",
    "score_pairs": "probing.instruments.pair_scores",
    "open_store": "probing.store.activations",
    "SavedProbes": "probing.store.probes",
    "open_probes": "probing.store.probes",
    "Activations": "probing.types",
    "Capture": "probing.types",
    "ContrastPair": "probing.types",
    "Estimate": "probing.types",
    "LabelledPrompt": "probing.types",
    "Place": "probing.types",
    "PreferencePair": "probing.types",
    "Report": "probing.types",
    "Source": "probing.types",
    "TokenActivations": "probing.types",
    "DataInvalid": "probing.errors",
    "FolderBusy": "probing.errors",
    "KernelUnavailable": "probing.errors",
    "LayerNotFound": "probing.errors",
    "ModelInvalid": "probing.errors",
    "NotFinite": "probing.errors",
    "OutOfMemory": "probing.errors",
    "ProbingError": "probing.errors",
    "SourceMismatch": "probing.errors",
    "StoreCorrupt": "probing.errors",
    "UsageError": "probing.errors",
}

__all__ = [
    "Activations",
    "CCSOptions",
    "CCSProbe",
    "Capture",
    "ContrastPair",
    "DataInvalid",
    "Estimate",
    "FolderBusy",
    "KernelUnavailable",
    "LabelledPrompt",
    "LanguageModel",
    "LayerNotFound",
    "ModelInvalid",
    "NotFinite",
    "OutOfMemory",
    "Place",
    "PreferencePair",
    "ProbingError",
    "RankingAccuracy",
    "Report",
    "SavedProbes",
    "Source",
    "SourceMismatch",
    "StoreCorrupt",
    "TokenActivations",
    "TokenStats",
    "Unembedding",
    "UsageError",
    "aqi",
    "calinski_harabasz",
    "capture",
    "ches",
    "ches_normalized",
    "cluster_indices",
    "contradiction_index",
    "dataset_rank_surprisal_ratio",
    "davies_bouldin",
    "dunn",
    "edit_similarity",
    "filter_pairs",
    "fit_ccs",
    "idealized_ranking_accuracy",
    "last_state_similarity",
    "load",
    "open_probes",
    "open_store",
    "polar_consistency",
    "rank_surprisal_ratio",
    "ranking_accuracy",
    "ranking_difficulty",
    "score_pairs",
    "silhouette",
    "token_stats",
    "xie_beni",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'probing' has no attribute '{name}'")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return __all__
