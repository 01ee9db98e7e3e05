"""Prompts that are answered, and the texts of their answers."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probing.directions.judge_text import Answer, find_thought_tags, split_thought
from probing.errors import DataInvalid
from probing.instruments.answers import Generated, Generator
from probing.instruments.reading import check_max_length
from probing.models.language_model import LanguageModel
from probing.runs.common.layers import Arrays
from probing.runs.refusal.common.kept import complete_named
from probing.runs.refusal.common.options import AnswerOptions
from probing.types import Capture, Place

ANSWERED = Capture((Place("resid_pre", 0),), "last", "prompt", chat=True)
"""How a prompt that is to be answered is rendered."""
PART_ROWS = 32
"""Prompts that are answered together and saved; a run that is killed loses at most so many."""


@dataclass(frozen=True, eq=False)
class Question:
    """Prompts that are answered under one edit.

    Attributes:
        name: says all that the answers depend on.
        prompts: token ids of each.
        edit: puts the edit on.
    """

    name: str
    prompts: Sequence[Sequence[int]]
    edit: Callable[[], AbstractContextManager[Any]]


def complete_answers(folder: Path, generator: Generator, questions: Sequence[Question]) -> list[list[Generated]]:
    """Greedy answers to the prompts of every question, kept part by part.

    Args:
        folder: folder of the parts.
        generator: writes with the model.
        questions: the questions.
    """
    blocks = [(at, start) for at, each in enumerate(questions) for start in range(0, len(each.prompts), PART_ROWS)]
    names = [f"{questions[at].name}, from {start}" for at, start in blocks]

    def answer(at: int, start: int) -> Arrays:
        with questions[at].edit():
            written = generator.write(questions[at].prompts[start : start + PART_ROWS])
        ids = [np.array(each.ids, dtype=np.float64) for each in written]
        return {
            "tokens": np.concatenate(ids),
            "counts": np.array([len(each) for each in ids], dtype=np.float64),
            "ended": np.array([each.ended for each in written], dtype=np.float64),
        }

    makers = {
        name: lambda at=at, start=start: answer(at, start) for name, (at, start) in zip(names, blocks, strict=True)
    }
    known = complete_named(folder, makers, "answering", "parts")
    found: list[list[Generated]] = [[] for _ in questions]
    for name, (at, _) in zip(names, blocks, strict=True):
        found[at] += _read_part(known[name])
    return found


def _read_part(arrays: Arrays) -> list[Generated]:
    ends = np.cumsum(arrays["counts"]).astype(int)
    rows = np.split(arrays["tokens"].astype(int), ends[:-1])
    return [Generated(ids.tolist(), bool(ended)) for ids, ended in zip(rows, arrays["ended"], strict=True)]


def limit_prompts(config: AnswerOptions, model: LanguageModel) -> int | None:
    """Tokens of the longest prompt for whose answer there is room; None for any.

    Raises:
        DataInvalid: an answer alone fills the positions of the model.
    """
    limit = check_max_length(config.max_length, model.max_positions)
    if model.max_positions is None:
        return limit
    limit = min(limit or model.max_positions, model.max_positions - config.new_tokens)
    if limit < 2:
        raise DataInvalid(f"the model has positions for {model.max_positions} tokens; give fewer --new-tokens")
    return limit


def list_thought_tags(tokenizer: Any, tags: Sequence[str]) -> tuple[str, ...]:
    """Closing tags of thoughts: some that are known, and those that the chat template writes."""
    return tuple(dict.fromkeys([*tags, *find_thought_tags(str(tokenizer.chat_template))]))


def read_answer(tokenizer: Any, ids: Sequence[int], tags: Sequence[str], opened: bool) -> Answer:
    """An answer from its tokens; the closing tag of a thought is found even where it is a special token."""
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    if not any(tag in whole for tag in tags):
        whole = tokenizer.decode(ids, skip_special_tokens=True)
    found = split_thought(whole, tags, opened)
    special = [token for token in tokenizer.all_special_tokens if token]
    thought = None if found.thought is None else _without(found.thought, special)
    return Answer(_without(found.text, special), thought, found.finished)


def _without(text: str, tokens: Sequence[str]) -> str:
    for token in tokens:
        text = text.replace(token, "")
    return text.strip()
