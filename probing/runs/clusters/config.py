"""Options of ``probing clusters``."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from probing.data.places import expand_places
from probing.runs.common.groups import TEXT
from probing.runs.common.options import check_at_least, check_beside_store
from probing.runs.probe.config import OF_CAPTURE
from probing.statistics.folds import LEAST_FOLDS
from probing.types import Over

RESULTS_FILE = "results.parquet"
ROWS_FILE = "rows.parquet"
DRIFT_FILE = "drift.parquet"
SHIFTS_FILE = "shifts.safetensors"
SUMMARY_FILE = "summary.json"
PLOTS_FILE = "plots.html"
LEAST_ROWS = 2
"""Of each label, for anything to lie within it."""


@dataclass(frozen=True)
class ClustersConfig:
    """Cluster indices and the alignment quality index of labelled prompts at every layer, with intervals and nulls.

    Args:
        data: JSONL, JSON, CSV or Parquet file (also gzipped), saved datasets folder, hub id, or "bundled": texts with
            labels.
        out: folder for results.parquet, rows.parquet, summary.json, plots.html, the states and, of several models,
            drift.parquet and shifts.safetensors; an interrupted run in it is continued.
        model: folder or hub id of a causal language model or an encoder, or "bundled"; repeat it to compare models (a
            base, its fine-tuned checkpoints) with the first on the same rows.
        store: in place of models, a folder that 'probing capture' wrote from the same data; may be repeated.
        control: prompts that are matched in topic, with labels of the data: they take the place of the data's rows of
            these labels.
        control_store: with stores, the folder that 'probing capture' wrote from the control, one for each store.
        labels: which to compare, separated by commas; by default all that there are.
        text_column: column of the texts or conversations; by default text, prompt, instruction, question, statement or
            messages.
        response_column: column of the responses; by default response or completion, if there is one.
        label_column: column of the labels; by default label.
        category_column: column of the categories; by default category, if there is one.
        id_column: column of unique ids; by default "id" if there is one, otherwise ids are made from the content.
        split: which split, where the data have several.
        split_by: "text": rows of equal text are resampled, relabelled and held out together; the name of a column also
            keeps the rows of each of its values together.
        places: separated by commas, as for 'probing capture'; of a store, by default all that it has.
        pooling: "last", "first", "mean" or "sum" of the tokens that count.
        over: which tokens count, as for 'probing capture'.
        chat: put plain texts into a user's turn of the chat template.
        metric: "euclidean" or "cosine".
        scaling: "none"; "standardize" or "whiten" (Mahalanobis, with shrinkage), without the labels.
        weight: of the first term of the alignment quality index.
        folds: parts of the rows; the layer, or the weights of layers, are chosen without the part they are judged on.
        permutations: of the labels, as the null.
        resamples: of the bootstrap.
        components: of the principal subspaces whose angles are measured between models.
        tsne: draw t-SNE pictures too; no number is made from them.
        seed: of folds, permutations and resamples.
        revision: branch, tag or commit of the hub models.
        dtype: of the models: "auto" keeps the checkpoint's on an accelerator and takes float32 on the CPU.
        device: "auto", "cpu", "cuda", "cuda:1", ...: for the models and for the indices. "balanced" spreads the layers
            of a model over all cards and the host, and computes the indices on the first card.
        batch_tokens: tokens a batch; by default found from the memory of the device.
        max_length: longest sequence in tokens; longer rows are left out. By default the model's limit.
        compile: compile the blocks with torch.compile; worth it for many rows on a card. Changes the last digits.
        trust_remote_code: run code that the checkpoints bring with them.
    """

    REPEATABLE: ClassVar[tuple[str, ...]] = ("model", "store", "control_store")

    data: str
    out: Path
    model: str | list[str] | None = None
    store: str | list[str] | None = None
    control: str | None = None
    control_store: str | list[str] | None = None
    labels: str | None = None
    text_column: str | None = None
    response_column: str | None = None
    label_column: str | None = None
    category_column: str | None = None
    id_column: str | None = None
    split: str | None = None
    split_by: str = TEXT
    places: str | list[str] = "resid_post:all"
    pooling: Literal["last", "first", "mean", "sum"] = "last"
    over: Over = "text"
    chat: bool = False
    metric: Literal["euclidean", "cosine"] = "euclidean"
    scaling: Literal["none", "standardize", "whiten"] = "none"
    weight: float = 0.5
    folds: int = 5
    permutations: int = 1000
    resamples: int = 1000
    components: int = 8
    tsne: bool = True
    seed: int = 0
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    batch_tokens: int | None = None
    max_length: int | None = None
    compile: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        check_at_least(self, batch_tokens=1, max_length=1, seed=0, folds=LEAST_FOLDS, permutations=1, resamples=1)
        check_at_least(self, components=1)
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight must be in [0, 1], not {self.weight}")
        if bool(self.models) == bool(self.stores):
            raise ValueError("give one of --model and --store")
        given = self.models or self.stores
        folders = [os.path.normpath(name) for name in given]
        twice = next((name for name in folders if folders.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"'{twice}' is given twice")
        check_beside_store(self, OF_CAPTURE)
        if self.over == "span":
            raise ValueError("spans are captured by 'probing capture'; give its folder as --store")
        wanted = len(self.stores) if self.control is not None else 0
        if len(_listed(self.control_store)) != wanted:
            raise ValueError("--control-store belongs to --store and --control together: one for each store")
        expand_places(self.places, None)

    @property
    def models(self) -> list[str]:
        """Models, the first of which the others are compared with."""
        return _listed(self.model)

    @property
    def stores(self) -> list[str]:
        """Stores in their place."""
        return _listed(self.store)

    @property
    def control_stores(self) -> list[str]:
        """Of the control, one for each store."""
        return _listed(self.control_store)

    @property
    def label_names(self) -> list[str]:
        """Labels that were chosen; none for all."""
        return [] if self.labels is None else [name.strip() for name in self.labels.split(",")]


def _listed(given: str | list[str] | None) -> list[str]:
    return [] if given is None else [given] if isinstance(given, str) else list(given)
