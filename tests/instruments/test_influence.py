"""Gradients in batches, directions and central differences against autograd, pair by pair, in float64."""

import contextlib
import math

import numpy as np
import pytest
import tiny
import torch

from probing import LanguageModel
from probing.errors import NotFinite, UsageError
from probing.instruments.influence import (
    DirectionalScorer,
    choose_step,
    influence_of,
    measure_step,
    rows_of,
    training_gradient,
)
from probing.instruments.pair_scores import PairScorer, as_pairs
from probing.instruments.parameter_directions import (
    ParameterDirection,
    draw_direction,
    find_parameters,
    move_along,
    precondition,
)
from probing.instruments.parameter_gradients import ParameterGradients
from probing.instruments.pilot import Training, draw_batches, train_in_memory
from probing.metrics.preference_losses import PreferenceLoss
from probing.models.layers import find_backbone

LIKELY = ("chosen_logprob", "rejected_logprob")
LOSS = PreferenceLoss("dpo", beta=0.1)


def make(family="llama", dtype=torch.float64):
    plain = tiny.make_model(family)
    return LanguageModel(plain.model.to(dtype), plain.tokenizer)


def open_scorer(language_model):
    scorer = PairScorer(language_model, columns=LIKELY)
    return scorer, scorer.tokenize(as_pairs(tiny.PAIRS))


def oracle_logprob(model, ids, prompt_tokens):
    """ln p of a response by the whole model, one sequence, no padding, in the dumbest form."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    total = 0.0
    for at in range(prompt_tokens, len(ids)):
        total = total + torch.log_softmax(logits[at - 1], dim=-1)[ids[at]]
    return total


def oracle_gradients(model, parameters, pairs):
    """(gradient of ln p(chosen), of ln p(rejected)) of each pair, each as one long vector."""
    found = []
    for pair in pairs:
        sides = []
        for ids in (pair.chosen, pair.rejected):
            grads = torch.autograd.grad(
                oracle_logprob(model, ids, pair.prompt_tokens), parameters, allow_unused=True, materialize_grads=True
            )
            sides.append(torch.cat([g.flatten() for g in grads]).double())
        found.append(sides)
    return found


def distance(found, expected):
    """Relative, by norms: inside of some families norms are float32 whatever the model's dtype."""
    return float((found - expected).norm() / expected.norm())


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors]).double()


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2"])
@pytest.mark.parametrize("which", ["all", "last:1", "head"])
def test_gradient_of_the_loss_is_that_of_autograd_pair_by_pair(family, which):
    language_model = make(family)
    _, pairs = open_scorer(language_model)
    parameters = find_parameters(find_backbone(language_model), which)
    gradients = ParameterGradients(find_backbone(language_model), parameters, batch_tokens=60)
    found = training_gradient(gradients, pairs, LOSS, batch_pairs=2)
    own = oracle_gradients(language_model.model, parameters, pairs)
    each = [0.05 * (plus - minus) for plus, minus in own]
    exact = 1e-12 if family == "gpt2" else 1e-6
    assert distance(flat(found.mean), sum(each) / 5) < exact
    batches = [each[:2], each[2:4], each[4:]]
    square = sum((sum(batch) / len(batch)) ** 2 for batch in batches) / 3
    assert distance(flat(found.mean_square), square) < exact
    assert found.slopes.chosen.tolist() == [0.05] * 5


def measure(language_model, which="all"):
    """What is needed to compare: scorer, pairs, the training's direction, and the products that autograd gives."""
    scorer, pairs = open_scorer(language_model)
    stack = find_backbone(language_model)
    parameters = find_parameters(stack, which)
    trained = training_gradient(ParameterGradients(stack, parameters), pairs, LOSS)
    own = oracle_gradients(language_model.model, parameters, pairs)
    along = flat(trained.mean)
    expected = np.array([[float(along @ side) for side in sides] for sides in own])
    return scorer, pairs, ParameterDirection(parameters, trained.mean), trained, expected


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_derivatives_along_a_direction_are_products_with_each_gradient(family, dtype):
    scorer, pairs, direction, trained, expected = measure(make(family, dtype))
    step = choose_step(scorer, direction, pairs)
    found = DirectionalScorer(scorer, direction, step.length).measure(pairs)
    within = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(np.stack([found.chosen, found.rejected], 1), expected, rtol=0, atol=within)
    joint = 0.05 * (expected[:, 0] - expected[:, 1])
    np.testing.assert_allclose(influence_of(found, trained.slopes), joint, rtol=0, atol=within)
    assert step.error < 1e-3


def test_where_nothing_inside_is_rounded_only_the_curvature_is_left():
    scorer, pairs, direction, _, expected = measure(make("gpt2"))
    found = DirectionalScorer(scorer, direction, 1e-4).measure(pairs)
    np.testing.assert_allclose(found.chosen, expected[:, 0], rtol=1e-6)
    np.testing.assert_allclose(found.rejected, expected[:, 1], rtol=1e-6)


def test_ln_p_of_the_middle_is_that_of_the_model_as_it_is():
    language_model = make()
    scorer, pairs, direction, _, _ = measure(language_model)
    found = DirectionalScorer(scorer, direction, 1e-3).measure(pairs)
    own = scorer.measure(pairs).columns
    np.testing.assert_allclose(found.chosen_logprob, own["chosen_logprob"], rtol=1e-4)
    np.testing.assert_allclose(found.rejected_logprob, own["rejected_logprob"], rtol=1e-4)


def test_numbers_do_not_depend_on_the_batches():
    language_model = make("gpt2")
    scorer, pairs, direction, _, _ = measure(language_model)
    together = DirectionalScorer(scorer, direction, 1e-3).measure(pairs)
    alone = [DirectionalScorer(scorer, direction, 1e-3).measure([pair]).chosen[0] for pair in pairs]
    np.testing.assert_allclose(together.chosen, alone, rtol=1e-9)
    for tokens in (1, 40, 10_000):
        gradients = ParameterGradients(scorer.stream.stack, direction.parameters, batch_tokens=tokens)
        assert distance(flat(training_gradient(gradients, pairs, LOSS).mean), flat(direction.tensors)) < 1e-12


def test_parameters_come_back_to_the_bit_even_after_an_error():
    language_model = make("llama", torch.float32)
    scorer, pairs, direction, _, _ = measure(language_model)
    before = {name: tensor.clone() for name, tensor in language_model.model.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in language_model.model.parameters()]
    DirectionalScorer(scorer, direction, 0.1).measure(pairs)
    with contextlib.suppress(ZeroDivisionError), move_along(direction) as put:
        put(0.3)
        assert not torch.equal(language_model.model.state_dict()["lm_head.weight"], before["lm_head.weight"])
        _ = 1 / 0
    for name, tensor in language_model.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert [parameter.requires_grad for parameter in language_model.model.parameters()] == wanted


def test_a_step_so_short_that_rounding_wins_is_found_out():
    scorer, pairs, direction, _, _ = measure(make("llama", torch.float32))
    assert measure_step(scorer, direction, pairs, 1e-3).error < 1e-3
    with pytest.raises(NotFinite, match="rounding wins"):
        measure_step(scorer, direction, pairs, 1e-8)
    with pytest.raises(NotFinite, match="not linear"):
        measure_step(scorer, direction, pairs, 3.0)


def test_the_direction_of_adamw_leaves_out_what_no_batch_moved():
    gradient = [torch.tensor([3.0, 4.0, 0.0]), torch.tensor([5.0])]
    square = [torch.tensor([4.0, 0.0, 1.0]), torch.tensor([25.0])]
    out, lost = precondition(gradient, square)
    assert torch.allclose(torch.cat(out), torch.tensor([1.5, 0.0, 0.0, 1.0]))
    assert lost == pytest.approx(16 / 50)


def test_random_directions_have_the_norm_of_each_tensor():
    _, _, direction, _, _ = measure(make("gpt2"))
    drawn, again = (draw_direction(direction, torch.Generator().manual_seed(1)) for _ in range(2))
    for own, other, same in zip(direction.tensors, drawn.tensors, again.tensors, strict=True):
        assert float(own.norm()) == pytest.approx(float(other.norm()))
        assert torch.equal(other, same)
    assert abs(float(flat(drawn.tensors) @ flat(direction.tensors))) < 0.05 * direction.norm**2


def test_what_has_no_direction_is_refused():
    language_model = make("llama", torch.float32)
    stack = find_backbone(language_model)
    with pytest.raises(UsageError, match="lora"):
        find_parameters(stack, "lora")
    with pytest.raises(UsageError, match="names no parameters"):
        find_parameters(stack, "first")
    parameters = find_parameters(stack, "head")
    with pytest.raises(NotFinite, match="zero"):
        ParameterDirection(parameters, [torch.zeros_like(p) for p in parameters]).check("the target")
    with pytest.raises(NotFinite, match="not finite"):
        ParameterDirection(parameters, [torch.full_like(p, float("nan")) for p in parameters]).check("the target")
    with pytest.raises(UsageError, match="bfloat16"):
        find_parameters(find_backbone(make("llama", torch.bfloat16)), "all")


def test_a_model_that_sees_padding_runs_a_sequence_at_a_time(caplog, monkeypatch):
    language_model = make("gpt2")
    _, pairs = open_scorer(language_model)
    stack = find_backbone(language_model)
    plain = training_gradient(ParameterGradients(stack, find_parameters(stack, "all")), pairs, LOSS)
    gradients = ParameterGradients(stack, find_parameters(stack, "all"))
    together = ParameterGradients.logprobs

    def disturbed(self, rows):
        return together(self, rows) * (1.01 if len(rows) > 1 else 1)

    monkeypatch.setattr(ParameterGradients, "logprobs", disturbed)
    found = training_gradient(gradients, pairs, LOSS)
    assert gradients.how == ["gradients run a sequence at a time, since padding changes what the model computes"]
    assert "padding changes" in caplog.text
    assert distance(flat(found.mean), flat(plain.mean)) < 1e-12


def test_memory_that_runs_out_halves_the_batches(caplog, monkeypatch):
    language_model = make("gpt2")
    _, pairs = open_scorer(language_model)
    stack = find_backbone(language_model)
    plain = training_gradient(ParameterGradients(stack, find_parameters(stack, "all")), pairs, LOSS)
    together = ParameterGradients.logprobs

    def scarce(self, rows):
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return together(self, rows)

    expected = ParameterGradients(stack, []).read([rows_of(pair) for pair in pairs])
    monkeypatch.setattr(ParameterGradients, "logprobs", scarce)
    read = ParameterGradients(stack, []).read([rows_of(pair) for pair in pairs])
    torch.testing.assert_close(torch.stack(read), torch.stack(expected), rtol=1e-12, atol=0)
    found = training_gradient(ParameterGradients(stack, find_parameters(stack, "all")), pairs, LOSS)
    assert "memory ran out" in caplog.text
    assert distance(flat(found.mean), flat(plain.mean)) < 1e-12


def train_plainly(model, parameters, pairs, training):
    """DPO with AdamW in the dumbest form, one sequence after the other."""
    with torch.no_grad():
        said = [[oracle_logprob(model, ids, p.prompt_tokens) for ids in (p.chosen, p.rejected)] for p in pairs]
    optimizer = (
        torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=0.0)
        if training.optimizer == "adamw"
        else torch.optim.SGD(parameters, lr=training.learning_rate)
    )
    for batch in draw_batches(len(pairs), training):
        optimizer.zero_grad()
        loss = 0.0
        for at in batch:
            chosen, rejected = (
                oracle_logprob(model, ids, pairs[at].prompt_tokens) for ids in (pairs[at].chosen, pairs[at].rejected)
            )
            margin = (chosen - said[at][0]) - (rejected - said[at][1])
            loss = loss - torch.nn.functional.logsigmoid(0.1 * margin) / len(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, training.largest_norm or math.inf)
        optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize(
    "training",
    [Training(5, 1e-3, 2), Training(4, 1e-2, 3, "sgd", None, seed=3), Training(3, 1e-3, 16, largest_norm=0.01)],
)
def test_the_pilot_trains_as_a_plain_loop_does(training):
    language_model, plain = make("gpt2"), make("gpt2")
    _, pairs = open_scorer(language_model)
    stack = find_backbone(language_model)
    gradients = ParameterGradients(stack, find_parameters(stack, "all"), batch_tokens=80)
    before = {name: tensor.clone() for name, tensor in language_model.model.state_dict().items()}
    train_plainly(plain.model, list(plain.model.parameters()), pairs, training)
    with train_in_memory(gradients, pairs, LOSS, training) as steps:
        made = [step() for step in steps]
        for name, tensor in plain.model.state_dict().items():
            torch.testing.assert_close(language_model.model.state_dict()[name], tensor, rtol=1e-6, atol=1e-9)
    assert len(made) == training.steps
    assert all(torch.equal(tensor, before[name]) for name, tensor in language_model.model.state_dict().items())
    assert all(parameter.grad is None for parameter in language_model.model.parameters())
