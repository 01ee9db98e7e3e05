"""Rates, regimes and least SFT weights of score_pairs, against autograd in float64."""

import copy
import math

import oracles
import pandas as pd
import pytest
import tiny
import torch

from probing import PreferenceLoss, score_pairs
from probing.errors import UsageError
from probing.instruments import pair_scores
from probing.instruments.columns import EXACT, GROUPS, REGIME_COLUMNS
from probing.instruments.filtering import warn_of_direction
from probing.instruments.pair_regimes import free_products, regime_columns
from probing.instruments.pair_scores import as_pairs
from probing.kernels.output_head import Unembedding
from probing.tokens.pairs import TokenizedPair, tokenize_pairs

# The second half has responses that share much, so that many fall.
ROWS = [
    *tiny.PAIRS,
    {
        "id": "near",
        "prompt": "Is it ok?",
        "chosen": " No. Never. Yes, always.",
        "rejected": " No. Never. Yes, nothing.",
    },
    {"id": "longer", "prompt": "Human: hello", "chosen": " hi", "rejected": " hi hi hi hi hi hi hi hi hi hi hi hi"},
]
LOSSES = [
    PreferenceLoss(),
    PreferenceLoss("dpo", sft_weight=0.2),
    PreferenceLoss("ipo"),
    PreferenceLoss("simpo", beta=2.0),
    PreferenceLoss("orpo"),
    PreferenceLoss("apo_down"),
]


def expected_columns(chosen, rejected, pair, loss, logprobs):
    """The columns of a group from two lists of gradients, in the plainest form."""

    def dot(left, right):
        return math.fsum(float((a * b).sum()) for a, b in zip(left, right, strict=True))

    ww, wl, ll = dot(chosen, chosen), dot(chosen, rejected), dot(rejected, rejected)
    n_w, n_l = pair.chosen_tokens, pair.rejected_tokens
    means = logprobs[0] / n_w, logprobs[1] / n_l
    d_w, d_l = {
        "margin": lambda: (1.0, 1.0),
        "dpo": lambda: (loss.beta / 2, loss.beta / 2),
        "ipo": lambda: (1 / loss.beta / n_w, 1 / loss.beta / n_l),
        "apo_down": lambda: (0.0, loss.beta / 4),
        "simpo": lambda: simpo(*means, loss, n_w, n_l),
        "orpo": lambda: orpo(*means, loss, n_w, n_l),
    }[loss.name]()
    weight = max(0.0, n_w * (d_l * wl / ww - d_w))
    d_w += loss.sft_weight / n_w
    rises, falls = d_w * ww - d_l * wl > 0, d_w * wl - d_l * ll < 0
    return {
        "displacement_rate": d_w * ww - d_l * wl,
        "rejected_rate": d_w * wl - d_l * ll,
        "entanglement": wl / math.sqrt(ww * ll),
        "gradient_ratio": math.sqrt(ll / ww),
        "least_sft_weight": weight,
        "regime": "disentangled" if rises and falls else "both_rise" if rises else "both_fall",
    }


def simpo(chosen, rejected, loss, n_w, n_l):
    slope = loss.beta / (1 + math.exp(loss.beta * (chosen - rejected) - loss.gamma))
    return slope / n_w, slope / n_l


def orpo(chosen, rejected, loss, n_w, n_l):
    odds = [math.exp(value) / (1 - math.exp(value)) for value in (chosen, rejected)]
    slope = loss.beta / (1 + odds[0] / odds[1])
    return slope / (1 - math.exp(chosen)) / n_w, slope / (1 - math.exp(rejected)) / n_l


def tokenized(language_model, rows=ROWS):
    return tokenize_pairs(language_model.tokenizer, as_pairs(rows))


def free_gradients(states, ids, weight):
    """Gradients of ln p of both responses over head and states, where a state is that of its context."""
    weight = weight.clone().requires_grad_()
    contexts = {}
    sums = []
    for side, own in zip(ids, states, strict=True):
        keys = [tuple(side[:k]) for k in range(len(side))]
        rows = [contexts.setdefault(key, row.clone().requires_grad_()) for key, row in zip(keys, own, strict=True)]
        sums.append((torch.stack(rows) @ weight.T).log_softmax(1)[torch.arange(len(side)), torch.tensor(side)].sum())
    leaves = [weight, *contexts.values()]
    found = [torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True) for value in sums]
    filled = [
        [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(row, leaves, strict=True)] for row in found
    ]
    return *filled, [float(value.detach()) for value in sums]


def model_gradients(language_model, pair):
    """Gradients of ln p of both responses over all parameters, in float64."""
    model = copy.deepcopy(language_model.model).double()
    parameters = list({id(p): p for p in model.parameters()}.values())
    found = []
    for ids in (pair.chosen, pair.rejected):
        logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        value = sum(logits[at - 1, ids[at]] for at in range(pair.prompt_tokens, len(ids)))
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        found.append([torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)])
    return found


def check(found, expected, tolerance):
    """Rates are differences, so they may err by the tolerance of what they are differences of."""
    scale = abs(expected["displacement_rate"]) + abs(expected["rejected_rate"])
    for name, value in expected.items():
        if name == "regime":
            assert found[name] == value
        else:
            least = tolerance * (scale if name.endswith("rate") else 1)
            assert found[name] == pytest.approx(value, rel=tolerance, abs=least), name


def random_pair(generator, width=6, vocabulary=5):
    """A pair in the free-feature model: states, ids and head. States are alike and tokens few, so that some fall."""
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, 8, (2,), generator=generator).tolist()
    ids = torch.randint(vocabulary, (2, 8), generator=generator)
    ids[1, 0] = (ids[0, 0] + 1) % vocabulary if lengths[0] % 2 else ids[0, 0]
    ids[1, 1] = (ids[0, 1] + 1) % vocabulary
    states = torch.randn(width, generator=generator, dtype=torch.float64).repeat(2, 8, 1)
    states += 0.5 * torch.randn(states.shape, generator=generator, dtype=torch.float64)
    sides = [ids[side, : max(lengths[side], 2)].tolist() for side in (0, 1)]
    shared = 1 if sides[0][0] != sides[1][0] else 2
    states[1, :shared] = states[0, :shared]
    pair = TokenizedPair(id="p", prompt_tokens=1, chosen=[0, *sides[0]], rejected=[0, *sides[1]])
    return pair, sides, [states[side, : len(sides[side])] for side in (0, 1)], weight


def ours(pair, sides, states, weight, loss):
    head, together = Unembedding(weight), torch.cat(states)
    following = torch.tensor(sides[0] + sides[1])
    logits = together @ weight.T
    picked = logits.log_softmax(1)[torch.arange(len(following)), following].split([len(sides[0]), len(sides[1])])
    likelihoods = {"chosen_logprob": [float(picked[0].sum())], "rejected_logprob": [float(picked[1].sum())]}
    products = free_products(together, following, logits.logsumexp(1), [pair], head).products
    return {name: values[0] for name, values in regime_columns(products, loss, [pair], likelihoods).items()}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_columns_are_those_of_autograd_in_the_free_feature_model(generator, loss):
    seen = set()
    for _ in range(60):
        pair, sides, states, weight = random_pair(generator)
        chosen, rejected, logprobs = free_gradients(states, sides, weight)
        expected = expected_columns(chosen, rejected, pair, loss, logprobs)
        check(ours(pair, sides, states, weight, loss), expected, 1e-10)
        seen.add(expected["regime"])
    assert len(seen) > 1


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_exact_columns_are_those_of_autograd_over_the_model(family, loss):
    language_model = tiny.make_model(family)
    frame = score_pairs(language_model, ROWS, columns=["regime_exact"], loss=loss).set_index("id")
    for pair in tokenized(language_model):
        logprobs = [
            sum(oracles.response_likelihood(language_model.model, ids, pair.prompt_tokens)[0])
            for ids in (pair.chosen, pair.rejected)
        ]
        expected = expected_columns(*model_gradients(language_model, pair), pair, loss, logprobs)
        found = {name: frame.loc[pair.id, name + EXACT] for name in expected}
        check(found, expected, 1e-4)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_free_columns_of_a_model_are_those_of_its_states(loss):
    language_model = tiny.make_model()
    frame = score_pairs(language_model, ROWS, columns=["regime"], loss=loss).set_index("id")
    weight = language_model.model.get_output_embeddings().weight.detach().double()
    for pair in tokenized(language_model):
        whole = (pair.chosen, pair.rejected)
        states = [
            torch.tensor(oracles.response_states(language_model.model, ids, pair.prompt_tokens), dtype=torch.float64)
            for ids in whole
        ]
        sides = [ids[pair.prompt_tokens :] for ids in whole]
        chosen, rejected, logprobs = free_gradients(states, sides, weight)
        check(frame.loc[pair.id].to_dict(), expected_columns(chosen, rejected, pair, loss, logprobs), 1e-4)


def test_the_first_plain_step_turns_at_the_least_weight(generator):
    """100 random pairs whose chosen response would fall: a step of DPO and SFT, a thousandth to either side."""
    turned, rising, beta = 0, 0, 0.1
    while turned < 100:
        pair, sides, states, weight = random_pair(generator)
        least = ours(pair, sides, states, weight, PreferenceLoss("dpo", beta=beta))["least_sft_weight"]
        if least == 0:
            rising += 1
            assert rising > 50 or step_of(states, sides, weight, beta, 0.0) > 0
        else:
            before, after = (step_of(states, sides, weight, beta, part * least) for part in (1 - 1e-3, 1 + 1e-3))
            assert before < 0 < after, least
            turned += 1
    assert rising > 50


def step_of(states, sides, weight, beta, alpha, rate=1e-5):
    """Change of ln p(chosen) by one step of gradient descent on DPO + alpha (mean NLL of the chosen tokens)."""
    contexts = {}
    for side, own in zip(sides, states, strict=True):
        for k, row in enumerate(own):
            contexts.setdefault(tuple(side[:k]), row.clone().requires_grad_())
    weight = weight.clone().requires_grad_()

    def logprob(side):
        rows = torch.stack([contexts[tuple(side[:k])] for k in range(len(side))])
        return (rows @ weight.T).log_softmax(1)[torch.arange(len(side)), torch.tensor(side)].sum()

    chosen, rejected = map(logprob, sides)
    margin = (chosen - chosen.detach()) - (rejected - rejected.detach())
    loss = -torch.nn.functional.logsigmoid(beta * margin) - alpha * chosen / len(sides[0])
    leaves = [weight, *contexts.values()]
    gradients = torch.autograd.grad(loss, leaves)
    # A step forward against one back, so that what the curvature adds to a step of any length falls away.
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf -= sign * rate * gradient
            values.append(float(logprob(sides[0]).detach()))
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf += sign * rate * gradient
    return values[0] - values[1]


def test_a_word_stands_for_its_group():
    language_model = tiny.make_model()
    frame = score_pairs(language_model, ROWS, columns=["regime"])
    assert tuple(frame.columns) == ("id", "status", *GROUPS["regime"])
    both = score_pairs(language_model, ROWS, columns=["regime_exact", "entanglement", "regime"])
    assert tuple(both.columns) == (
        "id",
        "status",
        *GROUPS["regime_exact"],
        "entanglement",
        *dict.fromkeys(name for name in GROUPS["regime"] if name != "entanglement"),
    )
    pd.testing.assert_frame_equal(both[frame.columns], frame, check_exact=True)
    with pytest.raises(UsageError, match="unknown columns regimes"):
        score_pairs(language_model, ROWS, columns=["regimes"])


@pytest.mark.parametrize("name", [name for name in REGIME_COLUMNS if name not in GROUPS])
def test_columns_alone_are_the_same_bits(name):
    language_model = tiny.make_model()
    group = "regime_exact" if name.endswith(EXACT) else "regime"
    alone = score_pairs(language_model, ROWS, columns=[name, GROUPS[group][0]])
    assert alone.equals(score_pairs(language_model, ROWS, columns=[group])[alone.columns])
    assert score_pairs(language_model, ROWS, columns=[name]).columns.tolist() == ["id", "status", name]


@pytest.mark.parametrize("loss", ["margin", "simpo"])
def test_numbers_do_not_depend_on_batches(monkeypatch, loss):
    language_model = tiny.make_model()
    plain = score_pairs(language_model, ROWS, columns=list(GROUPS), loss=loss)
    for options in ({"batch_tokens": 1}, {"batch_tokens": 33}):
        again = score_pairs(language_model, ROWS, columns=list(GROUPS), loss=loss, **options)
        pd.testing.assert_frame_equal(again, plain, check_exact=True)
    turned = score_pairs(language_model, ROWS[::-1], columns=list(GROUPS), loss=loss)
    pd.testing.assert_frame_equal(turned[::-1].reset_index(drop=True), plain, check_exact=True)
    monkeypatch.setattr(pair_scores, "STATE_BYTES", 4 * 32 * 30)
    pd.testing.assert_frame_equal(
        score_pairs(language_model, ROWS, columns=list(GROUPS), loss=loss), plain, check_exact=True
    )


def test_responses_of_one_token_have_a_regime():
    """Their CHES is 0 by definition, and is masked elsewhere; their gradients are not."""
    row = {"prompt": "Is it ok?", "chosen": "!", "rejected": "?"}
    frame = score_pairs(tiny.make_model(), [row], columns=["ches", "chosen_tokens", *GROUPS], eos=False)
    assert (frame["ches"].item(), frame["chosen_tokens"].item()) == (0.0, 1)
    assert frame["regime"].item() == "disentangled"
    assert frame[list(REGIME_COLUMNS)].notna().all(axis=None)


def test_identical_responses_have_none():
    rows = [{"id": "same", "prompt": "Q", "chosen": " a", "rejected": " a"}, ROWS[0]]
    frame = score_pairs(tiny.make_model(), rows, columns=list(GROUPS)).set_index("id")
    assert frame["status"].tolist() == ["identical", "ok"]
    assert frame.loc["same"].drop("status").isna().all()
    assert frame.loc["short"].notna().all()


def test_a_response_that_the_model_is_certain_of_has_no_regime():
    language_model = tiny.make_model()
    with torch.no_grad():
        language_model.model.lm_head.weight.mul_(1e4)
    ids = torch.tensor([language_model.tokenizer("Is it ok?")["input_ids"]])
    best = int(language_model.model(input_ids=ids).logits[0, -1].argmax())
    row = {"prompt": "Is it ok?", "chosen": language_model.tokenizer.decode([best]), "rejected": " No"}
    frame = score_pairs(language_model, [row], columns=list(GROUPS), eos=False)
    assert frame["status"].item() == "ok"
    for end in ("", EXACT):
        assert frame[f"displacement_rate{end}"].item() == 0
        for name in ("entanglement", "gradient_ratio", "least_sft_weight", "regime"):
            assert frame[f"{name}{end}"].isna().item(), name


@pytest.mark.parametrize("by", ["least_sft_weight", "entanglement_exact", "gradient_ratio"])
def test_of_what_is_high_where_the_chosen_response_loses_the_lowest_are_kept(by, caplog):
    warn_of_direction(by, "drop_highest")
    assert not caplog.records
    warn_of_direction(by, "keep_highest")
    assert "keeps the pairs whose chosen responses lose most" in caplog.text


def test_unknown_losses_are_refused():
    with pytest.raises(ValueError, match="aot sorts the log-ratios of a batch"):
        score_pairs(tiny.make_model(), ROWS, columns=["regime"], loss="aot")
