"""Categories of harmful prompts: a direction extracted in each, judged on each; and texts judged by phrases."""

import contextlib
import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probing.directions.extract import difference_in_means
from probing.directions.judge_text import REFUSED, Phrases, judge_answer, opens_thought
from probing.directions.transfer import StateMap
from probing.engine.ablation import ablate
from probing.engine.edit_requests import Mode
from probing.errors import DataInvalid
from probing.instruments.answers import Generated, Generator
from probing.models.language_model import LanguageModel
from probing.probes.evaluate import measure_auroc, rank_within_folds
from probing.report.tables import to_line
from probing.runs.refusal.common.answers import (
    ANSWERED,
    Question,
    complete_answers,
    limit_prompts,
    list_thought_tags,
    read_answer,
)
from probing.runs.refusal.common.options import HARMFUL, HARMLESS
from probing.runs.refusal.common.separation import measure_separation
from probing.runs.refusal.transfer.config import TransferConfig
from probing.runs.refusal.transfer.parts import Judged, name_vector, pick_prompts
from probing.runs.refusal.transfer.rows import LEAST, Shared
from probing.statistics.bootstrap import estimate_share
from probing.statistics.intervals import null_interval
from probing.tokens.prompts import tokenize_prompts
from probing.types import Direction, LabelledPrompt

EDITS = ("before", "own", "transferred", "random")
"""Directions under which prompts are answered: none, the model's own, the transferred one, one through its map."""
OWN_STATES = "the model itself"
CATEGORY_STREAM, JUDGED_STREAM = 24, 25


@dataclass(frozen=True, eq=False)
class CategoryMatrix:
    """Separation by category.

    Attributes:
        rows: one a category that the direction is from, one that it is judged on, and a way that it came.
        left_out: number of fitted and held-out prompts of every category that has too few.
    """

    rows: list[dict[str, Any]]
    left_out: dict[str, tuple[int, int]]


def compare_categories(config: TransferConfig, shared: Shared, best: StateMap) -> CategoryMatrix:
    """AUROC of the held-out prompts of each category by the direction of each, against held-out harmless prompts.

    The direction of a category is the difference in means of its fitted prompts and the fitted harmless ones: in the
    model itself, and in the other model and then through the map. There are two nulls: ``p`` permutes the labels of the
    prompts that are judged, ``labels_*`` those of the prompts that the direction is made of. The latter is the wider
    one where a few dimensions hold most of the variance, since every direction ends near them.

    Args:
        config: the job's options.
        shared: prompts of both models.
        best: the map.
    """
    counts = {
        name: (len(shared.category_rows(name, False)), len(shared.category_rows(name, True)))
        for name in shared.categories
    }
    names = [name for name, both in counts.items() if min(both) >= LEAST]
    left_out = {name: both for name, both in counts.items() if name not in names}
    if len(names) < 2:
        return CategoryMatrix([], counts)
    rows = []
    for way, states, carry in (
        (OWN_STATES, shared.after, lambda vectors: vectors),
        (best.name, shared.before, best.carry),
    ):
        for name in names:
            vectors = carry(_find_vectors(config, shared, states, name))
            rows += [
                {"extracted_in": name, "evaluated_in": other, "through": way, "extracted_n": counts[name][0]}
                | _judge(config, shared, vectors, other)
                for other in names
            ]
    return CategoryMatrix(rows, left_out)


def _find_vectors(
    config: TransferConfig, shared: Shared, states: Float[Tensor, "row width"], category: str
) -> Float[Tensor, "direction width"]:
    """The direction of a category, and below it those of the same prompts under permuted labels."""
    own, harmless = shared.category_rows(category, False), shared.pick(False, held_out=False)
    flags = np.arange(len(own) + len(harmless)) < len(own)
    generator = np.random.default_rng([config.seed, CATEGORY_STREAM])
    drawn = np.stack([generator.permutation(flags) for _ in range(config.permutations)])
    weights = torch.from_numpy(drawn / len(own) - ~drawn / len(harmless))
    direction = difference_in_means(states[own], states[harmless])
    return torch.cat([direction[None].double(), weights @ states[own + harmless].double()])


def _judge(
    config: TransferConfig, shared: Shared, vectors: Float[Tensor, "direction width"], category: str
) -> dict[str, Any]:
    own, harmless = shared.category_rows(category, True), shared.pick(False, held_out=True)
    flags = np.arange(len(own) + len(harmless)) < len(own)
    projected = (shared.after[own + harmless].double() @ vectors.T).numpy()
    auroc, low, high = measure_separation(projected[:, 0], flags, np.arange(len(flags)), config.resamples, config.seed)
    null = np.array([measure_auroc(column, flags) for column in projected.T[1:]])
    return {
        "evaluated_n": len(own),
        "harmless_n": len(harmless),
        "auroc": auroc,
        "auroc_low": low,
        "auroc_high": high,
        "p": _permute_judged(config, projected[:, 0], flags, auroc),
        **dict(zip(("labels_low", "labels_median", "labels_high"), null_interval(null), strict=True)),
    }


def _permute_judged(
    config: TransferConfig, projected: NDArray[np.float64], flags: NDArray[np.bool_], auroc: float
) -> float:
    """Share of permutations of the labels of the judged prompts whose AUROC is as far from one half."""
    generator = np.random.default_rng([config.seed, JUDGED_STREAM])
    drawn = np.stack([generator.permutation(flags) for _ in range(config.permutations)])
    folds = np.zeros(len(flags), dtype=np.int64)
    null = rank_within_folds(projected, drawn, np.ones(drawn.shape), folds)["auroc"]
    far = int((np.abs(null - 0.5) >= abs(auroc - 0.5) - 1e-12).sum())
    return (1 + far) / (1 + len(null))


def judge_categories(shared: Shared, carried: Tensor) -> list[dict[str, Any]]:
    """For each category: the transferred direction, and the model's own one that was made without this category."""
    named = [prompt.category for prompt in shared.prompts]
    names = sorted({str(each) for each, harmful in zip(named, shared.harmful, strict=True) if harmful and each})
    if len(names) < 2:
        return []
    flags, categories = shared.harmful, np.array([str(each) for each in named])
    harmless = np.flatnonzero(~flags & shared.held_out)
    fitted = shared.after[shared.pick(False, held_out=False)]
    rows = []
    for name in names:
        inside = np.flatnonzero(flags & (categories == name) & shared.held_out)
        others = np.flatnonzero(flags & (categories != name) & ~shared.held_out)
        if not len(inside) or not len(others):
            continue
        without = difference_in_means(shared.after[torch.from_numpy(others)], fitted)
        both = shared.after[torch.from_numpy(np.concatenate([inside, harmless]))].double()
        projected = (both @ torch.stack([carried, without]).T).numpy()
        values = [measure_auroc(column, np.arange(len(both)) < len(inside)) for column in projected.T]
        rows.append(
            {
                "category": name,
                "held out": len(inside),
                "AUROC of the transferred direction": values[0],
                "AUROC of the own direction of the other categories": values[1],
            }
        )
    return rows


@dataclass(frozen=True, eq=False)
class Texts:
    """Answers in one model, in the order of its held-out prompts.

    Attributes:
        rows: one a prompt, with the answers under every edit side by side.
        left_out: prompts that are too long to be answered.
        how: how they were generated.
    """

    rows: pd.DataFrame
    left_out: int
    how: str


def write_texts(
    config: TransferConfig, shared: Shared, judged: Judged, model: LanguageModel, phrases: Phrases, folder: Path
) -> Texts:
    """Answer the held-out prompts as the model is, and under the edit by each direction.

    Harmful prompts are answered with a direction removed, harmless ones with it added.

    Args:
        config: the job's options.
        shared: the prompts.
        judged: the directions.
        model: the model.
        phrases: by which answers are judged.
        folder: where answers are kept until the run ends.

    Raises:
        DataInvalid: no prompt leaves room for an answer. UsageError: a model that does not generate.
    """
    generator = Generator(model, config.new_tokens, config.batch_tokens)
    directions = dict(zip(EDITS, (None, judged.own, judged.direction, judged.random[0]), strict=True))
    frames, left_out = [], 0
    sides: tuple[tuple[bool, Mode], ...] = ((True, "project"), (False, "add"))
    for harmful, mode in sides:
        prompts, coded = _tokenize(config, model, pick_prompts(shared, harmful))
        left_out += len(shared.pick(harmful, held_out=True)) - len(prompts)
        questions = [
            Question(
                f"{mode} {'nothing' if each is None else name_vector(each.vector)}",
                coded,
                functools.partial(_edit, model, each, mode),
            )
            for each in directions.values()
        ]
        written = complete_answers(folder / f"answers-{mode}", generator, questions)
        columns = {
            "id": [prompt.id for prompt in prompts],
            "kind": HARMFUL if harmful else HARMLESS,
            "category": [prompt.category for prompt in prompts],
            "prompt": [prompt.text if isinstance(prompt.text, str) else to_line(prompt.text) for prompt in prompts],
            "edit": "removed" if harmful else "added",
        }
        for name, own in zip(directions, written, strict=True):
            columns |= _judge_answers(model, coded, own, name, phrases)
        frames.append(pd.DataFrame(columns))
    rows = pd.concat(frames, ignore_index=True).astype({"category": "string"})
    return Texts(rows, left_out, generator.how)


def _tokenize(
    config: TransferConfig, model: LanguageModel, prompts: Sequence[LabelledPrompt]
) -> tuple[list[LabelledPrompt], list[list[int]]]:
    """The prompts for whose answers there is room, and their tokens."""
    rows = tokenize_prompts(model.tokenizer, prompts, ANSWERED, max_length=limit_prompts(config, model))
    kept = [(prompt, row.ids) for prompt, row in zip(prompts, rows, strict=True) if row.problem is None]
    if not kept:
        raise DataInvalid(f"no held-out prompt can be answered; the first: {prompts[0].id}, {rows[0].problem}")
    return [prompt for prompt, _ in kept], [ids for _, ids in kept]


def _edit(model: LanguageModel, direction: Direction | None, mode: Mode) -> AbstractContextManager[Any]:
    return contextlib.nullcontext() if direction is None else ablate(model, direction, mode)


def _judge_answers(
    model: LanguageModel, prompts: Sequence[Sequence[int]], written: Sequence[Generated], name: str, phrases: Phrases
) -> dict[str, list[Any]]:
    """Text, verdict and end of the answers under one edit."""
    tags = list_thought_tags(model.tokenizer, phrases.thought_ends)
    opened = [opens_thought(model.tokenizer.decode(ids), tags) for ids in prompts]
    answers = [read_answer(model.tokenizer, each.ids, tags, own) for each, own in zip(written, opened, strict=True)]
    return {
        f"answer_{name}": [answer.text for answer in answers],
        f"verdict_{name}": [judge_answer(answer, phrases) for answer in answers],
        f"ended_{name}": [each.ended for each in written],
    }


def count_refusals(config: TransferConfig, texts: Texts) -> list[dict[str, Any]]:
    """Share of answers that refuse, by kind and edit, with intervals over prompts."""
    rows = []
    for kind, own in texts.rows.groupby("kind", sort=False):
        for name in EDITS:
            refused = own[f"verdict_{name}"].isin(REFUSED).to_numpy(dtype=np.float64)
            share = estimate_share(refused, config.resamples, config.seed, np.arange(len(refused)))
            ends = {"value": share.value, "low": share.low, "high": share.high, "n": share.n}
            rows.append({"kind": kind, "edit": name, **ends})
    return rows
