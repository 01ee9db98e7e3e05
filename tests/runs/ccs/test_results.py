"""What is said of the arrays of places, without a model: assembled again by hand."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from planted import coins, forms_of, quick, rows_of
from scipy import stats

from probing.probes.ccs_options import CCSOptions
from probing.probes.contrast import fit_layer
from probing.probes.contrast_readings import PROBES, UNSUPERVISED
from probing.probes.evaluate import METRICS, measure, measure_pairs
from probing.runs.ccs.config import CCSConfig
from probing.runs.ccs.results import judge
from probing.runs.ccs.tables import make_tables
from probing.runs.common.results import ALL, CHOSEN
from probing.statistics.bootstrap import bootstrap_mean, draw_bootstrap_weights
from probing.statistics.intervals import FEW, auroc_interval, needs_share_interval, share_interval
from probing.statistics.permutation import draw_label_flips
from probing.types import ContrastPair

PAIRS, FOLDS, SEED = 36, 4, 3
PLACES = ["a", "b", "c"]
STRENGTHS = (0.25, 0.4, 0.3)
NUMBERS = {"random": 12, "refits": 6, "pairings": 1}
CONTROLLED = ("esa", "polar_consistency", "contradiction_index")
MARKED = np.array([2, 3, 5, 8, 13, 21, 34])


@pytest.fixture(scope="module")
def rows():
    units = np.arange(PAIRS)
    units[1::6] = units[::6]  # some pairs share their texts
    labels = coins(PAIRS)
    labels[1::6] = labels[::6]
    return rows_of(labels, FOLDS, units, SEED)


@pytest.fixture(scope="module")
def pairs(rows):
    names = ["negation", "concurrent", "negation", None]
    return [
        ContrastPair(str(at), f"S{at}", f"O{at}", bool(label), formulation=names[at % 4])
        for at, label in enumerate(rows.labels)
    ]


@pytest.fixture(scope="module")
def places(rows):
    """Arrays of three places: truth is planted in all of them, in one it is beaten by a word."""
    has = np.random.default_rng(0).permutation(PAIRS) < PAIRS // 2
    word = torch.from_numpy(np.where(has, 1.0, -1.0)).float()
    options = quick(centering="mean", ccs=CCSOptions(restarts=2, epochs=150, learning_rate=0.05, seed=SEED), **NUMBERS)
    found = []
    for number, strength in enumerate(STRENGTHS):
        forms = forms_of(rows.truth, strength, noise=0.5, seed=number, width=12)
        distracted = forms_of(rows.truth, 1.5, seed=number, width=12)
        distracted[..., 3] += (0.0, 8.0, 0.0)[number] * torch.stack([word, -word, word, -word])
        replaced = forms_of(rows.truth, 0.0, noise=0.5, seed=number + 50, width=12)[:, MARKED]
        readings = fit_layer(forms, rows, options, marker=(replaced, MARKED), distracted=(distracted, has))
        found.append(readings.to_arrays())
    return found


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    out = tmp_path_factory.mktemp("none")
    return CCSConfig(
        data="data", out=out, model="model", seed=SEED, folds=FOLDS, permutations=40, resamples=60, **NUMBERS
    )


@pytest.fixture(scope="module")
def judged(config, pairs, rows, places):
    return judge(config, pairs, rows, PLACES, lambda number: places[number])


@pytest.fixture(scope="module")
def oriented(rows, places):
    """Held-out probabilities [4 pair] and inner scores [fold] of every probe and place, by loops."""
    return {
        (probe, at): turned(arrays["forms"][index], arrays["credits"][index], rows)
        for index, probe in enumerate(PROBES)
        for at, arrays in enumerate(places)
    }


def turned(forms, credits, rows):
    """Each split turned by its own training pairs."""
    folds, out = rows.splits.folds, rows.splits.left_out
    signs = [-1.0 if credits[~np.isin(folds, left)][:, at].sum() < 0 else 1.0 for at, left in enumerate(out)]
    held = np.stack([forms[:, pair] if signs[fold] > 0 else 1 - forms[:, pair] for pair, fold in enumerate(folds)], 1)
    inner = [
        np.mean(
            [
                signs[at] * credits[folds == other, at].mean()
                for other in range(FOLDS)
                for at, left in enumerate(out)
                if other != fold and set(left) == {fold, other}
            ]
        )
        for fold in range(FOLDS)
    ]
    return held, np.array(inner)


def assembled(forms, inner, folds):
    """[4 pair] where every fold takes the place of the best inner score."""
    picked = np.stack(inner).argmax(axis=0)
    return np.stack([forms[picked[fold]][:, pair] for pair, fold in enumerate(folds)], axis=1)


def value_of(forms, truth, folds, metric):
    return float(measure(forms, truth, folds)[metric][0])


def share(value, null, high=True):
    """The value counted in."""
    return (1 + sum(each >= value if high else each <= value for each in null)) / (1 + len(null))


def one(frame, **where):
    for name, wanted in where.items():
        frame = frame[frame[name] == wanted]
    assert len(frame) == 1
    return frame.iloc[0]


def high(metric):
    return metric in ("esa", "auroc", "silhouette")


def ends(draws):
    return pytest.approx(np.quantile(draws, (0.025, 0.975)))


def ends_of_few(draws, rows):
    """Percentiles that lie as far out as the number of groups asks for."""
    count = len(np.unique(rows.units))
    outside = stats.norm.cdf(-stats.t.ppf(0.975, count - 1) * (count / (count - 1)) ** 0.5)
    return pytest.approx(np.quantile(draws, (outside, 1 - outside)))


@pytest.mark.parametrize("probe", PROBES)
def test_the_chosen_place_is_assembled_by_hand(judged, oriented, rows, probe):
    folds = rows.splits.folds
    forms, inner = zip(*(oriented[probe, at] for at in range(3)), strict=True)
    own = assembled(forms, inner, folds)
    assert np.array_equal(judged.forms[probe], own)
    assert judged.chosen[probe] == [PLACES[at] for at in np.stack(inner).argmax(axis=0)]
    assert judged.best[probe] == PLACES[int(np.mean(inner, axis=1).argmax())]
    times = draw_bootstrap_weights(rows.units, 60, SEED)
    for metric in METRICS:
        row = one(judged.results, subset=ALL, place=CHOSEN, probe=probe, metric=metric)
        assert row["value"] == pytest.approx(value_of(own, rows.truth, folds, metric))
        drawn, groups = measure(own, rows.truth, folds, times)[metric], len(np.unique(rows.units))
        expected = ends_of_few(drawn, rows)
        if metric in ("polar_consistency", "contradiction_index"):  # means, of which there is a better interval
            found = bootstrap_mean(measure_pairs(metric, own, rows.truth), 60, SEED, rows.units)
            expected = pytest.approx((found.low, found.high))
        if metric == "auroc" and groups // 2 * (1 - row["value"]) < 10:
            expected = pytest.approx(auroc_interval(row["value"], groups // 2, drawn))
        assert (row["low"], row["high"]) == expected


def test_the_places_that_are_chosen_differ(judged):
    """Or the tests here would not notice that nothing was chosen."""
    assert len({place for chosen in judged.chosen.values() for place in chosen}) > 1
    assert any(len(set(chosen)) > 1 for chosen in judged.chosen.values())


@pytest.mark.parametrize("metric", METRICS)
def test_random_probes_choose_their_place_too(judged, places, rows, metric):
    folds = rows.splits.folds
    null = [
        value_of(
            assembled(
                [arrays["random.forms"][draw] for arrays in places],
                [arrays["random.inner"][draw] for arrays in places],
                folds,
            ),
            rows.truth,
            folds,
            metric,
        )
        for draw in range(NUMBERS["random"])
    ]
    for probe in PROBES:
        row = one(judged.results, subset=ALL, place=CHOSEN, probe=probe, metric=metric)
        assert (row["random_low"], row["random_high"]) == ends(null)
        assert row["random_median"] == pytest.approx(np.median(null))
        expected = share(row["value"], null, high(metric))
        if metric == "polar_consistency":
            assert np.isnan(row["p_random"])
        else:
            assert row["p_random"] == row["p_random_corrected"] == pytest.approx(expected)


@pytest.mark.parametrize("probe", UNSUPERVISED)
def test_permuted_labels_orient_and_choose_again(judged, places, rows, probe):
    folds, index = rows.splits.folds, PROBES.index(probe)
    chosen, here = [], [[] for _ in PLACES]
    for flip in draw_label_flips(rows.units, 40, SEED):
        parts = [turned(a["forms"][index], a["credits"][index] * flip[:, None], rows) for a in places]
        forms, inner = zip(*parts, strict=True)
        chosen.append(value_of(assembled(forms, inner, folds), rows.truth * flip, folds, "esa"))
        for at, each in enumerate(forms):
            here[at].append({m: value_of(each, rows.truth * flip, folds, m) for m in ("esa", "auroc", "silhouette")})
    row = one(judged.results, subset=ALL, place=CHOSEN, probe=probe, metric="esa")
    assert row["p_labels"] == row["p_labels_corrected"] == pytest.approx(share(row["value"], chosen))
    assert (row["labels_low"], row["labels_high"]) == ends(chosen)
    for metric in ("esa", "auroc", "silhouette"):
        best = np.max([[round(each[metric], 12) for each in place] for place in here], axis=0)
        for at, place in enumerate(PLACES):
            row = one(judged.results, subset=ALL, place=place, probe=probe, metric=metric)
            null = [round(each[metric], 12) for each in here[at]]
            assert row["p_labels"] == pytest.approx(share(round(row["value"], 12), null)), (metric, place)
            assert row["p_labels_corrected"] == pytest.approx(share(round(row["value"], 12), best)), (metric, place)
    none = one(judged.results, subset=ALL, place=CHOSEN, probe=probe, metric="contradiction_index")
    assert np.isnan(none["p_labels"])  # labels enter into it by the orientation alone


@pytest.mark.parametrize("probe", ["mass_mean", "logistic"])
def test_refits_are_judged_on_the_labels_they_were_fitted_to(judged, places, rows, probe):
    folds = rows.splits.folds
    flips = draw_label_flips(rows.units, NUMBERS["refits"], SEED)
    for metric in ("esa", "contradiction_index"):
        draws = [
            [
                value_of(a[f"{probe}_labels.forms"][at], rows.truth * flip, folds, metric)
                for at, flip in enumerate(flips)
            ]
            for a in places
        ]
        best = np.max(draws, axis=0) if high(metric) else np.min(draws, axis=0)
        for at, place in enumerate(PLACES):
            row = one(judged.results, subset=ALL, place=place, probe=probe, metric=metric)
            assert row["p_labels"] == pytest.approx(share(row["value"], draws[at], high(metric)))
            assert row["p_labels_corrected"] == pytest.approx(share(row["value"], best, high(metric)))
        own = [
            value_of(
                assembled(
                    [a[f"{probe}_labels.forms"][at] for a in places],
                    [a[f"{probe}_labels.inner"][at] for a in places],
                    folds,
                ),
                rows.truth * flip,
                folds,
                metric,
            )
            for at, flip in enumerate(flips)
        ]
        row = one(judged.results, subset=ALL, place=CHOSEN, probe=probe, metric=metric)
        assert row["p_labels"] == pytest.approx(share(row["value"], own, high(metric)))


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric != "polar_consistency"])
def test_random_probes_corrected_for_places(judged, places, rows, metric):
    draws = np.array(
        [[value_of(draw, rows.truth, rows.splits.folds, metric) for draw in a["random.forms"]] for a in places]
    )
    best = draws.max(axis=0) if high(metric) else draws.min(axis=0)
    for at, place in enumerate(PLACES):
        row = one(judged.results, subset=ALL, place=place, probe="ccs", metric=metric)
        assert row["p_random"] == pytest.approx(share(row["value"], draws[at], high(metric)))
        assert row["p_random_corrected"] == pytest.approx(share(row["value"], best, high(metric)))


def of_formulation(pairs, name):
    return np.array([(pair.formulation or "") == name for pair in pairs])


def test_formulations_differ_by_so_much(judged, pairs, places, oriented, rows):
    folds = rows.splits.folds
    for first, second in combinations(["", "concurrent", "negation"], 2):
        masks = [of_formulation(pairs, name) for name in (first, second)]
        for metric in CONTROLLED:
            for probe in PROBES:
                away = []
                for at in range(3):
                    forms = oriented[probe, at][0]
                    left, right = (value_of(forms[:, mask], rows.truth[mask], folds[mask], metric) for mask in masks)
                    away.append(abs(left - right))
                row = one(judged.controls, control=f"formulations: {first} / {second}", probe=probe, metric=metric)
                assert row["value"] == pytest.approx(np.mean(away))
                # An absolute value has no interval of percentiles: none would ever hold 0.
                assert np.isnan([row["low"], row["high"]]).all()
            random = [
                np.mean(
                    [
                        abs(
                            value_of(
                                a["random.forms"][draw][:, masks[0]], rows.truth[masks[0]], folds[masks[0]], metric
                            )
                            - value_of(
                                a["random.forms"][draw][:, masks[1]], rows.truth[masks[1]], folds[masks[1]], metric
                            )
                        )
                        for a in places
                    ]
                )
                for draw in range(NUMBERS["random"])
            ]
            row = one(judged.controls, control=f"formulations: {first} / {second}", probe="random", metric=metric)
            assert row["value"] == pytest.approx(np.median(random))
            assert (row["low"], row["high"]) == ends(random)


def test_pairs_of_one_formulation(judged, pairs, oriented, rows):
    for name in ("", "concurrent", "negation"):
        mask = of_formulation(pairs, name)
        row = one(judged.results, subset=f"formulation={name}", place="b", probe="logistic", metric="auroc")
        forms = oriented["logistic", 1][0][:, mask]
        assert row["pairs"] == mask.sum()
        assert row["value"] == pytest.approx(value_of(forms, rows.truth[mask], rows.splits.folds[mask], "auroc"))


def test_a_formulation_of_few_pairs_is_marked(config, judged, pairs, rows):
    """Neither percentiles nor a conclusion: shares have the interval that holds for few rows, and a note says so."""
    said = make_tables(config, judged, facts_of(rows, pairs))["Notes"]["note"].str.cat(sep=" ")
    few = 0
    for name in ("", "concurrent", "negation"):
        mask = of_formulation(pairs, name)
        small = len(np.unique(rows.units[mask])) < FEW
        few += small
        for metric in ("polar_consistency", "median_abs_polar_consistency", "contradiction_index", "silhouette"):
            row = one(judged.results, subset=f"formulation={name}", place="b", probe="ccs", metric=metric)
            assert np.isnan(row["low"]) == np.isnan(row["high"]) == small
        row = one(judged.results, subset=f"formulation={name}", place="b", probe="ccs", metric="esa")
        assert row["low"] < row["high"]
        note = f"The formulation {name or '(none)'} has {mask.sum()} pairs, in fewer than 15 groups: too few"
        assert (note in said) == small
    assert 0 < few < 3


@pytest.mark.parametrize("probe", PROBES)
def test_the_marker_is_read_by_the_same_orientation(judged, places, oriented, rows, probe):
    """Before and after on the same pairs, by probes that are turned alike."""
    index, folds, truth = PROBES.index(probe), rows.splits.folds[MARKED], rows.truth[MARKED]
    for at, place in enumerate(PLACES):
        forms, credits = places[at]["marker.forms"][index], places[at]["credits"][index]
        after = turned(forms, credits, rows)[0][:, MARKED]
        before = oriented[probe, at][0][:, MARKED]
        for metric in CONTROLLED:
            values = {
                name: value_of(each, truth, folds, metric) for name, each in [("before", before), ("after", after)]
            }
            found = {
                name: one(judged.controls, control=f"marker:{name}", place=place, probe=probe, metric=metric)
                for name in ("before", "after", "change")
            }
            for name, value in values.items():
                assert found[name]["value"] == pytest.approx(value)
                assert found[name]["pairs"] == len(MARKED)
            assert found["change"]["value"] == pytest.approx(values["after"] - values["before"])
            assert len(np.unique(rows.units[MARKED])) < 15
            assert all(np.isnan(found["change"][end]) for end in ("low", "high"))


def facts_of(rows, pairs):
    return {
        "rows_by_status": {"ok": PAIRS},
        "groups": len(set(rows.units.tolist())),
        "pairs": len(pairs),
        "places": PLACES,
        "token": "the last token",
        "statements_true": int(rows.labels.sum()),
        "skipped_places": {},
    }


def test_p_values_of_places_at_their_floor_say_so(config, judged, pairs, rows):
    results = judged.results.copy()
    results.loc[results["place"] == "b", "p_labels_corrected"] = 1 / 41
    shown = make_tables(config, replace(judged, results=results), facts_of(rows, pairs))["By place"]
    found = [one(judged.results, subset=ALL, place=place, probe="ccs", metric="esa") for place in "ac"]
    first, last = (row["p_labels_corrected"] for row in found)
    assert min(first, last) > 1 / 41
    assert shown["p corrected"].tolist() == [first, "<= 0.024", last]


def test_a_prominent_distractor_wins_and_the_notes_say_so(config, judged, pairs, rows):
    tables = make_tables(config, judged, facts_of(rows, pairs))
    table = next(table for title, table in tables.items() if title.startswith("Distractor test")).set_index("place")
    assert table["follows"].tolist() == ["truth", "the word", "truth"]
    assert table.loc["b", "right about the word"] > 0.9
    assert table.loc["b", "right about truth"] < 0.75
    assert table.loc["a", "right about truth"] > 0.9
    assert table.loc["b", "cosine with the word"] > table.loc["a", "cosine with the word"] + 0.3
    said = tables["Notes"]["note"].str.cat(sep=" ")
    assert "CCS found the word and not truth at 1 of 3 places (b)" in said
    title = f"over {len(set(rows.units.tolist()))} groups of pairs"
    assert any(title in name for name in tables)


def test_a_distractor_that_never_wins(config, judged, pairs, rows, places):
    without = judge(config, pairs, rows, ["a", "c"], lambda number: places[2 * number])
    facts = facts_of(rows, pairs) | {"places": ["a", "c"]}
    said = make_tables(config, without, facts)["Notes"]["note"].str.cat(sep=" ")
    assert "'banana' did not win at any place" in said


def test_what_a_distractor_is_right_about(judged, places, rows):
    """Oriented by the pairs trained on; intervals over groups."""
    folds, times = rows.splits.folds, draw_bootstrap_weights(rows.units, 60, SEED)
    for at, place in enumerate(PLACES):
        for metric, name in (("truth", "credits"), ("distractor", "follows")):
            credits = places[at][f"distractor.{name}"]
            right = [
                credits[pair, fold] * (-1 if credits[folds != fold, fold].sum() < 0 else 1)
                for pair, fold in enumerate(folds)
            ]
            row = one(judged.controls, control="distractor", place=place, metric=metric)
            assert row["value"] == pytest.approx(0.5 + np.mean(right))
            drawn = [0.5 + np.average(right, weights=row) for row in times]
            share = 0.5 + np.array(right)
            exact = needs_share_interval(share, rows.units)
            expected = pytest.approx(share_interval(share, rows.units)) if exact else ends_of_few(drawn, rows)
            assert (row["low"], row["high"]) == expected


def test_trained_with_labels_there_is_no_null_of_labels(config, pairs, rows, places):
    found = judge(replace(config, supervision=1.0), pairs, rows, PLACES, lambda number: places[number])
    for place in (*PLACES, CHOSEN):
        assert np.isnan(one(found.results, subset=ALL, place=place, probe="ccs", metric="esa")["p_labels"])
        assert one(found.results, subset=ALL, place=place, probe="vinc", metric="esa")["p_labels"] > 0
    assert "was trained with the labels" in " ".join(
        make_tables(replace(config, supervision=1.0), found, facts_of(rows, pairs))["Notes"]["note"]
    )


def test_every_statement_true(config, pairs, places, rows):
    """One side only: the probes answer by wording, nothing is undefined, and the notes say so."""
    ours = rows_of(np.ones(PAIRS), FOLDS, rows.units, SEED)
    layers = [fit_layer(forms_of(ours.truth, 1.0, seed=at, width=12), ours, quick(**NUMBERS)) for at in (0, 1)]
    arrays = [layer.to_arrays() for layer in layers]
    true = [replace(pair, label=True) for pair in pairs]
    found = judge(config, true, ours, ["a", "b"], lambda number: arrays[number])
    row = one(found.results, subset=ALL, place=CHOSEN, probe="ccs", metric="esa")
    assert row["value"] == 1
    assert row["p_labels"] == pytest.approx(1 / 41)
    facts = facts_of(ours, pairs) | {"places": ["a", "b"]}
    assert "In 100% of the pairs" in " ".join(make_tables(config, found, facts)["Notes"]["note"])
