"""The selection of one direction among many: the function, and what it answers."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from probing.directions.choose import INDUCE_LEAST, KL_MOST, PRUNED, Limits
from probing.directions.measurements import MEASURED, SCORES, STOPPED, Advance, Measurements, Score
from probing.directions.select import Selected, select_by_cascade, select_exhaustively
from probing.engine.guard import LeaveAsFound
from probing.engine.stream import ONE_AT_A_TIME
from probing.errors import DataInvalid
from probing.instruments.capture import as_prompts
from probing.instruments.directions import KINDS, keep_by_sign, name_rows, read_refusals
from probing.instruments.selection import ModelMeasurements, check_directions
from probing.models.in_memory import as_language_model
from probing.models.layers import find_backbone
from probing.models.load import LanguageModel
from probing.report.progress import Progress
from probing.shown import Shown
from probing.types import Direction, Directions, LabelledPrompt

DOING = {"induce": "adding directions", "bypass": "ablating directions", "kl": "comparing harmless answers"}
LISTED = 3
"""Candidates that a message names."""
CHOSEN, PASSES, NOT_NEEDED, OUT = "chosen", "passes", "not needed", "out"


class NonePasses(DataInvalid):
    """No candidate keeps to the limits.

    Attributes:
        table: every candidate, as in ``Selection``.
    """

    def __init__(self, message: str, table: pd.DataFrame) -> None:
        super().__init__(message)
        self.table = table


@dataclass(frozen=True, eq=False, repr=False)
class Selection(Shown):
    """The direction that was selected, and the candidates.

    Attributes:
        direction: the chosen direction; its scores are among its ``facts``.
        table: one row a candidate: ``place``, ``layer``, ``position``, ``bypass``, ``induce``, ``kl``, ``cosmic`` (NaN
            where they were not measured to the end), ``stopped`` (scores whose measurement ended early, since the limit
            was missed already), ``status`` ("chosen", "passes", "not needed", where a candidate with a lower ``bypass``
            passes, or "out"), and the ``reason`` of the latter two.
        layer_forwards: blocks run on one prompt with one candidate, by score.
        exhaustive_layer_forwards: how many a loop over all candidates would have run.
        cosmic: place and position that COSMIC chooses; None where it was not asked, or chooses none.
        cosmic_layers: layers that COSMIC looks at.
        cosmic_layer_forwards: what its opinion cost beyond.
        base: mean refusal score of the unedited model, by kind of prompt.
        prompts: number of prompts of each kind.
        how: how it was run.
    """

    direction: Direction
    table: pd.DataFrame
    layer_forwards: dict[Score, int]
    exhaustive_layer_forwards: int
    cosmic: tuple[str, int] | None
    cosmic_layers: list[int]
    cosmic_layer_forwards: int
    base: dict[str, float]
    prompts: dict[str, int]
    how: str

    def shown_facts(self) -> dict[str, object]:
        """Its main facts by name."""
        share = self.exhaustive_layer_forwards / max(sum(self.layer_forwards.values()), 1)
        chosen = f"{self.direction.place}, position {self.direction.position}"
        spared = f"{share:.1f} times fewer than those of a loop over all candidates"
        return {"chosen": chosen, "candidates": len(self.table), "layer-forwards": spared, "COSMIC": self.cosmic}


def select_direction(
    model: Any,
    directions: Directions,
    harmful: Any,
    harmless: Any,
    *,
    induce_least: float = INDUCE_LEAST,
    kl_most: float = KL_MOST,
    pruned: float = PRUNED,
    refusal_tokens: Sequence[int | str] | None = None,
    filter_by_sign: bool = True,
    exhaustive: bool = False,
    cosmic: bool = True,
    batch_tokens: int | None = None,
) -> Selection:
    """The direction whose removal takes most refusal away, among those that induce refusal and do little else.

    Args:
        model: language model from ``load``, or a model in memory with its tokenizer.
        directions: from ``extract_directions`` or ``open_directions``, of this model.
        harmful: harmful prompts that the directions were not made from: strings, or whatever ``capture`` takes.
        harmless: harmless ones.
        induce_least: lower limit of ``induce``.
        kl_most: upper limit of ``kl``.
        pruned: share of the last layers that are left out.
        refusal_tokens: ids or texts of the tokens that the model refuses with; by default those that stand in the facts
            of the directions, or those that are found.
        filter_by_sign: leave out harmful prompts that the model does not refuse, and harmless ones that it does.
        exhaustive: measure every score of every candidate in whole passes. The choice is the same.
        cosmic: whether COSMIC (2506.00085) gives a second opinion, which needs no refusal tokens.
        batch_tokens: tokens in a batch; found by itself when None.

    Returns:
        The direction, and the scores of all candidates as far as they had to be measured.

    Raises:
        NonePasses: no candidate keeps to the limits; names the nearest, and why the others failed.
        DataInvalid: too few prompts can be read or pass the filter.
        SourceMismatch: directions of another model. UsageError: directions that cannot be added.
        EditRefused: a direction cannot be ablated in this model.
    """
    language_model = as_language_model(model)
    limits = Limits(induce_least, kl_most, pruned)
    rows = (name_rows(as_prompts(harmful), KINDS[0]), name_rows(as_prompts(harmless), KINDS[1]))
    whole = language_model.model
    with ONE_AT_A_TIME, LeaveAsFound(whole), LeaveAsFound(whole):
        measurements = prepare_measurements(
            language_model,
            directions,
            *rows,
            refusal_tokens=refusal_tokens,
            filter_by_sign=filter_by_sign,
            whole_passes=exhaustive,
            cosmic=cosmic,
            batch_tokens=batch_tokens,
        )
        return select_among(measurements, measurements, limits, exhaustive=exhaustive)


def prepare_measurements(
    model: LanguageModel,
    directions: Directions,
    harmful: Sequence[LabelledPrompt],
    harmless: Sequence[LabelledPrompt],
    *,
    refusal_tokens: Sequence[int | str] | None,
    filter_by_sign: bool,
    **options: Any,
) -> ModelMeasurements:
    """Find the refusal tokens, filter the prompts, and read what the unedited model makes of them.

    Args:
        model: the model.
        directions: its directions.
        harmful: harmful prompts.
        harmless: harmless prompts.
        refusal_tokens: see ``select_direction``.
        filter_by_sign: the same.
        options: of ``ModelMeasurements``.

    Raises:
        ProbingError: see ``select_direction``.
    """
    # Before the tokens that directions of another model name, which this one may not have.
    check_directions(directions, model, find_backbone(model))
    known = directions.facts.get("refusal_tokens")
    reading = read_refusals(model, harmful, harmless, known if refusal_tokens is None else refusal_tokens)
    sides = keep_by_sign(reading, harmful, harmless) if filter_by_sign else (list(harmful), list(harmless))
    return ModelMeasurements(model, directions, *sides, [token.id for token in reading.tokens], **options)


def select_among(
    measured: ModelMeasurements, measurements: Measurements, limits: Limits, *, exhaustive: bool = False
) -> Selection:
    """Choose a direction by measurements.

    Args:
        measured: the model and its directions.
        measurements: where the scores come from: the same, or what keeps them on disk.
        limits: see ``choose_direction``.
        exhaustive: whether every score of every candidate is measured.

    Raises:
        NonePasses: no candidate keeps to the limits.
    """
    select = select_exhaustively if exhaustive else select_by_cascade
    selected = select(measurements, limits, cosmic=measured.cosmic, watch=_show_progress)
    table = list_candidates(measured, selected)
    index = selected.choice.index
    if index is None:
        raise NonePasses(_say_why(measured, selected, limits, table), table)
    row, layer = index
    base, second = measured.base_scores, selected.cosmic
    prompts = {kind: sum(len(block.ids) for block in own) for kind, own in measured.prompts.items()}
    direction = measured.direction(row, layer)
    scores = {score: float(selected.values[score][row, layer]) for score in SCORES}
    facts = {"selection": scores, "base": base, "refusal_tokens": list(measured.tokens), "prompts_to_select": prompts}
    return Selection(
        direction=replace(direction, facts=direction.facts | facts),
        table=table,
        layer_forwards=selected.forwards,
        exhaustive_layer_forwards=selected.exhaustive_forwards,
        cosmic=None if second is None or second.index is None else _name(measured, *second.index),
        cosmic_layers=list(measured.cosmic_layers),
        cosmic_layer_forwards=0 if second is None else second.forwards,
        base=base,
        prompts=prompts,
        how=measured.how,
    )


@contextlib.contextmanager
def _show_progress(score: Score, count: int) -> Iterator[Advance]:
    with Progress(count, unit="candidates", doing=DOING[score]) as bar:
        yield lambda done: bar.advance(done, 0)


def _name(measured: ModelMeasurements, row: int, layer: int) -> tuple[str, int]:
    return f"{measured.kind}:{layer}", measured.directions.positions[row]


def list_candidates(measured: ModelMeasurements, selected: Selected) -> pd.DataFrame:
    """The table of ``Selection``: places in order, and the positions of each."""
    rows = []
    for place in sorted(measured.directions.places):
        layer = place.layer or 0
        for row, position in enumerate(measured.directions.positions):
            values = {score: selected.values[score][row, layer] for score in SCORES}
            second = None if selected.cosmic is None else selected.cosmic.score[row, layer]
            stopped = [score for score in SCORES if selected.states[score][row, layer] == STOPPED]
            status, reason = _judge(measured, selected, row, layer)
            own: dict[str, Any] = {"place": str(place), "layer": layer, "position": position}
            own |= {str(score): value for score, value in values.items()}
            own |= {"cosmic": second, "stopped": ", ".join(stopped), "status": status, "reason": reason}
            rows.append(own)
    return pd.DataFrame(rows).astype({"cosmic": "float64"})


def _judge(measured: ModelMeasurements, selected: Selected, row: int, layer: int) -> tuple[str, str]:
    """Status of a candidate, and the reason if it is out."""
    if not measured.candidates[row, layer]:
        return OUT, "no direction: all prompts look the same there"
    reason = str(selected.choice.reasons[row, layer])
    if reason:
        return OUT, reason
    if selected.choice.index == (row, layer):
        return CHOSEN, ""
    if selected.states["kl"][row, layer] == MEASURED:
        return PASSES, ""
    return NOT_NEEDED, "kl was not measured, since a candidate with a lower bypass score passes"


def _say_why(measured: ModelMeasurements, selected: Selected, limits: Limits, table: pd.DataFrame) -> str:
    """Which candidate is nearest, why each failed, and which would pass if only kl might be larger."""
    told = [f"{reason} ({count})" for reason, count in Counter(table["reason"]).most_common()]
    message = f"none of {len(table)} candidates passes: {'; '.join(told)}"
    nearest = selected.choice.nearest
    if nearest is not None:
        row, layer = nearest
        place, position = _name(measured, row, layer)
        scores = ", ".join(f"{score} {selected.values[score][row, layer]:.2f}" for score in SCORES)
        message += (
            f". The nearest is {place}, position {position}: {scores}; allowed are induce from {limits.induce_least:g} "
            f"and kl up to {limits.kl_most:g}"
        )
    changing = table[table["induce"].ge(limits.induce_least) & table["kl"].gt(limits.kl_most)]
    changing = changing[changing["reason"].str.startswith("changes")].sort_values("kl").head(LISTED)
    if len(changing):
        named = [f"{row.place}, position {row.position} (kl {row.kl:.2f})" for row in changing.itertuples()]
        message += f". Only the limit of kl keeps out {'; '.join(named)}"
    return f"{message}. Other prompts, places, methods or limits may do"
