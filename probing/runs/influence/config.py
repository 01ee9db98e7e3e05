"""Options of ``probing influence``."""

from dataclasses import dataclass
from typing import Literal

from probing.runs.common.options import (
    MOST_ROWS,
    MOST_SEED,
    GroupOptions,
    HubOptions,
    LossOptions,
    PairRunOptions,
    PlotOptions,
    option,
)
from probing.types import check_known_later

INFLUENCE_FILE = "influence.parquet"
NULL_FILE = "null.parquet"
PLOTS_FILE = "plots.html"
SUGGESTED_DROP = 0.1
"""Share of the pairs that the command suggested after a run leaves out."""
HALF = ("bfloat16", "float16")
Quantity = Literal["chosen", "margin", "response", "refusal"]


@dataclass(frozen=True, kw_only=True)
class InfluenceConfig(PairRunOptions, LossOptions, HubOptions, GroupOptions, PlotOptions):
    """Measure what a step of training on each preference pair does to a target, and what training on all of them does
    to each pair, to first order.

    Writes influence.parquet, null.parquet, plots.html and run.json. Give --target, --joint, or both. No gradient of a
    single pair is made: each answer costs two scoring passes over the pairs, with the model a small step to either
    side.

    Args:
        model: folder or hub id of a causal language model or of an adapter on one, or "bundled"; run in float32.
        target: file of what should be kept: preference pairs, prompts with responses, or prompts, as --quantity says;
            "bundled" for those in this package. Columns of pairs that are named are the same as those of --data; those
            of prompts and responses have their usual names.
        target_split: which split or slice of --target to read; see --split.
        quantity: mean over the rows of the target whose change is measured: "chosen" (ln p of the chosen response of
            pairs), "margin" (ln p(chosen) - ln p(rejected) of pairs), "response" (ln p of the response of each row), or
            "refusal" (ln p that an answer to the prompt begins with --refusal-text; of labelled prompts those labelled
            harmful).
        refusal_text: how a refusal begins, for "refusal": the words with which this very model refuses; refusals in
            other words count as anything else.
        joint: also measure how ln p of both responses of each pair moves in a step on the mean loss of all pairs.
        parameters: parameters that the training changes: "all", "head", "last:K", or "lora": those of the adapter. By
            default "lora" if the model has an adapter, else "all".
        parameter_parts: number of parts into which the parameters are cut, which are measured one after the other and
            summed; more take less memory, and as many times the passes.
        optimizer: optimizer of the training: "adamw" (each entry of the direction is divided by the root of its mean
            square over batches of --data), or "sgd".
        batch_pairs: number of pairs in a batch of the training.
        optimizer_batches: number of batches of --data, drawn at random, that the mean square is taken of; with --joint
            it is taken of all.
        step: length of the step to either side, as Euclidean distance in the space of the parameters. By default the
            one at which two lengths agree best on a few pairs.
        pilot_steps: number of real steps of training in memory, after which the change of ln p of both responses of
            each pair is measured; needs --learning-rate. Each step costs about three scoring passes of a batch, and the
            measurement two passes of all pairs; AdamW keeps two numbers for each parameter.
        pilot_influence: also measure the influence on the target with the model as it is before each step of the pilot,
            and average over the steps; costs two passes for each step. Needs --target and at least two --pilot-steps.
        training_steps: number of steps of the training that the pilot foretells, if these are more than --pilot-steps:
            each step of the pilot then is so many times as long.
        learning_rate: learning rate of the training that the pilot foretells; only with --pilot-steps.
        null_draws: number of random directions, and of targets with permuted responses, to compare the influences with;
            0 for none.
        seed: seed of batches, of the pilot's pairs, and of null draws.
    """

    model: str = option(identity=False, holds="model")
    target: str | None = option(None, identity=False, holds="rows")
    target_split: str | None = option(None, identity=False)
    quantity: Quantity = "chosen"
    refusal_text: str = "I'm sorry, but I can't"
    joint: bool = False
    loss: str = "dpo"
    parameters: str | None = option(
        None, form=r"all|head|lora|last:[1-9]\d{0,3}", written="all, head, lora or last:K with K at least 1"
    )
    parameter_parts: int = option(1, least=1, most=1000)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    batch_pairs: int = option(16, least=1, most=MOST_ROWS)
    optimizer_batches: int = option(16, least=1, most=MOST_ROWS)
    step: float | None = option(None, above=0, most=1e6)
    pilot_steps: int = option(0, least=0, most=MOST_ROWS)
    pilot_influence: bool = False
    training_steps: int | None = option(None, least=1, most=MOST_ROWS)
    learning_rate: float | None = option(None, above=0, most=1e6)
    null_draws: int = option(5, least=0, most=1000)
    seed: int = option(0, least=0, most=MOST_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target is None and not self.joint:
            raise ValueError("give --target, a file of what should be kept, or --joint, or both")
        if self.target == "":
            raise ValueError("target is empty; name a file")
        if (self.learning_rate is not None) != bool(self.pilot_steps):
            raise ValueError("--learning-rate and --pilot-steps belong together; give both or neither")
        if self.training_steps is not None and not 0 < self.pilot_steps <= self.training_steps:
            raise ValueError(
                "--training-steps is the length of what the pilot foretells: at least --pilot-steps, above 0"
            )
        if self.pilot_steps:
            check_known_later(self.loss)
        if self.pilot_influence and (self.target is None or self.pilot_steps < 2):
            raise ValueError("--pilot-influence needs --target, and --pilot-steps of at least 2 with --learning-rate")
        if self.quantity == "refusal" and not self.refusal_text.strip():
            raise ValueError("refusal_text is empty; give the words with which the model begins a refusal")
        if self.dtype in HALF:
            raise ValueError(f"small steps are lost in rounding in {self.dtype}; leave out --dtype for float32")

    @property
    def needs_training(self) -> bool:
        """Whether gradients of the training's loss are needed."""
        return self.joint or self.optimizer == "adamw"
