"""Agreement of heads against scikit-learn and by hand, and curves against plain loops."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from probing.directions.surrogate import (
    ACROSS,
    DECISION,
    KIND,
    Decisions,
    choose_inside_folds,
    find_depths,
    fit_heads,
    judge_heads,
    judge_sources,
    measure_f1,
    plan_heads,
)
from probing.directions.trace import (
    WINDOW,
    LensRow,
    align_curves,
    find_lasting_separation,
    find_suppression,
    measure_cliff,
    summarize_curves,
    summarize_lens,
    summarize_random,
)
from probing.types import Estimate

ROWS, WIDTH = 72, 6


def draw(seed=0, by_kind=0.0):
    """States in which the kind lies along the first axis and the decision along the second, and what is decided."""
    generator = np.random.default_rng(seed)
    harmful = np.arange(ROWS) % 2 == 0
    will = generator.standard_normal(ROWS) + by_kind * (2 * harmful - 1)
    states = generator.standard_normal((ROWS, WIDTH))
    states[:, 0] += 4 * harmful
    states[:, 1] = will + 0.2 * generator.standard_normal(ROWS)
    sources = [f"source {at % 4}" for at in range(ROWS)]
    return torch.from_numpy(states), Decisions(will > 0, harmful, np.arange(ROWS), sources)


@pytest.fixture(scope="module")
def planted():
    states, decisions = draw()
    plan = plan_heads(decisions, folds=4, refits=3)
    arrays = fit_heads(states, plan)
    return states, decisions, plan, arrays, judge_heads(arrays, plan, resamples=100)


def test_f1_is_that_of_scikit_learn():
    generator = np.random.default_rng(1)
    logits, labels = generator.standard_normal(50), generator.random(50) > 0.4
    weights = generator.integers(0, 3, (4, 50)).astype(float)
    expected = [f1_score(labels, logits > 0, sample_weight=row) for row in weights]
    np.testing.assert_allclose(measure_f1(logits, labels, weights), expected, rtol=1e-12)
    np.testing.assert_allclose(measure_f1(logits, labels), f1_score(labels, logits > 0), rtol=1e-12)
    assert np.isnan(measure_f1(-np.ones(3), np.zeros(3, dtype=bool))[0])
    assert measure_f1(-np.ones(3), np.ones(3, dtype=bool))[0] == 0


def test_a_decision_that_is_not_the_kind_is_told_from_it(planted):
    _, _, _, _, found = planted
    assert found["decision_f1"] > 0.85
    assert found["kind_f1"] > 0.9
    # The head of the kind guesses.
    assert found["kind_agreement"] < 0.65
    assert 0 < found["above_kind_low"] <= found["above_kind"] <= found["above_kind_high"]
    assert found["within_harmful_f1"] > 0.8
    assert found["decision_f1_low"] < found["decision_f1"] <= found["decision_f1_high"]
    assert found["decision_f1_labels_high"] < found["decision_f1_low"]
    assert "kind_f1_labels_low" not in found


def test_a_decision_that_is_the_kind_is_nothing_above_it():
    states, decisions = draw(by_kind=50.0)
    assert (decisions.refused == decisions.harmful).all()
    plan = plan_heads(decisions, folds=3, refits=1)
    found = judge_heads(fit_heads(states, plan), plan, resamples=50)
    assert found["above_kind"] == 0
    assert found["kind_agreement"] == found["decision_f1"]
    assert set(plan.why_not) == {"within_harmful", "within_harmless"}
    assert "refuses 36 and complies with 0" in plan.why_not["within_harmful"]


def test_heads_that_saw_no_row_of_a_source_are_those_of_scikit_learn(planted):
    states, decisions, plan, arrays, found = planted
    names = np.array(decisions.sources)
    expected = np.empty(ROWS)
    for name in plan.sources:
        expected[names == name] = fit_elsewhere(states.numpy(), decisions.refused, names == name)
    np.testing.assert_allclose(arrays[f"{ACROSS}.logits"], expected, rtol=1e-4, atol=1e-4)
    assert found["across_f1"] == pytest.approx(f1_score(decisions.refused, expected > 0))
    rows = judge_sources(arrays[f"{ACROSS}.logits"], plan)
    own = names == "source 2"
    assert rows[2]["accuracy"] == pytest.approx(((expected[own] > 0) == decisions.refused[own]).mean())
    assert [row["prompts"] for row in rows] == [ROWS // 4] * 4


def test_a_text_of_two_sources_is_of_the_first_and_a_source_that_decides_all_is_not_judged():
    states, decisions = draw()
    units = decisions.units.copy()
    units[3] = units[0]
    plan = plan_heads(Decisions(decisions.refused, decisions.harmful, units, decisions.sources), folds=3, refits=1)
    assert plan.source_of[3] == plan.source_of[0] == 0
    # One source holds every refusal: without it nothing is left to learn.
    sources = ["all refusals" if refused else "others" for refused in decisions.refused]
    plan = plan_heads(Decisions(decisions.refused, decisions.harmful, decisions.units, sources), folds=3, refits=1)
    arrays = fit_heads(states, plan)
    assert np.isnan(arrays[f"{ACROSS}.logits"]).all()
    assert all(np.isnan(float(row["accuracy"])) for row in judge_sources(arrays[f"{ACROSS}.logits"], plan))
    assert "across_f1" not in judge_heads(arrays, plan, resamples=10)
    one = Decisions(decisions.refused, decisions.harmful, decisions.units, ["s"] * ROWS)
    assert "one source" in plan_heads(one, folds=3, refits=1).why_not[ACROSS]


def fit_elsewhere(states, labels, held):
    """What scikit-learn's regression, fitted to the other rows, says of those that are held out."""
    centre = states[~held].mean(0)
    # The penalty is of weights for states whose features have variance one on average.
    scale = np.sqrt(((states[~held] - centre) ** 2).mean())
    head = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit((states[~held] - centre) / scale, labels[~held])
    return head.decision_function((states[held] - centre) / scale)


def test_rows_are_read_by_heads_that_did_not_see_them(planted):
    states, decisions, plan, arrays, _ = planted
    for name, labels in ((DECISION, decisions.refused), (KIND, decisions.harmful)):
        folds = plan.tasks[name].labels.splits.folds
        expected = fit_elsewhere(states.numpy(), labels, folds == 1)
        np.testing.assert_allclose(arrays[f"{name}.logits"][0][folds == 1], expected, rtol=1e-4, atol=1e-4)


def test_too_few_decisions_are_counted():
    _, decisions = draw()
    none = Decisions(np.zeros(ROWS, dtype=bool), decisions.harmful, decisions.units, decisions.sources)
    with pytest.raises(ValueError, match="of 72 prompts the model refuses 0 and complies with 72; 3 of either"):
        plan_heads(none)
    few = Decisions(decisions.refused[:4], decisions.harmful[:4], decisions.units[:4], decisions.sources[:4])
    with pytest.raises(ValueError, match=r"are needed|folds need"):
        plan_heads(few)


def test_states_that_are_all_the_same_tell_nothing():
    _, decisions = draw()
    plan = plan_heads(decisions, folds=3, refits=1)
    found = judge_heads(fit_heads(torch.ones(ROWS, WIDTH), plan), plan, resamples=10)
    assert found["decision_f1"] == 0
    assert found["decision_auroc"] == 0.5


def test_places_are_chosen_without_the_fold_they_are_judged_on():
    inner = np.array([[0.9, 0.1], [0.2, 0.8]])
    picked, logits = choose_inside_folds(inner, np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), np.array([0, 1, 0]))
    assert picked.tolist() == [0, 1]
    assert logits.tolist() == [1.0, 5.0, 3.0]


def test_depths():
    nan = float("nan")
    found = find_depths([0.25, 0.5, 0.75, 1.0], [0.5, 0.81, nan, 0.85])
    assert found == {"good": 0.5, "near_best": 0.5, "best": 1.0, "best_f1": 0.85}
    assert np.isnan(find_depths([0.5, 1.0], [0.1, 0.2])["good"])
    assert np.isnan(find_depths([1.0], [nan])["best_f1"])


def lens_row(harmful, harmless, half=0.5):
    return LensRow(*(Estimate(float(mean), mean - half, mean + half, 9) for mean in (harmful, harmless)))


def test_separation_lasts_only_where_no_later_layer_ends_it():
    rows = [lens_row(3, 0), lens_row(0, 0), lens_row(2, 0), lens_row(4, 0)]
    assert find_lasting_separation(rows) == 2
    assert find_lasting_separation(rows[:1]) == 0
    assert find_lasting_separation(rows[:2]) is None
    assert find_suppression(rows) is None
    fall = find_suppression([*rows, lens_row(1, 0)])
    assert (fall.layer, fall.fall) == (3, 3)
    # Intervals that overlap are no fall.
    assert find_suppression([*rows, lens_row(3.5, 0)]) is None


def test_means_of_both_kinds():
    generator = np.random.default_rng(2)
    scores, harmful = generator.standard_normal((2, 30)), np.arange(30) < 12
    rows = summarize_lens(scores, harmful, np.arange(30), 100, 0)
    assert rows[1].harmful.value == pytest.approx(scores[1, :12].mean())
    assert rows[1].gap == pytest.approx(scores[1, :12].mean() - scores[1, 12:].mean())


def test_cliffs_by_hand():
    curve = np.concatenate([[100.0], np.full(WINDOW, 5.0), [2.0]])[:, None]
    curve[3] = 9
    found = measure_cliff(np.concatenate([curve, -curve], axis=1))
    assert found.plateau.tolist() == [5, -5]
    assert found.peak.tolist() == [9, -5]
    assert found.height.tolist() == [3, -3]
    assert np.isnan(measure_cliff(curve[:2]).height).all()
    short = np.array([[1.0], [3.0], [0.0]])
    assert measure_cliff(short).height.tolist() == [2]


def test_curves_are_aligned_like_a_loop():
    curves = [np.arange(5.0), np.arange(10.0, 13.0), np.arange(3.0)]
    found = align_curves(curves, [3, 1, None], before=3, after=2)
    expected = np.full((3, 5), np.nan)
    for row, anchor in ((0, 3), (1, 1)):
        for position in range(-3, 2):
            if 0 <= anchor + position < len(curves[row]):
                expected[row, position + 3] = curves[row][anchor + position]
    np.testing.assert_array_equal(found, expected)
    bands = summarize_curves(found)
    assert bands[2].tolist()[2:4] == [6.0, 7.0]
    assert np.isnan(summarize_curves(np.full((2, 3), np.nan))).all()
    random = summarize_random(np.stack([found, found + 1], axis=2))
    np.testing.assert_allclose(random[:, 2], np.quantile([6, 7], (0.025, 0.975)))
    assert np.isnan(summarize_random(np.empty((3, 4, 0)))).all()
