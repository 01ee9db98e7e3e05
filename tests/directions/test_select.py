import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

from probing.directions.choose import Limits
from probing.directions.cosmic import choose_cosmic_layers, compare_over_layers, cosine_of
from probing.directions.measurements import SCORES, STOPPED, Measured
from probing.directions.select import LARGEST_SCORE, select_by_cascade, select_exhaustively

PUBLISHED = json.loads((Path(__file__).parent / "data" / "published_candidates.json").read_text())


class Known:
    """Measurements out of a table: the score of every prompt is known, and what was asked for is counted."""

    def __init__(self, scores, block=8, ends=None, targets=None, candidates=None):
        self.scores, self.ends, self.targets = scores, ends, targets
        shape = scores["bypass"].shape[:2]
        self.candidates = np.ones(shape, dtype=bool) if candidates is None else candidates
        prompts = scores["bypass"].shape[2]
        self.sizes = [min(block, prompts - start) for start in range(0, prompts, block)]
        self.asked = 0

    def blocks(self, score):
        return self.sizes

    def depth(self, score, layer):
        return self.candidates.shape[1] - (layer if score == "induce" else 0)

    @contextlib.contextmanager
    def open(self, score, layer, rows):
        def measure(left, block):
            start = sum(self.sizes[:block])
            self.asked += len(left) * self.sizes[block] * self.depth(score, layer)
            found = self.scores[score][list(left), layer, start : start + self.sizes[block]]
            ends = None if self.ends is None or score == "kl" else self.ends[score][list(left), layer]
            return Measured(found, None if ends is None else ends * self.sizes[block])

        yield measure


def spread(means, prompts=32, noise=1.0, seed=0):
    """Scores of prompts with these means."""
    generator = np.random.default_rng(seed)
    drawn = generator.normal(size=(*means["bypass"].shape, prompts)) * noise
    drawn -= drawn.mean(axis=-1, keepdims=True)
    found = {name: np.asarray(means[name], dtype=float)[..., None] + drawn for name in ("bypass", "induce")}
    kl = np.asarray(means["kl"], dtype=float)[..., None]
    found["kl"] = kl * np.abs(1 + drawn / (1 + np.abs(drawn).max()))
    return {name: np.clip(values, *((0, None) if name == "kl" else (-18, 18))) for name, values in found.items()}


def draw(seed, shape=(3, 12)):
    generator = np.random.default_rng(seed)
    means = {"bypass": generator.normal(0, 4, shape), "induce": generator.normal(-3, 6, shape)}
    return {**means, "kl": generator.exponential(0.2, shape)}


@pytest.mark.parametrize("seed", range(30))
def test_the_cascade_chooses_as_the_exhaustive_loop(seed):
    scores = spread(draw(seed), seed=seed)
    generator = np.random.default_rng([seed, 1])
    scores["kl"][generator.integers(3), generator.integers(9)] = np.nan
    scores["bypass"][generator.integers(3), generator.integers(9), 5] = np.nan
    scores["induce"][generator.integers(3), generator.integers(9), 9] = np.inf
    limits = Limits(kl_most=(0.1, 0.001)[seed % 2])
    whole, fast = (select(Known(scores), limits) for select in (select_exhaustively, select_by_cascade))
    assert fast.choice.index == whole.choice.index
    assert fast.choice.nearest == whole.choice.nearest
    # Of a candidate that is out for one score, or not needed, the cascade need not know what another is.
    other = fast.choice.reasons != whole.choice.reasons
    assert np.isin(
        whole.choice.reasons[other],
        ["a score is not finite", f"changes harmless answers by more than {limits.kl_most:g} nats"],
    ).all()
    for score in SCORES:
        known = np.isfinite(fast.values[score])
        np.testing.assert_array_equal(fast.values[score][known], whole.values[score][known])


def test_equal_scores_give_the_first_candidate():
    means = {name: np.full((2, 6), value) for name, value in (("bypass", -3.0), ("induce", 2.0), ("kl", 0.05))}
    means["kl"][0, 0] = 0.5
    scores = spread(means, noise=0.0)
    for select in (select_exhaustively, select_by_cascade):
        assert select(Known(scores), Limits()).choice.index == (0, 1)


def test_nothing_passes():
    """As much is measured then as it takes to say which comes nearest."""
    for seed in range(20):
        scores = spread(draw(seed), seed=seed)
        scores["kl"] += (0.2, 1.0)[seed % 2]
        if seed % 3 == 0:
            scores["bypass"][:, 2:6] = np.nan
        known = [Known(scores) for _ in range(2)]
        whole = select_exhaustively(known[0], Limits())
        fast = select_by_cascade(known[1], Limits(), cosmic=seed % 5 == 0)
        assert fast.choice.index is None
        assert fast.choice.nearest == whole.choice.nearest
        assert all(np.isfinite(fast.values[score][fast.choice.nearest]) for score in SCORES)
        assert known[1].asked < 0.7 * known[0].asked


def test_a_place_without_a_direction_is_never_asked_for():
    candidates = np.ones((3, 12), dtype=bool)
    candidates[0, 0] = candidates[2, 4] = False
    scores = spread(draw(5))
    for name in SCORES:
        scores[name][~candidates] = 1e9
    selected = select_by_cascade(Known(scores, candidates=candidates), Limits())
    assert np.isnan(selected.values["induce"][~candidates]).all()
    assert selected.choice.index == select_exhaustively(Known(scores, candidates=candidates), Limits()).choice.index


def test_what_cannot_be_reached_any_more_is_stopped():
    means = {"bypass": np.zeros((1, 10)), "induce": np.full((1, 10), -17.0), "kl": np.full((1, 10), 9.0)}
    means["induce"][0, 2:4] = 1.0
    means["kl"][0, 3] = 0.01
    measurements = Known(spread(means, noise=0.0))
    selected = select_by_cascade(measurements, Limits())
    assert selected.choice.index == (0, 3)
    # The sum of 24 prompts at -17 cannot be made up for by 8 at 18.42, nor 16 of them by 16.
    assert selected.states["induce"][0, 0] == STOPPED
    assert selected.states["kl"][0, 2] == STOPPED
    assert measurements.asked == sum(selected.forwards.values())
    assert selected.forwards["kl"] == 10 * (8 + 32)
    assert LARGEST_SCORE * 8 < 17 * 24


def test_a_late_rise_is_waited_for():
    """Nothing is given up that could still pass: half of the prompts at the least, the rest at the most."""
    scores = spread({"bypass": np.zeros((1, 10)), "induce": np.zeros((1, 10)), "kl": np.zeros((1, 10))}, noise=0.0)
    scores["induce"][:] = -18.0
    scores["induce"][0, 4, 16:] = 18.1
    assert select_by_cascade(Known(scores), Limits()).choice.index == (0, 4)


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_tables_take_a_third_of_the_layer_forwards(model):
    table = PUBLISHED[model]
    means = {name: np.array(table[name], dtype=float) for name in SCORES}
    scores = {name: np.repeat(values[..., None], 32, axis=-1) for name, values in means.items()}
    measurements = Known(scores)
    selected = select_by_cascade(measurements, Limits())
    row, layer = selected.choice.index
    assert [table["positions"][row], layer] == table["chosen"]
    assert selected.exhaustive_forwards == 3 * means["bypass"].size * means["bypass"].shape[1] * 32
    assert selected.exhaustive_forwards >= 3 * sum(selected.forwards.values())
    assert measurements.asked == sum(selected.forwards.values())


@pytest.mark.parametrize("seed", range(10))
def test_cosmic_chooses_as_if_it_had_seen_all(seed):
    """Half of each score bounds it, and the other half is measured only where it could make the best."""
    generator = np.random.default_rng(seed)
    shape, places, width = (3, 12), 2, 5
    targets = tuple(generator.normal(size=(places, width)) for _ in range(2))
    pull = generator.random((2, *shape, 1, 1))
    ends = {
        name: own * target + (1 - own) * generator.normal(size=(*shape, places, width))
        for name, own, target in zip(("induce", "bypass"), pull, targets, strict=True)
    }
    scores = spread(draw(seed), seed=seed)
    known = [Known(scores, ends=ends, targets=targets) for _ in range(2)]
    whole = select_exhaustively(known[0], Limits(), cosmic=True)
    fast = select_by_cascade(known[1], Limits(), cosmic=True)
    if whole.choice.index is None:
        assert (fast.choice.index, fast.cosmic) == (None, None)
        return
    assert fast.cosmic.index == whole.cosmic.index
    assert fast.choice.index == whole.choice.index
    expected = sum(
        cosine_of(ends[name][1, 2].mean(axis=0), target.mean(axis=0))
        for name, target in zip(("induce", "bypass"), targets, strict=True)
    )
    assert whole.cosmic.score[1, 2] == pytest.approx(expected, abs=1e-12)
    assert known[1].asked == sum(fast.forwards.values()) + fast.cosmic.forwards
    assert known[1].asked < known[0].asked
    late = np.arange(12) >= 9
    assert np.isnan(fast.cosmic.score[:, late]).all()


def test_cosmic_looks_at_the_layers_where_the_kinds_differ_most():
    generator = np.random.default_rng(0)
    harmful = generator.normal(size=(20, 6))
    harmless = harmful + 0.01 * generator.normal(size=(20, 6))
    harmless[[4, 17]] = -harmful[[4, 17]]
    harmless[9] = np.nan
    assert choose_cosmic_layers(harmful, harmless) == [4, 17]
    assert choose_cosmic_layers(harmful[:19], harmless[:19]) in ([4], [17])
    assert len(choose_cosmic_layers(harmful[:3], harmless[:3])) == 1


def test_cosmic_averages_over_layers_before_it_compares():
    states, target = np.array([[3.0, 0.0], [0.0, 1.0]]), np.array([[2.0, 0.0], [0.0, 2.0]])
    # With both layers as one long vector the cosine would be 8 / sqrt(80), and the mean of both cosines 1.
    assert compare_over_layers(states, target) == pytest.approx(4 / 20**0.5, abs=1e-12)
    assert np.isnan(cosine_of(np.zeros(3), np.ones(3)))
