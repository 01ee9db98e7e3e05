import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from probing.probes import prompts
from probing.probes.prompts import (
    METRICS,
    PROBES,
    LabelledReadings,
    LabelledRows,
    fit_prompts,
    measure_auroc,
    measure_rows,
)
from probing.probes.supervised import fit_lda, fit_logistic, fit_mass_mean
from probing.statistics.folds import Splits, make_folds
from probing.statistics.permutation import permute_labels

FITS = {"logistic": fit_logistic, "mass_mean": fit_mass_mean, "lda": fit_lda}


def rows_of(labels, folds=4, units=None, seed=0):
    labels = np.asarray(labels, dtype=bool)
    units = np.arange(len(labels)) if units is None else np.asarray(units)
    return LabelledRows(labels, units, Splits.of(make_folds(units, folds, seed)))


def noise(rows, width, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def alternating(count):
    return np.arange(count) % 2 == 0


def auroc(found, probe, rows, labeling=0):
    labels = rows.labelings(max(labeling, 1), 0)[labeling]
    return float(measure_rows(found.probes[probe].logits[labeling], labels, rows.splits.folds)["auroc"][0])


@pytest.mark.parametrize("width", [6, 200])
@pytest.mark.parametrize("probe", PROBES)
def test_a_planted_answer_is_found(probe, width):
    rows = rows_of(alternating(40))
    states = noise(40, width) * 0.1
    states[:, 2] += torch.from_numpy(rows.labels) * 4.0
    found = fit_prompts(states, rows, refits=3, fresh=states + 0.01)
    assert auroc(found, probe, rows) == 1
    assert (found.probes[probe].inner[0] == 1).all()
    assert ((found.probes[probe].fresh > 0) == rows.labels).all()
    assert np.abs(found.probes[probe].weight).argmax() == 2


@pytest.fixture(scope="module")
def fitted_to_noise():
    """Rows, and eight times states of noise with what was fitted to them."""
    rows = rows_of(alternating(60))
    states = [noise(60, 300, seed) for seed in range(8)]
    return rows, [(each, fit_prompts(each, rows, refits=1)) for each in states]


@pytest.mark.parametrize("probe", PROBES)
def test_noise_of_many_features_separates_the_rows_it_was_fitted_to_and_no_others(fitted_to_noise, probe):
    rows, fitted = fitted_to_noise
    held, seen = [], []
    for states, found in fitted:
        held.append(auroc(found, probe, rows))
        seen.append(measure_auroc(states.double().numpy() @ found.probes[probe].weight, rows.labels))
    assert min(seen) > 0.98
    assert 0.42 < np.mean(held) < 0.58


def test_a_held_out_row_changes_nothing_but_itself():
    rows, states = rows_of(alternating(24)), noise(24, 5)
    before = fit_prompts(states, rows, refits=2)
    changed = states.clone()
    changed[7] += 50
    after = fit_prompts(changed, rows, refits=2)
    same = rows.splits.folds == rows.splits.folds[7]  # held out together with it
    same[7] = False
    for probe in PROBES:
        left, right = before.probes[probe].logits, after.probes[probe].logits
        assert np.allclose(left[:, same], right[:, same])
        assert not np.isclose(left[:, ~same], right[:, ~same]).all()
        assert not np.isclose(left[0, 7], right[0, 7])


def test_inner_scores_read_no_row_of_their_fold():
    rows, states = rows_of(alternating(32)), noise(32, 5)
    before = fit_prompts(states, rows, refits=2)
    fold = 1
    mine = rows.splits.folds == fold
    other = LabelledRows(np.where(mine, ~rows.labels, rows.labels), rows.units, rows.splits)
    changed = states.clone()
    changed[torch.from_numpy(mine)] *= -30
    after = fit_prompts(changed, other, refits=2)
    for probe in PROBES:
        assert np.isclose(before.probes[probe].inner[0, fold], after.probes[probe].inner[0, fold])
        assert not np.allclose(before.probes[probe].inner[0], after.probes[probe].inner[0])


@pytest.mark.parametrize("probe", PROBES)
def test_by_hand(probe):
    """Every labeling and split, fitted alone."""
    rows, states, fresh = rows_of(alternating(21), folds=3, seed=4), noise(21, 8), noise(5, 8, seed=1)
    found = fit_prompts(states, rows, refits=2, seed=5, fresh=fresh)
    folds = rows.splits.folds
    labelings = [rows.labels, *permute_labels(rows.labels, rows.units, 2, 5, rows.splits.train, folds)]

    def fitted(out, labels):
        kept = torch.from_numpy(~np.isin(folds, out))
        return FITS[probe](states[kept], torch.from_numpy(labels[kept.numpy()]).float()[:, None])

    for number, labels in enumerate(labelings):
        for fold in range(3):
            logits = fitted([fold], labels).logits(states)[:, 0].numpy()
            judged = folds == fold
            assert np.allclose(found.probes[probe].logits[number, judged], logits[judged], rtol=1e-3, atol=1e-4)
            scores = []
            for other in {0, 1, 2} - {fold}:
                logits, judged = fitted([fold, other], labels).logits(states)[:, 0].numpy(), folds == other
                if 0 < labels[judged].sum() < judged.sum():
                    scores.append(roc_auc_score(labels[judged], logits[judged]))
            assert found.probes[probe].inner[number, fold] == pytest.approx(np.mean(scores) if scores else 0.5)
    whole = fitted([], rows.labels)
    assert np.allclose(found.probes[probe].weight, whole.weight[:, 0], rtol=1e-3, atol=1e-4)
    assert np.allclose(found.probes[probe].bias, whole.bias, rtol=1e-3, atol=1e-4)
    assert np.allclose(found.probes[probe].fresh, whole.logits(fresh)[:, 0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("folds", [[0] * 30, [0] * 11 + [1] * 9 + [2] * 10])
def test_metrics_are_those_of_scikit_learn_with_rows_repeated(folds):
    rng = np.random.default_rng(0)
    folds = np.array(folds)
    logits, labels = np.round(rng.standard_normal(30), 1), rng.random(30) < 0.4  # with ties
    logits[3] = 0
    weights = rng.integers(0, 4, (5, 30)).astype(float)
    found = measure_rows(logits, labels, folds, weights)
    assert set(found) == set(METRICS)
    for number, weight in enumerate(weights.astype(int)):
        won = fought = 0.0
        for fold in set(folds.tolist()):
            index = np.repeat(np.flatnonzero(folds == fold), weight[folds == fold])
            fights = labels[index].sum() * (~labels[index]).sum()
            won, fought = won + roc_auc_score(labels[index], logits[index]) * fights, fought + fights
        index = np.repeat(np.arange(30), weight)
        right = np.where(logits[index] == 0, 0.5, (logits[index] > 0) == labels[index])
        assert found["auroc"][number] == pytest.approx(won / fought)
        assert found["accuracy"][number] == pytest.approx(right.mean())


def test_one_class_has_no_auroc():
    folds = np.zeros(4, dtype=np.int64)
    found = measure_rows(np.arange(4.0), np.ones(4, dtype=bool), folds)
    assert np.isnan(found["auroc"][0])
    assert found["accuracy"][0] == pytest.approx((3 + 0.5) / 4)


def test_the_best_place_on_noise_is_no_better_than_chance(monkeypatch):
    """Where it is chosen inside the folds. Chosen by the rows it is judged on, it would seem to be."""
    # Only the mass-mean probe is judged here; the others, which take fifty times as long, are left out.
    for name in ("fit_logistic", "fit_lda"):
        monkeypatch.setattr(prompts, name, lambda states, targets, *_, **__: fit_mass_mean(states, targets))
    rows = rows_of(alternating(30), folds=3)
    folds = rows.splits.folds
    nested, cheated = [], []
    for seed in range(15):
        places = [fit_prompts(noise(30, 4, seed=100 * seed + place), rows, refits=1) for place in range(8)]
        logits = np.stack([found.probes["mass_mean"].logits[0] for found in places])
        picked = np.stack([found.probes["mass_mean"].inner[0] for found in places]).argmax(axis=0)
        own = logits[picked[folds], np.arange(30)]
        nested.append(measure_rows(own, rows.labels, folds)["auroc"][0])
        cheated.append(max(measure_rows(each, rows.labels, folds)["auroc"][0] for each in logits))
    assert abs(np.mean(nested) - 0.5) < 0.06
    assert np.mean(cheated) > 0.58


def test_the_null_of_noise_is_where_the_value_is():
    rows = rows_of(alternating(40))
    found = fit_prompts(noise(40, 100), rows, refits=20)
    null = [auroc(found, "logistic", rows, at) for at in range(1, 21)]
    assert 0.42 < np.mean(null) < 0.58
    assert min(null) - 0.2 < auroc(found, "logistic", rows) < max(null) + 0.2


def test_states_that_differ_in_one_row_only():
    """Without it nothing can be learnt: a half for every row."""
    rows, states = rows_of(alternating(20)), torch.full((20, 3), 0.1)
    states[4] = 1.0
    found = fit_prompts(states, rows, refits=2)
    inside = rows.splits.folds == rows.splits.folds[4]
    for probe in PROBES:
        assert (found.probes[probe].logits[:, inside] == 0).all()
        assert np.isfinite(found.probes[probe].weight).all()


def test_rare_labels_are_permuted_so_that_every_split_has_both():
    labels = np.zeros(30, dtype=bool)
    folds = make_folds(range(30), 3, 0)
    labels[[np.flatnonzero(folds == fold)[0] for fold in range(3)]] = True
    found = fit_prompts(noise(30, 4), rows_of(labels, folds=3), refits=10)
    assert all(np.isfinite(array).all() for array in found.to_arrays().values())


def test_the_names_in_a_part_file_are_those_of_folders_that_are_there():
    """A run that was interrupted under an earlier version goes on: its part files are read by these names."""
    rows = rows_of(alternating(20))
    found = fit_prompts(noise(20, 3), rows, refits=1, fresh=noise(5, 3, 1)).to_arrays()
    assert set(found) == {f"{p}.{kind}" for p in PROBES for kind in ("logits", "inner", "weight", "bias", "fresh")}
    assert found["lda.bias"].shape == (1,)
    without = fit_prompts(noise(20, 3), rows, refits=1).to_arrays()
    assert set(found) - set(without) == {f"{probe}.fresh" for probe in PROBES}
    again = LabelledReadings.from_arrays(found).to_arrays()
    assert again.keys() == found.keys()
    assert all(np.array_equal(again[name], values) for name, values in found.items())


def test_probes_about_an_origin_read_the_states_themselves():
    rows, states = rows_of(alternating(20)), noise(20, 3) + 2
    about = fit_prompts(states - states.mean(dim=0), rows, refits=1, fresh=states - states.mean(dim=0))
    for probe in about.shift_origin(states.mean(dim=0)).probes.values():
        assert np.allclose(states.double().numpy() @ probe.weight + probe.bias, probe.fresh, atol=1e-5)
