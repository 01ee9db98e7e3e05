"""The slopes of every loss against derivatives of the trainers' own code, at the start of training."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from probing.metrics.preference_losses import DISCOPOP_TAU, PreferenceLoss
from probing.types import KNOWN_LATER, LOSSES, WITHOUT_REFERENCE, find_loss
from probing.types.losses import REFUSED_LOSSES

ACCELERATOR = SimpleNamespace(device="cpu", gather_for_metrics=lambda value: value, gather=lambda value: value)
SIDES = ("chosen", "rejected")
# ln p of every token of both responses of three pairs of unlike lengths.
TOKENS = [([-1.5, -0.2, -2.0], [-0.7, -3.0]), ([-0.4], [-0.9, -0.1, -1.1, -0.3]), ([-0.05, -0.1], [-0.02])]
OF_DPO = {
    "dpo": "sigmoid",
    "slic": "hinge",
    **{name: name for name in LOSSES if name not in ("margin", "dpo", "slic", "cpo", "simpo", "orpo")},
}


def trl_loss(tokens, loss_types, beta, label_smoothing=0.0, weights=None, gained=(0.0, 0.0)):
    """TRL's own loss of pairs, given the log-probabilities of their tokens; by default the reference has the same."""
    rows = [pair[0] for pair in tokens] + [pair[1] for pair in tokens]
    length = max(map(len, rows))
    logps = torch.stack([torch.nn.functional.pad(row, (0, length - len(row))) for row in rows])
    mask = torch.stack([torch.tensor([0] + [1] * len(row) + [0] * (length - len(row))) for row in rows])
    chosen, rejected = (side - more for side, more in zip(logps.detach().sum(dim=1).chunk(2), gained, strict=True))
    trainer = SimpleNamespace(
        accelerator=ACCELERATOR,
        model=SimpleNamespace(training=False),
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=loss_types,
        loss_weights=weights or [1.0],
        beta=beta,
        label_smoothing=label_smoothing,
        args=SimpleNamespace(discopop_tau=DISCOPOP_TAU),
        use_weighting=False,
        aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
    )
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask}
    inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

    def model(**given):
        # What the trainer logs is of no account.
        logged = {"entropy": logps.detach(), "mean_logits": logps.detach(), "is_top1": logps.detach() > -1}
        return SimpleNamespace(log_probs=logps, **logged)

    return DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)


def leaves(tokens):
    return [tuple(torch.tensor(side, dtype=torch.float64, requires_grad=True) for side in pair) for pair in tokens]


def derivatives(loss, pairs):
    """d_w and d_l of every pair: by the log-probability of any token, since all have the same."""
    slopes = []
    for pair in pairs:
        gradients = torch.autograd.grad(loss, pair, retain_graph=True, allow_unused=True)
        given = [torch.zeros(1) if gradient is None else gradient for gradient in gradients]
        assert all(float(gradient.max() - gradient.min()) < 1e-12 for gradient in given)
        slopes.append((-float(given[0][0]), float(given[1][0])))
    return slopes


def ours(tokens, gained=None, **options):
    sums = [torch.tensor([sum(pair[side]) for pair in tokens], dtype=torch.float64) for side in (0, 1)]
    counts = [torch.tensor([len(pair[side]) for pair in tokens]) for side in (0, 1)]
    reference = None if gained is None else torch.stack(sums, dim=1) - torch.tensor(gained, dtype=torch.float64)
    slopes = PreferenceLoss(**options).slopes(*sums, *counts, reference=reference)
    return list(zip(*(slope.tolist() for slope in slopes), strict=True))


@pytest.mark.parametrize("name", OF_DPO)
@pytest.mark.parametrize(("beta", "wrong"), [(0.1, 1e-3), (0.7, 0.2)])
def test_slopes_of_losses_with_a_reference_are_those_of_trl(name, beta, wrong):
    for pair in TOKENS:
        found = leaves([pair])
        loss = trl_loss(found, [OF_DPO[name]], beta, wrong)
        expected = derivatives(loss, found)
        assert ours([pair], name=name, beta=beta, label_smoothing=wrong) == [pytest.approx(expected[0], rel=1e-6)]


@pytest.mark.parametrize("name", sorted(set(KNOWN_LATER) & set(OF_DPO)))
@pytest.mark.parametrize("gained", [(0.0, 0.0), (0.4, -0.7), (-6.0, 3.0), (9.0, -4.0)])
def test_slopes_after_the_start_are_those_of_trl(name, gained):
    for pair in TOKENS:
        found = leaves([pair])
        expected = derivatives(trl_loss(found, [OF_DPO[name]], 0.3, 0.1, gained=gained), found)
        given = ours([pair], gained, name=name, beta=0.3, label_smoothing=0.1)
        assert given == [pytest.approx(expected[0], rel=1e-6, abs=1e-12)]


def test_losses_that_are_known_at_the_start_alone_say_so_later():
    for name in set(LOSSES) - set(KNOWN_LATER):
        with pytest.raises(ValueError, match=f"slopes of {name} are known at the start"):
            ours(TOKENS, (0.1, 0.2), name=name, label_smoothing=0.1)
    for name in WITHOUT_REFERENCE:
        assert ours(TOKENS, (0.1, 0.2), name=name) == ours(TOKENS, name=name)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_refused_losses_of_sorted_batches_begin_as_dpo_does(name):
    """What the refusal says of them."""
    found = leaves(TOKENS)
    slopes = derivatives(trl_loss(found, [name], 0.3), found)
    assert [slope for pair in slopes for slope in pair] == pytest.approx([0.3 / 2 / len(TOKENS)] * 6)


@pytest.mark.parametrize("weight", [0.0, 0.3, 2.0])
def test_dpo_with_an_sft_term_as_trl_weighs_it(weight):
    for pair in TOKENS:
        found = leaves([pair])
        expected = derivatives(trl_loss(found, ["sigmoid", "sft"], 0.1, weights=[1.0, weight]), found)
        assert ours([pair], name="dpo", sft_weight=weight) == [pytest.approx(expected[0], rel=1e-9)]


def test_in_a_batch_trl_takes_the_mean_length_for_the_sft_term():
    found, weight = leaves(TOKENS), 0.8
    slopes = derivatives(trl_loss(found, ["sigmoid", "sft"], 0.1, weights=[1.0, weight]), found)
    mean = sum(len(chosen) for chosen, _ in TOKENS) / len(TOKENS)
    for chosen, rejected in slopes:
        # The loss of a batch is a mean over its pairs.
        assert chosen * len(TOKENS) == pytest.approx(0.05 + weight / mean)
        assert rejected * len(TOKENS) == pytest.approx(0.05)


@pytest.mark.parametrize(("name", "loss_type"), [("cpo", "sigmoid"), ("simpo", "simpo")])
@pytest.mark.parametrize(("beta", "gamma", "wrong"), [(0.1, 0.5, 0.0), (2.0, 1.0, 0.1)])
def test_slopes_of_cpo_and_simpo_are_those_of_trl(name, loss_type, beta, gamma, wrong):
    trainer = SimpleNamespace(alpha=0.0, loss_type=loss_type, beta=beta, simpo_gamma=gamma, label_smoothing=wrong)
    trainer.accelerator = ACCELERATOR
    found = leaves(TOKENS)
    # SimPO's log-probabilities are means over tokens: CPOTrainer.concatenated_forward.
    reduce = torch.mean if loss_type == "simpo" else torch.sum
    logps = [torch.stack([reduce(pair[side]) for pair in found]) for side in (0, 1)]
    expected = derivatives(CPOTrainer.cpo_loss(trainer, *logps)[0].sum(), found)
    slopes = ours(TOKENS, name=name, beta=beta, gamma=gamma, label_smoothing=wrong)
    assert slopes == [pytest.approx(pair, rel=1e-9) for pair in expected]


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_slopes_of_orpo_are_those_of_trl(beta):
    found = leaves(TOKENS)
    logps = [torch.stack([pair[side].mean() for pair in found]) for side in (0, 1)]
    trainer = SimpleNamespace(beta=beta, accelerator=ACCELERATOR)
    # What it returns is subtracted from the likelihood's loss, and is computed in float32.
    expected = derivatives(-ORPOTrainer.odds_ratio_loss(trainer, *logps)[0].sum(), found)
    assert ours(TOKENS, name="orpo", beta=beta) == [pytest.approx(pair, rel=1e-4) for pair in expected]


def test_the_margin_has_slopes_of_one_whatever_the_coefficients():
    assert ours(TOKENS, beta=3.0) == [(1.0, 1.0)] * 3
    assert PreferenceLoss().name == "margin"


def test_discopop_begins_the_wrong_way_round():
    assert ours(TOKENS, name="discopop")[0] == pytest.approx((-0.0784264, -0.0784264), rel=1e-5)


def test_certain_responses_have_no_slope_under_orpo():
    (chosen, rejected) = ours([([0.0], [-1.0])], name="orpo")[0]
    assert not math.isfinite(chosen) or not math.isfinite(rejected)


def test_losses_that_depend_on_likelihoods_say_so():
    unknown = torch.full((1,), math.nan)
    for name in LOSSES:
        loss = PreferenceLoss(name, label_smoothing=1e-3)
        slopes = loss.slopes(unknown, unknown, torch.tensor([2]), torch.tensor([3]))
        assert bool(slopes.chosen.isnan()) == loss.needs_likelihoods, name


@pytest.mark.parametrize("name", [*REFUSED_LOSSES, "sigmoid_", ""])
def test_other_losses_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"loss: .*{name}.*; there are margin, dpo, ipo"):
        find_loss(name)
    with pytest.raises(ValueError, match="there are margin"):
        PreferenceLoss(name)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"beta": 0.0}, "beta must be above 0"),
        ({"beta": math.nan}, "beta must be above 0"),
        ({"label_smoothing": 0.5}, "below 0.5"),
        ({"sft_weight": -1.0}, "no finite weight"),
        ({"gamma": math.inf}, "no finite weight"),
        ({"name": "exo_pair"}, "exo_pair needs a label_smoothing above 0"),
    ],
)
def test_coefficients_out_of_range_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        PreferenceLoss(**options)
