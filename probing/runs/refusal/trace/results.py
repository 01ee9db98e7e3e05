"""The results of a trace: tables of places, sources and texts, and what is said of them in a line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.directions.surrogate import (
    ACROSS,
    DECISION,
    choose_inside_folds,
    find_depths,
    judge_sources,
    judge_task,
)
from probing.directions.trace import LensRow, find_lasting_separation, find_suppression
from probing.instruments.trace_reading import SURFACE
from probing.instruments.trace_tables import (
    AT_ANSWER,
    AT_PROMPT,
    KIND_NAMES,
    TracedText,
    list_bands,
    list_cliffs,
    list_curves,
    list_places,
    measure_random_cliffs,
    summarize_arrays,
)
from probing.runs.common.results import CHOSEN
from probing.runs.refusal.trace.config import TraceConfig
from probing.runs.refusal.trace.rows import Material
from probing.statistics.bootstrap import bootstrap_mean
from probing.statistics.intervals import null_interval

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Traced:
    """Everything that was measured.

    Attributes:
        places: one row a place, then lengths and punctuation, then the places that were chosen inside folds.
        sources: one row a source, by the heads at the place of the best agreement; empty without heads.
        source_place: that place.
        lens: refusal log-odds behind every block; empty where they cannot be read.
        curves: one row a token.
        cliffs: one row a text and end.
        falls: mean cliffs of each kind with intervals and the band of random directions.
        bands: quantiles of aligned curves.
        depths: least depths of good and of all but the best agreement.
        chosen: place that each fold chose.
    """

    places: pd.DataFrame
    sources: pd.DataFrame
    source_place: str
    lens: Sequence[LensRow]
    curves: pd.DataFrame
    cliffs: pd.DataFrame
    falls: pd.DataFrame
    bands: pd.DataFrame
    depths: Mapping[str, float]
    chosen: Sequence[str]

    def describe_lens(self) -> dict[str, Any]:
        """From which layer on the kinds are apart, and how far the curve of harmful prompts falls at the end."""
        if not self.lens:
            return {}
        fall = find_suppression(self.lens)
        return {
            "layers": len(self.lens),
            "separated_from": find_lasting_separation(self.lens),
            "suppressed_from": None if fall is None else fall.layer,
            "suppressed_by": None if fall is None else fall.fall,
        }


def gather_results(
    config: TraceConfig,
    material: Material,
    layers: int,
    arrays: Mapping[str, Mapping[str, Array]],
    texts: Sequence[TracedText],
    curves: Sequence[Array],
    tokenizer: Any,
) -> Traced:
    """Compute the results of a run from the arrays of every place and the curve of every text.

    Args:
        config: the job's options.
        material: the prompts.
        layers: number of blocks of the model.
        arrays: what was read at each place.
        texts: the texts that were traced.
        curves: projections of their tokens.
        tokenizer: the model's tokenizer.
    """
    draws = {"resamples": config.resamples, "seed": config.seed}
    places = list_places(arrays, material.plan, layers, material.harmful, material.units, **draws)
    best, sources = "", pd.DataFrame()
    chosen: Sequence[str] = ()
    depths: Mapping[str, float] = {}
    if material.plan is not None:
        row, chosen = _choose_places(config, material, arrays)
        fitted = places[places["place"].isin(material.places)]
        best = str(fitted.set_index("place")[f"{DECISION}_f1"].idxmax())
        if ACROSS not in material.plan.why_not:
            sources = pd.DataFrame(judge_sources(arrays[best][f"{ACROSS}.logits"], material.plan))
        ordered = fitted.sort_values("depth", kind="stable")
        depths = find_depths(ordered["depth"].tolist(), ordered[f"{DECISION}_f1"].tolist())
        places = pd.concat([places, pd.DataFrame([row])], ignore_index=True)
    layer = pd.Series([find_layer(place) for place in places["place"]], dtype="Int64")
    places.insert(1, "layer", layer)
    return Traced(
        places=places,
        sources=sources,
        source_place=best,
        lens=summarize_arrays(arrays, material.harmful, material.units, **draws),
        curves=list_curves(texts, curves, tokenizer),
        cliffs=list_cliffs(texts, curves),
        falls=_list_falls(config, material, texts, curves),
        bands=list_bands(texts, curves),
        depths=depths,
        chosen=chosen,
    )


def find_layer(place: str) -> int | None:
    """Number of the layer of a place; None where it has none."""
    kind, colon, layer = place.partition(":")
    return int(layer) if colon and kind != SURFACE else None


def _choose_places(
    config: TraceConfig, material: Material, arrays: Mapping[str, Mapping[str, Array]]
) -> tuple[dict[str, Any], list[str]]:
    """Agreement of the places that each fold chose without its own rows, and these places."""
    plan = material.plan
    assert plan is not None
    task = plan.tasks[DECISION]
    inner = np.stack([arrays[place]["inner"] for place in material.places])
    logits = np.stack([arrays[place][f"{DECISION}.logits"][0] for place in material.places])
    picked, nested = choose_inside_folds(inner, logits, task.labels.splits.folds)
    row = judge_task(DECISION, nested[None], task, plan, config.resamples)
    return {"place": CHOSEN, **row}, [material.places[at] for at in picked.tolist()]


def _list_falls(
    config: TraceConfig, material: Material, texts: Sequence[TracedText], curves: Sequence[Array]
) -> pd.DataFrame:
    """Mean cliff of each kind at each end, with interval, share of texts that fall, and random directions."""
    if not curves:
        return pd.DataFrame()
    cliffs = list_cliffs(texts, curves).dropna(subset=["cliff"])
    units = dict(zip((prompt.id for prompt in material.prompts), material.units.tolist(), strict=True))
    rows: list[dict[str, Any]] = []
    for at in (AT_PROMPT, AT_ANSWER):
        for harmful, kind in KIND_NAMES.items():
            own = cliffs[(cliffs["at"] == at) & (cliffs["kind"] == kind)]
            if not len(own):
                continue
            heights = own["cliff"].to_numpy(dtype=np.float64)
            groups = np.array([units[id] for id in own["id"]])
            found = bootstrap_mean(heights, config.resamples, config.seed, groups)
            random = null_interval(measure_random_cliffs(texts, curves, at, harmful))
            row: dict[str, Any] = {"at": at, "kind": kind, "texts": len(own)}
            row |= {"plateau": own["plateau"].mean(), "last": own["last"].mean(), "cliff": found.value}
            row |= {"low": found.low, "high": found.high, "falling": float((heights > 0).mean())}
            rows.append(row | dict(zip(("random_low", "random_median", "random_high"), random, strict=True)))
    return pd.DataFrame(rows)


def count_decisions(material: Material) -> list[dict[str, Any]]:
    """How many prompts of each kind the model refuses, complies with, and does neither."""
    rows = []
    for harmful, kind in KIND_NAMES.items():
        own = material.harmful == harmful
        decided = own & material.decided
        row: dict[str, Any] = {"prompts": kind, "read": int(own.sum())}
        row |= {
            "refused": int((decided & material.refused).sum()),
            "complied": int((decided & ~material.refused).sum()),
        }
        row |= {"not known": int((own & ~material.decided).sum())}
        rows.append(row | {"median refusal score": float(np.median(material.scores[own]))})
    return rows
