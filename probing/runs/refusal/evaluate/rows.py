"""The prompts as token ids, in each way of thinking, and the conditions under which they are run."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from probing.directions.judge_text import opens_thought
from probing.directions.refusal_score import FoundToken
from probing.errors import DataInvalid, NotFinite, UsageError
from probing.instruments.answers import LogitReader, predict_answer
from probing.instruments.directions import choose_tokens, extract_directions, mean_first_token, resolve_tokens
from probing.models.load import LanguageModel
from probing.report.tables import to_line
from probing.runs.common.groups import text_units
from probing.runs.refusal.common.answers import ANSWERED, limit_prompts, list_thought_tags
from probing.runs.refusal.common.prompts import Kinds, hold_out
from probing.runs.refusal.common.thinking import with_thinking
from probing.runs.refusal.evaluate.config import EvaluateConfig
from probing.runs.refusal.evaluate.models import Models, draw_random_directions
from probing.runs.refusal.evaluate.states import (
    Extracted,
    LeftOut,
    draw_by_covariance,
    leave_categories_out,
    permute_labels_of,
)
from probing.tokens.prompts import TokenizedPrompt, tokenize_prompts
from probing.types import Direction, LabelledPrompt, Problem

BEFORE, AFTER = "before", "after"
RANDOM, COVARIANCE, LABELS = "random", "covariance", "labels"
BANDS = {RANDOM: "random ", COVARIANCE: "covariance of states ", LABELS: "permuted labels "}
"""Controls, with what the names of their conditions begin with."""
WITHOUT, IN = "without ", "extracted, thinking "
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
    limit = limit_prompts(config, model)
    known = list_thought_tags(model.tokenizer, tags)
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
    return tokenize_prompts(model.tokenizer, prompts, ANSWERED, max_length=limit, where=kinds.table.where)


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
    return choose_tokens(masses, _known_tokens(config, reader, direction))


def _known_tokens(config: EvaluateConfig, reader: LogitReader, direction: Direction | None) -> list[int] | None:
    if config.tokens is not None:
        return resolve_tokens(reader.model, config.tokens)
    told = direction.facts.get("refusal_tokens") if direction is not None else None
    return resolve_tokens(reader.model, told) if told else None


@dataclass(frozen=True, eq=False)
class Condition:
    """What is done to the model while prompts are run.

    Attributes:
        name: "before", "after", or the name of a control.
        thinking: how the model thinks.
        edit: makes the edit and gives the model that is run.
        rows: numbers of the prompts that are run.
    """

    name: str
    thinking: str
    edit: Callable[[], AbstractContextManager[LanguageModel]]
    rows: NDArray[np.int64]

    @property
    def key(self) -> str:
        """What tells it from the other conditions of a run."""
        return f"{self.name}, thinking {self.thinking}"


@contextlib.contextmanager
def keep(model: LanguageModel) -> Iterator[LanguageModel]:
    """No edit: the model as it is."""
    yield model


@dataclass(frozen=True, eq=False)
class Plan:
    """What is run.

    Attributes:
        answered: conditions under which prompts are answered.
        scored: conditions under which they are scored.
        read: conditions under which the text is read.
        left_out: directions that were extracted without a category.
        held_out: prompts on which directions that were extracted in each way of thinking are evaluated.
    """

    answered: list[Condition]
    scored: list[Condition]
    read: list[Condition]
    left_out: list[LeftOut]
    held_out: NDArray[np.int64]


def make_plan(config: EvaluateConfig, models: Models, rows: Rows, extracted: Extracted | None, kinds: Kinds) -> Plan:
    """The conditions: before, after, and the controls that can be had.

    Raises:
        UsageError: see ``_extract_in_each``.
    """
    every = np.arange(len(rows.prompts))
    found = models.direction
    random = [] if found is None else draw_random_directions(found, config.random_directions, config.seed)
    from_states = {} if extracted is None else _draw_from_states(config, extracted)
    left_out = [] if extracted is None else leave_categories_out(extracted, config.seed)
    by_thinking, held_out = _extract_in_each(config, models, rows, kinds)
    answered, scored, read = [], [], []
    for mode in config.modes:
        plain = [
            Condition(BEFORE, mode, functools.partial(keep, models.before), every),
            Condition(AFTER, mode, models.edit_found, every),
        ]

        def of(name: str, direction: Direction, chosen: NDArray[np.int64], mode: str = mode) -> Condition:
            return Condition(name, mode, functools.partial(_edit, models, direction), chosen)

        bands = [of(f"{BANDS[RANDOM]}{number}", each, every) for number, each in enumerate(random)]
        answered += plain + bands[: config.random_texts]
        answered += [of(f"{IN}{name}", each, held_out) for name, each in by_thinking.items()]
        scored += plain + bands
        scored += [of(name, each, every) for name, each in from_states.items()]
        if mode == config.modes[0]:
            read = plain
            for each in left_out:
                own = np.flatnonzero([prompt.category == each.category for prompt in rows.prompts] & rows.harmful)
                scored += [of(f"{WITHOUT}{each.category}", each.direction, own)] if len(own) else []
    return Plan(answered, scored, read, left_out, held_out)


def _draw_from_states(config: EvaluateConfig, extracted: Extracted) -> dict[str, Direction]:
    """The controls that need the states of the extraction, by the name of the condition."""
    drawn = {
        LABELS: permute_labels_of(extracted, config.permuted_directions, config.seed),
        COVARIANCE: draw_by_covariance(extracted, config.random_directions, config.seed),
    }
    return {f"{BANDS[band]}{number}": each for band, own in drawn.items() for number, each in enumerate(own)}


@contextlib.contextmanager
def _edit(models: Models, direction: Direction) -> Iterator[LanguageModel]:
    with models.edit(direction):
        yield models.before


def _extract_in_each(
    config: EvaluateConfig, models: Models, rows: Rows, kinds: Kinds
) -> tuple[dict[str, Direction], NDArray[np.int64]]:
    """Where thinking on and off are compared: a direction extracted in each from half of the prompts, and the others.

    Raises:
        UsageError: the prompt does not have the direction's token in each way of thinking.
    """
    if config.thinking != "both" or models.direction is None:
        return {}, np.empty(0, dtype=np.int64)
    out = dict(zip((prompt.id for prompt in kinds.prompts), hold_out(kinds, 0.5, config.seed), strict=True))
    held_out = np.array([out[prompt.id] for prompt in rows.prompts])
    found = {}
    for mode in config.modes:
        sides = [
            [
                with_thinking(prompt, models.before, mode)
                for prompt, harmful, held in zip(rows.prompts, rows.harmful, held_out, strict=True)
                if harmful == kind and not held
            ]
            for kind in (True, False)
        ]
        every = extract_directions(models.before, *sides, places=str(models.direction.place), filter_by_sign=False)
        try:
            found[mode] = every.at(models.direction.place, models.direction.position)
        except ValueError as error:
            raise UsageError(f"with thinking {mode}, {error}") from error
    return found, np.flatnonzero(held_out)
