import families
import pytest
import tiny
import torch
from torch import nn

from probing.errors import LayerNotFound
from probing.kernels.output_head import write_logits
from probing.models.heads import find_head
from probing.models.layers import find_backbone
from probing.models.passes import last_hidden_state, trial_ids


def logits_of(head, states):
    out = torch.empty((len(states), len(head.weight)))
    write_logits(out, states, head, slice(0, len(head.weight)))
    return out


def check(language_model):
    stack = find_backbone(language_model)
    head = find_head(stack)
    ids = trial_ids(language_model, 4, 20)
    with torch.inference_mode():
        theirs = language_model.model(input_ids=ids, use_cache=False).logits[0]
        torch.testing.assert_close(
            logits_of(head, last_hidden_state(stack.backbone, ids)[0]), theirs, rtol=0, atol=2e-4
        )
    return head


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_equal_the_models_own(family):
    check(tiny.make_model(family))


@pytest.mark.parametrize(
    ("name", "changes", "field", "value"),
    [
        ("CohereConfig", {"logit_scale": 0.25}, "scale", 0.25),
        ("GraniteConfig", {"logits_scaling": 8.0}, "scale", 0.125),
        ("Gemma2Config", {"final_logit_softcapping": 4.0, "head_dim": 8}, "soft_cap", 4.0),
        ("FalconH1Config", {"lm_head_multiplier": 0.5, "mamba_d_ssm": 32, "mamba_n_heads": 4}, "scale", 0.5),
    ],
)
def test_scales_and_caps_of_real_families(name, changes, field, value):
    tiny.FAMILIES["scaled"] = (name, {**tiny.SHAPE, **changes})
    try:
        assert getattr(check(tiny.make_model("scaled")), field) == value
    finally:
        del tiny.FAMILIES["scaled"]


def test_biases_and_vocabularies_larger_than_the_tokenizers():
    language_model = tiny.make_model("llama", vocab_size=450)
    assert len(check(language_model).weight) == 450
    model = tiny.make_model("llama")
    model.model.lm_head = nn.Linear(32, 420)
    assert check(model).bias is not None


def test_a_head_that_is_no_plain_layer():
    """What an adapter or a quantised layer looks like: a module that multiplies."""

    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.delta = inner, nn.Parameter(torch.randn(420, 32))
            self.weight = inner.weight  # not the whole truth, as in an adapter

        def forward(self, states):
            return self.inner(states) + states @ self.delta.T

    language_model = tiny.make_model("llama")
    head = language_model.model.lm_head
    language_model.model.lm_head = Wrapped(head)
    found = check(language_model)
    torch.testing.assert_close(found.weight, head.weight + language_model.model.lm_head.delta)


def test_something_unknown_behind_the_head_is_refused(monkeypatch):
    language_model = tiny.make_model("llama")
    forward = language_model.model.forward

    def sharpened(*args, **options):
        output = forward(*args, **options)
        output.logits = output.logits * 1.01
        return output

    monkeypatch.setattr(language_model.model, "forward", sharpened)
    with pytest.raises(LayerNotFound, match="the logits of LlamaForCausalLM are not those of its output head"):
        find_head(find_backbone(language_model))


def test_every_family_that_can_be_scored_has_a_head():
    """Families of the capture tests: what has a backbone and a causal head gets its own logits back."""
    seen = 0
    for name in families.FAMILIES:
        language_model = families.make(name)
        try:
            find_backbone(language_model)
        except Exception:  # noqa: BLE001 (encoders and the like: refused for scores already)
            continue
        check(language_model)
        seen += 1
    assert seen > 15
