import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, silhouette_samples

from probing.probes.evaluate import MEANS, METRICS, credit, measure, measure_auroc, measure_pairs, scores


def dumb(forms, truth, folds, times):
    """Every metric by loops and scikit-learn, each pair written down as often as it counts."""
    pairs = [i for i in range(forms.shape[1]) for _ in range(int(times[i]))]
    a1, a0, n1, n0 = forms
    right, pc, ci = [], [], []
    won = fought = 0.0
    widths = []
    for i in pairs:
        for said, true in (((a1[i] + 1 - a0[i]) / 2, truth[i] > 0), ((n1[i] + 1 - n0[i]) / 2, truth[i] < 0)):
            right.append(0.5 if said == 0.5 else float((said > 0.5) == true))
        pc.append(0.5 * ((a1[i] - n0[i]) ** 2 + (a0[i] - n1[i]) ** 2) * np.sign(a1[i] - n1[i]) * np.sign(n0[i] - a0[i]))
        turned = (1 - a1[i]) * (1 - n1[i]) + (1 - a0[i]) * (1 - n0[i])
        ci.append((a1[i] * n1[i] + a0[i] * n0[i] + turned) / 2)
    for fold in sorted(set(folds)):
        here = [i for i in pairs if folds[i] == fold]
        if not here:
            continue
        said = [(a1[i] + 1 - a0[i]) / 2 for i in here] + [(n1[i] + 1 - n0[i]) / 2 for i in here]
        true = [truth[i] > 0 for i in here] + [truth[i] < 0 for i in here]
        couples = len(here) ** 2
        won, fought = won + roc_auc_score(true, said) * couples, fought + couples
        if len(here) > 1:
            widths += list(silhouette_samples(np.array(said)[:, None], true))
        else:
            widths += [0.0, 0.0]
    return {
        "esa": np.mean(right),
        "auroc": won / fought,
        "polar_consistency": np.mean(pc),
        "median_abs_polar_consistency": np.median(np.abs(pc)),
        "contradiction_index": np.mean(ci),
        "silhouette": np.mean(widths),
    }


def draw(seed, pairs=23, folds=3, coarse=False):
    rng = np.random.default_rng(seed)
    forms = rng.random((4, pairs))
    if coarse:  # ties, and scores of exactly a half
        forms = np.round(forms * 2) / 2
    return forms, rng.choice([-1.0, 1.0], pairs), rng.integers(0, folds, pairs), rng


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_against_loops_and_scikit_learn(seed, coarse):
    forms, truth, folds, _ = draw(seed, coarse=coarse)
    found = measure(forms, truth, folds)
    assert list(found) == list(METRICS)
    for name, value in dumb(forms, truth, folds, np.ones(23)).items():
        assert found[name] == pytest.approx([value], abs=1e-12), name


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_a_weight_is_a_repetition(seed, coarse):
    """Bootstrap resamples are computed by weights: each as if its pairs had been written down so often."""
    forms, truth, folds, rng = draw(seed, pairs=11, folds=2, coarse=coarse)
    times = rng.integers(0, 4, (3, 11)).astype(float)
    times[:, 0] += 1
    found = measure(forms, truth, folds, weights=times)
    for row in range(3):
        for name, value in dumb(forms, truth, folds, times[row]).items():
            if name != "silhouette":
                assert found[name][row] == pytest.approx(value, abs=1e-9), (name, row)


@pytest.mark.parametrize("metric", MEANS)
def test_metrics_that_are_means_over_pairs(metric):
    forms, truth, folds, _ = draw(2)
    each = measure_pairs(metric, forms, truth)
    assert each.shape == (23,)
    assert measure(forms, truth, folds)[metric] == pytest.approx([each.mean()])


def test_copies_of_a_statement_are_no_neighbours_of_it():
    """At distance zero from themselves repeated statements would make a resample look better than the sample."""
    forms, truth, folds, rng = draw(3)
    times = rng.integers(0, 4, (5, 23)).astype(float)
    found = measure(forms, truth, folds, weights=times)["silhouette"]
    for row in range(5):
        assert found[row] == pytest.approx(resampled_silhouette(forms, truth, folds, times[row]))
    assert measure(forms, truth, folds)["silhouette"][0] == pytest.approx(
        resampled_silhouette(forms, truth, folds, np.ones(23))
    )


def resampled_silhouette(forms, truth, folds, times):
    said, kind = scores(forms).reshape(-1), np.concatenate([truth > 0, truth < 0])
    fold, count = np.concatenate([folds, folds]), np.concatenate([times, times])
    total = 0.0
    for i in np.flatnonzero(count):
        near, far = (
            [
                abs(said[i] - said[j])
                for j in np.flatnonzero(fold == fold[i])
                if j != i and (kind[j] == kind[i]) == same
                for _ in range(int(count[j]))
            ]
            for same in (True, False)
        )
        if near and far:
            a, b = np.mean(near), np.mean(far)
            total += count[i] * ((b - a) / max(a, b) if max(a, b) else 0.0)
    return total / count.sum()


def test_labelings_and_weightings_go_together():
    forms, truth, folds, rng = draw(5)
    labelings = rng.choice([-1.0, 1.0], (6, 23))
    weights = rng.integers(1, 3, (6, 23)).astype(float)
    both = measure(forms, labelings, folds, weights)
    for row in range(6):
        alone = measure(forms, labelings[row], folds, weights[row])
        assert {name: values[row] for name, values in both.items()} == pytest.approx(
            {name: values[0] for name, values in alone.items()}
        )
    assert len(measure(forms, labelings, folds)["auroc"]) == len(measure(forms, truth, folds, weights)["esa"]) == 6


def test_a_perfect_probe():
    truth = np.array([1.0, -1, 1, -1, 1, 1])
    a1 = np.where(truth > 0, 0.99, 0.01)
    found = measure(np.stack([a1, 1 - a1, 1 - a1, a1]), truth, np.array([0, 0, 0, 1, 1, 1]))
    assert found["esa"] == found["auroc"] == 1
    assert found["polar_consistency"] == pytest.approx(0)
    assert found["contradiction_index"] < 0.02
    assert found["silhouette"] == pytest.approx(1)


@pytest.mark.parametrize("p", [0.4, 0.6])
def test_the_contradiction_of_a_collapsed_probe_does_not_depend_on_its_orientation(p):
    """Of p = .4 everywhere the index is .32 one way round and .72 the other; chance decides which of them it is."""
    forms = np.full((4, 6), p)
    weights = np.random.default_rng(0).integers(0, 3, (5, 6)).astype(float)
    found = measure(forms, np.ones(6), np.zeros(6, dtype=int), np.concatenate([np.ones((1, 6)), weights]))
    assert found["contradiction_index"] == pytest.approx(0.52)


def test_a_probe_that_says_a_half_of_everything():
    found = measure(np.full((4, 6), 0.5), np.array([1.0, -1, 1, -1, 1, 1]), np.zeros(6, dtype=int))
    assert found["esa"] == found["auroc"] == found["contradiction_index"] == 0.5
    assert found["polar_consistency"] == found["silhouette"] == 0


def test_folds_of_another_scale_are_not_compared():
    """Within each fold the true statements score higher; over both folds together many false ones would."""
    truth = np.array([1.0, 1, 1, 1])
    a1 = np.array([0.3, 0.4, 0.8, 0.9])
    n1 = np.array([0.1, 0.2, 0.6, 0.7])
    folds = np.array([0, 0, 1, 1])
    assert measure(np.stack([a1, 1 - a1, n1, 1 - n1]), truth, folds)["auroc"] == 1
    assert measure(np.stack([a1, 1 - a1, n1, 1 - n1]), truth, 0 * folds)["auroc"] < 1


def test_scores_and_credit():
    forms = np.array([[0.9], [0.2], [0.5], [0.5]])
    assert scores(forms) == pytest.approx(np.array([[0.85], [0.5]]))
    assert credit(forms) == pytest.approx([0.25])  # the statement is right, its opposite half right


def test_turning_every_label_turns_the_metrics_of_labels():
    forms, truth, folds, _ = draw(1)
    there, back = measure(forms, truth, folds), measure(forms, -truth, folds)
    for name in ("esa", "auroc"):
        assert there[name] + back[name] == pytest.approx(1)
    assert there["silhouette"] == pytest.approx(back["silhouette"])


def test_pairs_that_count_nothing_leave_nothing():
    forms, truth, folds, _ = draw(1)
    found = measure(forms, truth, folds, weights=np.zeros(23))
    assert all(np.isnan(values).all() for values in found.values())


def test_auroc_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    labels = generator.random(40) < 0.4
    for values in generator.integers(0, 6, (5, 40)).astype(float):
        assert measure_auroc(values, labels) == pytest.approx(roc_auc_score(labels, values), abs=1e-12)
    assert np.isnan(measure_auroc(np.arange(3.0), np.ones(3, dtype=bool)))
