"""What is said of the arrays of places, without a model: assembled again by hand."""

import numpy as np
import pytest
import torch
from scipy import stats

from probing.probes.prompts import METRICS, PROBES, LabelledRows, fit_prompts, measure_rows
from probing.runs.common.results import CHOSEN, SURFACE
from probing.runs.probe.config import ProbeConfig
from probing.runs.probe.results import judge
from probing.runs.probe.tables import make_tables, notes
from probing.statistics.bootstrap import draw_bootstrap_weights
from probing.statistics.folds import Splits, make_folds
from probing.statistics.intervals import auroc_interval, needs_share_interval, share_interval

ROWS, FRESH, FOLDS, REFITS, SEED = 40, 24, 4, 5, 2
PLACES = ["a", "b", "c"]


def states_of(labels, number):
    states = torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(len(labels) + number))
    states[:, 0] += torch.from_numpy(labels) * (0.2, 0.9, 1.0, 0.5)[number]
    return states


@pytest.fixture(scope="module")
def rows():
    units = np.repeat(np.arange(ROWS // 2), 2)
    labels = (np.random.default_rng(1).random(ROWS // 2) < 0.5)[units]
    return LabelledRows(labels, units, Splits.of(make_folds(units, FOLDS, SEED)))


@pytest.fixture(scope="module")
def fresh():
    units = np.repeat(np.arange(FRESH // 3), 3)
    return (units % 2 == 0), units


@pytest.fixture(scope="module")
def places(rows, fresh):
    """Arrays of three places, and of the baseline."""
    return [
        fit_prompts(states_of(rows.labels, at), rows, REFITS, SEED, fresh=states_of(fresh[0], at)).to_arrays()
        for at in range(4)
    ]


@pytest.fixture(scope="module")
def judged(rows, fresh, places, tmp_path_factory):
    out = tmp_path_factory.mktemp("none")
    config = ProbeConfig(data="data", out=out, model="model", seed=SEED, folds=FOLDS, refits=REFITS, resamples=50)
    return judge(config, rows, fresh, PLACES, lambda number: places[number])


def one(frame, **where):
    for name, wanted in where.items():
        frame = frame[frame[name] == wanted]
    assert len(frame) == 1
    return frame.iloc[0]


def value_of(logits, labels, folds, metric, weights=None):
    found = measure_rows(logits, labels, folds, weights)[metric]
    return float(found[0]) if weights is None else found


def ends(draws, units):
    """Percentiles that lie as far out as the number of groups asks for."""
    count = len(np.unique(units))
    outside = stats.norm.cdf(-stats.t.ppf(0.975, count - 1) * (count / (count - 1)) ** 0.5)
    return pytest.approx(np.quantile(draws[np.isfinite(draws)], (outside, 1 - outside)))


def ends_of_auroc(value, draws, labels, units, folds):
    """Of so few couples of both labels that have no unit in common, symmetric in the log-odds."""
    couples = 0
    for fold in np.unique(folds):
        yes, no = (set(units[(folds == fold) & (labels == side)]) for side in (True, False))
        couples += min(len(yes), len(no), len(yes | no) // 2)
    found = auroc_interval(value, couples, draws)
    return ends(draws, units) if found is None else pytest.approx(found)


def share(value, null):
    return pytest.approx((1 + sum(each >= value for each in null)) / (1 + len(null)))


def assembled(places, probe, labeling, folds):
    """Each fold at the place that was best without it, for this labeling."""
    picked = np.stack([each[f"{probe}.inner"][labeling] for each in places[:3]]).argmax(axis=0)
    logits = [places[picked[fold]][f"{probe}.logits"][labeling][row] for row, fold in enumerate(folds)]
    return np.array(logits), [PLACES[at] for at in picked]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("probe", PROBES)
def test_the_chosen_place_and_its_null_choose_for_themselves(judged, places, rows, probe, metric):
    folds, labelings = rows.splits.folds, rows.labelings(REFITS, SEED)
    each = [assembled(places, probe, at, folds) for at in range(1 + REFITS)]
    assert np.array_equal(judged.logits[probe], each[0][0])
    assert judged.chosen[probe] == each[0][1]
    inner = [place[f"{probe}.inner"][0].mean() for place in places[:3]]
    assert judged.best[probe] == PLACES[int(np.argmax(inner))]
    row = one(judged.results, set="held out", place=CHOSEN, probe=probe, metric=metric)
    assert row["value"] == pytest.approx(value_of(each[0][0], rows.labels, folds, metric))
    null = [value_of(logits, labels, folds, metric) for (logits, _), labels in zip(each, labelings, strict=True)][1:]
    assert row["p_labels"] == row["p_labels_corrected"] == share(row["value"], null)
    assert (row["labels_low"], row["labels_high"]) == pytest.approx(np.quantile(null, (0.025, 0.975)))


def test_the_places_that_are_chosen_differ(judged, places, rows):
    """Or the test above would not notice that nothing was chosen."""
    every = [assembled(places, probe, at, rows.splits.folds)[1] for probe in PROBES for at in range(1 + REFITS)]
    assert any(len(set(chosen)) > 1 for chosen in every)
    assert any(chosen != every[0] for chosen in every)
    assert set(np.concatenate(list(judged.chosen.values()))) != {PLACES[0]}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("probe", PROBES)
def test_places_beside_their_nulls_and_the_baseline(judged, places, rows, probe, metric):
    folds, labelings = rows.splits.folds, rows.labelings(REFITS, SEED)
    nulls = [
        [value_of(place[f"{probe}.logits"][at], labelings[at], folds, metric) for at in range(1, 1 + REFITS)]
        for place in places[:3]
    ]
    times, surface = draw_bootstrap_weights(rows.units, 50, SEED), places[3]["logistic.logits"][0]
    for at, place in enumerate(PLACES):
        row = one(judged.results, set="held out", place=place, probe=probe, metric=metric)
        own = places[at][f"{probe}.logits"][0]
        drawn = value_of(own, rows.labels, folds, metric, times)
        assert row["value"] == pytest.approx(value_of(own, rows.labels, folds, metric))
        right = np.where(own == 0, 0.5, (own > 0) == rows.labels)
        exact = metric == "accuracy" and needs_share_interval(right, rows.units)
        expected = pytest.approx(share_interval(right, rows.units)) if exact else ends(drawn, rows.units)
        if metric == "auroc":
            expected = ends_of_auroc(row["value"], drawn, rows.labels, rows.units, folds)
        assert (row["low"], row["high"]) == expected
        assert row["p_labels"] == share(row["value"], nulls[at])
        assert row["p_labels_corrected"] == share(row["value"], np.max(nulls, axis=0))
        away = drawn - value_of(surface, rows.labels, folds, metric, times)
        assert row["above_surface"] == pytest.approx(row["value"] - value_of(surface, rows.labels, folds, metric))
        assert (row["above_surface_low"], row["above_surface_high"]) == ends(away, rows.units)


def test_the_baseline_has_its_own_null(judged, places, rows):
    folds, labelings = rows.splits.folds, rows.labelings(REFITS, SEED)
    logits = places[3]["logistic.logits"]
    null = [value_of(logits[at], labelings[at], folds, "auroc") for at in range(1, 1 + REFITS)]
    row = one(judged.results, place=SURFACE, set="held out", metric="auroc")
    assert row["p_labels"] == share(row["value"], null)
    assert row["value"] == pytest.approx(value_of(logits[0], rows.labels, folds, "auroc"))
    assert np.isnan(row["above_surface"])


@pytest.mark.parametrize("probe", PROBES)
def test_fresh_rows_are_resampled_by_their_units(judged, places, fresh, probe):
    labels, units = fresh
    folds, times = np.zeros(FRESH, dtype=np.int64), draw_bootstrap_weights(units, 50, SEED)
    surface = places[3]["logistic.fresh"]
    for at, place in enumerate(PLACES):
        row = one(judged.results, set="fresh", place=place, probe=probe, metric="auroc")
        own = places[at][f"{probe}.fresh"]
        drawn = value_of(own, labels, folds, "auroc", times)
        assert row["value"] == pytest.approx(value_of(own, labels, folds, "auroc"))
        assert (row["low"], row["high"]) == ends_of_auroc(row["value"], drawn, labels, units, folds)
        assert (row["above_surface_low"], row["above_surface_high"]) == ends(
            drawn - value_of(surface, labels, folds, "auroc", times), units
        )
        assert np.isnan(row["p_labels"])
    assert np.array_equal(judged.fresh[probe], places[PLACES.index(judged.best[probe])][f"{probe}.fresh"])


def test_p_values_of_places_at_their_floor_say_so(judged, rows):
    config = ProbeConfig(data="data", out="out", model="model", seed=SEED, folds=FOLDS, refits=REFITS)
    facts = {"groups": ROWS // 2, "rows": ROWS, "rows_positive": int(rows.labels.sum()), "rows_by_status": {"ok": ROWS}}
    tables = make_tables(config, judged, facts | {"positive": "yes", "places": PLACES})
    shown = next(table for title, table in tables.items() if title.startswith("By place"))["p corrected"]
    rows = [one(judged.results, set="held out", place=place, probe="logistic", metric="auroc") for place in PLACES]
    p = [row["p_labels_corrected"] for row in rows]
    assert min(p) == pytest.approx(1 / (1 + REFITS))
    assert shown.tolist() == ["<= 0.167" if each == min(p) else each for each in p]


def test_few_fresh_rows_are_said(judged, rows):
    config = ProbeConfig(data="data", out="out", model="model", seed=SEED, folds=FOLDS, refits=REFITS)
    facts = {"groups": ROWS // 2, "rows": ROWS, "rows_positive": int(rows.labels.sum()), "positive": "yes"}
    said = " ".join(notes(config, judged, facts | {"fresh": {"groups": FRESH // 3}}))
    assert "The intervals are of 8 groups of fresh rows: with fewer than 15 they may be too narrow." in said
    assert "fresh rows" not in " ".join(notes(config, judged, facts | {"fresh": {"groups": 15}}))
