"""Options of ``probing ccs``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from probing.data.forms import Template, parse_replacement
from probing.data.layouts import Layout
from probing.data.places import expand_places
from probing.probes.controls import LEAST_FOLDS
from probing.runs.common.options import check_at_least, check_beside_store

RESULTS_FILE = "results.parquet"
CONTROLS_FILE = "controls.parquet"
PAIRS_FILE = "pairs.parquet"
PROBES_FILE = "probes.safetensors"
SUMMARY_FILE = "summary.json"
PLOTS_FILE = "plots.html"
FORMS_FILE = "forms.jsonl"
PAIR = "pair"
OF_CAPTURE = ("token", "revision", "dtype", "batch_tokens", "max_length", "compile", "trust_remote_code")
"""Options that say nothing where the states come from a store."""


@dataclass(frozen=True)
class CCSConfig:
    """Train contrast-consistent probes on pairs of opposite statements at every layer, and see what they found.

    Args:
        data: JSONL, JSON, CSV or Parquet file (also gzipped), saved datasets folder, hub id, or "bundled": statements
            with their opposites and a label, whether the statement is true.
        out: folder for results.parquet, controls.parquet, pairs.parquet, probes.safetensors, summary.json, plots.html,
            forms.jsonl and the states; an interrupted run in it is continued.
        model: folder or hub id of a causal language model or an encoder, or "bundled".
        store: in place of a model, states captured before: the folder "states" of an earlier run, or that of a
            'probing capture' of its forms.jsonl.
        layout: "wide" (a statement and its opposite in one row), "long" (one row a statement, with a pair id and a
            polarity), "halves" (row i and row i + N/2 belong together), or "auto": wide or long, by the columns.
        statement_column: column of the statements; by default statement or text.
        opposite_column: column of their opposites; by default opposite or negation.
        pair_column: column of the pair ids, in the long layout; by default pair or pair_id.
        polarity_column: column that tells a statement from its opposite, in the long layout; by default polarity.
        label_column: column with the truth of each statement; by default label, is_true or truth.
        category_column: column of the categories; by default category, if there is one.
        formulation_column: column that says how the opposite is put; by default formulation, if there is one.
        id_column: column of unique ids; by default "id" if there is one, otherwise ids are made from the content.
        split: which split, where the data have several.
        template: the text that is read: {statement} with the {answer} to it.
        answers: the yes and the no, separated by a comma.
        chat: put a question into a user's turn of the chat template, and the answer into the assistant's.
        question: the question, with --chat.
        token: whose state is read: "last", "first", the "mean" of all, or "auto": the last of a decoder, the first of
            an encoder.
        places: separated by commas, as for 'probing capture'; of a store, by default all that it has.
        normalization: "l2" divides every state by its length; "none" takes them as they are.
        centering: taken off the yes and the no forms separately, from training pairs only: "median" or "mean".
        loss: "original" or "symmetric".
        optimizer: "adamw" or "lbfgs".
        restarts: probes from different starting points, of which the one with the least loss is kept.
        epochs: full-batch steps (iterations of lbfgs, at most).
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        supervision: weight of a cross-entropy with the labels that is added to the loss; 0 leaves labels out.
        seed: of starting points, folds, nulls and resamples.
        folds: parts of the pairs, each of which is held out once; at least 3.
        split_by: "pair" keeps pairs that share a text in one fold; the name of a column also keeps its values whole.
        random: random probes, for their band.
        pairings: permutations of the no forms that probes are trained on.
        refits: permutations of the labels that the supervised probes are fitted to.
        permutations: permutations of the labels for the others.
        resamples: of the bootstrap.
        inverse_penalty: C of the logistic regression.
        replace_word: the marker control: WORD=MARKER replaces a whole word by a meaningless one; "" leaves it out.
        distractor: the distractor test: a word appended to half of the pairs; "" leaves it out.
        revision: branch, tag or commit of a hub model.
        dtype: of the model: "auto" keeps the checkpoint's on an accelerator and takes float32 on the CPU.
        device: "auto", "cpu", "cuda", "cuda:1", ...: for the model and for training. "balanced" spreads the layers of
            the model over all cards and the host, and trains on the first card.
        batch_tokens: tokens a batch; by default found from the memory of the device.
        max_length: longest sequence in tokens; pairs with a longer form are left out. By default the model's limit.
        compile: compile the blocks with torch.compile; worth it for many rows on a card. Changes the last digits.
        trust_remote_code: run code that the checkpoint brings with it.
    """

    data: str
    out: Path
    model: str | None = None
    store: Path | None = None
    layout: Layout = "auto"
    statement_column: str | None = None
    opposite_column: str | None = None
    pair_column: str | None = None
    polarity_column: str | None = None
    label_column: str | None = None
    category_column: str | None = None
    formulation_column: str | None = None
    id_column: str | None = None
    split: str | None = None
    template: str = "{statement} {answer}."
    answers: str = "Yes,No"
    chat: bool = False
    question: str | None = None
    token: Literal["auto", "last", "first", "mean"] = "auto"
    places: str | list[str] = "resid_post:all"
    normalization: Literal["l2", "none"] = "l2"
    centering: Literal["median", "mean"] = "median"
    loss: Literal["original", "symmetric"] = "original"
    optimizer: Literal["adamw", "lbfgs"] = "adamw"
    restarts: int = 10
    epochs: int = 1500
    learning_rate: float = 0.015
    weight_decay: float = 0.01
    supervision: float = 0.0
    seed: int = 0
    folds: int = 5
    split_by: str = PAIR
    random: int = 100
    pairings: int = 3
    refits: int = 20
    permutations: int = 1000
    resamples: int = 1000
    inverse_penalty: float = 1.0
    replace_word: str = "not=ttt"
    distractor: str = "banana"
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    batch_tokens: int | None = None
    max_length: int | None = None
    compile: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        check_at_least(self, batch_tokens=1, max_length=1, restarts=1, epochs=1, seed=0, folds=LEAST_FOLDS)
        check_at_least(self, random=1, pairings=0, refits=0, permutations=1, resamples=1)
        for name in ("learning_rate", "weight_decay", "supervision"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number of at least 0, not {getattr(self, name)}")
        if not 0 < self.inverse_penalty < float("inf"):
            raise ValueError(f"inverse_penalty must be above 0, not {self.inverse_penalty}")
        if (self.model is None) == (self.store is None):
            raise ValueError("give one of --model and --store")
        check_beside_store(self, OF_CAPTURE)
        if self.question is not None and not self.chat:
            raise ValueError("a question is asked with --chat only; without it, put it into --template")
        if self.distractor and not self.distractor.strip():
            raise ValueError("the distractor must be a word")
        self.form()
        self.replacement()
        expand_places(self.places, None)

    def form(self) -> Template:
        """How a statement and an answer become a text."""
        answers = [answer.strip() for answer in self.answers.split(",")]
        if len(answers) != 2:
            raise ValueError(f"answers are a yes and a no, separated by a comma, not '{self.answers}'")
        return Template(self.template, (answers[0], answers[1]), self.question, self.chat)

    def replacement(self) -> tuple[str, str] | None:
        """The word of the marker control and what takes its place."""
        return parse_replacement(self.replace_word) if self.replace_word else None
