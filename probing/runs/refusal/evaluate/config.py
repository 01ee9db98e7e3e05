"""Options of ``probing refusal evaluate``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from probing.runs.common.options import DrawOptions, option
from probing.runs.refusal.common.options import MOST_DIRECTIONS, AnswerOptions, KindOptions, OneDirectionOptions

RESULTS_FILE = "results.parquet"
ANSWERS_FILE = "answers.parquet"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(KindOptions, AnswerOptions, OneDirectionOptions, DrawOptions):
    """Measure what an edit of a model changes, on harmful and harmless prompts: refusal, and everything else.

    The model answers every prompt before and after the edit, greedily; answers are judged by their text. Beside them
    stand the log-odds of refusal at the first token, how far harmless answers change, and what random directions of the
    same length do. Writes answers.parquet (both answers side by side), results.parquet and summary.json.

    Args:
        direction: file of a direction, or folder of 'probing refusal select'; or folder of 'probing refusal extract',
            of which --place names one.
        extracted: folder of 'probing refusal extract', whose states are extracted from again under permuted labels and
            without each category; by default that of --direction where it is one.
        edited_model: folder, adapter or hub id of the model as it was edited, in place of an edit while it runs.
        mode: "project" removes the direction, "affine" puts the harmless mean in its place, "add" adds it.
        coefficient: how much of it: the share that is removed, or how many times it is added; by default 1, and 0 for
            affine.
        layers: blocks that are edited, from 0 and separated by commas, or "all"; by default all for project, and the
            direction's own for the others.
        where: of project: "writes" for all writes to the residual stream, "resid" for the input of every block, or some
            of embedding, attention and mlp, separated by commas.
        random_texts: how many of these also answer all prompts.
        permuted_directions: number of directions that are extracted under permuted labels, where a folder of 'probing
            refusal extract' is known.
        thinking: "on" or "off" where the chat template has a switch for it; "both" compares them, and directions that
            are extracted in each; "default" is what the template does by itself.
        judge: command that judges answers besides: it reads a JSON object a line with id, prompt and answer, and writes
            one with id and verdict for each.
        judge_seconds: time within which the judge must answer.
        text: text file on which the cross-entropy is measured.
    """

    direction: Path | None = option(None, identity=False)
    extracted: Path | None = option(None, identity=False)
    edited_model: str | None = option(None, identity=False)
    mode: Literal["project", "affine", "add"] = "project"
    coefficient: float | None = None
    layers: str | None = option(None, form=r"all|\d{1,4}(,\d{1,4})*", written="all, or numbers such as 3,4,5")
    where: str | None = None
    random_texts: int = option(0, least=0, most=MOST_DIRECTIONS)
    permuted_directions: int = option(10, least=0, most=MOST_DIRECTIONS)
    thinking: Literal["default", "off", "on", "both"] = "default"
    judge: str | None = None
    judge_seconds: float = option(60.0, above=0, most=86_400, identity=False)
    text: Path | None = option(None, identity=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.direction is None and self.edited_model is None:
            raise ValueError("give a direction, an edited_model, or both")
        if self.random_texts > self.random_directions:
            raise ValueError(f"random_texts is {self.random_texts} of {self.random_directions} random_directions")
        if self.compile:
            raise ValueError("edits stand inside of the blocks, which cannot be compiled then; leave compile out")
        if self.thinking == "both" and self.direction is None:
            raise ValueError("thinking 'both' compares directions, and none is given")

    @property
    def modes(self) -> tuple[str, ...]:
        """How the model thinks in each pass over the prompts."""
        return ("off", "on") if self.thinking == "both" else (self.thinking,)
