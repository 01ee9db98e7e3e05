import threading

import numpy as np
import pytest
import torch
from planted import coins, forms_of, rows_of

import probing
from probing.errors import NotFinite
from probing.kernels.ccs_step import ccs_step
from probing.probes import ccs, ccs_blocks, ccs_states, ccs_training
from probing.probes.ccs import fit_ccs
from probing.probes.ccs_options import CCSOptions
from probing.probes.ccs_states import centers_of, normalize
from probing.probes.ccs_training import train_probes
from probing.probes.controls import shuffle_pairings

EXACT = {"normalization": "none"}


def sides(states):
    """[4 pair width] as yes and no forms [pair 1 width] of statements, then opposites."""
    a1, a0, n1, n0 = states
    return torch.cat([a1, n1])[:, None], torch.cat([a0, n0])[:, None]


@pytest.fixture(scope="module")
def truth():
    return coins(60)


@pytest.fixture(scope="module")
def planted(truth):
    return sides(forms_of(np.where(truth, 1, -1), strength=2.0))


@pytest.fixture(scope="module")
def labels(truth):
    return torch.from_numpy(np.concatenate([truth, ~truth]))


def test_a_planted_answer_is_found(planted, labels):
    probe = fit_ccs(*planted, labels=labels)
    assert ((probe.score(*planted)[:, 0] > 0.5) == labels).all()
    assert probe.oriented
    assert float(probe.loss) < 0.01


def test_turned_labels_turn_the_probe(planted, labels):
    there, back = fit_ccs(*planted, labels=labels), fit_ccs(*planted, labels=~labels)
    assert torch.equal(there.weight, -back.weight)
    assert torch.allclose(there.score(*planted) + back.score(*planted), torch.ones(120, 1))
    assert not fit_ccs(*planted).oriented


def alone(states, options, start):
    """One probe, as anyone would train it: its own loop, autograd, torch's optimiser."""
    x1, x0 = states
    weight, bias = (value.clone().requires_grad_() for value in start)
    optimizer = torch.optim.AdamW([weight, bias], lr=options.learning_rate, weight_decay=options.weight_decay)
    for _ in range(options.epochs):
        optimizer.zero_grad()
        p, q = torch.sigmoid(x1 @ weight + bias), torch.sigmoid(x0 @ weight + bias)
        least = torch.minimum(p, q)
        if options.loss == "symmetric":
            least = torch.stack([p, q, 1 - p, 1 - q]).amin(dim=0)
        loss = ((p - (1 - q)) ** 2 + least**2).mean()
        loss.backward()
        optimizer.step()
    return weight.detach(), bias.detach(), float(loss.detach())


@pytest.mark.parametrize("loss", ["original", "symmetric"])
def test_every_probe_is_as_if_trained_alone(planted, loss):
    """All entries, splits and restarts together, against a loop over them on states that are really centred."""
    options = CCSOptions(loss=loss, restarts=3, epochs=400)
    other = sides(forms_of(np.where(coins(60, 5), 1, -1), seed=9))
    states = torch.stack([torch.stack([normalize(side)[:, 0] for side in both]) for both in (planted, other)])
    train = torch.rand(120, 4, generator=torch.Generator().manual_seed(3)) < 0.7
    centers = centers_of(states, train)
    trained = train_probes(states, centers, train, options)
    starts = ccs_training.starting_points(24, options)
    worst = 0.0
    for entry in range(2):
        for split in range(4):
            rows = [states[entry, form, train[:, split]] - centers[entry, form, split] for form in (0, 1)]
            for restart in range(3):
                weight, bias, value = alone(rows, options, (starts[0][:, restart].float(), starts[1][restart].float()))
                own = trained.weight[entry, :, split, restart], trained.bias[entry, split, restart]
                for side in rows:
                    away = torch.sigmoid(side @ weight + bias) - torch.sigmoid(side @ own[0] + own[1])
                    worst = max(worst, float(away.abs().max()))
                assert float(trained.loss[entry, split, restart]) == pytest.approx(value, abs=1e-3)
    assert worst < 1e-4


def plainly(training, train, options, targets=None):
    """One training by itself: all rows in one product, those that a split does not train on with a weight of zero."""
    entries, _, _, width = training.states.shape
    weight, bias = (each.to(training.states) for each in ccs_training.starting_points(width, options))
    weight = weight.T.repeat(train.shape[1], 1).expand(entries, -1, -1).clone()
    bias = bias.repeat(train.shape[1]).expand(entries, -1).clone()
    shares = (train / train.sum(dim=0)).to(training.states)
    optimizer = torch.optim.AdamW([weight, bias], lr=options.learning_rate, weight_decay=options.weight_decay)
    for _ in range(options.epochs):
        step = ccs_step(
            training.states, training.centers, shares, weight, bias, options.loss, targets, options.supervision
        )
        weight.grad, bias.grad = step.weight, step.bias
        optimizer.step()
    shape = (entries, train.shape[1], options.restarts)
    return weight.detach().view(*shape, width).permute(0, 3, 1, 2), bias.detach().view(shape)


@pytest.fixture
def folded():
    """Two sets of states of 60 pairs, the first with two permuted pairings; the rows of the splits of five folds."""
    splits = rows_of(coins(60), folds=5).splits
    train = torch.from_numpy(np.concatenate([splits.train] * 2))
    partners = shuffle_pairings(np.concatenate([splits.folds] * 2), 2)
    pairings = torch.from_numpy(np.concatenate([np.arange(120)[None], partners]))
    trainings = []
    for seed, chosen in ((0, pairings), (9, None)):
        both = sides(forms_of(np.where(coins(60), 1, -1), strength=2.0, seed=seed).double())
        states = torch.stack([normalize(side)[:, 0] for side in both])[None]
        trainings.append(ccs_blocks.Training(states, centers_of(states, train), chosen))
    return trainings, train


def in_float32(training):
    return ccs_blocks.Training(training.states.float(), training.centers.float(), training.pairings)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Sums are in another order. Over 200 epochs float64 keeps ten digits; in float32 a row may cross the kink of the
    # loss an epoch sooner, as in the test against autograd above.
    [(torch.float64, 1e-9), (torch.float32, 1e-4)],
)
@pytest.mark.parametrize("supervision", [0.0, 0.5])
def test_trainings_by_folds_and_with_pairings_are_those_of_all_rows(folded, dtype, tolerance, supervision):
    """Products of the rows of a fold with the probes that train on it, and logits that change places for a pairing."""
    options = CCSOptions(restarts=2, epochs=200, supervision=supervision)
    trainings, train = folded
    trainings = trainings if dtype == torch.float64 else [in_float32(each) for each in trainings]
    truth = torch.from_numpy(np.concatenate([coins(60), ~coins(60)]))
    blocks = ccs_blocks.blocks_of(trainings, train, 2)
    assert [len(block.states[0, 0]) for block in blocks] == [24] * 10  # no row with a probe that leaves it out
    assert [block.probes.shape for block in blocks] == [(1, 11 * 3 * 2)] * 5 + [(1, 11 * 2)] * 5
    mixed, own = trainings
    found = ccs_training.train_together(trainings, train, options, truth)
    expected = [
        *(ccs_blocks.Training(with_partners(mixed.states, each), mixed.centers) for each in mixed.pairings),
        own,
    ]
    entries = [*(found[0].entry(at) for at in range(3)), found[1]]
    for trained, alone in zip(entries, expected, strict=True):
        weight, bias = plainly(alone, train, options, truth.to(dtype))
        for restart in range(2):
            probes = (
                (trained.weight[..., restart], trained.bias[..., restart]),
                (weight[..., restart], bias[..., restart]),
            )
            p, q = (torch.sigmoid(ccs_states.logits_of(alone.states, alone.centers, *probe)) for probe in probes)
            assert float((p - q).abs().max()) < tolerance
        assert float((p - 0.5).abs().max()) > 0.1  # they have learned something to differ in


def test_a_training_with_splits_of_its_own_is_part_of_one_with_all(folded):
    (_, every), train = folded
    kept = [0, 1, 2, 3, 4, 15]  # without one fold, and with every row
    few = ccs_blocks.Training(every.states, every.centers[:, :, kept], train=train[:, kept])
    options = CCSOptions(restarts=2, epochs=50)
    blocks = ccs_blocks.blocks_of([every, few], train, 2)
    assert [block.probes.shape for block in blocks] == [(1, 11 * 2)] * 5 + [(1, 5 * 2)] * 5
    whole, part = ccs_training.train_together([every, few], train, options)
    assert torch.allclose(part.weight, whole.weight[:, :, kept], atol=1e-10)
    assert torch.allclose(part.loss, whole.loss[:, kept], atol=1e-12)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("optimizer", ["adamw", "lbfgs"])
def test_threads_that_share_the_folds_change_no_byte(folded, two_threads, optimizer, monkeypatch):
    options = CCSOptions(restarts=2, epochs=20, optimizer=optimizer)
    seen, step = set(), ccs_blocks.ccs_step

    def noted(**arguments):
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return step(**arguments)

    monkeypatch.setattr(ccs_blocks, "ccs_step", noted)
    together = ccs_training.train_together(*folded, options)
    assert torch.get_num_threads() == 2
    assert {threads for _, threads in seen} == {1}
    assert threading.get_ident() not in {thread for thread, _ in seen}
    torch.set_num_threads(1)
    for mine, alone in zip(together, ccs_training.train_together(*folded, options), strict=True):
        assert torch.equal(mine.weight, alone.weight)
        assert torch.equal(mine.loss, alone.loss)


def test_a_training_that_fails_gives_the_threads_back(folded, two_threads):
    with pytest.raises(NotFinite, match="learning rate"):
        ccs_training.train_together(*folded, CCSOptions(restarts=1, epochs=5, learning_rate=1e300))
    assert torch.get_num_threads() == 2


def with_partners(states, partners):
    mixed = states.clone()
    mixed[:, 1] = states[:, 1, partners]
    return mixed


def test_rows_left_out_in_any_way_are_one_block(folded):
    train = torch.rand(120, 4, generator=torch.Generator().manual_seed(3)) < 0.7
    blocks = ccs_blocks.blocks_of([folded[0][1]], train, 2)
    assert [block.states.shape[2] for block in blocks] == [120]
    assert torch.equal(blocks[0].row_weights == 0, (~train).repeat_interleave(2, dim=1))


def test_rows_that_no_split_trains_on_are_in_no_block(folded):
    train = torch.arange(120)[:, None] < torch.tensor([40, 80])
    blocks = ccs_blocks.blocks_of([folded[0][1]], train, 1)
    assert [block.states.shape[2] for block in blocks] == [40, 40]


def test_a_pairing_across_folds_is_refused(folded):
    (first, _), train = folded
    wrong = ccs_blocks.Training(first.states, first.centers, torch.arange(120).roll(1)[None])
    with pytest.raises(ValueError, match="other splits train on"):
        ccs_training.train_together([wrong], train, CCSOptions(restarts=1, epochs=1))


@pytest.mark.parametrize("optimizer", ["adamw", "lbfgs"])
def test_a_layer_does_not_depend_on_the_others(planted, optimizer):
    options = CCSOptions(optimizer=optimizer, restarts=2, epochs=150)
    other = sides(forms_of(np.where(coins(60, 5), 1, -1), seed=9))
    both = [torch.cat([mine, theirs], dim=1) for mine, theirs in zip(planted, other, strict=True)]
    together, by_itself = fit_ccs(*both, options=options), fit_ccs(*planted, options=options)
    for mine, own in zip(together.probabilities(*both), by_itself.probabilities(*planted), strict=True):
        assert torch.allclose(mine[:, :1], own, atol=1e-4)


def test_lbfgs_ends_no_higher(planted):
    adamw = fit_ccs(*planted, options=CCSOptions(restarts=3, epochs=1500))
    lbfgs = fit_ccs(*planted, options=CCSOptions(restarts=3, epochs=500, optimizer="lbfgs"))
    assert float(lbfgs.loss) <= float(adamw.loss) + 1e-4


def test_the_restart_with_the_least_loss_is_kept(planted):
    losses = [float(fit_ccs(*planted, seed=seed, options=CCSOptions(restarts=1, epochs=20)).loss) for seed in range(3)]
    assert len(set(losses)) == 3
    options = CCSOptions(restarts=4, epochs=20)
    states = torch.stack([normalize(side)[:, 0] for side in planted])[None]
    everything = torch.ones(120, 1, dtype=torch.bool)
    trained = train_probes(states, centers_of(states, everything), everything, options)
    assert float(fit_ccs(*planted, options=options).loss) == float(trained.loss.min())
    spoilt = ccs_training.TrainedProbes(trained.weight, trained.bias, trained.loss.clone())
    spoilt.loss[0, 0, int(trained.loss.argmin())] = float("nan")
    assert torch.equal(spoilt.best()[0][0, :, 0], trained.weight[0, :, 0, int(trained.loss.flatten().argsort()[1])])


def test_restarts_begin_at_other_points():
    weight, bias = ccs_training.starting_points(5, CCSOptions(restarts=4))
    assert len(set(weight[0].tolist())) == len(set(bias.tolist())) == 4
    assert torch.equal(
        ccs_training.starting_points(5, CCSOptions(restarts=2))[0], weight[:, :2]
    )  # however many there are


def test_the_seed_decides(planted):
    options = CCSOptions(restarts=2, epochs=30)
    first, again, other = (fit_ccs(*planted, seed=seed, options=options) for seed in (1, 1, 2))
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


def test_supervision_needs_labels_and_uses_them(planted, labels):
    options = CCSOptions(restarts=1, epochs=100, supervision=1.0)
    with pytest.raises(ValueError, match="needs labels"):
        fit_ccs(*planted, options=options)
    shuffled = labels[torch.randperm(120, generator=torch.Generator().manual_seed(0))]
    ours = fit_ccs(*planted, labels=labels, options=options)
    theirs = fit_ccs(*planted, labels=shuffled, options=options)
    assert float(ours.loss) < float(theirs.loss)
    assert not torch.allclose(ours.weight, theirs.weight)


def test_every_state_is_divided_by_its_length(planted):
    """A longer state is the same state; and what a probe reads later is treated as what it was trained on."""
    options = CCSOptions(restarts=1, epochs=50)
    scale = torch.rand(120, 1, 1, generator=torch.Generator().manual_seed(1)) * 9 + 1
    probe = fit_ccs(*planted, options=options)
    stretched = [side * scale for side in planted]
    assert torch.allclose(fit_ccs(*stretched, options=options).weight, probe.weight, atol=1e-3)
    assert torch.allclose(probe.score(*stretched), probe.score(*planted), atol=1e-5)
    raw = fit_ccs(*planted, normalization="none", options=options)
    assert not torch.allclose(raw.score(*stretched), raw.score(*planted), atol=1e-2)


def test_centres_are_of_training_rows_and_of_each_form_alone():
    states = torch.arange(2 * 6 * 1, dtype=torch.float32).reshape(1, 2, 6, 1)
    train = torch.tensor([[1, 0], [1, 0], [1, 1], [0, 1], [0, 1], [0, 1]]).bool()
    assert centers_of(states, train).flatten().tolist() == [1, 3.5, 7, 9.5]
    assert centers_of(states, train, "mean").flatten().tolist() == [1, 3.5, 7, 9.5]


def test_half_precision_states_are_read_in_float32(planted):
    half = [side.bfloat16() for side in planted]
    probe = fit_ccs(*half, options=CCSOptions(restarts=1, epochs=5))
    assert probe.weight.dtype == torch.float32
    assert normalize(half[0]).dtype == torch.float32
    assert float((normalize(half[0]).norm(dim=-1) - 1).abs().max()) < 1e-6


def test_a_state_of_zero_stays_zero():
    assert torch.equal(normalize(torch.zeros(2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda yes, no: (yes[:1], no[:1]), "at least two pairs"),
        (lambda yes, no: (yes * float("nan"), no), "finite"),
        (lambda yes, no: (yes[:1].expand_as(yes), no[:1].expand_as(no)), "all pairs are the same"),
    ],
)
def test_bad_states(planted, change, said):
    with pytest.raises(ValueError, match=said):
        fit_ccs(*change(*planted))


@pytest.mark.parametrize("change", [lambda yes, no: (yes, no[:5]), lambda yes, no: (yes[:, 0], no[:, 0])])
def test_shapes_that_do_not_belong_together(planted, change):
    with pytest.raises((ValueError, TypeError)):  # in the tests the shapes in signatures are checked first
        fit_ccs(*change(*planted))
    with pytest.raises(ValueError, match="must be"):
        ccs._check_states(*change(*planted))


@pytest.mark.parametrize(
    "options",
    [
        {"restarts": 0},
        {"epochs": 0},
        {"learning_rate": -1.0},
        {"supervision": float("nan")},
        {"seed": -1},
    ],
)
def test_bad_options(options):
    with pytest.raises(ValueError, match=next(iter(options)).replace("_", ".")):
        CCSOptions(**options)


@pytest.mark.parametrize("options", [{"loss": "wrong"}, {"optimizer": "sgd"}])
def test_unknown_words(options):
    with pytest.raises((ValueError, TypeError)):  # in the tests the types in signatures are checked first
        CCSOptions(**options)


def test_states_of_other_layers_are_refused(planted):
    probe = fit_ccs(*planted, options=CCSOptions(restarts=1, epochs=5))
    with pytest.raises(ValueError, match="trained on 1 layers of width 24"):
        probe.score(*[side.repeat(1, 2, 1) for side in planted])
    with pytest.raises(ValueError, match="width 12"):
        probe.score(*[side[..., :12] for side in planted])


def test_a_diverged_training_is_no_probe(planted):
    with pytest.raises(NotFinite, match="learning rate"):
        fit_ccs(*planted, options=CCSOptions(restarts=2, epochs=30, learning_rate=1e38))


def test_every_feature_has_a_probe_without_loss(generator):
    """Theorem of arXiv 2312.10029: for any feature g of statements, "yes, and g" or "no, and not g" is consistent.

    So the loss cannot say that what was found is truth.
    """
    g = torch.where(torch.rand(200, generator=generator) < 0.5, 1.0, -1.0)
    yes, no = torch.randn(2, 200, 1, 8, generator=generator)
    yes[:, 0, 3], no[:, 0, 3] = g, -g
    weight = torch.zeros(1, 1, 8)
    weight[0, 0, 3] = 30.0
    states = torch.stack([yes[:, 0], no[:, 0]])[None]
    step = ccs_step(states, torch.zeros(1, 2, 1, 8), torch.full((200, 1), 1 / 200), weight, torch.zeros(1, 1))
    assert float(step.loss) < 1e-12
    yes[..., 3] *= 4  # and where the feature is prominent, it is the one that is found
    no[..., 3] *= 4
    answers = probing.fit_ccs(yes, no, normalization="none", centering="mean").score(yes, no)[:, 0] > 0.5
    right = (answers == (g > 0)).float().mean()
    assert max(float(right), 1 - float(right)) > 0.95
