import numpy as np
import pytest
import torch
from planted import coins, forms_of, quick, rows_of

from probing.probes import contrast, contrast_states
from probing.probes.ccs_options import CCSOptions
from probing.probes.ccs_states import normalize
from probing.probes.contrast import count_optima, fit_layer, orient
from probing.probes.contrast_readings import NULLS, PROBES, SUPERVISED, StatementReadings
from probing.probes.contrast_states import Prepared, center_about, have_same_states
from probing.probes.evaluate import credit, measure
from probing.statistics.folds import make_folds
from probing.statistics.permutation import draw_label_flips

PAIRS = 48
CCS = PROBES.index("ccs")


@pytest.fixture(scope="module")
def truth():
    return coins(PAIRS)


@pytest.fixture(scope="module")
def rows(truth):
    return rows_of(truth)


@pytest.fixture(scope="module")
def states(truth):
    return forms_of(np.where(truth, 1, -1), strength=3.0, noise=0.2)


@pytest.fixture(scope="module")
def arrays(states, rows):
    return fit_layer(states, rows, quick())


def judged(arrays, rows, probe="ccs"):
    at = PROBES.index(probe)
    credits = arrays.credits[at]
    signs = rows.splits.orientation(credits)
    forms = np.where(signs[rows.splits.folds] < 0, 1 - arrays.forms[at], arrays.forms[at])
    return {name: float(values[0]) for name, values in measure(forms, rows.truth, rows.splits.folds).items()}


def check_planted(found):
    assert found["esa"] == 1
    assert found["auroc"] == 1
    assert abs(found["polar_consistency"]) < 0.02
    assert found["contradiction_index"] < 0.1
    assert found["silhouette"] > 0.8


@pytest.mark.parametrize("probe", ["ccs", "crc_tpc", "vinc", "mass_mean", "logistic"])
def test_every_probe_finds_a_planted_answer(arrays, rows, probe):
    found = judged(arrays, rows, probe)
    assert found["esa"] == 1
    assert found["contradiction_index"] < 0.1
    if probe == "ccs":
        check_planted(found)


def test_no_number_of_the_published_evaluation(states, rows, monkeypatch):
    """Each test group about its own mean: that deletes what was planted, and the checks above see it."""

    def recentred(made, weight, bias):
        states = made.states[0].clone()
        half = states.shape[1] // 2
        for form in (0, 1):
            for side in (slice(0, half), slice(half, None)):
                true = torch.from_numpy(rows.labels)
                for group in (true, ~true):
                    states[form, side][group] -= states[form, side][group].mean(dim=0)
        logits = torch.stack([side @ weight + bias for side in states])
        return contrast._split_forms(logits)

    monkeypatch.setattr(contrast, "_predict", recentred)
    found = judged(fit_layer(states, rows, quick()), rows)
    with pytest.raises(AssertionError):
        check_planted(found)
    assert found["contradiction_index"] > 0.3  # what a random probe gets


def test_no_raw_states_for_a_probe_of_normalised_ones(states, rows, monkeypatch):
    """States are normalised for the held-out pairs as for the others: with raw ones the checks fail."""
    calls = []

    def once(forms, normalization="l2"):
        calls.append(normalization)
        return normalize(forms, normalization)

    monkeypatch.setattr(contrast_states, "normalize", once)
    fit_layer(states, rows, quick(random=1, pairings=0, refits=0))
    assert calls == ["l2"]  # one set of states, that training and reading share
    plain = contrast._predict
    raw = torch.stack([torch.cat([states[0], states[2]]), torch.cat([states[1], states[3]])])[None]

    def unnormalised(made, weight, bias):
        return plain(Prepared(raw, made.origin, made.centers, made.train), weight, bias)

    monkeypatch.setattr(contrast, "_predict", unnormalised)
    with pytest.raises(AssertionError):
        check_planted(judged(fit_layer(states, rows, quick()), rows))


def test_no_partner_in_training():
    """Where nothing but which pair it is can be known, a split by statements finds the label and ours does not.

    Each pair's sentences share a direction of their own; partners have opposite labels, so that a probe which has seen
    one knows the other.
    """
    truth = coins(40)
    generator = torch.Generator().manual_seed(2)
    own = torch.nn.functional.normalize(torch.randn(40, 400, generator=generator), dim=1) * 3
    states = own * torch.tensor([1.0, -1.0, -1.0, 1.0])[:, None, None]
    rows = rows_of(truth)
    found = judged(fit_layer(states, rows, quick(normalization="none")), rows, "logistic")
    assert abs(found["esa"] - 0.5) < 0.2
    made = Prepared.of(states, rows.splits, quick(normalization="none"))
    train = made.train.clone()
    train[40:] = True  # every opposite is seen in training: a split by statements
    leaking = Prepared(made.states, made.origin, made.centers, train)
    directions, _ = contrast._fit_supervised(leaking, rows, quick(refits=0))
    forms = contrast._predict(leaking, *directions["logistic"])
    held = rows.splits.held_out(forms)
    assert float(measure(held, rows.truth, rows.splits.folds)["esa"][0]) > 0.9


def test_a_held_out_pair_changes_nothing_but_itself(states, rows, arrays):
    """Neither centre, nor orientation, nor any weight of a split may come from the pairs that it leaves out."""
    fold = 1
    inside = rows.splits.folds == fold
    changed = states.clone()
    changed[:, inside] = torch.randn(4, int(inside.sum()), states.shape[2], generator=torch.Generator().manual_seed(4))
    again = fit_layer(changed, rows, quick())
    without = [at for at, out in enumerate(rows.splits.left_out) if fold in out]
    for probe in range(len(PROBES)):
        before, after = (each.credits[probe][~inside][:, without] for each in (arrays, again))
        assert np.array_equal(before, after), PROBES[probe]
        signs = [rows.splits.orientation(each.credits[probe])[without] for each in (arrays, again)]
        assert np.array_equal(*signs)
    for band in ("random", "pairings", "mass_mean_labels", "logistic_labels"):
        inner = [each.nulls[band].inner for each in (arrays, again)]
        assert np.array_equal(inner[0][:, fold], inner[1][:, fold]), band
        assert not np.array_equal(*inner)


def test_training_alone_sets_the_centre(states, rows):
    made = Prepared.of(states, rows.splits, quick())
    for split, out in enumerate(rows.splits.left_out):
        kept = np.concatenate([~np.isin(rows.splits.folds, out)] * 2)
        for form, sides in enumerate(((0, 2), (1, 3))):
            forms = torch.cat([normalize(states[side]) for side in sides])[torch.from_numpy(kept)]
            expected = torch.from_numpy(np.median(forms.numpy(), axis=0))
            assert torch.allclose(made.centers[0, form, split] + made.origin[form], expected, atol=1e-6)


def test_supervised_probes_see_each_form_about_its_own_centre(states, rows):
    made = Prepared.of(states, rows.splits, quick())
    for split, out in enumerate(rows.splits.left_out):
        kept = np.concatenate([~np.isin(rows.splits.folds, out)] * 2)
        for form, found in enumerate(made.rows_of(split)):
            whole = torch.cat([normalize(states[form]), normalize(states[2 + form])])[torch.from_numpy(kept)]
            expected = whole - (made.centers[0, form, split] + made.origin[form])
            assert torch.allclose(found, expected, atol=1e-6)


def test_the_origin_is_of_no_consequence(states, rows):
    moved, origin = center_about(states, "none")
    other, _ = center_about(states, "none", origin + 3)
    assert torch.allclose(moved, other + 3, atol=1e-5)


def test_polarity_turned_round_is_seen():
    """A probe of "not", or of anything that both forms share, affirms A and N alike: the sign of PC is negative."""
    shared = forms_of(np.ones(PAIRS), strength=0.0)
    shared[:, :, 0] += torch.tensor([2.0, -1.0, -1.0, -2.0])[:, None]  # A above N in both forms
    truth = coins(PAIRS)
    rows = rows_of(truth)
    arrays = fit_layer(shared, rows, quick())
    assert judged(arrays, rows)["esa"] < 0.75


def test_random_probes_are_a_band(arrays, rows):
    draws = arrays.nulls["random"].forms
    assert draws.shape == (12, 4, PAIRS)
    spread = [measure(draw, rows.truth, rows.splits.folds)["esa"][0] for draw in draws]
    assert max(spread) - min(spread) > 0.05
    assert (draws >= 0).all()
    assert (draws <= 1).all()
    assert np.std(np.log(draws / (1 - draws))) > 0.5  # as spread as the trained probe, not all near a half


def test_random_probes_and_closed_forms_are_as_spread_as_the_trained_one(states, rows, monkeypatch):
    """On the training rows of each split, or their PC and CI could not be compared."""
    read, plain = [], contrast._split_forms

    def noted(logits):
        read.append(logits)
        return plain(logits)

    monkeypatch.setattr(contrast, "_split_forms", noted)
    fit_layer(states, rows, quick(random=3, pairings=0, refits=0))
    train = torch.from_numpy(np.concatenate([rows.splits.train] * 2))
    random, (ccs, crc, vinc) = read[:3], read[3:6]
    for split in range(len(rows.splits.left_out)):
        spreads = [logits[:, train[:, split], split].square().mean().sqrt() for logits in (ccs, *random, crc, vinc)]
        assert spreads[0] > 1
        for other in spreads[1:]:
            assert torch.allclose(other, spreads[0], rtol=1e-4)


def test_permuted_pairings_are_worse_than_the_pairs(truth, rows):
    weak = forms_of(np.where(truth, 1, -1), strength=0.6, noise=0.4, width=40)
    arrays = fit_layer(weak, rows, quick(pairings=3))
    own = judged(arrays, rows)["esa"]
    permuted = [measure(draw, rows.truth, rows.splits.folds)["esa"][0] for draw in arrays.nulls["pairings"].forms]
    assert own > np.median(permuted)


def test_refits_to_permuted_labels_know_nothing(arrays, rows):
    flips = draw_label_flips(rows.units, 3, 0)
    for name in ("mass_mean_labels", "logistic_labels"):
        for draw, flip in zip(arrays.nulls[name].forms, flips, strict=True):
            assert 0.2 < measure(draw, rows.truth * flip, rows.splits.folds)["esa"][0] < 0.8


def test_refits_are_what_other_labels_would_give(states, truth):
    """Labels of pairs that share texts turn together, and inner scores are by the labels that were fitted."""
    units = np.repeat(np.arange(PAIRS // 2), 2)
    options = quick(random=1, pairings=0, ccs=CCSOptions(restarts=1, epochs=2))
    found = fit_layer(states, rows_of(truth, units=units), options)
    for draw, flip in enumerate(draw_label_flips(units, options.refits, 0)):
        assert np.array_equal(flip[::2], flip[1::2])
        other = rows_of(np.where(flip > 0, truth, ~truth), units=units)
        alone = fit_layer(states, other, options)
        for probe in SUPERVISED:
            at = PROBES.index(probe)
            assert np.allclose(found.nulls[f"{probe}_labels"].forms[draw], alone.forms[at], atol=1e-4)
            assert np.allclose(found.nulls[f"{probe}_labels"].inner[draw], other.splits.inner_scores(alone.credits[at]))


def test_turned_labels_turn_the_probes_that_saw_everything(states, truth, arrays):
    other = fit_layer(states, rows_of(~truth), quick(random=1, pairings=0, refits=0))
    for at, probe in enumerate(PROBES):
        for name in ("weight", "bias"):
            assert np.allclose(getattr(other, name)[at], -getattr(arrays, name)[at], rtol=1e-3, atol=1e-5), (
                probe,
                name,
            )
    assert abs(arrays.bias[CCS]) > 1e-3


def test_the_orientation_of_a_fold_comes_from_the_others(arrays, rows):
    credits = arrays.credits[CCS]
    forms = np.repeat(arrays.forms[CCS][..., None], credits.shape[1], axis=2)
    turned, inner = orient(forms, credits, rows)
    again, same = orient(1 - forms, -credits, rows)
    assert np.allclose(turned, again)
    assert np.allclose(inner, same)
    assert inner.shape == (rows.splits.count,)


def test_directions_that_saw_everything(arrays, states, rows):
    assert arrays.weight.shape == (len(PROBES), states.shape[2])
    yes = torch.nn.functional.normalize(states[0].double(), dim=1) - torch.from_numpy(arrays.centers[0])
    p = torch.sigmoid(yes @ torch.from_numpy(arrays.weight[CCS]) + arrays.bias[CCS])
    assert ((p > 0.5).numpy() == rows.labels).mean() > 0.95  # oriented, in the model's own coordinates
    assert arrays.cosines[CCS, PROBES.index("mass_mean")] > 0.4
    assert np.allclose(np.diag(arrays.cosines), 1)


def test_agreement_of_restarts(arrays):
    agreement = arrays.restart_agreement
    assert agreement.shape == (3, 3)
    assert np.allclose(np.diag(agreement), 1)
    assert (agreement >= 0.5).all()
    assert arrays.restart_loss.shape == (3,)
    assert count_optima(np.array([[1, 0.96, 0.6], [0.96, 1, 0.7], [0.6, 0.7, 1]])) == 2
    assert count_optima(np.ones((4, 4))) == 1


def test_the_marker_control_reads_the_same_probes(states, rows, arrays):
    which = np.array([3, 5, 40])
    found = fit_layer(states, rows, quick(), marker=(states[:, which], which)).marker
    assert np.allclose(found[:, :, which], arrays.forms[:, :, which], atol=1e-6)
    others = np.setdiff1d(np.arange(PAIRS), which)
    assert np.isnan(found[:, :, others]).all()
    swapped = states[[2, 3, 0, 1]][:, which]  # where the replacement turns the statement into its opposite
    turned = fit_layer(states, rows, quick(), marker=(swapped, which)).marker
    assert np.allclose(credit(turned[CCS][:, which]), -credit(arrays.forms[CCS][:, which]))


@pytest.mark.parametrize(("prominence", "wins"), [(6.0, "distractor"), (0.0, "truth")])
def test_a_prominent_distractor_wins(truth, rows, prominence, wins):
    """Banana: a word whose presence goes with yes in one way and with no in the other beats truth once it is large."""
    has = coins(PAIRS, 7)
    states = forms_of(np.where(truth, 1, -1), strength=1.0)
    distracted = states.clone()
    signs = torch.from_numpy(np.where(has, 1.0, -1.0)).float()
    distracted[..., 3] += prominence * torch.stack([signs, -signs, signs, -signs])
    arrays = fit_layer(states, rows, quick(), distracted=(distracted, has))

    def right(name):
        credits, splits = getattr(arrays.distractor, name), rows.splits.without_pairs
        return 0.5 + splits.held_out(credits * splits.orientation(credits)).mean()

    followed = {"truth": right("credits"), "distractor": right("follows")}
    other = {"truth": "distractor", "distractor": "truth"}[wins]
    assert followed[wins] > 0.95
    assert followed[other] < 0.7
    cosines = dict(zip(("distractor", "truth"), arrays.distractor.cosines, strict=True))
    assert cosines[wins] > cosines[other]


def test_a_layer_read_twice_is_the_same(states, rows, arrays):
    again = fit_layer(states, rows, quick()).to_arrays()
    assert again.keys() == arrays.to_arrays().keys()
    for name, values in arrays.to_arrays().items():
        assert np.array_equal(values, again[name], equal_nan=True), name


def test_the_names_in_a_part_file_are_those_of_folders_that_are_there(states, rows, arrays):
    """A run that was interrupted under an earlier version goes on: its part files are read by these names."""
    plain = {"forms", "credits", "weight", "bias", "centers", "cosines", "restart_loss", "restart_agreement"}
    nulls = {f"{name}.{kind}" for name in NULLS for kind in ("forms", "inner")}
    assert set(arrays.to_arrays()) == plain | nulls
    which, has = np.array([3, 5]), coins(PAIRS, 7)
    options = quick(random=1, pairings=0, refits=0, ccs=CCSOptions(restarts=1, epochs=2))
    whole = fit_layer(states, rows, options, marker=(states[:, which], which), distracted=(states, has)).to_arrays()
    distractor = {f"distractor.{name}" for name in ("forms", "credits", "follows", "cosines")}
    assert set(whole) == plain | nulls | {"marker.forms"} | distractor
    again = StatementReadings.from_arrays(whole).to_arrays()
    assert again.keys() == whole.keys()
    assert all(again[name] is values for name, values in whole.items())


def test_a_pair_without_contrast_is_found(states):
    same = states.clone()
    same[1, 4] = same[0, 4]
    same[3, 9] = same[2, 9]
    assert have_same_states(same).nonzero().flatten().tolist() == [4, 9]


def test_no_nulls_at_all(states, rows):
    arrays = fit_layer(states, rows, quick(pairings=0, refits=0))
    assert arrays.nulls["pairings"].forms.shape == (0, 4, PAIRS)
    assert arrays.nulls["logistic_labels"].inner.shape == (0, 4)


def test_lbfgs_too(states, rows):
    arrays = fit_layer(states, rows, quick(ccs=CCSOptions(restarts=2, epochs=100, optimizer="lbfgs")))
    check_planted(judged(arrays, rows))


def test_folds_are_of_units(truth):
    units = np.repeat(np.arange(PAIRS // 2), 2)
    assert len(set(make_folds(units.tolist(), 4)[::2] - make_folds(units.tolist(), 4)[1::2])) == 1
