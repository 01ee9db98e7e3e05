"""Edits of states: every token, every mode; and nothing is left behind."""

import families
import pytest
import tiny
import torch

import probing
from probing import Direction, Place, Source
from probing.engine.guard import HOOKS
from probing.errors import EditRefused, UsageError
from probing.models.hooks import Tap, record_taps
from probing.models.layers import find_stack
from probing.models.writers import find_writers

WIDTH = 32
REFUSED = ("bert", "roberta", "deberta_v3")
IDS = torch.tensor([[1, 30, 31, 32, 33, 34, 35], [1, 90, 57, 200, 11, 301, 44]])


def count_hooks(language_model):
    return sum(len(getattr(module, name)) for module in language_model.model.modules() for name, _ in HOOKS)


def run(language_model, ids=IDS, **options):
    with torch.no_grad():
        output = language_model.model(input_ids=ids, **options)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def enter(*arguments, **options):
    """Begin an edit and end it."""
    with probing.ablate(*arguments, **options):
        pass


def record(language_model, taps, ids=IDS):
    with record_taps(taps) as seen:
        run(language_model, ids)
    return [tensor.clone() for _, tensor in seen]


def vector(seed=3, *shape):
    return torch.randn(*(shape or (WIDTH,)), generator=torch.Generator().manual_seed(seed))


def direction(seed=3, kind="resid_pre", layer=1, **changes):
    mean = vector(seed + 100)
    return Direction(vector(seed), Place(kind, layer), -1, Source("x"), harmless_mean=mean, **changes)


def along(states, vectors):
    basis = torch.linalg.qr(vectors.double().reshape(-1, WIDTH).T).Q.T
    return (states.double() @ basis.T).norm(dim=-1)


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_whose_writes_cannot_be_proved_is_refused_by_name(name):
    language_model = families.make(name)
    with pytest.raises(EditRefused, match="norm stands behind each sum"):
        enter(language_model, vector())
    assert count_hooks(language_model) == 0
    # The residual stream itself can be edited.
    with probing.ablate(language_model, vector(), where="resid"):
        assert count_hooks(language_model) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    language_model = families.make("gemma2")
    language_model.model.to(dtype)
    stack = find_stack(language_model)
    with probing.ablate(language_model, vector(3, 2, WIDTH)):
        (last,) = record(language_model, [Tap(stack.blocks[-1])])
    assert last.dtype == dtype
    limit = 1e-6 if dtype == torch.float64 else 2e-2
    assert along(last, vector(3, 2, WIDTH)).max() <= limit * last.double().norm(dim=-1).max()


def test_add_moves_the_residual_stream_by_the_vector():
    language_model = tiny.make_model()
    for kind, layer in (("resid_pre", 1), ("resid_post", 0)):
        (plain,) = record(language_model, [Tap(language_model.model.model.layers[1], before=True)])
        with probing.ablate(language_model, direction(kind=kind, layer=layer), "add", coefficient=0.5) as edit:
            assert edit.describe() == f"add at {kind}:{layer}"
            (moved,) = record(language_model, [Tap(language_model.model.model.layers[1], before=True)])
        torch.testing.assert_close(moved - plain, (0.5 * vector()).expand_as(plain), rtol=1e-4, atol=1e-4)


def test_affine_puts_the_harmless_mean_in_place_of_the_component():
    language_model, given = tiny.make_model(), direction()
    unit = vector() / vector().norm()
    tap = Tap(language_model.model.model.layers[1], before=True)
    (plain,) = record(language_model, [tap])
    for alpha in (None, 1.0, -2.0):
        with probing.ablate(language_model, given, "affine", coefficient=alpha):
            (moved,) = record(language_model, [tap])
        expected = given.harmless_mean @ unit + (alpha or 0.0) * vector().norm()
        torch.testing.assert_close(moved @ unit, expected.expand(2, 7), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            moved - (moved @ unit)[..., None] * unit, plain - (plain @ unit)[..., None] * unit, rtol=1e-4, atol=1e-4
        )


def test_chosen_writers_layers_and_coefficients():
    language_model = tiny.make_model()
    layers = language_model.model.model.layers
    unit = vector() / vector().norm()
    taps = [Tap(module) for layer in layers for module in (layer.self_attn, layer.mlp)]
    plain = record(language_model, taps)
    with probing.ablate(language_model, vector(), where="mlp", layers=[0, -1], coefficient=[0.25, 2.0]) as edit:
        assert [writer.name for writer in edit.writers.edited] == ["model.layers.0.mlp", "model.layers.2.mlp"]
        assert "mlp 3/2/0" in edit.describe()
        assert "some of the direction stays" in edit.describe()
        edited = record(language_model, taps)
    torch.testing.assert_close(edited[0], plain[0])
    torch.testing.assert_close(edited[1] @ unit, 0.75 * (plain[1] @ unit), rtol=1e-4, atol=1e-4)
    assert along(edited[2], vector()).max() > 1e-2
    with probing.ablate(language_model, vector(), where=["embedding", "attention"], layers=0) as edit:
        assert [writer.name for writer in edit.writers.edited] == ["model.embed_tokens", "model.layers.0.self_attn"]
        assert edit.writers.proved == edit.writers.edited
    with probing.ablate(language_model, vector(), where="resid", layers=[1]):
        assert along(*record(language_model, [Tap(layers[1], before=True)]), vector()).max() < 1e-4
        assert along(*record(language_model, [Tap(layers[2], before=True)]), vector()).max() > 1e-2


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom", "mixtral"])
def test_each_row_of_a_batch_has_a_direction_of_its_own(name):
    language_model = families.make(name)
    given = [direction(seed) for seed in (3, 4)]
    alone = []
    for each in given:
        with probing.ablate(language_model, each):
            alone.append(run(language_model))
    plain = run(language_model)
    with probing.ablate(language_model, given) as edit:
        torch.testing.assert_close(run(language_model)[0], alone[0][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(run(language_model)[1], alone[1][1], rtol=1e-4, atol=1e-4)
        edit.assign([1, -1, 0])
        ids = torch.cat([IDS, IDS[:1]])
        mixed = run(language_model, ids)
        torch.testing.assert_close(mixed[0], alone[1][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mixed[1], plain[1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mixed[2], alone[0][0], rtol=1e-4, atol=1e-4)
        with pytest.raises(UsageError, match="given for 3 rows, and a batch of 2 came"):
            run(language_model)
        with pytest.raises(UsageError, match="indices from -1 to 1"):
            edit.assign([0, 2])
    assert torch.equal(run(language_model), plain)


@pytest.mark.parametrize("mode", ["add", "affine"])
def test_directions_of_rows_in_the_other_modes(mode):
    language_model = tiny.make_model()
    given = [direction(seed) for seed in (3, 4)]
    alone = []
    for each in given:
        with probing.ablate(language_model, each, mode, coefficient=1.0):
            alone.append(run(language_model))
    with probing.ablate(language_model, given, mode, coefficient=1.0, rows=[1, 0]):
        mixed = run(language_model)
    torch.testing.assert_close(mixed[0], alone[1][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed[1], alone[0][1], rtol=1e-4, atol=1e-4)


def test_chosen_tokens():
    language_model = tiny.make_model()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    taps = [Tap(language_model.model.model.embed_tokens)]

    def edited(**options):
        with probing.ablate(language_model, vector(), **options), record_taps(taps) as seen:
            run(language_model, attention_mask=mask)
        return (along(seen[0][1], vector()) < 1e-4).long()

    assert edited(tokens="last").tolist() == [[0, 0, 0, 0, 0, 0, 1]] * 2
    assert edited(tokens="response", prompt_tokens=[3, 5]).tolist() == [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1, 1]]
    assert edited(tokens="response", prompt_tokens=2).tolist() == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]]
    assert edited().tolist() == [[1] * 7] * 2
    with (
        probing.ablate(language_model, vector(), tokens="last"),
        pytest.raises(UsageError, match="tokens='last' needs an attention_mask"),
    ):
        run(language_model)
    with (
        probing.ablate(language_model, vector(), tokens="response"),
        pytest.raises(UsageError, match="tokens='response' needs prompt_tokens"),
    ):
        run(language_model, attention_mask=mask, use_cache=False)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba2"])
def test_generation_with_a_cache_edits_the_same_tokens_as_without(name):
    language_model = families.make(name)
    given = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    # Without a cache this state-space model is told nothing that positions could be known by.
    for options in ({}, {"tokens": "response"}) if name != "mamba2" else ({},):
        with probing.ablate(language_model, vector(), **options):
            cached = language_model.model.generate(IDS, use_cache=True, **given)
        if options:
            options |= {"prompt_tokens": IDS.shape[1]}
        with probing.ablate(language_model, vector(), **options):
            again = language_model.model.generate(IDS, use_cache=False, **given)
        assert torch.equal(cached, again)


def test_packed_sequences_have_no_last_token():
    language_model = tiny.make_model()
    texts, request = ["Is it ok?", "Never"], probing.Capture([Place("resid_post", 0)])
    for options in ({"tokens": "last"}, {"tokens": "response", "prompt_tokens": 1}):
        with probing.ablate(language_model, vector(), **options), pytest.raises(probing.ProbingError, match="tokens='"):
            probing.capture(language_model, texts, request)


def test_the_response_of_a_state_space_model_in_generation():
    language_model = families.make("mamba2")
    with (
        probing.ablate(language_model, vector(), tokens="response"),
        record_taps([Tap(language_model.model.backbone.embeddings)]) as seen,
    ):
        language_model.model.generate(
            IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=3, do_sample=False, pad_token_id=0
        )
    edited = [(along(states, vector()) < 1e-4)[0].tolist() for _, states in seen]
    assert edited == [[False] * 7, [True], [True]]


def test_the_last_token_in_generation_is_the_prompts_last_and_each_new_one():
    language_model = tiny.make_model()
    with (
        probing.ablate(language_model, vector(), tokens="last"),
        record_taps([Tap(language_model.model.model.embed_tokens)]) as seen,
    ):
        language_model.model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=3, do_sample=False)
    edited = [(along(states, vector()) < 1e-4)[0].tolist() for _, states in seen]
    assert edited == [[False] * 6 + [True], [True], [True]]


def test_our_own_instruments_see_the_edit_and_leave_it_on():
    language_model = tiny.make_model()
    texts, request = (
        ["Is it ok? Never", "The answer is near."],
        probing.Capture([Place("resid_post", 2)], pooling="last"),
    )
    plain = probing.capture(language_model, texts, request).values
    scores = probing.score_pairs(language_model, tiny.PAIRS)
    with probing.ablate(language_model, vector()):
        hooks = count_hooks(language_model)
        edited = probing.capture(language_model, texts, request).values
        other = probing.score_pairs(language_model, tiny.PAIRS)
        assert count_hooks(language_model) == hooks
        # A second edit on top of the first.
        other_way = vector(7) - (vector(7) @ vector()) / (vector() @ vector()) * vector()
        with probing.ablate(language_model, other_way):
            both = probing.capture(language_model, texts, request).values
    assert along(edited, vector()).max() < 1e-4
    assert along(both, torch.stack([vector(), vector(7)])).max() < 1e-4
    assert along(plain, vector()).max() > 1e-2
    assert not other.equals(scores)
    assert torch.equal(probing.capture(language_model, texts, request).values, plain)
    assert probing.score_pairs(language_model, tiny.PAIRS).equals(scores)


def test_blocks_are_not_compiled_under_an_edit():
    language_model, request = tiny.make_model(), probing.Capture([Place("resid_post", 0)])
    with probing.ablate(language_model, vector()), pytest.raises(UsageError, match="not compiled under"):
        probing.capture(language_model, ["Is it ok?"], request, compile=True)


def test_packed_sequences_cannot_have_a_direction_a_row():
    language_model = tiny.make_model()
    with (
        probing.ablate(language_model, [direction(3), direction(4)]),
        pytest.raises(UsageError, match="given for 2 rows, and a batch of 1 came"),
    ):
        probing.capture(language_model, ["Is it ok?", "Never"], probing.Capture([Place("resid_post", 0)]))


@pytest.mark.parametrize("ending", [RuntimeError, KeyboardInterrupt])
def test_hooks_are_taken_off_whatever_ends_the_block(ending):
    language_model = tiny.make_model()
    with pytest.raises(ending), probing.ablate(language_model, vector()):
        raise ending
    assert count_hooks(language_model) == 0


def test_gradients_flow_through_an_edit():
    language_model = tiny.make_model()
    with probing.ablate(language_model, vector()):
        language_model.model(input_ids=IDS).logits.sum().backward()
    weight = language_model.model.model.layers[0].mlp.down_proj.weight
    # What is removed has no gradient.
    assert weight.grad.abs().max() > 0
    assert ((vector() / vector().norm()) @ weight.grad).abs().max() < 1e-4 * weight.grad.abs().max()


def test_autocast_of_a_caller_does_not_round_the_edit():
    language_model = tiny.make_model()
    with probing.ablate(language_model, vector()), torch.autocast("cpu", dtype=torch.bfloat16):
        (states,) = record(language_model, [Tap(language_model.model.model.embed_tokens)])
    assert along(states, vector()).max() < 1e-5 * states.norm(dim=-1).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "remove"}, "mode is one of project, affine, add"),
        ({"where": "head"}, "where is 'writes', 'resid', or some of"),
        ({"mode": "add", "where": "mlp"}, "where is for mode 'project'"),
        ({"layers": []}, "at least one"),
        ({"layers": [1, -2]}, "layers are different ones"),
        ({"coefficient": [1.0]}, "1 coefficients for 3 layers"),
        ({"rows": [0]}, "and one was given"),
        ({"tokens": "first"}, "tokens is one of"),
        ({"direction": torch.ones(31)}, "a direction of width 31, and LlamaForCausalLM has states of 32"),
        ({"direction": torch.full((32,), float("nan"))}, "a finite direction"),
        ({"direction": torch.ones(2, 32)}, "linearly dependent"),
        ({"direction": torch.ones(32), "mode": "add"}, "layers must be given"),
        ({"direction": torch.ones(32), "mode": "affine", "layers": 1}, "has no harmless_mean"),
        ({"direction": direction(kind="mlp_out"), "mode": "add"}, "was read at mlp_out"),
        ({"direction": [direction(layer=0), direction(layer=1)], "mode": "add"}, "read at resid_pre:0, resid_pre:1"),
    ],
)
def test_bad_requests_name_the_matter(options, message):
    language_model = tiny.make_model()
    with pytest.raises(UsageError, match=message):
        enter(language_model, **{"direction": direction(), **options})
    assert count_hooks(language_model) == 0


def test_a_layer_that_is_not_there():
    with pytest.raises(probing.LayerNotFound, match="has 3 layers"):
        enter(tiny.make_model(), direction(), layers=7)


def test_the_guard_finds_an_edit_in_place(monkeypatch):
    from probing.directions.edits import Change
    from probing.kernels.project_out import project_out

    monkeypatch.setattr(
        Change,
        "apply",
        lambda self, states, rows=None, impl="auto": project_out(
            states, self.basis.to(states.dtype), rows, in_place=True
        ),
    )
    language_model = tiny.make_model()
    with pytest.raises(EditRefused, match="changed states in place that the model still holds"):
        enter(language_model, vector())
    assert count_hooks(language_model) == 0


def test_the_guard_finds_a_direction_that_was_rounded(monkeypatch):
    import probing.engine.ablation as module

    plain = module.Change
    monkeypatch.setattr(
        module, "Change", lambda basis, *rest, **named: plain(basis.bfloat16().double(), *rest, **named)
    )
    with pytest.raises(EditRefused, match=r"model\.embed_tokens of .* still holds"):
        enter(tiny.make_model(), vector())


def test_the_guard_finds_a_writer_that_was_left_out(monkeypatch):
    import probing.engine.ablation as module

    monkeypatch.setattr(module, "find_writers", lambda stack: find_writers(stack)[:-1])
    with pytest.raises(EditRefused, match=r"the output of layer 2 of .* still holds"):
        enter(tiny.make_model(), vector())
