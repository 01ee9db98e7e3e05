import numpy as np
import pytest

from probing.data.surface import FEATURES, surface_features
from probing.types import LabelledPrompt

AT = {name: number for number, name in enumerate(FEATURES)}


def features(text, response=None):
    (found,) = np.expm1(surface_features([LabelledPrompt("a", text, None, None, response)]))
    return {name: pytest.approx(found[at]) for name, at in AT.items()}


def test_what_is_counted():
    found = features("Is it 4 p.m.?\nNo: né!")
    expected = {
        "characters": 21,
        "words": 6,
        "characters a word": 16 / 6,
        "lines": 2,
        "messages": 1,
        "capitals": 2,
        "digits": 1,
        "other than ASCII": 1,
        ".": 2,
        "?": 1,
        ":": 1,
        "!": 1,
    }
    assert {name: value for name, value in found.items() if value != 0} == expected


def test_the_words_themselves_do_not_matter():
    assert features("near boat, ok.") == features("wood glue, no.")


def test_every_mark_has_a_feature_of_its_own():
    assert len(AT) == len(FEATURES) == 8 + 32
    assert features('"')['"'] == 1
    assert features("\\")["\\"] == 1


def test_a_response_and_messages_count_as_lines():
    turns = [{"role": "user", "content": "near"}, {"role": "assistant", "content": "a boat"}]
    assert features(turns) == features("near", "a boat")
    assert features(turns)["messages"] == 2
    assert features(turns)["characters"] == len("near\na boat")
    assert features([*turns, {"role": "user", "content": "?"}])["messages"] == 3


def test_nothing_is_counted_of_nothing():
    assert {name: value for name, value in features("").items() if value != 0} == {"lines": 1, "messages": 1}
    empty = [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "near"}}]}]
    assert np.isfinite(surface_features([LabelledPrompt("a", empty)])).all()


def test_one_row_a_prompt():
    prompts = [LabelledPrompt(str(n), "near " * n) for n in range(5)]
    found = surface_features(prompts)
    assert found.shape == (5, len(FEATURES))
    assert found.dtype == np.float64
    assert np.expm1(found[:, AT["words"]]) == pytest.approx(range(5))
