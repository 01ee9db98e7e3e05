"""What ``probing refusal trace`` reads before the model: prompts with their sources, and answers of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from probing.directions.judge_text import REFUSED
from probing.errors import SourceMismatch, UsageError
from probing.report.tables import to_line
from probing.runs.common.options import TEXT
from probing.runs.common.record import check_files
from probing.runs.refusal.common.prompts import Kinds, read_kinds
from probing.runs.refusal.trace.config import TraceConfig
from probing.store.files import file_sha256
from probing.store.manifest import RunFolder
from probing.store.records import read_run
from probing.types import LabelledPrompt

ANSWERS_FILE = "answers.parquet"
EVALUATION = "refusal evaluate"
SOURCE, CATEGORY = "source", "category"
DECIDED: Mapping[str, bool] = {**dict.fromkeys(REFUSED, True), "compliance": False}
"""What a verdict says of the decision; other verdicts are of no answer, and say nothing."""


@dataclass(frozen=True)
class GivenAnswer:
    """An answer of the model before any edit.

    Attributes:
        text: the answer.
        thought: what it thought first; None where it did not.
        verdict: what the answer does.
    """

    text: str
    thought: str | None
    verdict: str


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers of an evaluation.

    Attributes:
        by_text: answers by the text of the prompt.
        thinking: how the model thought.
        model: facts of the model that answered.
        tokens: refusal tokens of the evaluation.
        sha256: hash of the file.
        path: the folder.
    """

    by_text: Mapping[str, GivenAnswer]
    thinking: str
    model: Mapping[str, Any]
    tokens: list[int]
    sha256: str
    path: Path

    def find(self, prompt: LabelledPrompt) -> GivenAnswer | None:
        """The answer to a prompt, known by its text."""
        return self.by_text.get(line_of(prompt))


@dataclass(frozen=True, eq=False)
class TraceData:
    """Everything that is read from files before the model.

    Attributes:
        kinds: the prompts.
        sources: source of each.
        source_name: what the sources are: a column, or "file".
        groups: value of each that must not be in two folds; None where prompts are split by their text.
        answers: answers of an evaluation; None where none were given.
    """

    kinds: Kinds
    sources: list[str]
    source_name: str
    groups: list[str] | None
    answers: Answers | None


def line_of(prompt: LabelledPrompt) -> str:
    """The text of a prompt, a conversation as one line."""
    return prompt.text if isinstance(prompt.text, str) else to_line(prompt.text)


def read_data(config: TraceConfig) -> TraceData:
    """The prompts, their sources, and the answers that the options name.

    Raises:
        DataInvalid: a file cannot be read, or holds too little.
        UsageError: a column that is not there.
        SourceMismatch: the answers are not those of an evaluation, or of other prompts.
    """
    kinds = read_kinds(config)
    name = config.source_column or _find_source(kinds)
    sources = _read_column(kinds, name)
    groups = None if config.split_by == TEXT else _read_column(kinds, config.split_by)
    answers = None if config.answers is None else _read_answers(config.answers.expanduser(), kinds.prompts)
    return TraceData(kinds, sources, name, groups, answers)


def _find_source(kinds: Kinds) -> str:
    """What says where prompts come from: the first of a column of sources, the category, and the file."""
    if SOURCE in kinds.table.columns and kinds.rows is not None:
        return SOURCE
    return CATEGORY if any(prompt.category for prompt in kinds.prompts) else "file"


def _read_column(kinds: Kinds, name: str) -> list[str]:
    """A value of every prompt; those that have none are told apart by their kind."""
    if name == CATEGORY and any(prompt.category for prompt in kinds.prompts):
        values: Sequence[Any] = [prompt.category for prompt in kinds.prompts]
    elif kinds.rows is None:
        raise UsageError(f"{kinds.table.path}: pairs have no column '{name}' of a prompt; give prompts in a column")
    elif name in kinds.table.columns:
        values = [kinds.table.rows[row].get(name) for row in kinds.rows]
    elif name == "file":
        values = [kinds.table.file_of(row) for row in kinds.rows]
    else:
        known = ", ".join(map(str, kinds.table.columns))
        raise UsageError(f"{kinds.table.path}: there is no column '{name}'; there are {known}")
    none = {True: "harmful prompts without one", False: "harmless prompts without one"}
    return [
        none[harmful] if value is None or value != value else str(value)
        for value, harmful in zip(values, kinds.harmful, strict=True)
    ]


def _read_answers(folder: Path, prompts: Sequence[LabelledPrompt]) -> Answers:
    facts = read_run(folder)
    if facts["command"] != EVALUATION or facts["status"] != "done":
        raise SourceMismatch(f"{folder}: holds no finished run of 'probing {EVALUATION}'")
    check_files(RunFolder(folder, EVALUATION), {ANSWERS_FILE: facts["sha256"].get(ANSWERS_FILE, "")})
    table = pd.read_parquet(folder / ANSWERS_FILE)
    ways = list(dict.fromkeys(table["thinking"]))
    # Where both ways were evaluated, thoughts are what there is more to see of.
    thinking = "on" if "on" in ways else str(ways[0])
    own = table[table["thinking"] == thinking]
    by_text = {
        str(row["prompt"]): GivenAnswer(
            str(row["answer_before"]),
            None if pd.isna(row["thought_before"]) else str(row["thought_before"]),
            str(row["verdict_before"]),
        )
        for row in own.to_dict("records")
    }
    if not any(line_of(prompt) in by_text for prompt in prompts):
        raise SourceMismatch(
            f"{folder}: none of its {len(by_text)} prompts is in the data; give --data as it was there"
        )
    return Answers(
        by_text=by_text,
        thinking=thinking,
        model=facts["model"],
        tokens=[token["id"] for token in facts["refusal_tokens"]],
        sha256=file_sha256(folder / ANSWERS_FILE),
        path=folder,
    )
