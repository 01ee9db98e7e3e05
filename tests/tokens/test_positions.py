import pytest
import tiny

from probing import Capture, LabelledPrompt, Place
from probing.tokens.positions import FINDERS
from probing.tokens.prompts import tokenize_prompts
from probing.types import OVERS, Problem

TOKENIZER = tiny.make_tokenizer()
TEXT = "Is a boat near, or is it not near?"


def located(prompt, over):
    return tokenize_prompts(TOKENIZER, [prompt], Capture([Place("resid_post", 0)], over=over))[0]


def test_every_part_has_its_finder():
    assert set(FINDERS) == set(OVERS)


@pytest.mark.parametrize("stop", range(1, 12))
@pytest.mark.parametrize("start", range(0, 22, 3))
def test_a_span_is_the_tokens_that_share_a_character_with_it(start, stop):
    row = located(LabelledPrompt("x", TEXT, span=(start, start + stop)), "span")
    offsets = TOKENIZER(TEXT, return_offsets_mapping=True)["offset_mapping"]
    characters = set(range(start, start + stop))
    assert [at for at, (low, high) in enumerate(offsets) if characters & set(range(low, high))] == [
        *range(row.start, row.stop)
    ]


def test_a_row_that_is_not_ok_has_a_problem_with_its_id():
    row = located(LabelledPrompt("x", "near"), "span")
    assert row.problem == Problem("x", "no_span", "the row names no span")
    assert (row.status, row.detail) == ("no_span", "the row names no span")
    good = located(LabelledPrompt("x", "near"), "text")
    assert (good.problem, good.status, good.detail) == (None, "ok", "")
