"""The prompts of a trace: their states at the end, the model's decisions, the heads, and the texts that are traced."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probing.data.places import expand_places
from probing.directions.judge_text import find_thought_tags, opens_thought
from probing.directions.refusal_score import FoundToken
from probing.directions.surrogate import Decisions, HeadPlan
from probing.instruments.directions import score_states
from probing.instruments.trace_reading import (
    SURFACE,
    Lens,
    append_answer,
    check_prompts_left,
    find_refusal_words,
    list_lens_places,
    plan_or_refuse,
    surface_states,
)
from probing.instruments.trace_tables import TracedText
from probing.runs.capture.within import capture_states
from probing.runs.common.groups import join_groups, text_units
from probing.runs.common.inputs import STATES
from probing.runs.refusal.common.thinking import with_thinking
from probing.runs.refusal.trace.config import TraceConfig
from probing.runs.refusal.trace.data import DECIDED, Answers, GivenAnswer, TraceData
from probing.runs.refusal.trace.models import TracedModel
from probing.store.activations import ActivationStore, row_problems
from probing.store.manifest import RunFolder
from probing.tokens.prompts import tokenize_prompts
from probing.types import Capture, LabelledPrompt, Problem


@dataclass(frozen=True, eq=False)
class Material:
    """Prompts that could be read, with what is known of them.

    Attributes:
        store: states at the last token before the answer.
        prompts: the prompts, in the order of the store.
        harmful: whether each is harmful.
        units: prompts of one unit have the same text.
        scores: refusal log-odds of each.
        answers: the model's answer to each; None where none is known.
        refused: whether the model refuses each; False where that is not known.
        decided: whether it is known.
        plan: the heads; None where none are fitted.
        lens: reads log-odds behind blocks; None where they cannot be read.
        why_no_lens: why they cannot.
        tokens: the refusal tokens.
        problems: the other prompts, and why they could not be read.
        places: places at which heads are fitted.
        every: these and the outputs of all blocks.
    """

    store: ActivationStore
    prompts: list[LabelledPrompt]
    harmful: NDArray[np.bool_]
    units: NDArray[np.int64]
    scores: NDArray[np.float64]
    answers: list[GivenAnswer | None]
    refused: NDArray[np.bool_]
    decided: NDArray[np.bool_]
    plan: HeadPlan | None
    lens: Lens | None
    why_no_lens: str
    tokens: list[FoundToken]
    problems: tuple[Problem, ...]
    places: tuple[str, ...]
    every: tuple[str, ...]

    def states(self, place: str) -> Float[Tensor, "row width"]:
        """States at a place, or the features that stand for one."""
        return surface_states(self.prompts) if place == SURFACE else self.store.read(place)


def gather_material(folder: RunFolder, config: TraceConfig, data: TraceData, traced: TracedModel) -> Material:
    """Capture the states of all prompts, find the refusal tokens, and plan the heads.

    Raises:
        DataInvalid: too few prompts can be read, no refusal token, or too few decisions of one kind.
        NotFinite: states are NaN. LayerNotFound: a place that the model does not have.
    """
    model, stack, kinds = traced.model, traced.stack, data.kinds
    blocks, last = list_lens_places(stack)
    asked = [stack.resolve(place) for place in expand_places(config.places, model.layers)]
    every = list(dict.fromkeys(map(str, [*asked, *blocks])))
    thinking = "default" if data.answers is None else data.answers.thinking
    prompts = [with_thinking(replace(prompt, response=None), model, thinking) for prompt in kinds.prompts]
    how: dict[str, Any] = {"pooling": "last", "over": "prompt", "chat": True}
    places = list(dict.fromkeys([*every, str(last)]))
    store = capture_states(
        folder.path / STATES, config, str(config.model), kinds.table, prompts, model, places=places, **how
    )
    at = {prompt.id: number for number, prompt in enumerate(prompts)}
    kept = [at[id] for id in store.ids]
    harmful = np.array([kinds.harmful[number] for number in kept], dtype=bool)
    problems = row_problems(store.rows)
    check_prompts_left(harmful, problems)
    ended = store.read(last)
    tokens = find_refusal_words(model, ended, traced.head, harmful, _known_tokens(config, traced, data.answers))
    lens = Lens(stack, traced.head, [token.id for token in tokens])
    scores = score_states(ended, traced.head, lens.tokens).numpy()
    read = [prompts[number] for number in kept]
    answers = [None if data.answers is None else data.answers.find(prompt) for prompt in read]
    refused, decided = _decide(scores, answers, by_verdict=data.answers is not None)
    why_not = lens.find_why_not(store.read(blocks[-1]), ended)
    material = Material(
        store=store,
        prompts=read,
        harmful=harmful,
        units=np.array(text_units(read), dtype=np.int64),
        scores=scores,
        answers=answers,
        refused=refused,
        decided=decided,
        plan=None,
        lens=None if why_not else lens,
        why_no_lens=why_not,
        tokens=tokens,
        problems=problems,
        places=tuple(map(str, asked)),
        every=tuple(every),
    )
    return replace(material, plan=_plan(config, data, material, kept)) if config.classifier else material


def _known_tokens(config: TraceConfig, traced: TracedModel, answers: Answers | None) -> list[int | str] | None:
    """Refusal tokens that were given, or those of the direction, or of the answers; None to find some."""
    if config.tokens is not None:
        return config.tokens
    told = None if traced.direction is None else traced.direction.facts.get("refusal_tokens")
    return list(told or (answers.tokens if answers is not None else ())) or None


def _decide(
    scores: NDArray[np.float64], answers: Sequence[GivenAnswer | None], by_verdict: bool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether the model refuses each prompt, and whether that is known."""
    if not by_verdict:
        return scores > 0, np.ones(len(scores), dtype=bool)
    said = [None if answer is None else DECIDED.get(answer.verdict) for answer in answers]
    return np.array([one is True for one in said]), np.array([one is not None for one in said])


def _plan(config: TraceConfig, data: TraceData, material: Material, kept: Sequence[int]) -> HeadPlan:
    """The heads, on the prompts whose decision is known."""
    rows = np.flatnonzero(material.decided).tolist()
    groups = None if data.groups is None else [data.groups[kept[row]] for row in rows]
    decisions = Decisions(
        material.refused[rows],
        material.harmful[rows],
        np.array(join_groups(material.units[rows].tolist(), groups), dtype=np.int64),
        [data.sources[kept[row]] for row in rows],
    )
    return plan_or_refuse(decisions, config.folds, config.refits, config.seed, config.inverse_penalty)


def list_texts(config: TraceConfig, material: Material, traced: TracedModel) -> list[TracedText]:
    """Every prompt with the model's own thought and answer behind it, where these are known."""
    if traced.reader is None:
        return []
    tokenizer = traced.model.tokenizer
    request = Capture((traced.reader.stream.sites[0].place,), "last", "prompt", chat=True)
    rows = tokenize_prompts(tokenizer, material.prompts, request)
    tags = find_thought_tags(str(tokenizer.chat_template))
    texts = []
    limit = config.max_length or traced.model.max_positions
    for row, harmful, answer in zip(rows, material.harmful, material.answers, strict=True):
        ids, start = row.ids, len(row.ids)
        if answer is not None:
            ids, start = append_given(tokenizer, row.ids, answer, tags)
        known = None if answer is not None and answer.verdict == "unfinished thought" else start
        if limit is not None and len(ids) > limit:
            # The prompt could be read; of what follows, what fits is traced.
            ids, known = ids[:limit], None if known is None or known > limit else known
        texts.append(TracedText(row.id, bool(harmful), ids, len(row.ids), known))
    return texts


def append_given(tokenizer: Any, prompt: list[int], answer: GivenAnswer, tags: Sequence[str]) -> tuple[list[int], int]:
    """Token ids of a prompt with the model's own thought and answer, and the number of the answer's first token.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: token ids up to the thought or the answer.
        answer: what the model wrote.
        tags: closing tags of thoughts in the chat template.
    """
    if answer.verdict == "unfinished thought":
        return append_answer(tokenizer, prompt, answer.thought or "")
    opened = opens_thought(tokenizer.decode(prompt), tags)
    tag = tags[0] if tags else "</think>"
    thought = answer.thought
    if thought is not None and not opened and not thought.startswith(tag.replace("/", "", 1)):
        # The evaluation takes special tokens out of a thought, and with them the tag that opens it.
        thought = f"{tag.replace('/', '', 1)}\n{thought}"
    return append_answer(tokenizer, prompt, answer.text, thought, tag)


def count_statuses(material: Material) -> dict[str, int]:
    """Number of rows of every status."""
    statuses = Counter(problem.status for problem in material.problems)
    return {"ok": len(material.prompts), **dict(sorted(statuses.items()))}
