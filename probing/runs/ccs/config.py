"""Options of ``probing ccs``."""

from dataclasses import dataclass
from typing import Literal

from probing.data.forms import Template, parse_replacement
from probing.data.layouts import Layout
from probing.runs.common.options import (
    MOST_DRAWS,
    PAIR,
    CategoryOptions,
    FoldOptions,
    OneModelOptions,
    PermutationOptions,
    PlotOptions,
    SupervisedOptions,
    option,
)

RESULTS_FILE = "results.parquet"
CONTROLS_FILE = "controls.parquet"
PAIRS_FILE = "pairs.parquet"
PROBES_FILE = "probes.safetensors"
SUMMARY_FILE = "summary.json"
PLOTS_FILE = "plots.html"
FORMS_FILE = "forms.jsonl"


@dataclass(frozen=True, kw_only=True)
class CCSConfig(CategoryOptions, OneModelOptions, FoldOptions, SupervisedOptions, PermutationOptions, PlotOptions):
    """Train contrast-consistent probes on pairs of opposite statements at every layer, and see what they found.

    The dataset holds statements with their opposites and a label, whether the statement is true. Writes
    results.parquet, controls.parquet, pairs.parquet, probes.safetensors, summary.json, plots.html, forms.jsonl and the
    states.

    Args:
        store: in place of a model, states captured before: the folder "states" of an earlier run, or that of a
            'probing capture' of its forms.jsonl; all its places are read unless some are named.
        layout: "wide" (a statement and its opposite in one row), "long" (one row a statement, with a pair id and a
            polarity), "halves" (row i and row i + N/2 belong together), or "auto": wide or long, by the columns.
        statement_column: column of the statements; by default statement or text.
        opposite_column: column of their opposites; by default opposite or negation.
        pair_column: column of the pair ids, in the long layout; by default pair or pair_id.
        polarity_column: column that tells a statement from its opposite, in the long layout; by default polarity.
        label_column: column with the truth of each statement; by default label, is_true or truth.
        formulation_column: column that says how the opposite is put; by default formulation, if there is one.
        template: the text that is read: {statement} with the {answer} to it.
        answers: the yes and the no, separated by a comma.
        chat: put the question into a user's turn of the chat template, and the answer into the assistant's.
        question: the question that is asked of each statement, with --chat.
        token: whose state is read: "last", "first", the "mean" of all, or "auto": the last of a decoder, the first of
            an encoder.
        normalization: "l2" divides every state by its length; "none" takes them as they are.
        centering: what is taken off the yes forms and the no forms, each by themselves and from training pairs only:
            "median" or "mean".
        loss: loss of the probes, "original" or "symmetric".
        optimizer: optimizer of the probes, "adamw" or "lbfgs".
        restarts: number of probes that are trained from different starting points; the one with the least loss is kept.
        epochs: full-batch steps of adamw, or the most iterations of lbfgs.
        learning_rate: learning rate of adamw.
        weight_decay: weight decay of adamw.
        supervision: weight of a cross-entropy with the labels that is added to the loss; 0 leaves labels out.
        split_by: "pair" keeps pairs that share a text in one fold; the name of a column also keeps the pairs of each of
            its values together.
        random: number of random probes, for the band that they reach.
        pairings: number of permutations of the no forms that probes are trained on, as shuffled-pair control.
        replace_word: control with a marker, as WORD=MARKER: replaces a whole word by a meaningless one; "" leaves the
            control out.
        distractor: word that is appended to half of the pairs, as a test whether it is what probes find; "" leaves the
            test out.
    """

    layout: Layout = option("auto", identity=False)
    statement_column: str | None = option(None, identity=False)
    opposite_column: str | None = option(None, identity=False)
    pair_column: str | None = option(None, identity=False)
    polarity_column: str | None = option(None, identity=False)
    label_column: str | None = option(None, identity=False)
    formulation_column: str | None = option(None, identity=False)
    template: str = "{statement} {answer}."
    answers: str = "Yes,No"
    chat: bool = False
    question: str | None = None
    token: Literal["auto", "last", "first", "mean"] = option("auto", of_capture=True)
    normalization: Literal["l2", "none"] = "l2"
    centering: Literal["median", "mean"] = "median"
    loss: Literal["original", "symmetric"] = "original"
    optimizer: Literal["adamw", "lbfgs"] = "adamw"
    restarts: int = option(10, least=1, most=MOST_DRAWS)
    epochs: int = option(1500, least=1, most=10**7)
    learning_rate: float = option(0.015, least=0, most=1e6)
    weight_decay: float = option(0.01, least=0, most=1e6)
    supervision: float = option(0.0, least=0, most=1e6)
    split_by: str = PAIR
    random: int = option(100, least=1, most=MOST_DRAWS)
    pairings: int = option(3, least=0, most=MOST_DRAWS)
    refits: int = option(20, least=0, most=MOST_DRAWS)
    replace_word: str = "not=ttt"
    distractor: str = "banana"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.question is not None and not self.chat:
            raise ValueError("a question is asked with --chat only; without it, put it into --template")
        if self.distractor and not self.distractor.strip():
            raise ValueError("the distractor must be a word")
        self.form()
        self.replacement()

    def form(self) -> Template:
        """How a statement and an answer become a text."""
        answers = [answer.strip() for answer in self.answers.split(",")]
        if len(answers) != 2:
            raise ValueError(f"answers are a yes and a no, separated by a comma, not '{self.answers}'")
        return Template(self.template, (answers[0], answers[1]), self.question, self.chat)

    def replacement(self) -> tuple[str, str] | None:
        """The word of the control with a marker, and what takes its place."""
        return parse_replacement(self.replace_word) if self.replace_word else None
