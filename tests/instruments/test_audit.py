"""The audit names the writers from which a direction was removed, in every form of edit, and no others."""

import copy

import families
import peft
import pytest
import torch

import probing
from probing import LanguageModel
from probing.errors import SourceMismatch, UsageError
from probing.instruments.audit import audit_edit

VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(3))
EDITS = {
    "all": {},
    "some layers": {"layers": [1, 2]},
    "attention": {"where": "attention"},
    "one writer": {"where": "mlp", "layers": [0]},
    "lengths kept": {"norm_preserving": True},
}


def copy_of(model):
    return LanguageModel(copy.deepcopy(model.model), model.tokenizer)


def edited(model, vector=VECTOR, **how):
    other = copy_of(model)
    edit = probing.orthogonalize(other, vector, **how)
    edit.forget()
    return other, len(edit.writers.edited)


def round_to_half(model):
    other = copy_of(model)
    other.model.to(torch.bfloat16).to(torch.float32)
    return other


@pytest.fixture(scope="module")
def llama():
    return families.make("llama")


@pytest.mark.parametrize("name", EDITS)
def test_the_number_of_writers_is_named(llama, name):
    policy, count = edited(llama, **EDITS[name])
    for other in (policy, round_to_half(policy)):
        audit = audit_edit(llama, other)
        assert audit.counts["removed"] == count
        assert audit.describe().startswith(f"consistent with removal of one direction from {count} of 9 writers")
        # Rounding of the policy to bfloat16 turns the direction by about its rounding unit.
        assert abs(float(audit.found @ VECTOR.double()) / float(VECTOR.norm())) > 0.9999
        assert audit_edit(llama, other, direction=VECTOR).counts == audit.counts
    assert audit_edit(policy, policy).unchanged


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "gpt_oss", "qwen3_moe"])
def test_norms_biases_and_experts(name):
    """Norms behind writes, biases and positions, fused experts in both orders of axes."""
    model = families.make(name)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, parameter in model.model.named_parameters():
            if key.endswith("bias"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    policy, count = edited(model)
    audit = audit_edit(model, policy)
    assert audit.counts == {"removed": count}
    matrices = [each.along for writer in audit.writers for each in writer.matrices]
    assert {each.form for each in matrices if each.state != "absent"} == {"projection"}
    assert audit_edit(model, round_to_half(model)).counts == {"kept": count}


def test_a_writer_that_was_skipped_is_named(llama):
    policy, count = edited(llama)
    down = "model.layers.2.mlp.down_proj.weight"
    with torch.no_grad():
        policy.model.get_parameter(down).copy_(llama.model.get_parameter(down))
    audit = audit_edit(llama, policy)
    assert audit.describe() == (
        f"consistent with removal of one direction from {count - 1} of {count} writers; 1 are unchanged"
    )
    assert [each.main.tensor for each in audit.writers if each.state == "unchanged"] == [down]


def test_an_expert_that_was_skipped_is_named():
    model = families.make("qwen3_moe")
    policy, count = edited(model)
    fused = "model.layers.1.mlp.experts.down_proj"
    with torch.no_grad():
        policy.model.get_parameter(fused)[3].copy_(model.model.get_parameter(fused)[3])
    audit = audit_edit(model, policy)
    assert audit.counts == {"removed": count - 1, "in part": 1}
    worst = max(audit.writers, key=lambda each: each.left)
    assert worst.state == "in part"
    assert [each.part for each in worst.matrices if each.along.state != "removed"] == [3]


def test_lengths_of_the_wrong_axis_leave_some(llama):
    """The published edit that keeps the lengths of rows; the direction has a few large channels, as real ones do."""
    vector = VECTOR * torch.tensor([8.0] * 3 + [1.0] * 29)
    policy, _ = edited(llama, vector, where=["attention", "mlp"])
    with torch.no_grad():
        for key, parameter in policy.model.named_parameters():
            if key.endswith(("o_proj.weight", "down_proj.weight")):
                own = llama.model.get_parameter(key).norm(dim=1, keepdim=True)
                parameter.mul_(own / parameter.norm(dim=1, keepdim=True))
    audit = audit_edit(llama, policy, direction=vector)
    assert not audit.consistent
    assert audit.counts["in part"] == 8
    assert all(0.05 < each.left < 0.5 for each in audit.writers if each.state == "in part")


@pytest.mark.parametrize("rank", [1, 4])
def test_random_updates_of_low_rank_are_no_removal(llama, rank):
    policy, generator = copy_of(llama), torch.Generator().manual_seed(rank)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.ndim == 2:
                left, right = (
                    torch.randn(*shape, generator=generator)
                    for shape in ((parameter.shape[0], rank), (rank, parameter.shape[1]))
                )
                update = left @ right
                # As long as the removal of a direction.
                parameter.add_(update / update.norm() * parameter.norm() / 32**0.5)
    audit = audit_edit(llama, policy)
    assert audit.counts == {"kept": 9}
    assert "not consistent with removal of one direction" in audit.describe()
    edit = probing.orthogonalize(policy, VECTOR)
    assert audit_edit(llama, policy).counts == {"removed": 9}
    edit.undo()


def train(model, steps=30):
    """A LoRA of rank 4 on o_proj and down_proj, trained to raise one token everywhere: all updates point alike."""
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["o_proj", "down_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(copy.deepcopy(model.model), config)
    optimizer = torch.optim.Adam([each for each in wrapped.parameters() if each.requires_grad], lr=1e-2)
    ids = torch.randint(10, 400, (8, 12), generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(steps):
        loss = -wrapped(input_ids=ids).logits.log_softmax(-1)[..., 77].mean()
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return wrapped, losses


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_honest_training_is_no_removal(llama):
    wrapped, losses = train(llama)
    assert losses[-1] < 0.5 * losses[0]
    adapted = LanguageModel(wrapped.eval(), llama.tokenizer)
    audit = audit_edit(llama, adapted)
    # The adapter's embedding is that of the base.
    assert audit.counts == {"kept": 8, "unchanged": 1}
    changed = [each.main for each in audit.writers if each.state == "kept"]
    assert all(each.change.effective_rank < 4.001 for each in changed)
    assert max(each.relative_norm for each in changed) > 1 / 32**0.5
    # The audit of an adapter is that of the merged weights, and leaves the adapter on.
    merged = LanguageModel(copy.deepcopy(wrapped).merge_and_unload(), llama.tokenizer)
    assert audit_edit(llama, merged).describe() == audit.describe()
    assert adapted.peft is not None


def test_an_integer_grid_is_no_removal(llama):
    policy = copy_of(llama)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.ndim == 2:
                scale = parameter.abs().amax(dim=1, keepdim=True) / 7
                parameter.copy_((parameter / scale).round() * scale)
    assert audit_edit(llama, policy).counts == {"kept": 9}


def test_other_models_are_refused(llama):
    with pytest.raises(SourceMismatch, match="another architecture"):
        audit_edit(llama, families.make("qwen3"))
    with pytest.raises(UsageError, match="width 32"):
        audit_edit(llama, copy_of(llama), direction=torch.ones(8))
