"""Whether directions that mean nothing lie within the control bands of ``probing refusal evaluate``.

The labels of the bundled prompts are permuted, and extract and select run on them as they would on true ones: select
with its limits, and without. The effect of the selected direction is measured on prompts that neither has seen, with
their true labels, beside the random directions with which evaluate makes its bands. A line gives for each edit and band
how many of the selected directions lie within the band's middle 95 % (wanted: about 19 of 20), and beside it the effect
of the direction of the true labels, which should lie outside.

    $ OMP_NUM_THREADS=1 python scripts/calibrate_refusal.py
"""

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from probing.data.bundled import bundled_data, bundled_model
from probing.directions.measurements import Score
from probing.instruments.select_direction import NonePasses, prepare_measurements
from probing.models.layers import find_stack
from probing.models.load import LanguageModel, load
from probing.runs.refusal.evaluate import EvaluateConfig
from probing.runs.refusal.evaluate.models import draw_random_directions
from probing.runs.refusal.evaluate.states import draw_by_covariance, open_extracted, permute_labels_of
from probing.runs.refusal.extract import ExtractConfig
from probing.runs.refusal.extract import run as extract
from probing.runs.refusal.select import SelectConfig
from probing.runs.refusal.select import run as select
from probing.statistics.intervals import null_interval
from probing.store.directions import open_direction
from probing.types import Direction, Directions, LabelledPrompt

KINDS = ("harmful", "harmless")
EDITS: dict[Score, str] = {"bypass": "project, harmful prompts", "induce": "add, harmless prompts"}
"""Scores of select, each with the edit that it measures."""
RANDOM, COVARIANCE, LABELS = "random directions", "random by covariance", "permuted labels"
LIMITS: dict[str, dict[str, Any]] = {"default": {}, "none": {"induce_least": -20.0, "kl_most": 1e6}}
HELD_OUT = 1 / 3
FEW: dict[str, Any] = {"permutations": 2, "resamples": 2}
"""Intervals of the extraction are not looked at."""
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Trial:
    """What all draws of labels have in common.

    Attributes:
        folder: where runs are written.
        model: the bundled model.
        rows: prompts for extract and select, with their true labels.
        test: prompts on which effects are measured, harmful and harmless ones.
        tokens: ids of the refusal tokens, found by the true labels: permuted ones would show none.
        draws: number of random directions of each band.
    """

    folder: Path
    model: LanguageModel
    rows: Rows
    test: tuple[list[LabelledPrompt], list[LabelledPrompt]]
    tokens: list[int]
    draws: int


def prepare(folder: Path, prompts: int, draws: int) -> Trial:
    """Take so many bundled prompts of each kind to extract from, half as many to select, and as many for effects."""
    rows = [json.loads(line) for line in bundled_data("prompts").read_text(encoding="utf-8").splitlines()]

    def pick(split: str, kind: str, count: int) -> Rows:
        own = [row for row in rows if row["split"] == split and row["label"] == kind]
        return own[:: max(len(own) // count, 1)][:count]

    training = [row for kind in KINDS for row in pick("train", kind, prompts * 3 // 2)]
    harmful, harmless = (
        [LabelledPrompt(f"{kind} {at}", row["text"]) for at, row in enumerate(pick("test", kind, prompts))]
        for kind in KINDS
    )
    _write(folder / "tokens.jsonl", training)
    config = ExtractConfig(
        model="bundled", data=str(folder / "tokens.jsonl"), out=folder / "tokens", places="resid_pre:1", **FEW
    )
    tokens = [token["id"] for token in extract(config).facts["refusal_tokens"]]
    return Trial(folder, load(str(bundled_model())), training, (harmful, harmless), tokens, draws)


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run_chain(trial: Trial, seed: int | None) -> Rows:
    """Extract and select under labels that are permuted by a seed, or true ones, and measure; one row an edit and band.

    Where no candidate passes with the default limits there are no rows of these limits.
    """
    folder = trial.folder / f"labels {seed}"
    folder.mkdir()
    labels = [row["label"] for row in trial.rows]
    if seed is not None:
        labels = np.random.default_rng(seed).permutation(labels).tolist()
    data = folder / "prompts.jsonl"
    _write(data, [{**row, "label": label} for row, label in zip(trial.rows, labels, strict=True)])
    shared: dict[str, Any] = {"model": "bundled", "data": str(data), "filter_by_sign": False}
    shared |= {"refusal_tokens": ",".join(map(str, trial.tokens))}
    directions = folder / "directions"
    extract(ExtractConfig(**shared, **FEW, out=directions, validation_share=HELD_OUT))
    found: Rows = []
    for name, limits in LIMITS.items():
        out = folder / f"limits {name}"
        with contextlib.suppress(NonePasses):
            select(SelectConfig(**shared, **limits, directions=directions, out=out, cosmic=False))
            found += [{"limits": name, "seed": seed} | row for row in _compare(trial, out, directions)]
    return found


def _compare(trial: Trial, selected: Path, directions: Path) -> Rows:
    """One row an edit and band: the effect of the selected direction, and the ends of the band."""
    direction = open_direction(selected / "direction.safetensors")
    stack = find_stack(trial.model)
    config = EvaluateConfig(model="bundled", direction=selected, extracted=directions, out=selected / "none")
    extracted = open_extracted(config, direction, stack.width, len(stack.blocks))
    assert extracted is not None
    bands = {
        RANDOM: draw_random_directions(direction, trial.draws, seed=0),
        COVARIANCE: draw_by_covariance(extracted, trial.draws, seed=0),
        LABELS: permute_labels_of(extracted, trial.draws, seed=0),
    }
    effects = measure_effects(trial, [direction, *(each for own in bands.values() for each in own)])
    place = f"{direction.place}, {direction.position}"
    rows: Rows = []
    for score, edit in EDITS.items():
        value, others = effects[score][0], effects[score][1:]
        for band, drawn in zip(
            bands, np.split(others, np.cumsum([len(own) for own in bands.values()])[:-1]), strict=True
        ):
            low, _, high = null_interval(drawn)
            rows.append({"place": place, "edit": edit, "band": band, "value": value, "low": low, "high": high})
    return rows


def measure_effects(trial: Trial, directions: Sequence[Direction]) -> dict[Score, NDArray[np.float64]]:
    """Mean refusal score of the test prompts with each direction ablated, and with each added at its place."""
    first = directions[0]
    vectors = torch.stack([each.vector for each in directions])[None]
    stacked = Directions(
        vectors=vectors,
        harmful_mean=torch.zeros_like(vectors),
        harmless_mean=torch.zeros_like(vectors),
        places=(first.place,),
        positions=tuple(range(-len(directions), 0)),
        source=first.source,
        method=first.method,
    )
    measured = prepare_measurements(
        trial.model, stacked, *trial.test, refusal_tokens=trial.tokens, filter_by_sign=False, cosmic=False
    )
    rows, layer = range(len(directions)), first.place.layer or 0
    found = {}
    for score in EDITS:
        with measured.open(score, layer, rows) as measure:
            blocks = [measure(rows, block).scores for block in range(len(measured.blocks(score)))]
        found[score] = np.concatenate(blocks, axis=1).mean(axis=1)
    return found


def summarise(found: pd.DataFrame, true: pd.DataFrame, seeds: int) -> pd.DataFrame:
    """How many directions of permuted labels lie within each band, and where that of the true labels lies.

    The last band of every edit is of the directions of permuted labels themselves. They were selected as the true one
    was, so that this is the null that includes the selection.
    """
    lines = []
    for (limits, edit), group in found.groupby(["limits", "edit"], sort=False):
        own = true[(true["limits"] == limits) & (true["edit"] == edit)]
        values = group.loc[group["band"] == RANDOM, "value"].to_numpy()
        start = {"limits": limits, "edit": edit, "directions": f"{len(values)} of {seeds}"}
        for band, rows in group.groupby("band", sort=False):
            inside = int(((rows["value"] >= rows["low"]) & (rows["value"] <= rows["high"])).sum())
            lines.append({**start, "band": band, "inside": str(inside)} | _show_true(own[own["band"] == band]))
        low, _, high = null_interval(values)
        again = own.head(1).assign(low=low, high=high)
        lines.append({**start, "band": "permuted labels, selected", "inside": "-"} | _show_true(again))
    return pd.DataFrame(lines)


def _show_true(rows: pd.DataFrame) -> dict[str, str]:
    """The effect of the direction of the true labels beside a band; nothing where none passed."""
    if rows.empty:
        return {"true labels": "none passes", "their band": "", "it lies": ""}
    value, low, high = (float(rows.iloc[0][name]) for name in ("value", "low", "high"))
    where = "inside" if low <= value <= high else "outside"
    return {"true labels": f"{value:.2f}", "their band": f"{low:.2f} to {high:.2f}", "it lies": where}


def calibrate(folder: Path, seeds: int, prompts: int, draws: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the permuted labels of every seed, and of the true labels; see ``run_chain``."""
    trial = prepare(folder, prompts, draws)
    found = [row for seed in range(seeds) for row in run_chain(trial, seed)]
    return pd.DataFrame(found), pd.DataFrame(run_chain(trial, None))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="draws of permuted labels")
    parser.add_argument("--prompts", type=int, default=48, help="of each kind, to extract from and to measure on")
    parser.add_argument("--draws", type=int, default=100, help="random directions of each band")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found, true = calibrate(Path(folder), options.seeds, options.prompts, options.draws)
    print(summarise(found, true, options.seeds).to_string(index=False))


if __name__ == "__main__":
    main()
