"""Where in depth and where in the text a model decides to refuse: ``trace_refusal`` for Python."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.data.contents import content_of_row
from probing.data.places import expand_places
from probing.directions.refusal_score import FoundToken
from probing.directions.surrogate import ACROSS, DECISION, Decisions, HeadPlan, judge_sources, measure_f1
from probing.engine.guard import LeaveAsFound
from probing.engine.stream import ONE_AT_A_TIME
from probing.instruments.capture import as_prompts
from probing.instruments.directions import KINDS, first_token_head, name_rows, score_states
from probing.instruments.trace_reading import (
    SURFACE,
    Lens,
    ProjectionReader,
    PromptEnds,
    append_answer,
    check_prompts_left,
    find_refusal_words,
    list_lens_places,
    plan_or_refuse,
    read_ends,
    surface_states,
    trace_place,
)
from probing.instruments.trace_tables import TracedText, list_bands, list_cliffs, list_curves, list_places
from probing.models.in_memory import as_language_model
from probing.models.layers import find_stack
from probing.report.progress import Progress
from probing.shown import Shown, count_of
from probing.statistics.groups import number_values
from probing.types import Direction, Place


@dataclass(frozen=True, eq=False, repr=False)
class RefusalTrace(Shown):
    """Where a model decides to refuse.

    Attributes:
        places: one row a place, and one for lengths and punctuation (``surface``): agreement of the heads with the
            model's own decision, with controls (``docs/refusal.md`` describes the columns), and the refusal log-odds
            behind the block.
        sources: agreement on each source by heads that saw none of it, at the place of the best agreement.
        curves: one row a token: projection on the direction; empty without a direction.
        cliffs: one row a prompt: plateau, peak, last value and their difference; empty without a direction.
        bands: quantiles of the curves around the end of the prompt and the beginning of the answer.
        tokens: the refusal tokens.
        refused: number of prompts that the model refuses, by kind.
        prompts: number of prompts, by kind.
        why_not: what could not be measured, and why.
    """

    places: pd.DataFrame
    sources: pd.DataFrame
    curves: pd.DataFrame
    cliffs: pd.DataFrame
    bands: pd.DataFrame
    tokens: list[FoundToken]
    refused: dict[str, int]
    prompts: dict[str, int]
    why_not: dict[str, str] = field(default_factory=dict)

    def shown_facts(self) -> dict[str, object]:
        """Its main facts by name."""
        told = [f"{self.refused[kind]} of {self.prompts[kind]} {kind}" for kind in KINDS]
        facts: dict[str, object] = {"refused": ", ".join(told), "places": len(self.places)}
        if f"{DECISION}_f1" in self.places:
            facts["best agreement (F1)"] = f"{self.places[f'{DECISION}_f1'].max():.3f}"
        return facts | {"curves": count_of(len(self.cliffs), "text"), "not measured": ", ".join(self.why_not) or "-"}


def trace_refusal(
    model: Any,
    harmful: Any,
    harmless: Any,
    direction: Direction | None = None,
    *,
    places: str | Sequence[str] = "resid_post:all",
    refusal_tokens: Sequence[int | str] | None = None,
    classifier: bool = True,
    folds: int = 5,
    refits: int = 20,
    resamples: int = 1000,
    random_directions: int = 100,
    seed: int = 0,
) -> RefusalTrace:
    """Where in depth and where in the text a model decides to refuse.

    Args:
        model: language model from ``load``, or a model in memory with its tokenizer.
        harmful: prompts that the model should refuse: strings, or whatever ``capture`` takes. A response of a row is
            traced behind its prompt; its category says which source it is of.
        harmless: prompts that it should answer.
        direction: its projections are traced token by token; None for none.
        places: places at which heads are fitted.
        refusal_tokens: ids or texts of the tokens that the model refuses with; by default those that the direction was
            extracted with, or found from the prompts.
        classifier: whether heads are fitted.
        folds: number of folds.
        refits: number of permutations of the labels that heads are fitted to.
        resamples: number of bootstrap replicates.
        random_directions: number of random directions beside the direction.
        seed: seed of everything that is drawn.

    Raises:
        DataInvalid: too few prompts can be read, no refusal token, or the model refuses too few or too many prompts for
            heads (``classifier=False`` leaves them out).
        SourceMismatch: the direction is of another model. UsageError: options out of range.
        LayerNotFound: a place that the model does not have. NotFinite: states that are NaN.
    """
    language_model = as_language_model(model)
    rows = [name_rows(as_prompts(given), kind) for given, kind in zip((harmful, harmless), KINDS, strict=True)]
    answers = {row.id: row.response for side in rows for row in side if isinstance(row.response, str)}
    rows = [[replace(row, response=None) for row in side] for side in rows]
    whole = language_model.model
    with ONE_AT_A_TIME, LeaveAsFound(whole), LeaveAsFound(whole):
        stack, head = find_stack(language_model), first_token_head(language_model)
        reader = None
        if direction is not None:
            reader = ProjectionReader.open(language_model, direction, random_directions, seed)
            refusal_tokens = refusal_tokens or direction.facts.get("refusal_tokens")
        asked = [stack.resolve(place) for place in expand_places(places, language_model.layers)]
        blocks, last = list_lens_places(stack)
        ends = read_ends(language_model, rows[0], rows[1], list(dict.fromkeys([*asked, *blocks, last])))
        check_prompts_left(ends.harmful, ends.problems)
        tokens = find_refusal_words(language_model, ends.at(last), head, ends.harmful, refusal_tokens)
        lens = Lens(stack, head, [token.id for token in tokens])
        scores = score_states(ends.at(last), head, lens.tokens).numpy()
        reason = lens.find_why_not(ends.at(blocks[-1]), ends.at(last))
        plan = plan_or_refuse(_decide(ends, scores), folds, refits, seed) if classifier else None
        arrays = _read_places(ends, asked, plan, None if reason else lens)
        texts = _make_texts(language_model.tokenizer, ends, answers)
        curves = [] if reader is None else reader.read(texts)
    draws = {"resamples": resamples, "seed": seed}
    return RefusalTrace(
        places=list_places(arrays, plan, language_model.layers, ends.harmful, _find_units(ends), **draws),
        sources=_list_sources(arrays, plan),
        curves=list_curves(texts, curves, language_model.tokenizer),
        cliffs=list_cliffs(texts, curves),
        bands=list_bands(texts, curves),
        tokens=tokens,
        refused=_count(ends.harmful, scores > 0),
        prompts=_count(ends.harmful, np.isfinite(scores)),
        why_not=({"logit lens": reason} if reason else {}) | ({} if plan is None else dict(plan.why_not)),
    )


def _find_units(ends: PromptEnds) -> NDArray[np.int64]:
    return np.array(number_values(content_of_row(prompt) for prompt in ends.prompts), dtype=np.int64)


def _decide(ends: PromptEnds, scores: NDArray[np.float64]) -> Decisions:
    sources = [
        prompt.category or f"{KINDS[not own]} prompts without one"
        for prompt, own in zip(ends.prompts, ends.harmful, strict=True)
    ]
    return Decisions(scores > 0, ends.harmful, _find_units(ends), sources)


def _read_places(
    ends: PromptEnds, asked: Sequence[Place], plan: HeadPlan | None, lens: Lens | None
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """What is read at every place, and of lengths and punctuation, by name."""
    every = np.ones(len(ends.prompts), dtype=bool)
    arrays = {}
    with Progress(len(ends.places) + 1, unit="places", doing="fitting heads") as bar:
        for place in ends.places:
            own = plan if place in asked else None
            arrays[str(place)] = trace_place(str(place), ends.at(place), own, every, lens)
            bar.advance(1, 0)
        arrays[SURFACE] = trace_place(SURFACE, surface_states(ends.prompts), plan, every, None)
        bar.advance(1, 0)
    return {place: own for place, own in arrays.items() if own}


def _list_sources(arrays: Mapping[str, Mapping[str, NDArray[np.float64]]], plan: HeadPlan | None) -> pd.DataFrame:
    """Agreement on every source at the place where heads agree best."""
    if plan is None or ACROSS in plan.why_not:
        return pd.DataFrame()
    scores = {
        place: float(measure_f1(own[f"{DECISION}.logits"][0], plan.decisions.refused)[0])
        for place, own in arrays.items()
        if place != SURFACE and f"{DECISION}.logits" in own
    }
    best = max(scores, key=lambda place: scores[place])
    return pd.DataFrame(judge_sources(arrays[best][f"{ACROSS}.logits"], plan))


def _count(harmful: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> dict[str, int]:
    return {kind: int((chosen & (harmful == own)).sum()) for own, kind in zip((True, False), KINDS, strict=True)}


def _make_texts(tokenizer: Any, ends: PromptEnds, answers: Mapping[str, str]) -> list[TracedText]:
    texts = []
    for prompt, harmful, ids in zip(ends.prompts, ends.harmful, ends.ids, strict=True):
        whole, start = append_answer(tokenizer, ids, answers.get(prompt.id, ""))
        texts.append(TracedText(prompt.id, bool(harmful), whole, len(ids), start))
    return texts
