"""Tables of a trace: one row a place, a token, a text, or a position of aligned curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.directions.surrogate import HeadPlan, judge_heads
from probing.directions.trace import (
    QUANTILES,
    WINDOW,
    LensRow,
    align_curves,
    measure_cliff,
    summarize_curves,
    summarize_lens,
    summarize_random,
)
from probing.shown import to_message
from probing.types import Place

Array = NDArray[np.float64]
LENS = "lens"
AT_PROMPT, AT_ANSWER = "end of the prompt", "beginning of the answer"
KIND_NAMES = {True: "harmful", False: "harmless"}


@dataclass(frozen=True, eq=False)
class TracedText:
    """A text whose tokens are traced.

    Attributes:
        id: id of its prompt.
        harmful: what the prompt is.
        ids: token ids of the prompt, and of the thought and the answer where they are known.
        prompt_tokens: number of tokens of the prompt.
        answer_start: number of the answer's first token; the length of the text where there is none, and None where the
            text ends within a thought.
    """

    id: str
    harmful: bool
    ids: list[int]
    prompt_tokens: int
    answer_start: int | None

    @property
    def thinks(self) -> bool:
        """Whether a whole thought stands between prompt and answer."""
        return self.answer_start is not None and self.answer_start > self.prompt_tokens


def find_depth(place: str, layers: int) -> float:
    """Share of the model's blocks that are below a place."""
    parsed = Place.parse(place)
    if parsed.layer is None:
        return 1.0
    return (parsed.layer + (parsed.kind != "resid_pre")) / layers


def list_places(
    arrays: Mapping[str, Mapping[str, Array]],
    plan: HeadPlan | None,
    layers: int,
    harmful: NDArray[np.bool_],
    units: NDArray[np.int64],
    *,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """One row a place, in order of depth: agreement of the heads with controls, and refusal log-odds behind a block.

    Args:
        arrays: what was read at each place.
        plan: the heads; None where none were fitted.
        layers: number of blocks of the model.
        harmful: whether each prompt is harmful, of all prompts.
        units: prompts of one unit have the same text.
        resamples: number of bootstrap replicates.
        seed: seed of the draw.
    """
    lens = dict(zip(find_lens_places(arrays), summarize_arrays(arrays, harmful, units, resamples, seed), strict=True))
    rows: list[dict[str, Any]] = []
    for place, own in arrays.items():
        known = ":" in place or place == "final_norm"
        row: dict[str, Any] = {"place": place, "depth": find_depth(place, layers) if known else float("nan")}
        if plan is not None and "decision.logits" in own:
            row |= judge_heads(own, plan, resamples)
        if place in lens:
            for name in ("harmful", "harmless"):
                found = getattr(lens[place], name)
                row |= {
                    f"{LENS}_{name}": found.value,
                    f"{LENS}_{name}_low": found.low,
                    f"{LENS}_{name}_high": found.high,
                }
            row[f"{LENS}_gap"] = lens[place].gap
        rows.append(row)
    # Blocks that are read for the lens alone come behind the others; curves are drawn from one row to the next.
    return pd.DataFrame(rows).sort_values("depth", kind="stable", ignore_index=True)


def find_lens_places(arrays: Mapping[str, Mapping[str, Array]]) -> list[str]:
    """The block outputs whose refusal log-odds were read, in order of depth."""
    return sorted(
        (place for place, own in arrays.items() if LENS in own), key=lambda place: Place.parse(place).layer or 0
    )


def summarize_arrays(
    arrays: Mapping[str, Mapping[str, Array]],
    harmful: NDArray[np.bool_],
    units: NDArray[np.int64],
    resamples: int,
    seed: int,
) -> list[LensRow]:
    """Refusal log-odds of both kinds behind every block that was read, in order of depth."""
    places = find_lens_places(arrays)
    if not places:
        return []
    return summarize_lens(np.stack([arrays[place][LENS] for place in places]), harmful, units, resamples, seed)


def list_curves(texts: Sequence[TracedText], curves: Sequence[Array], tokenizer: Any) -> pd.DataFrame:
    """One row a token but the first of every text, with its projection on the direction.

    Args:
        texts: the texts.
        curves: projections of each on the direction and on random ones, [token direction].
        tokenizer: the model's tokenizer.
    """
    names: dict[int, str] = {}
    columns = ("id", "kind", "part", "token", "from_end", "from_answer", "text", "projection")
    parts: list[dict[str, Any]] = []
    for text, curve in zip(texts, curves, strict=False):
        for at, value in enumerate(curve[:, 0].tolist(), start=1):
            id = text.ids[at]
            if id not in names:
                names[id] = to_message(tokenizer.decode([id]))
            start = text.answer_start
            part = "prompt" if at < text.prompt_tokens else "answer" if start is not None and at >= start else "thought"
            row = (text.id, KIND_NAMES[text.harmful], part, at, at - text.prompt_tokens)
            parts.append(
                dict(zip(columns, (*row, None if start is None else at - start, names[id], value), strict=True))
            )
    return pd.DataFrame(parts, columns=list(columns)).astype({"from_answer": "Int64"})


def list_cliffs(texts: Sequence[TracedText], curves: Sequence[Array]) -> pd.DataFrame:
    """One row a text and place where a cliff may be: the end of its prompt, and that of its thought."""
    rows = [
        {
            "id": text.id,
            "kind": KIND_NAMES[text.harmful],
            "at": at,
            "plateau": float(cliff.plateau[0]),
            "peak": float(cliff.peak[0]),
            "last": float(cliff.last[0]),
            "cliff": float(cliff.height[0]),
        }
        for text, curve in zip(texts, curves, strict=False)
        for at, part in cut_before_anchors(text, curve)
        for cliff in [measure_cliff(part)]
    ]
    return pd.DataFrame(rows, columns=["id", "kind", "at", "plateau", "peak", "last", "cliff"])


def cut_before_anchors(text: TracedText, curve: Array) -> list[tuple[str, Array]]:
    """The tokens in which a cliff is looked for: those of the prompt, and those of a thought that ends."""
    # The curve begins with the second token of the sequence.
    parts = [(AT_PROMPT, curve[: text.prompt_tokens - 1])]
    if text.thinks and text.answer_start is not None:
        parts.append((AT_ANSWER, curve[text.prompt_tokens - 1 : text.answer_start - 1]))
    return parts


def measure_random_cliffs(texts: Sequence[TracedText], curves: Sequence[Array], at: str, harmful: bool) -> Array:
    """Mean cliff of a kind along every random direction, [direction]."""
    heights = [
        measure_cliff(part).height[1:]
        for text, curve in zip(texts, curves, strict=True)
        for name, part in cut_before_anchors(text, curve)
        if name == at and text.harmful == harmful and len(part) >= 3
    ]
    mean: Array = np.stack(heights).mean(axis=0) if heights else np.empty(0)
    return mean


def list_bands(texts: Sequence[TracedText], curves: Sequence[Array]) -> pd.DataFrame:
    """Quantiles of the curves of each kind around the end of the prompt and the beginning of the answer.

    Position 0 is the first token behind the prompt, or the first of the answer; ``random_low`` and ``random_high`` are
    the middle 95 % over random directions of the median over texts.
    """
    rows: list[dict[str, Any]] = []
    for harmful, kind in KIND_NAMES.items():
        chosen = [at for at, text in enumerate(texts) if text.harmful == harmful]
        own = [curves[at] for at in chosen] if curves else []
        answered = any(len(texts[at].ids) > texts[at].prompt_tokens for at in chosen)
        starts = [texts[at].answer_start for at in chosen]
        anchors: dict[str, tuple[list[int | None], int]] = {
            AT_PROMPT: ([texts[at].prompt_tokens - 1 for at in chosen], 0)
        }
        if answered:
            anchors[AT_ANSWER] = ([None if start is None else start - 1 for start in starts], WINDOW)
        for align, (places, after) in anchors.items():
            if own:
                aligned = align_curves(own, places, after=after)
                rows += _list_positions({"aligned_at": align, "kind": kind}, aligned)
    return pd.DataFrame(rows)


def _list_positions(where: Mapping[str, Any], aligned: Array) -> list[dict[str, Any]]:
    quantiles, random = summarize_curves(aligned[:, :, 0]), summarize_random(aligned[:, :, 1:])
    counts = np.isfinite(aligned[:, :, 0]).sum(axis=0)
    rows = []
    for at in np.flatnonzero(counts):
        row = {**where, "position": int(at) - WINDOW, "texts": int(counts[at])}
        row |= {f"quantile_{round(100 * share)}": float(quantiles[n, at]) for n, share in enumerate(QUANTILES)}
        rows.append(row | {"random_low": float(random[0, at]), "random_high": float(random[1, at])})
    return rows
