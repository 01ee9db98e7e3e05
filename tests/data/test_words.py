import pytest
from hypothesis import given
from hypothesis import strategies as st

from probing.data.words import evenly_spaced, spaced_words, starts_word, whole_words


def test_white_space_separates_words_and_counts_once():
    assert spaced_words(" don't  go\n\tnow ") == ["don't", "go", "now"]
    assert evenly_spaced(" don't  go\n\tnow ") == "don't go now"


@pytest.mark.parametrize(
    ("text", "word", "places"),
    [
        ("not so, NOT", "not", [(0, 3), (8, 11)]),
        ("knot not-so don't 'not' not_", "not", []),
        ("the end", "the end", [(0, 7)]),
        ("", "not", []),
    ],
)
def test_where_a_word_stands_alone(text, word, places):
    assert whole_words(text, word) == places


def test_upper_case_may_count():
    assert whole_words("Yes yes", "yes", ignore_case=False) == [(4, 7)]


@pytest.mark.parametrize(
    ("text", "at", "starts"),
    [
        ("is it", 3, True),
        ("is it", 2, True),
        ("is it", 4, False),
        ("is it ", 5, False),
        ("can't", 3, False),
        ("can' t", 3, True),
        ("3.14", 1, False),
        ("好吗", 1, True),
        ("cafe\u0301", 4, False),
    ],
)
def test_where_a_text_may_be_cut(text, at, starts):
    assert starts_word(text, at) is starts


@given(st.text("ab'- é\u0301_.\u200d", min_size=1, max_size=10), st.integers(1, 9))
def test_no_whole_word_is_cut(text, at):
    """The two aims agree: where a text may be cut, no word stands alone across the cut."""
    if at < len(text) and starts_word(text, at):
        inside = [word for word in ("ab", "a", "b", "aa", "bb") for place in whole_words(text, word)
                  if place[0] < at < place[1]]  # fmt: skip
        assert inside == []
