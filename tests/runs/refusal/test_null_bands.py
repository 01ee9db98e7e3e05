"""Control bands of ``probing refusal evaluate`` that need the states: what they are drawn from, and what they hold."""

import json
from dataclasses import replace

import harness
import numpy as np
import pandas as pd
import pytest
import torch

from probing.data.bundled import bundled_data
from probing.directions.extract import difference_in_means
from probing.engine.ablation import ablate
from probing.instruments.directions import refusal_log_odds
from probing.instruments.select_direction import prepare_measurements
from probing.models.load import load
from probing.runs.refusal.evaluate import EvaluateConfig, run
from probing.runs.refusal.evaluate.states import Extracted, draw_by_covariance, open_extracted, permute_labels_of
from probing.runs.refusal.extract import ExtractConfig
from probing.runs.refusal.extract import run as extract
from probing.statistics.intervals import null_interval
from probing.store.directions import open_directions
from probing.types import Direction, Directions, LabelledPrompt, Place, Source

ROWS = [json.loads(line) for line in bundled_data("prompts").read_text().splitlines()]
PLACE = "resid_pre:2"
TEST = [
    [row["text"] for row in ROWS if (row["split"], row["label"]) == ("test", kind)] for kind in ("harmful", "harmless")
]


@pytest.fixture(scope="module")
def model():
    return load("bundled")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("bands")
    train = [row for row in ROWS if row["split"] == "train"]
    harness.write(made / "train.jsonl", train[::5])
    few = {"resamples": 2, "permutations": 2, "places": PLACE}
    extract(ExtractConfig(model="bundled", data=str(made / "train.jsonl"), out=made / "directions", **few))
    return made


@pytest.fixture(scope="module")
def extracted(folder):
    config = EvaluateConfig(model="bundled", direction=folder / "directions", place=PLACE, out=folder / "none")
    direction = open_directions(folder / "directions").at(PLACE)
    return open_extracted(config, direction, direction.vector.shape[-1], 4)


class Known(Extracted):
    """An extraction whose states are known."""

    known: torch.Tensor

    def states(self, place):
        return self.known.clone()


def make_known(states, harmful, vector):
    direction = Direction(vector, Place("resid_pre", 1), -1, Source("x"))
    prompts = pd.DataFrame({"kind": np.where(harmful, "harmful", "harmless"), "part": "train", "used": True})
    made = Known(None, prompts, direction)
    object.__setattr__(made, "known", states)
    return made


@pytest.mark.parametrize("shape", [(64,), (2, 64)])
def test_directions_drawn_by_covariance_vary_as_the_states_of_one_kind_do(shape):
    """Not along the difference of the kinds; permuted labels do, since it is part of the covariance of all states."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(200, 64, generator=generator, dtype=torch.float64)
    states[:, :16] *= 3
    harmful = np.arange(200) < 80
    # Along the first dimension nothing varies within a kind, and the kinds lie far apart.
    states[:, 0] = torch.from_numpy(np.where(harmful, 50.0, -50.0))
    states += 7
    known = make_known(states, harmful, torch.full(shape, 2.0).double())
    drawn = torch.stack([each.vector for each in draw_by_covariance(known, 400, seed=1)])
    assert drawn.shape == (400, *shape)
    torch.testing.assert_close(drawn.norm(dim=-1), torch.full(drawn.shape[:-1], 16.0).double())
    assert drawn[..., 0].abs().max() < 1e-9
    within = states.numpy().copy()
    for kind in (harmful, ~harmful):
        within[kind] -= within[kind].mean(axis=0)
    expected = (within**2).sum(axis=0) / (within**2).sum()
    found = (drawn.flatten(0, -2) ** 2).mean(dim=0).numpy() / 16**2
    # 400 draws: the standard error of a share is a fourteenth of it; those of many dimensions together hardly err.
    np.testing.assert_allclose(found[1:16].sum(), expected[1:16].sum(), atol=0.02)
    assert np.corrcoef(found, expected)[0, 1] > 0.97
    permuted = torch.stack([each.vector for each in permute_labels_of(known, 100, seed=1)])
    assert permuted[..., 0].abs().median() > 8
    again = torch.stack([each.vector for each in draw_by_covariance(known, 3, seed=1)])
    assert torch.equal(again, drawn[:3])
    assert draw_by_covariance(known, 0, seed=1) == []


def test_draws_that_are_no_direction_are_left_out():
    """All prompts have the same state but two, as at the embedding where few prompts end with another token."""
    states = torch.ones(12, 4, dtype=torch.float64)
    harmful = np.arange(12) < 6
    assert draw_by_covariance(make_known(states, harmful, torch.ones(4)), 5, seed=1) == []
    states[[0, 7], 2] = 3.0
    known = make_known(states, harmful, torch.ones(4))
    # Where the two are on different sides the means do not differ.
    assert 0 < len(permute_labels_of(known, 30, seed=1)) < 30
    assert len(draw_by_covariance(known, 30, seed=1)) == 30


def test_the_band_stands_beside_the_others(model, folder, extracted, tmp_path):
    rows = [row for row in ROWS if row["split"] == "test"][::19]
    harness.write(tmp_path / "some.jsonl", rows)
    config = EvaluateConfig(
        model="bundled",
        data=str(tmp_path / "some.jsonl"),
        direction=folder / "directions",
        place=PLACE,
        mode="add",
        new_tokens=1,
        resamples=10,
        random_directions=1,
        permuted_directions=0,
        out=tmp_path / "out",
    )
    report = run(config)
    results = pd.read_parquet(tmp_path / "out" / "results.parquet")
    found = results.query(
        "kind == 'harmless' and category == 'all' and measure == 'refusal_log_odds' and when == 'after'"
    )
    assert found[["random_n", "covariance_n", "labels_n"]].to_numpy().tolist() == [[1, 1, 0]]
    (drawn,) = draw_by_covariance(extracted, 1, config.seed)
    tokens = [row["id"] for row in report.facts["refusal_tokens"]]
    with ablate(model, drawn, "add"):
        plain = refusal_log_odds(model, [row["text"] for row in rows if row["label"] == "harmless"], tokens)
    for end in ("low", "median", "high"):
        assert found[f"covariance_{end}"].item() == pytest.approx(float(plain.mean()), abs=1e-4)
    table = report.tables["Log-odds of refusal at the first token"]
    assert "random by covariance" in table.columns
    assert "permuted labels" not in table.columns


def measure_added(model, like, vectors, tokens):
    """Mean refusal score of harmless prompts with each vector added."""
    stacked = torch.stack(vectors)[None]
    mean = torch.zeros_like(stacked)
    positions = tuple(range(-len(vectors), 0))
    given = Directions(stacked, mean, mean, (Place.parse(PLACE),), positions, like.source, like.method)
    sides = [
        [LabelledPrompt(f"{kind} {at}", text) for at, text in enumerate(side[:16])] for kind, side in enumerate(TEST)
    ]
    measured = prepare_measurements(model, given, *sides, refusal_tokens=tokens, filter_by_sign=False, cosmic=False)
    rows = range(len(vectors))
    with measured.open("induce", 2, rows) as measure:
        blocks = [measure(rows, block).scores for block in range(len(measured.blocks("induce")))]
    return np.concatenate(blocks, axis=1).mean(axis=1)


def compare(model, extracted, tokens):
    """Effect of the direction of an extraction, and the middle 95 % of those with the covariance of its states."""
    vectors = [each.vector for each in (extracted.direction, *draw_by_covariance(extracted, 60, seed=0))]
    value, *drawn = measure_added(model, extracted.direction, vectors, tokens)
    low, _, high = null_interval(np.array(drawn))
    return value, low, high


def test_directions_between_permuted_labels_lie_in_the_band_and_the_true_one_does_not(model, folder, extracted):
    """Labels are permuted where evaluate reads them, so that the states within each kind are those of both."""
    tokens = extracted.direction.facts["refusal_tokens"]
    value, low, high = compare(model, extracted, tokens)
    assert value > high + 2
    states = extracted.states(PLACE)
    inside = 0
    for seed in range(8):
        drawn = extracted.prompts.assign(kind=np.random.default_rng(seed).permutation(extracted.prompts["kind"]))
        permuted = replace(extracted, prompts=drawn)
        sides = [np.flatnonzero(permuted.pick(kind, "train")) for kind in ("harmful", "harmless")]
        vector = difference_in_means(*(states[side] for side in sides))
        own = replace(permuted, direction=replace(extracted.direction, vector=vector))
        value, low, high = compare(model, own, tokens)
        inside += low <= value <= high
    assert inside >= 6
