"""Options of ``probing clusters``."""

import os
from dataclasses import dataclass
from typing import Literal

from probing.runs.common.options import MOST_TOKENS, LabelledOptions, PermutationOptions, PlotOptions, option

RESULTS_FILE = "results.parquet"
ROWS_FILE = "rows.parquet"
DRIFT_FILE = "drift.parquet"
SHIFTS_FILE = "shifts.safetensors"
SUMMARY_FILE = "summary.json"
PLOTS_FILE = "plots.html"
LEAST_ROWS = 2
"""Least number of rows of each label, so that there are distances within it."""


@dataclass(frozen=True, kw_only=True)
class ClustersConfig(LabelledOptions, PermutationOptions, PlotOptions):
    """Cluster indices and the alignment quality index of labelled prompts at every layer, with intervals and nulls.

    The dataset holds texts with labels. Writes results.parquet, rows.parquet, summary.json, plots.html, the states and,
    of several models, drift.parquet and shifts.safetensors.

    Args:
        model: folder or hub id of a causal language model or an encoder, or "bundled"; repeat it to compare models (a
            base, its fine-tuned checkpoints) with the first on the same rows.
        store: in place of models, a folder that 'probing capture' wrote from the same data; may be repeated. All places
            of a store are read unless some are named.
        control: prompts that are matched in topic, with labels of the data: they take the place of the data's rows of
            these labels.
        control_store: with stores, the folder that 'probing capture' wrote from the control, one for each store.
        labels: which labels to compare, separated by commas; by default all that there are.
        metric: distance between states, "euclidean" or "cosine".
        scaling: "none"; "standardize" or "whiten" (Mahalanobis, with shrinkage), without the labels.
        weight: weight of the first term of the alignment quality index.
        components: dimension of the principal subspaces whose angles are measured between models.
        tsne: draw t-SNE pictures too; no number is made from them.
    """

    model: str | list[str] | None = option(None, identity=False, repeatable=True, holds="model")
    store: str | list[str] | None = option(None, identity=False, repeatable=True)
    control: str | None = option(None, identity=False, holds="rows")
    control_store: str | list[str] | None = option(None, identity=False, repeatable=True)
    labels: str | None = None
    metric: Literal["euclidean", "cosine"] = "euclidean"
    scaling: Literal["none", "standardize", "whiten"] = "none"
    weight: float = option(0.5, least=0, most=1)
    components: int = option(8, least=1, most=MOST_TOKENS)
    tsne: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_states(self.models, self.stores)
        folders = [os.path.normpath(name) for name in self.models or self.stores]
        twice = next((name for name in folders if folders.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"'{twice}' is given twice")
        wanted = len(self.stores) if self.control is not None else 0
        if len(self.control_stores) != wanted:
            raise ValueError("--control-store belongs to --store and --control together: one for each store")

    @property
    def models(self) -> list[str]:
        """Models, the first of which the others are compared with."""
        return _as_list(self.model)

    @property
    def stores(self) -> list[str]:
        """Stores in their place."""
        return _as_list(self.store)

    @property
    def control_stores(self) -> list[str]:
        """Stores of the control, one for each store."""
        return _as_list(self.control_store)

    @property
    def label_names(self) -> list[str]:
        """Labels that were chosen; none for all."""
        return [] if self.labels is None else [name.strip() for name in self.labels.split(",")]


def _as_list(given: str | list[str] | None) -> list[str]:
    return [] if given is None else [given] if isinstance(given, str) else list(given)
