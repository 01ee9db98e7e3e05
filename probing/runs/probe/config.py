"""Options of ``probing probe``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from probing.data.places import expand_places
from probing.runs.common.groups import TEXT
from probing.runs.common.options import check_at_least, check_beside_store
from probing.statistics.folds import LEAST_FOLDS
from probing.types import Over

RESULTS_FILE = "results.parquet"
PREDICTIONS_FILE = "predictions.parquet"
PROBES_FILE = "probes.safetensors"
SUMMARY_FILE = "summary.json"
PLOTS_FILE = "plots.html"
FRESH_STATES = "fresh-states"
OF_CAPTURE = (
    "pooling",
    "over",
    "chat",
    "revision",
    "dtype",
    "batch_tokens",
    "max_length",
    "compile",
    "trust_remote_code",
)
"""Options that say nothing where the states come from a store."""


@dataclass(frozen=True)
class ProbeConfig:
    """Fit logistic, mass-mean and LDA probes to labelled prompts at every layer, and try to prove them wrong.

    Args:
        data: JSONL, JSON, CSV or Parquet file (also gzipped), saved datasets folder, hub id, or "bundled": texts with
            labels.
        out: folder for results.parquet, predictions.parquet, probes.safetensors, summary.json, plots.html and the
            states; an interrupted run in it is continued.
        model: folder or hub id of a causal language model or an encoder, or "bundled".
        store: in place of a model, a folder that 'probing capture' wrote from the same data.
        fresh: other prompts of the same kind, written independently: the probes that saw all of data are tried on them.
        fresh_store: with a store, the folder that 'probing capture' wrote from them.
        positive: the label that a probe says yes to; needed where there are not exactly two labels (all others are no).
        text_column: column of the texts or conversations; by default text, prompt, instruction, question, statement or
            messages.
        response_column: column of the responses; by default response or completion, if there is one.
        label_column: column of the labels; by default label.
        category_column: column of the categories; by default category, if there is one.
        id_column: column of unique ids; by default "id" if there is one, otherwise ids are made from the content.
        split: which split, where the data have several.
        split_by: "text" keeps equal texts in one fold; the name of a column (category, for instance) also keeps its
            values whole.
        places: separated by commas, as for 'probing capture'; of a store, by default all that it has.
        pooling: "last", "first", "mean" or "sum" of the tokens that count.
        over: which tokens count, as for 'probing capture'.
        chat: put plain texts into a user's turn of the chat template.
        folds: parts of the rows, each of which is held out once; at least 3.
        refits: permutations of the labels that the probes are fitted to, as their null.
        resamples: of the bootstrap.
        inverse_penalty: C of the logistic regression.
        seed: of folds, permutations and resamples.
        revision: branch, tag or commit of a hub model.
        dtype: of the model: "auto" keeps the checkpoint's on an accelerator and takes float32 on the CPU.
        device: "auto", "cpu", "cuda", "cuda:1", ...: for the model and for fitting. "balanced" spreads the layers of
            the model over all cards and the host, and fits on the first card.
        batch_tokens: tokens a batch; by default found from the memory of the device.
        max_length: longest sequence in tokens; longer rows are left out. By default the model's limit.
        compile: compile the blocks with torch.compile; worth it for many rows on a card. Changes the last digits.
        trust_remote_code: run code that the checkpoint brings with it.
    """

    data: str
    out: Path
    model: str | None = None
    store: Path | None = None
    fresh: str | None = None
    fresh_store: Path | None = None
    positive: str | None = None
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
    folds: int = 5
    refits: int = 20
    resamples: int = 1000
    inverse_penalty: float = 1.0
    seed: int = 0
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    batch_tokens: int | None = None
    max_length: int | None = None
    compile: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        check_at_least(self, batch_tokens=1, max_length=1, seed=0, folds=LEAST_FOLDS, refits=1, resamples=1)
        if not 0 < self.inverse_penalty < float("inf"):
            raise ValueError(f"inverse_penalty must be above 0, not {self.inverse_penalty}")
        if (self.model is None) == (self.store is None):
            raise ValueError("give one of --model and --store")
        check_beside_store(self, OF_CAPTURE)
        if self.over == "span":
            raise ValueError("spans are captured by 'probing capture'; give its folder as --store")
        if (self.store is not None and self.fresh is not None) != (self.fresh_store is not None):
            raise ValueError("--fresh-store belongs to --store and --fresh together")
        expand_places(self.places, None)
