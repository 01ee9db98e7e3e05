"""A direction planted in random models of every family: found, taken out by hooks and from weights, and put back."""

import families
import pytest
import torch

import probing
from probing.directions.extract import cosine
from probing.engine.guard import HOOKS
from probing.models.hooks import Tap, record_taps
from probing.models.layers import find_stack
from probing.models.writers import find_writers

WIDTH = 32
REFUSED = ("bert", "roberta", "deberta_v3")
"""Their writes cannot be proved, since a norm stands behind each sum."""
BOUNDED = (*REFUSED, "bloom", "olmo2")
"""Later writes cover what was planted: it is normed behind the embedding, or every write is made long by a norm."""
TIED = ("gemma2", "gpt2", "cohere2", "falcon", "bloom", "opt", "lfm2", "gemma3")
STARTS = ["a small boat", "the answer is near", "hello there", "is it ok"]
HARMFUL, HARMLESS = ([f"{start} {word}" for start in STARTS] for word in ("wood", "glue"))
IDS = torch.tensor([[1, 30, 31, 32, 33, 34, 35], [1, 90, 57, 200, 11, 301, 44]])
SIZE = 30
"""Length of what is planted, in lengths of an embedding."""


def make(name):
    """A model whose biases are not zero, of which the last words of both kinds of prompts lie apart along a vector."""
    language_model = families.make(name)
    generator = torch.Generator().manual_seed(5)
    vector = torch.randn(WIDTH, generator=generator)
    # A LayerNorm behind the embedding would take the mean off.
    vector = torch.nn.functional.normalize(vector - vector.mean(), dim=0)
    with torch.no_grad():
        for key, parameter in language_model.model.named_parameters():
            if key.endswith("bias"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        embedding = language_model.model.get_input_embeddings().weight
        length = SIZE * embedding.std() * WIDTH**0.5
        words = [language_model.tokenizer(side[0])["input_ids"][-1] for side in (HARMFUL, HARMLESS)]
        embedding[words] += torch.stack([length * vector, -length * vector])
    ids = torch.cat([IDS, torch.tensor([[1, words[0], 31, words[1], 33, 34, words[0]]])])
    return language_model, vector, ids


def run(language_model, ids):
    with torch.no_grad():
        output = language_model.model(input_ids=ids)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def record(language_model, taps, ids):
    """What passes the taps, and the logits."""
    with record_taps(taps) as seen:
        logits = run(language_model, ids)
    return [tensor.clone() for _, tensor in seen], logits


def find_planted(language_model, vector):
    """The direction between both kinds of prompts, which is the planted one."""
    found = probing.extract_directions(language_model, HARMFUL, HARMLESS, filter_by_sign=False)
    # The first position is the last token of the instruction, at which the words stand.
    return found, cosine(found.vectors[:, 0], vector.expand(len(found.places), WIDTH))


def along(states, vectors):
    basis = torch.linalg.qr(vectors.double().reshape(-1, WIDTH).T).Q.T
    return (states.double() @ basis.T).norm(dim=-1)


def is_clean(language_model):
    return not any(getattr(module, name) for module in language_model.model.modules() for name, _ in HOOKS)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_planted_direction_is_found_taken_out_and_put_back(name):
    language_model, vector, ids = make(name)
    found, cosines = find_planted(language_model, vector)
    assert cosines[0] > 0.98
    assert cosines.min() > (0.8 if name in BOUNDED else 0.95)
    if name in REFUSED:
        return
    directions = torch.stack([found.vectors[0, 0], torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))])
    weights = {key: value.clone() for key, value in language_model.model.state_dict().items()}
    stack = find_stack(language_model)
    taps = [Tap(writer.module) for writer in find_writers(stack)] + [Tap(block) for block in stack.blocks]
    before, plain = record(language_model, taps, ids)
    with probing.ablate(language_model, directions) as hooks:
        assert hooks.writers.proved == hooks.writers.found
        after, under_hooks = record(language_model, taps, ids)
    assert is_clean(language_model)
    for was, is_now in zip(before, after, strict=True):
        # Float32: roundings of the length of the states, as they were too, since a part of them was subtracted.
        assert along(is_now, directions).max() <= 1e-5 * max(is_now.norm(dim=-1).max(), was.norm(dim=-1).max())
        assert along(was, directions).max() > 1e-3 * was.norm(dim=-1).max()

    edit = probing.orthogonalize(language_model, directions)
    assert edit.writers.proved == edit.writers.edited == edit.writers.found
    edited = run(language_model, ids)
    # Both compute in float32, the products in another order.
    torch.testing.assert_close(edited, under_hooks, rtol=0, atol=1e-4 * float(plain.abs().max().clamp_max(1)))
    assert (edited - plain).abs().max() > 1e-2
    changed = {key for key, value in language_model.model.state_dict().items() if not torch.equal(value, weights[key])}
    assert changed == {tensor.name for tensor in edit.tensors}
    assert ("was untied first" in edit.describe()) == (name in TIED)
    edit.undo()
    now = language_model.model.state_dict()
    assert now.keys() == weights.keys()
    assert all(torch.equal(now[key], weights[key]) for key in weights)
    assert torch.equal(run(language_model, ids), plain)
    if name in TIED:
        head, embedding = language_model.model.get_output_embeddings(), language_model.model.get_input_embeddings()
        assert head.weight is embedding.weight
        assert language_model.model.config.tie_word_embeddings
