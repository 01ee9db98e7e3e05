"""What is said of the arrays of places, assembled again by hand."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from probing.probes.controls import Splits, make_folds, p_value
from probing.probes.prompts import PROBES, LabelledRows
from probing.runs.probe import ProbeConfig
from probing.runs.probe_results import BASELINE, CHOSEN, SURFACE, judge

ROWS, PLACES, REFITS = 40, ["resid_post:0", "resid_post:1", "resid_post:2"], 6


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return ProbeConfig(
        data="x", model="m", out=tmp_path_factory.mktemp("out"), refits=REFITS, resamples=300, folds=4, seed=3
    )


@pytest.fixture(scope="module")
def rows():
    labels = np.random.default_rng(0).random(ROWS) < 0.5
    return LabelledRows(labels, np.arange(ROWS), Splits.of(make_folds(range(ROWS), 4, 3)))


@pytest.fixture(scope="module")
def arrays(rows):
    """Logits that know something of their own labels, more at the later places; the baseline last."""
    rng = np.random.default_rng(1)
    labelings = rows.labelings(REFITS, 3)
    found = []
    for place in range(len(PLACES) + 1):
        each = {}
        for probe in PROBES:
            each[f"{probe}.logits"] = rng.standard_normal((REFITS + 1, ROWS)) + (place + 1) * 0.5 * labelings
            each[f"{probe}.inner"] = rng.random((REFITS + 1, 4))
            each[f"{probe}.weight"], each[f"{probe}.bias"] = rng.standard_normal(5), rng.standard_normal(1)
            each[f"{probe}.fresh"] = rng.standard_normal(12)
        found.append(each)
    return found


FRESH = np.arange(12) % 2 == 0


@pytest.fixture(scope="module")
def judged(config, rows, arrays):
    return judge(config, rows, (FRESH, np.arange(12)), PLACES, lambda number: arrays[number])


def auroc(logits, labels, folds):
    """Within folds, each weighed by the couples that it compares."""
    won = fought = 0.0
    for fold in np.unique(folds):
        here = folds == fold
        couples = labels[here].sum() * (~labels[here]).sum()
        if couples:
            won, fought = won + couples * roc_auc_score(labels[here], logits[here]), fought + couples
    return won / fought


def row_of(judged, **where):
    found = judged.results
    for name, value in {"set": "held out", "metric": "auroc", **where}.items():
        found = found[found[name] == value]
    assert len(found) == 1
    return found.iloc[0]


def assembled(arrays, rows, probe, labeling):
    """Logits of the place that is best for each fold, by the inner scores of that labeling."""
    best = np.stack([each[f"{probe}.inner"][labeling] for each in arrays[:-1]]).argmax(axis=0)
    return np.array(
        [arrays[best[fold]][f"{probe}.logits"][labeling, row] for row, fold in enumerate(rows.splits.folds)]
    )


@pytest.mark.parametrize("probe", PROBES)
def test_the_chosen_place_and_its_null(judged, arrays, rows, probe):
    folds, labelings = rows.splits.folds, rows.labelings(REFITS, 3)
    found = row_of(judged, place=CHOSEN, probe=probe)
    own = assembled(arrays, rows, probe, 0)
    assert np.array_equal(judged.logits[probe], own)
    assert found["value"] == pytest.approx(auroc(own, rows.labels, folds))
    null = np.array([auroc(assembled(arrays, rows, probe, at), labelings[at], folds) for at in range(1, REFITS + 1)])
    assert found["labels_median"] == pytest.approx(np.median(null))
    assert found["p_labels"] == found["p_labels_corrected"] == p_value(found["value"], null)


@pytest.mark.parametrize("probe", PROBES)
def test_each_place_its_null_and_its_correction(judged, arrays, rows, probe):
    folds, labelings = rows.splits.folds, rows.labelings(REFITS, 3)
    nulls = np.array(
        [
            [auroc(each[f"{probe}.logits"][at], labelings[at], folds) for at in range(1, REFITS + 1)]
            for each in arrays[:-1]
        ]
    )
    for at, place in enumerate(PLACES):
        found = row_of(judged, place=place, probe=probe)
        assert found["value"] == pytest.approx(auroc(arrays[at][f"{probe}.logits"][0], rows.labels, folds))
        assert found["p_labels"] == p_value(found["value"], nulls[at])
        assert found["p_labels_corrected"] == p_value(found["value"], nulls.max(axis=0))


def test_above_the_baseline(judged, arrays, rows):
    """The difference is of the same rows, and so is its interval: narrower than that of two separate ones."""
    folds = rows.splits.folds
    baseline = auroc(arrays[-1][f"{BASELINE}.logits"][0], rows.labels, folds)
    assert row_of(judged, place=SURFACE, probe=BASELINE)["value"] == pytest.approx(baseline)
    for at, place in enumerate(PLACES):
        found = row_of(judged, place=place, probe="lda")
        own = auroc(arrays[at]["lda.logits"][0], rows.labels, folds)
        assert found["above_surface"] == pytest.approx(own - baseline)
        assert found["above_surface_low"] < found["above_surface"] < found["above_surface_high"]
        assert found["above_surface_high"] < found["high"]  # which is no difference
    new = row_of(judged, set="fresh", place=PLACES[0], probe="lda")
    fresh = [
        roc_auc_score(FRESH, each[name]) for each, name in ((arrays[0], "lda.fresh"), (arrays[-1], "logistic.fresh"))
    ]
    assert new["value"] == pytest.approx(fresh[0])
    assert new["above_surface"] == pytest.approx(fresh[0] - fresh[1])


def test_the_places_that_are_chosen_differ(judged):
    assert any(len(set(places)) > 1 for places in judged.chosen.values())


def test_fresh_rows_are_read_at_the_best_place(judged, arrays):
    for probe in PROBES:
        inner = [each[f"{probe}.inner"][0].mean() for each in arrays[:-1]]
        assert judged.best[probe] == PLACES[int(np.argmax(inner))]
        assert np.array_equal(judged.fresh[probe], arrays[int(np.argmax(inner))][f"{probe}.fresh"])
    assert np.array_equal(judged.fresh[SURFACE], arrays[-1]["logistic.fresh"])
