"""Likelihood columns and rates of score_pairs, against the whole model in float64."""

import math
import types

import oracles
import pytest
import tiny
import torch

from probing import score_pairs
from probing.errors import UsageError
from probing.instruments import pair_scores
from probing.instruments.columns import ALL_COLUMNS, COLUMNS, GROUPS, LIKELIHOOD_COLUMNS
from probing.instruments.gradient_rates import GradientRates, choose_parameters, response_logprob
from probing.instruments.pair_scores import PairScorer, as_pairs
from probing.kernels.output_head import Unembedding
from probing.metrics.displacement import free_feature_rate
from probing.models.layers import find_backbone
from probing.tokens.pairs import tokenize_pairs

ROWS = tiny.PAIRS
RATES = ["displacement_rate", "displacement_rate_exact"]


def tokenized(language_model):
    return tokenize_pairs(language_model.tokenizer, as_pairs(ROWS))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_column_equals_the_brute_force_oracle(family):
    language_model = tiny.make_model(family)
    frame = score_pairs(language_model, ROWS, columns=["all"]).set_index("id")
    assert tuple(frame.columns) == (*COLUMNS[1:], *LIKELIHOOD_COLUMNS)
    for pair in tokenized(language_model):
        found, totals = frame.loc[pair.id], {}
        for side in ("chosen", "rejected"):
            logprobs, ranks = oracles.response_likelihood(language_model.model, getattr(pair, side), pair.prompt_tokens)
            totals[side] = math.fsum(logprobs)
            assert found[f"{side}_logprob"] == pytest.approx(totals[side], rel=1e-5, abs=1e-4)
            assert found[f"{side}_logprob_per_token"] == pytest.approx(totals[side] / len(ranks), rel=1e-5, abs=1e-4)
            assert found[f"{side}_mean_rank"] == pytest.approx(sum(ranks) / len(ranks), rel=1e-9)
            clipped = sum(min(rank, 100) for rank in ranks)
            assert found[f"{side}_rank_surprisal"] == pytest.approx(clipped / -totals[side], rel=1e-4)
        assert found["ranking_correct"] == (totals["chosen"] >= totals["rejected"])
        assert found["ranking_difficulty"] == pytest.approx(totals["rejected"] - totals["chosen"], abs=2e-4)


def test_likelihoods_do_not_feel_batch_order_or_how_states_are_kept(monkeypatch):
    language_model = tiny.make_model()
    plain = score_pairs(language_model, ROWS, columns=["all"])
    for options in ({"batch_tokens": 1}, {"batch_tokens": 33}):
        again = score_pairs(language_model, ROWS, columns=["all"], **options)
        assert again.equals(plain)
    turned = score_pairs(language_model, ROWS[::-1], columns=["all"])
    assert turned[::-1].reset_index(drop=True).equals(plain)
    monkeypatch.setattr(pair_scores, "STATE_BYTES", 4 * 32 * 30)
    rated = score_pairs(language_model, ROWS, columns=["all", "displacement_rate"])
    assert rated[plain.columns].equals(plain)


def half_precision_model():
    language_model = tiny.make_model()
    language_model.model.bfloat16()
    return language_model


def test_states_in_half_precision_stay_so_and_are_as_good(monkeypatch):
    """bf16 states times bf16 weights with float32 sums, against float64 on the same states."""
    language_model = half_precision_model()
    scorer = PairScorer(language_model, columns=["all", "displacement_rate"], keep_states=True)
    pairs = tokenized(language_model)
    found = scorer.measure(pairs)
    assert found.states.dtype == torch.bfloat16
    exact = Unembedding(scorer.head.weight.double())
    at = 0
    for index, pair in enumerate(pairs):
        sides, ids = [], [torch.tensor(side[pair.prompt_tokens :]) for side in (pair.chosen, pair.rejected)]
        for name, following in zip(("chosen", "rejected"), ids, strict=True):
            sides.append(found.states[at : at + len(following)].double())
            at += len(following)
            logprobs = (sides[-1] @ exact.weight.T).log_softmax(1).gather(1, following[:, None])
            assert found.columns[f"{name}_logprob"][index] == pytest.approx(float(logprobs.sum()), rel=1e-6)
        rate = float(free_feature_rate(*sides, *ids, exact))
        # The rate is what is left of larger terms.
        assert found.columns["displacement_rate"][index] == pytest.approx(rate, rel=1e-5, abs=1e-5)
    assert at == len(found.states)
    streamed = score_pairs(language_model, ROWS, columns=["all"])
    assert found.columns["chosen_logprob"] == streamed["chosen_logprob"].tolist()


def test_how_many_states_are_kept(monkeypatch):
    """As many bytes in any dtype, and on a card a share of its memory, be it free or not."""
    monkeypatch.setattr(pair_scores, "STATE_BYTES", 4 * 32 * 20)
    sizes = {}
    for language_model in (tiny.make_model(), half_precision_model()):
        scorer = PairScorer(language_model, columns=["displacement_rate"])
        groups = scorer.groups(tokenized(language_model))
        sizes[language_model.dtype] = [sum(p.chosen_tokens + p.rejected_tokens for p in group) for group in groups]
    assert max(sizes[torch.float32]) <= 20 < max(sizes[torch.bfloat16]) <= 40
    memory = types.SimpleNamespace(total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert pair_scores._state_bytes(torch.device("cuda")) == 80 * 2**30 // 64
    memory.total_memory = 1000
    assert pair_scores._state_bytes(torch.device("cuda")) == pair_scores.STATE_BYTES


def test_scores_of_states_are_the_same_with_and_without_likelihoods():
    language_model = tiny.make_model()
    frame = score_pairs(language_model, ROWS, columns=["all", *GROUPS])
    assert frame[list(COLUMNS)].equals(score_pairs(language_model, ROWS))
    assert tuple(frame.columns) == ALL_COLUMNS


@pytest.mark.parametrize("columns", [["chosen_logprob"], ["displacement_rate"], ["displacement_rate_exact", "ches"]])
def test_named_columns_alone(columns):
    language_model = tiny.make_model()
    frame = score_pairs(language_model, ROWS, columns=columns)
    assert frame.columns.tolist() == ["id", "status", *columns]
    whole = score_pairs(language_model, ROWS, columns=["all", *RATES])
    assert frame.equals(whole[frame.columns])


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("parameters", ["all", "head", "last:1"])
def test_the_exact_rate_foretells_one_small_step(family, parameters):
    """Move the parameters along grad (ln p(y+) - ln p(y-)) and measure; these models norm in float32 in any case."""
    language_model = tiny.make_model(family)
    language_model.model.double()
    stack = find_backbone(language_model)
    rates = GradientRates(stack, parameters)
    pair = tokenized(language_model)[1]
    found = rates.rate(pair)

    def logprob(ids):
        return response_logprob(stack, ids, pair.prompt_tokens)

    loss = logprob(pair.chosen) - logprob(pair.rejected)
    gradients = torch.autograd.grad(loss, rates.chosen, allow_unused=True)
    step, moved = 1e-5, []
    with torch.no_grad():
        for way in (1, -2):  # there, and to the other side: the error of a central difference is of second order
            for parameter, gradient in zip(rates.chosen, gradients, strict=True):
                if gradient is not None:
                    parameter += way * step * gradient
            moved.append(logprob(pair.chosen).item())
    assert (moved[0] - moved[1]) / (2 * step) == pytest.approx(found, rel=2e-3)


def test_the_exact_rate_over_the_head_is_the_weight_part_of_theorem_6():
    """With the states held fixed only the double sums are left: brute force over them, in float64."""
    language_model = tiny.make_model()
    language_model.model.double()
    stack = find_backbone(language_model)
    weight = language_model.model.lm_head.weight.detach()
    for pair in tokenized(language_model):
        gradients = []
        for ids in (pair.chosen, pair.rejected):
            with torch.no_grad():
                states = stack.backbone(input_ids=torch.tensor([ids])).last_hidden_state[0]
            states = states[pair.prompt_tokens - 1 : len(ids) - 1]
            residuals = -(states @ weight.T).softmax(dim=1)
            residuals[torch.arange(len(states)), torch.tensor(ids[pair.prompt_tokens :])] += 1
            gradients.append(residuals.T @ states)
        expected = float((gradients[0] * (gradients[0] - gradients[1])).sum())
        assert GradientRates(stack, "head").rate(pair) == pytest.approx(expected, rel=1e-9)


def test_which_parameters_a_name_stands_for():
    def named(which, **changes):
        model = tiny.make_model("llama", **changes)
        chosen = {id(parameter) for parameter in choose_parameters(find_backbone(model), which)}
        return {name for name, parameter in model.model.named_parameters() if id(parameter) in chosen}

    everything = {name for name, _ in tiny.make_model().model.named_parameters()}
    assert named("all") == everything
    assert named("head") == {"lm_head.weight"}
    last = {name for name in everything if name.startswith("model.layers.2.")}
    assert named("last:1") == last | {"model.norm.weight", "lm_head.weight"}
    tied = choose_parameters(find_backbone(tiny.make_model("llama", tie_word_embeddings=True)), "all")
    assert len(tied) == len({id(parameter) for parameter in tied}) == len(everything) - 1
    assert named("head", tie_word_embeddings=True) == {"model.embed_tokens.weight"}


def test_gradients_are_those_of_a_model_that_is_not_in_training():
    language_model = tiny.make_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    plain = score_pairs(language_model, ROWS, columns=RATES)
    language_model.model.train()
    assert score_pairs(language_model, ROWS, columns=RATES).equals(plain)
    assert language_model.model.training


def test_the_model_leaves_as_it_came():
    language_model = tiny.make_model()
    first = next(iter(language_model.model.parameters()))
    first.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in language_model.model.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in language_model.model.parameters()]
    score_pairs(language_model, ROWS, columns=["all", *RATES])
    assert [parameter.requires_grad for parameter in language_model.model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in language_model.model.parameters())
    for name, tensor in language_model.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_log_probabilities_that_are_not_finite_name_the_token():
    language_model = tiny.make_model()
    bias = torch.zeros(420)
    bad = language_model.tokenizer("!", add_special_tokens=False)["input_ids"][0]
    bias[bad] = -float("inf")
    language_model.model.lm_head = torch.nn.Linear(32, 420)
    with torch.no_grad():
        language_model.model.lm_head.bias.copy_(bias)
    scored = PairScorer(language_model, columns=["all"]).score(as_pairs(ROWS))
    frame = scored.frame.set_index("id")
    assert frame["status"].to_dict() == {row["id"]: "not_finite" if row["id"] == "long" else "ok" for row in ROWS}
    assert frame.loc["long", list(LIKELIHOOD_COLUMNS)].isna().all()
    assert frame.loc["short", list(LIKELIHOOD_COLUMNS)].notna().all()
    [problem] = scored.problems
    assert "log-probability of token" in problem.detail
    assert "('!') of the chosen response is -inf" in problem.detail


def test_a_response_that_the_model_is_certain_of_has_no_ratio_and_keeps_the_rest():
    language_model = tiny.make_model()
    with torch.no_grad():
        language_model.model.lm_head.weight.mul_(1e4)
    best = int(score_best(language_model, "Is it ok?"))
    row = {"id": "sure", "prompt": "Is it ok?", "chosen": language_model.tokenizer.decode([best]), "rejected": " No"}
    frame = score_pairs(language_model, [row], columns=["all"], eos=False)
    assert frame["chosen_logprob"].item() == 0
    assert frame["status"].item() == "ok"
    assert math.isnan(frame["chosen_rank_surprisal"].item())
    assert frame["rejected_rank_surprisal"].notna().all()


def score_best(language_model, prompt):
    ids = torch.tensor([language_model.tokenizer(prompt)["input_ids"]])
    return language_model.model(input_ids=ids).logits[0, -1].argmax()


@pytest.mark.parametrize("parameters", ["some", "last:0", "last:4", "last:x", "last"])
def test_unknown_parameters_are_refused(parameters):
    with pytest.raises(UsageError, match="names no parameters: there are all, head and last:1 to last:3"):
        score_pairs(tiny.make_model(), ROWS, columns=RATES, rate_parameters=parameters)
    with pytest.raises(TypeError, match="a list of names"):
        score_pairs(tiny.make_model(), ROWS, columns="all")
