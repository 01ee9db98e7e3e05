"""What a notebook and an interactive session show of public values: little, and nothing that is obeyed."""

import pandas as pd
import pytest
import tiny
import torch
from test_screen import FORBIDDEN, HOSTILE
from transformers import TrainerControl

import probing
from probing import LabelledPrompt, LanguageModel, Place, PreferencePair, Report, Source
from probing.shown import LONGEST_REPR, Shown, list_some
from probing.store.activations import ActivationStore
from probing.training.alarms import read_alarms
from probing.types import Problem

NAME = f"<script>alert(1)</script>{HOSTILE}"
SOURCE = Source(NAME * 20, NAME, *["0123456789abcdef" * 4] * 5)
PLACES = tuple(Place("resid_post", layer) for layer in range(80))
MESSAGES = [{"role": "user", "content": NAME * 50}] * 9
FACTS = {
    "rows_by_status": {"ok": 3},
    "places": [str(place) for place in PLACES],
    "request": {"pooling": NAME},
    "width": 4,
    "dtype": "float32",
    "source": {"model": NAME},
}


@pytest.fixture(scope="module")
def values():
    """A large and hostile value of every public class that has a content."""
    states = torch.zeros(3, 80, 4)
    ids = (NAME, "b", "c")
    problems = (Problem("d", "truncated", NAME),) * 1000
    table = pd.DataFrame({NAME: [NAME * 90, None], "value": [0.123456, 2]})
    long = torch.zeros(500, 3)
    plain = tiny.make_model()
    direction = probing.Direction(long.T[0] + 1, PLACES[0], -1, SOURCE, NAME, None, {NAME: NAME})
    counts = {"harmful": 3, "harmless": 4}
    selection = probing.Selection(
        direction=direction,
        table=table,
        layer_forwards={"induce": 10},
        exhaustive_layer_forwards=40,
        cosmic=(NAME, -1),
        cosmic_layers=[1],
        cosmic_layer_forwards=2,
        base={"harmful": 1.0, "harmless": -1.0},
        prompts=counts,
        how=NAME,
    )
    trace = probing.RefusalTrace(
        places=table,
        sources=table,
        curves=table,
        cliffs=table,
        bands=table,
        tokens=[],
        refused=counts,
        prompts=counts,
        why_not={NAME * 9: NAME},
    )
    estimate = probing.Estimate(0.1, 0.2, 0.3, 4)
    measurement = probing.Measurement(3, {NAME: estimate}, NAME * 9, {NAME: 1.0})
    return [
        LanguageModel(plain.model, plain.tokenizer, SOURCE),
        SOURCE,
        probing.Activations(states, ids, PLACES, SOURCE, problems),
        probing.TokenActivations(states, torch.tensor([0, 1, 2, 3]), ids, PLACES, SOURCE, problems),
        probing.Capture(PLACES),
        ActivationStore(plain.source.model, FACTS),
        probing.SavedProbes((NAME,) * 9, PLACES, long, long, long, SOURCE, FACTS),
        probing.CCSProbe(states[:, :, 0], states[:, 0, 0], states, "l2", True, torch.rand(80)),
        PreferencePair(NAME, NAME * 200, NAME, NAME * 200),
        PreferencePair(NAME, MESSAGES, MESSAGES, MESSAGES, tools=MESSAGES, chat_template_kwargs={NAME: MESSAGES}),
        LabelledPrompt(NAME, MESSAGES, label=NAME, response=NAME * 50, tools=MESSAGES),
        probing.ContrastPair(NAME, NAME * 90, "b" * 9000, True, NAME, NAME),
        Report({f"{number}{NAME}": table for number in range(30)}, {NAME: NAME}),
        probing.Unembedding(torch.zeros(500, 30)),
        probing.TokenStats(*[torch.zeros(500)] * 3, long, long, torch.zeros(500)),
        probing.Estimate(0.1, 0.2, 0.3, 4),
        probing.RankingAccuracy(0.1, 0.2, 3),
        probing.CCSOptions(),
        probing.PreferenceLoss("robust", label_smoothing=0.1),
        direction,
        probing.Directions(states[None], states[None], states[None], PLACES[:1], (-3, -2, -1), SOURCE, NAME, FACTS),
        selection,
        trace,
        PLACES[0],
        measurement,
        probing.AlarmEvent(read_alarms({"a": "> 1"}, {"a": True})[0], estimate, 3, TrainerControl()),
        probing.DisplacementCallback([{"prompt": NAME, "chosen": "a", "rejected": "b"}], every=[1, 2]),
        probing.GeometryCallback([NAME, "b", "c", "d"], name="n" * 90),
    ]


def public_classes():
    found = [value for value in map(probing.__getattr__, probing.__all__) if isinstance(value, type)]
    return {value for value in found if not issubclass(value, Exception)}


def test_every_public_class_is_shown_on_one_short_line(values):
    assert {type(value) for value in values} >= public_classes()
    for value in values:
        shown = repr(value)
        assert shown.startswith(f"{type(value).__name__}(")
        assert len(shown) <= LONGEST_REPR
        assert shown.isprintable()


def test_pages_neither_obey_nor_interpret_what_they_show(values):
    pages = [value._repr_html_() for value in values if hasattr(value, "_repr_html_")]
    assert len(pages) == 17
    for page in pages:
        assert not FORBIDDEN & set(page)
        assert "<script" not in page
        assert "<table" in page


def test_the_page_of_a_report_has_whole_sentences_and_the_first_rows():
    sentence = "a sentence that is longer than fifty characters, of which none is left out"
    page = Report(
        {"Notes": pd.DataFrame({"note": [sentence] * 100}), "T": pd.DataFrame({"p": [0.123456]})}
    )._repr_html_()
    assert page.count(sentence) == 60
    assert "40 more rows" in page
    assert "0.1235" in page


def test_short_forms():
    assert list_some(["a", "b"]) == "a, b"
    assert list_some(PLACES) == "80 (resid_post:0 .. resid_post:79)"
    assert (
        repr(PreferencePair("a", "Q", " b", " c")) == "PreferencePair(id='a', prompt='Q', chosen=' b', rejected=' c')"
    )
    assert repr(Source("m", weights_sha256="0123456789")) == "Source(model: m; weights: 01234567)"
    with pytest.raises(NotImplementedError):
        repr(Shown())
