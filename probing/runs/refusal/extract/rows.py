"""The prompts that directions are made from: their states, their refusal scores, and which are held out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probing.data.places import expand_places
from probing.directions.refusal_score import FoundToken
from probing.instruments.directions import (
    LAST_STATE,
    choose_tokens,
    describe_scores,
    first_token_head,
    mean_first_token,
    resolve_tokens,
    score_states,
    split_positions,
)
from probing.kernels.output_head import Unembedding
from probing.models.language_model import LanguageModel
from probing.models.layers import find_backbone
from probing.runs.capture.within import capture_states
from probing.runs.common.groups import text_units
from probing.runs.common.inputs import STATES
from probing.runs.refusal.common.prompts import Kinds, check_counts
from probing.runs.refusal.extract.config import ExtractConfig
from probing.store.activations import ActivationStore, row_problems
from probing.store.manifest import RunFolder
from probing.types import LabelledPrompt, Place, Problem

LEAST_LEFT = 2
"""Prompts of each kind that have to be left on either side."""


@dataclass(frozen=True, eq=False)
class Material:
    """Prompts that could be read, with what is known of them.

    Attributes:
        store: states at the end of every prompt.
        prompts: the prompts, in the order of the store.
        harmful: whether each is harmful.
        held_out: whether each is held out.
        units: prompts of one unit have the same text.
        scores: refusal log-odds of each.
        passes: whether each is used: harmful ones that are refused and harmless ones that are not, unless all are.
        tokens: the refusal tokens.
        problems: the other prompts, and why they could not be read.
        places: places of the directions.
    """

    store: ActivationStore
    prompts: list[LabelledPrompt]
    harmful: NDArray[np.bool_]
    held_out: NDArray[np.bool_]
    units: NDArray[np.int64]
    scores: NDArray[np.float64]
    passes: NDArray[np.bool_]
    tokens: list[FoundToken]
    problems: tuple[Problem, ...]
    places: tuple[str, ...]

    def states(self, place: str) -> Float[Tensor, "row position width"]:
        """States of every prompt at its last tokens."""
        return split_positions(self.store.read(place).float(), self.store.offsets.diff())

    def pick(self, harmful: bool, held_out: bool) -> NDArray[np.int64]:
        """Numbers of the prompts of one kind that are used, on one side of the split."""
        return np.flatnonzero((self.harmful == harmful) & (self.held_out == held_out) & self.passes)


def gather_material(
    folder: RunFolder, config: ExtractConfig, kinds: Kinds, held_out: Sequence[bool], model: LanguageModel
) -> Material:
    """Capture the states of all prompts, find the tokens of refusal, and score every prompt by them.

    Raises:
        DataInvalid: too few prompts can be read or pass the filter; no refusal token; ends of different length.
        LayerNotFound: a place that the model does not have, or no output head.
    """
    stack = find_backbone(model)
    last = stack.resolve(LAST_STATE if stack.normed else Place("resid_post", -1))
    places = [stack.resolve(place) for place in expand_places(config.places, model.layers)]
    how = {"pooling": "tokens", "over": "instruction_end", "chat": True}
    every = list(dict.fromkeys([*map(str, places), str(last)]))
    store = capture_states(
        folder.path / STATES, config, str(config.model), kinds.table, kinds.prompts, model, places=every, **how
    )
    at = {prompt.id: number for number, prompt in enumerate(kinds.prompts)}
    read = [at[id] for id in store.ids]
    harmful, out = (np.array([values[number] for number in read], dtype=bool) for values in (kinds.harmful, held_out))
    problems = row_problems(store.rows)
    _check_left(harmful, out, problems, "can be read")
    prompts = [kinds.prompts[number] for number in read]
    ends = store.read(last)[store.offsets[1:] - 1]
    head = first_token_head(model)
    tokens = _find_tokens(config, model, ends, head, harmful & ~out, ~harmful & ~out)
    scores = score_states(ends, head, [token.id for token in tokens]).numpy()
    passes = np.where(harmful, scores > 0, scores < 0) if config.filter_by_sign else np.isfinite(scores)
    _check_left(harmful[passes], out[passes], (), "pass the filter by the sign", describe_scores(scores, harmful))
    return Material(
        store=store,
        prompts=prompts,
        harmful=harmful,
        held_out=out,
        units=np.array(text_units(prompts)),
        scores=scores,
        passes=passes,
        tokens=tokens,
        problems=problems,
        places=tuple(map(str, places)),
    )


def _find_tokens(
    config: ExtractConfig,
    model: LanguageModel,
    ends: Float[Tensor, "row width"],
    head: Unembedding,
    harmful: NDArray[np.bool_],
    harmless: NDArray[np.bool_],
) -> list[FoundToken]:
    """Refusal tokens, given or found from the prompts that are not held out, with their mean probabilities."""
    masses = [mean_first_token(ends[torch.from_numpy(rows)], head) for rows in (harmful, harmless)]
    return choose_tokens(masses, None if config.tokens is None else resolve_tokens(model, config.tokens))


def _check_left(
    harmful: NDArray[np.bool_], out: NDArray[np.bool_], problems: Sequence[Problem], what: str, scores: str = ""
) -> None:
    hint = f"; the first that cannot: {problems[0].id}, {problems[0].detail}" if problems else ""
    hint += f". {scores} Other --refusal-tokens may fit, or --no-filter-by-sign" if scores else ""
    check_counts(harmful, out, LEAST_LEFT, "to find directions with", what, hint)
