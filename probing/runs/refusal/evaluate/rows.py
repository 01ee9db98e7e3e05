"""The prompts as token ids, in each way of thinking, and which tokens refusal begins with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from probing.directions.judge_text import find_thought_tags, opens_thought
from probing.directions.refusal_score import FoundToken, find_refusal_tokens
from probing.errors import DataInvalid, NotFinite
from probing.instruments.answers import LogitReader, predict_answer
from probing.instruments.directions import mean_first_token, resolve_tokens
from probing.instruments.reading import check_max_length
from probing.models.load import LanguageModel
from probing.report.tables import to_line
from probing.runs.common.groups import text_units
from probing.runs.refusal.common.prompts import Kinds
from probing.runs.refusal.evaluate.config import EvaluateConfig
from probing.tokens.prompts import TokenizedPrompt, tokenize_prompts
from probing.tokens.thinking import thinking_arguments
from probing.types import Capture, Direction, LabelledPrompt, Place, Problem

LEAST_LEFT = 2
"""Prompts of each kind that have to be readable."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Prompts that can be answered, in the order of the data.

    Attributes:
        prompts: the prompts.
        harmful: whether each is harmful.
        units: prompts of one unit have the same text.
        ids: token ids of each, by way of thinking.
        opened: whether its prompt ends within a thought, by way of thinking.
        problems: the other prompts, and why they cannot be answered.
        tags: closing tags of thoughts that the chat template writes.
    """

    prompts: list[LabelledPrompt]
    harmful: NDArray[np.bool_]
    units: NDArray[np.int64]
    ids: dict[str, list[list[int]]]
    opened: dict[str, list[bool]]
    problems: tuple[Problem, ...]
    tags: tuple[str, ...]

    def line_of(self, row: int) -> str:
        """The text of a prompt, a conversation as one line."""
        text = self.prompts[row].text
        return text if isinstance(text, str) else to_line(text)


def prepare_rows(config: EvaluateConfig, kinds: Kinds, model: LanguageModel, tags: Sequence[str]) -> Rows:
    """Tokenise the prompts for every way of thinking.

    Args:
        config: options of the run.
        kinds: the prompts.
        model: the model before the edit.
        tags: closing tags of thoughts.

    Raises:
        DataInvalid: too few prompts of a kind can be answered. UsageError: the template has no switch for thinking.
    """
    limit = check_max_length(config.max_length, model.max_positions)
    if model.max_positions is not None:
        limit = min(limit or model.max_positions, model.max_positions - config.new_tokens)
        if limit < 2:
            raise DataInvalid(f"the model has positions for {model.max_positions} tokens; give fewer --new-tokens")
    known = tuple(dict.fromkeys([*tags, *find_thought_tags(str(model.tokenizer.chat_template))]))
    coded = {mode: _tokenize(config, kinds, model, mode, limit) for mode in config.modes}
    problems: dict[str, Problem] = {}
    for rows in coded.values():
        problems |= {row.id: row.problem for row in rows if row.problem is not None}
    kept = [at for at, prompt in enumerate(kinds.prompts) if prompt.id not in problems]
    harmful = np.array([kinds.harmful[at] for at in kept], dtype=bool)
    for kind, name in ((True, "harmful"), (False, "harmless")):
        if int((harmful == kind).sum()) < LEAST_LEFT:
            first = next(iter(problems.values()))
            raise DataInvalid(f"{(harmful == kind).sum()} {name} prompts can be read; {first.id}: {first.detail}")
    prompts = [kinds.prompts[at] for at in kept]
    ids = {mode: [rows[at].ids for at in kept] for mode, rows in coded.items()}
    decode = model.tokenizer.decode
    return Rows(
        prompts=prompts,
        harmful=harmful,
        units=np.array(text_units(prompts), dtype=np.int64),
        ids=ids,
        opened={mode: [opens_thought(decode(row), known) for row in rows] for mode, rows in ids.items()},
        problems=tuple(problems.values()),
        tags=known,
    )


def _tokenize(
    config: EvaluateConfig, kinds: Kinds, model: LanguageModel, mode: str, limit: int | None
) -> list[TokenizedPrompt]:
    prompts = [with_thinking(prompt, model, mode) for prompt in kinds.prompts]
    request = Capture((Place("resid_pre", 0),), "last", "prompt", chat=True)
    return tokenize_prompts(model.tokenizer, prompts, request, max_length=limit, where=kinds.table.where)


def with_thinking(prompt: LabelledPrompt, model: LanguageModel, mode: str) -> LabelledPrompt:
    """A prompt with the chat template's switch for thinking set."""
    arguments = thinking_arguments(model.tokenizer, mode, model.source.model)
    if not arguments:
        return prompt
    return replace(prompt, chat_template_kwargs={**(prompt.chat_template_kwargs or {}), **arguments})


def find_tokens(
    config: EvaluateConfig, rows: Rows, reader: LogitReader, direction: Direction | None
) -> list[FoundToken]:
    """Refusal tokens: those that were given, those that the direction was extracted with, or found from the prompts.

    Raises:
        DataInvalid: the model begins its answers to both kinds alike. UsageError: a token that is none.
    """
    coded = rows.ids[config.modes[0]]
    sides = [[ids for ids, own in zip(coded, rows.harmful, strict=True) if own == kind] for kind in (True, False)]
    states = [reader.read([predict_answer(ids) for ids in side]) for side in sides]
    if not all(bool(torch.isfinite(each).all()) for each in states):
        raise NotFinite(f"the states of {reader.model.source.model} are not finite before any edit; check its weights")
    masses = [mean_first_token(each, reader.head) for each in states]
    known = _known_tokens(config, reader, direction)
    if known is not None:
        return [FoundToken(id, float(masses[0][id]), float(masses[1][id])) for id in known]
    found = find_refusal_tokens(*masses)
    if not found:
        raise DataInvalid(
            "the model begins its answers to harmful and to harmless prompts alike, so no refusal token can be found: "
            "it may not refuse at all. Give the tokens that it refuses with as --refusal-tokens, or other prompts"
        )
    return found


def _known_tokens(config: EvaluateConfig, reader: LogitReader, direction: Direction | None) -> list[int] | None:
    if config.tokens is not None:
        return resolve_tokens(reader.model, config.tokens)
    told = direction.facts.get("refusal_tokens") if direction is not None else None
    return resolve_tokens(reader.model, told) if told else None
