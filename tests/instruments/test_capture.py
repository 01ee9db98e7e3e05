from concurrent.futures import ThreadPoolExecutor

import datasets
import families
import pandas as pd
import pytest
import tiny
import torch

from probing import Capture, LabelledPrompt, Place, capture
from probing.errors import DataInvalid, LayerNotFound, NotFinite, UsageError
from probing.models.layers import find_stack
from probing.types import Activations, TokenActivations

MODEL = tiny.make_model("llama")
TEXTS = ["Is it ok?", "The answer is near.", "No. Never. Yes, always and again."]
PLACES = [Place("resid_post", 1), Place("resid_pre", -1), Place("final_norm")]


def plain(text, model=MODEL):
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        states = model.model(input_ids=ids, output_hidden_states=True).hidden_states
    return torch.stack([states[2][0], states[2][0], states[-1][0]], dim=1)


REDUCED = {
    "last": lambda states: states[-1],
    "first": lambda states: states[0],
    "mean": lambda states: states.mean(0),
    "sum": lambda states: states.sum(0),
}


@pytest.mark.parametrize("pooling", REDUCED)
def test_values_are_those_of_the_plain_model(pooling):
    acts = capture(MODEL, TEXTS, Capture(PLACES, pooling))
    assert acts.ids == ("0", "1", "2")
    assert acts.places == (Place("resid_post", 1), Place("resid_pre", 2), Place("final_norm"))
    assert acts.source == MODEL.source
    assert acts.values.dtype == torch.float32
    for row, text in enumerate(TEXTS):
        torch.testing.assert_close(acts.values[row], REDUCED[pooling](plain(text)), rtol=1e-5, atol=1e-5)
    assert torch.equal(acts.at(Place("final_norm")), acts.values[:, 2])


def test_every_token():
    acts = capture(MODEL, TEXTS, Capture(PLACES, "tokens"))
    assert isinstance(acts, TokenActivations)
    for row, text in enumerate(TEXTS):
        torch.testing.assert_close(acts.row(str(row)), plain(text), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="there is no row 'x'"):
        acts.row("x")


def test_texts_in_any_form():
    rows = [{"id": f"r{n}", "text": text, "label": n} for n, text in enumerate(TEXTS)]
    expected = capture(MODEL, TEXTS, Capture(PLACES)).values
    for texts in (
        rows,
        pd.DataFrame(rows),
        datasets.Dataset.from_list(rows),
        [LabelledPrompt(**row) for row in rows],
        iter(rows),
    ):
        acts = capture(MODEL, texts, Capture(PLACES))
        assert acts.ids == ("r0", "r1", "r2")
        assert torch.equal(acts.values, expected)


def test_the_values_can_be_trained_on():
    values = capture(MODEL, TEXTS, Capture(PLACES)).at(Place("final_norm"))
    weights = torch.zeros(values.shape[1], requires_grad=True)
    (values @ weights).sum().backward()
    assert weights.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("dtype", "asked", "pooling", "expected"),
    [
        (torch.bfloat16, "auto", "last", torch.bfloat16),
        (torch.bfloat16, "auto", "mean", torch.float32),
        (torch.bfloat16, "float32", "last", torch.float32),
        (torch.float32, "float16", "mean", torch.float16),
    ],
)
def test_dtypes(dtype, asked, pooling, expected):
    model = tiny.make_model("llama")
    model.model.to(dtype)
    acts = capture(model, TEXTS, Capture(PLACES, pooling, dtype=asked))
    assert acts.values.dtype == expected
    exact = capture(MODEL, TEXTS, Capture(PLACES, pooling)).values
    assert (acts.values.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_a_callers_autocast_changes_nothing():
    expected = capture(MODEL, TEXTS, Capture(PLACES)).values
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(capture(MODEL, TEXTS, Capture(PLACES)).values, expected)


def test_threads_wait_for_each_other():
    expected = capture(MODEL, TEXTS, Capture(PLACES)).values
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: capture(MODEL, TEXTS, Capture(PLACES)).values, range(9)))
    assert all(torch.equal(values, expected) for values in found)


def test_a_row_as_long_as_the_positions_that_roberta_can_use():
    model = families.make("roberta")
    limit = model.max_positions
    assert limit == 512 - 1 - 1  # the config's, without the padding index and what lies before it
    texts = ["near" + " near" * n for n in range(480, 520)]
    acts = capture(model, texts, Capture([Place("resid_post", 0)]))
    assert acts.problems
    lengths = [len(model.tokenizer(text)["input_ids"]) for text in texts]
    assert len(acts.ids) == sum(length <= limit for length in lengths)


@pytest.mark.parametrize("place", [Place("attn_out", 0), Place("mlp_out", 0)])
def test_writes_below_a_broken_layer_can_be_read(place):
    expected = capture(MODEL, TEXTS, Capture([place])).values
    model = tiny.make_model("llama")
    with torch.no_grad():
        model.model.model.layers[1].mlp.down_proj.weight[0] = float("nan")
    torch.testing.assert_close(capture(model, TEXTS, Capture([place])).values, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(NotFinite, match="from layer 1 on"):
        capture(model, TEXTS, Capture([Place(place.kind, 2)]))


def test_an_encoder_with_broken_embeddings_is_still_an_encoder():
    model = families.make("bert")
    expected = capture(model, ["never again"], Capture([Place("resid_post", -1)], "first")).values
    with torch.no_grad():
        model.model.embeddings.word_embeddings.weight[[2, 3, 8]] = float("nan")
    assert not find_stack(model).causal
    found = capture(model, ["never again"], Capture([Place("resid_post", -1)], "first")).values
    torch.testing.assert_close(found, expected)


def test_rows_that_cannot_be_read_are_named_and_left_out(caplog):
    acts = capture(MODEL, [*TEXTS[:1], "", "near " * 600, TEXTS[1]], Capture(PLACES))
    assert acts.ids == ("0", "3")
    assert [(problem.id, problem.status) for problem in acts.problems] == [("1", "empty_text"), ("2", "too_long")]
    assert "2 of 4 rows could not be read and are left out; the first: row '1'" in caplog.text
    torch.testing.assert_close(acts.values[1], plain(TEXTS[1])[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "tokens"])
def test_a_layer_that_yields_nan_is_named_with_the_row(pooling):
    model = tiny.make_model("llama")
    bad = model.tokenizer(" wood")["input_ids"][-1]
    with torch.no_grad():
        model.model.model.embed_tokens.weight[bad] = float("nan")
    acts = capture(model, ["Is it ok?", "a boat of wood", "never"], Capture(PLACES, pooling))
    (problem,) = acts.problems
    assert (problem.id, problem.status) == ("1", "not_finite")
    assert problem.detail == "states are NaN or infinite from the embedding on"
    assert acts.ids == ("0", "2")
    expected = capture(model, ["Is it ok?", "never"], Capture(PLACES, pooling)).values
    assert torch.equal(acts.values, expected)


def test_no_row_at_all():
    with pytest.raises(DataInvalid, match="no row could be read; the first is row '0': empty_text"):
        capture(MODEL, ["", " "], Capture(PLACES))
    model = tiny.make_model("llama")
    with torch.no_grad():
        model.model.model.layers[1].mlp.up_proj.weight[0] = float("nan")
    with pytest.raises(NotFinite, match="row '0': not_finite, states are NaN or infinite from layer 1 on"):
        capture(model, TEXTS, Capture(PLACES))


def test_a_layer_below_the_broken_one_can_be_read():
    model = tiny.make_model("llama")
    with torch.no_grad():
        model.model.model.layers[2].mlp.up_proj.weight[0] = float("nan")
    assert len(capture(model, TEXTS, Capture([Place("resid_post", 1)])).ids) == 3


def test_a_value_too_large_for_its_dtype():
    model = tiny.make_model("llama")
    with torch.no_grad():
        model.model.model.norm.weight.fill_(1e6)
    with pytest.raises(NotFinite, match="too large for the dtype asked for"):
        capture(model, TEXTS, Capture([Place("final_norm")], dtype="float16"))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (Place("resid_post", 3), r"resid_post:3: LlamaForCausalLM has 3 layers, 0 to 2 \(or -3 to -1 from the end\)"),
        (Place("attn_out", -4), r"attn_out:-4: .* has 3 layers"),
    ],
)
def test_a_layer_that_is_not_there(place, message):
    with pytest.raises(LayerNotFound, match=message):
        capture(MODEL, TEXTS, Capture([place]))


def test_the_same_place_twice_in_other_words():
    with pytest.raises(UsageError, match="a place is named twice"):
        capture(MODEL, TEXTS, Capture([Place("resid_post", 2), Place("resid_post", -1)]))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "there are no texts to read"),
        ([3], r"row 0: texts must be strings, LabelledPrompt .* found int \(3\)"),
        (["near", {"text": "boat"}], "row 1: texts must be strings, .* throughout; found dict"),
        ([{"id": "a"}], "no column of texts .* the columns are id"),
        (
            [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}],
            "row 1: id 'a' in column 'id' was already used at row 0",
        ),
        ([LabelledPrompt("a", "x"), LabelledPrompt("a", "y")], "row 1: the id 'a' was already used"),
        ([{"text": "x", "span": [-3, 2]}], "row 0 .* characters -3 to 2 are no span"),
        ([{"text": "x", "span": [False, True]}], "a span is a substring or"),
    ],
)
def test_texts_that_are_none(texts, message):
    with pytest.raises(DataInvalid, match=message):
        capture(MODEL, texts, Capture(PLACES))


def test_options_out_of_range():
    for single in ("Is it ok?", {"text": "Is it ok?"}, datasets.DatasetDict()):
        with pytest.raises(UsageError, match="give a list of texts"):
            capture(MODEL, single, Capture(PLACES))
    with pytest.raises(UsageError, match="batch_tokens must be at least 1"):
        capture(MODEL, TEXTS, Capture(PLACES), batch_tokens=0)
    with pytest.raises(UsageError, match="only has positions for 512"):
        capture(MODEL, TEXTS, Capture(PLACES), max_length=513)
    with pytest.raises(UsageError, match="attn_out and mlp_out lie inside of blocks"):
        capture(MODEL, TEXTS, Capture([Place("mlp_out", 0)]), compile=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Place("resid", 1), "'resid' is no place in a model; there are resid_pre, resid_post"),
        (lambda: Place("resid_post"), "resid_post needs the number of a layer, not None"),
        (lambda: Place("final_norm", 3), "there is one final_norm"),
        (lambda: Place.parse("resid_post:x"), "'x' is no number of a layer"),
        (lambda: Capture([]), "at least one place"),
        (lambda: Capture([Place("resid_post", 1)] * 2), "a place is given twice"),
        (lambda: Capture(PLACES, "median"), "'median' is none of last, first, mean, sum, tokens"),
        (lambda: Capture(PLACES, over="question"), "'question' is none of text, content"),
        (lambda: Capture(PLACES, dtype="int8"), "'int8' is none of auto"),
        (lambda: LabelledPrompt("", "x"), "non-empty text as id"),
        (lambda: LabelledPrompt("a", "x", span=(3, 3)), "characters 3 to 3 are no span"),
        (lambda: Activations(torch.zeros(2, 1, 4), ("a",), (Place("resid_post", 0),), MODEL.source), "for 1 ids"),
    ],
)
def test_values_are_checked_when_they_are_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_places_may_be_written_short():
    assert Capture(["resid_post:1", "final_norm"]).places == (Place("resid_post", 1), Place("final_norm"))
    with pytest.raises(TypeError, match="places must be a list"):
        Capture("resid_post:1")
