import string

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from probing import Capture, Place
from probing.data.forms import FORMS, Template, distracted, forms, parse_replacement, replace_word, text_forms
from probing.tokens.prompts import tokenize_prompts
from probing.types import ContrastPair, LabelledPrompt

BOMB = ContrastPair("a", "A bomb is bad.", "A bomb is not bad.", True, "weapons", "negation")
CAKE = ContrastPair("b", "A cake is bad.", "A cake is good.", False, "food", "concurrent")


def pair(statement, opposite, id="x"):
    return ContrastPair(id, statement, opposite, True)


def test_forms_of_plain_text():
    made = forms([BOMB, CAKE], Template())
    assert [form.id for form in made] == [f"{pair}#{form}" for pair in "ab" for form in FORMS]
    assert [form.text for form in made[:4]] == [
        "A bomb is bad. Yes.",
        "A bomb is bad. No.",
        "A bomb is not bad. Yes.",
        "A bomb is not bad. No.",
    ]
    assert made[0] == LabelledPrompt("a#A1", "A bomb is bad. Yes.")


def test_forms_with_a_variant():
    assert [form.id for form in forms([BOMB], Template(), "marker:")] == [f"a#marker:{form}" for form in FORMS]
    same = text_forms("a", ("x", "x"), Template("{statement}: {answer}"), "marker:")
    assert [form.text for form in same] == ["x: Yes", "x: No"] * 2
    with pytest.raises(ValueError, match="must not hold '#'"):
        forms([BOMB], Template(), "a#")


def test_forms_in_a_chat():
    made = forms([BOMB], Template(chat=True, question="True? {statement} Say {yes or no}.", answers=("Right", "Wrong")))
    assert made[3] == LabelledPrompt(
        "a#N0",
        [{"role": "user", "content": "True? A bomb is not bad. Say {yes or no}."}],
        response=[{"role": "assistant", "content": "Wrong"}],
    )
    default = forms([BOMB], Template(chat=True))[0]
    assert default.text[0]["content"] == "Is this true? A bomb is bad."
    assert default.response[0]["content"] == "Yes"
    said = forms([BOMB], Template("I say {answer}!", chat=True))[1]
    assert said.response[0]["content"] == "I say No!"


@pytest.mark.parametrize("eos", [True, False])
def test_the_answer_of_a_chat_is_the_response(eos):
    tokenizer = tiny.make_tokenizer()
    request = Capture([Place("resid_post", 0)], over="response")
    rows = tokenize_prompts(tokenizer, forms([BOMB], Template(chat=True)), request, eos=eos)
    told = [tokenizer.decode(row.ids[row.start : row.stop]) for row in rows]
    assert told == [answer + ("<|eos|>\n" if eos else "") for answer in ("Yes", "No", "Yes", "No")]


def test_statements_may_hold_anything():
    wild = pair("{answer} \\1 {0} {statement} {x} %s", "{", "w")
    assert [form.text for form in forms([wild], Template())][:3] == [
        wild.statement + " Yes.",
        wild.statement + " No.",
        "{ Yes.",
    ]
    assert forms([wild], Template(chat=True))[0].text[0]["content"] == "Is this true? " + wild.statement


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("{statement} Yes.", ("Yes", "No"), "{statement} {answer}."),
        ("{statement} Yes", ("Yes", "No"), "{statement} {answer}"),
        ("Yesterday Yes: {statement}", ("Yes", "No"), "Yesterday {answer}: {statement}"),
        ("Yes or No? {statement} {answer}", ("Yes", "No"), "Yes or No? {statement} {answer}"),
        ("{statement} is the statement", ("statement", "other"), "{statement} is the {answer}"),
        ("{statement} {answer} {} { {a b} }", ("Yes", "No"), "{statement} {answer} {} { {a b} }"),
    ],
)
def test_the_answer_may_be_written_out(text, answers, expected):
    assert Template(text, answers).text == expected


def test_answers_may_come_as_a_list():
    assert Template(answers=["so", "not so"]).answers == ("so", "not so")
    assert hash(Template(answers=["so", "not so"])) == hash(Template(answers=("so", "not so")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "{answer}"}, "must hold {statement} exactly once"),
        ({"text": "{statement} {statement} {answer}"}, "must hold {statement} exactly once"),
        ({"text": "{statement} {answer} {answer}"}, "must hold {answer} exactly once"),
        ({"text": "{statement}"}, "write {answer} where the answer belongs in the template '{statement}'"),
        ({"text": "Yes or no? {statement} Yes"}, "write {answer}"),
        ({"text": "{statement} yes"}, "write {answer}"),
        ({"text": "{statement} Yes-man"}, "write {answer}"),
        ({"text": "{statement} {anwser}"}, "write {answer}"),
        ({"text": "{statment} {answer}"}, "holds {statment}; there are {statement} and {answer} only"),
        ({"text": "{statement} {answer} {0}"}, "holds {0}"),
        ({"answers": ("Yes", "Yes ")}, "answers must be two different texts"),
        ({"answers": ("Yes", " ")}, "answers must be two different texts"),
        ({"answers": ("Yes",)}, "answers must be two different texts"),
        ({"answers": ("Yes", "No", "Maybe")}, "answers must be two different texts"),
        ({"answers": "YN"}, "answers must be two different texts"),
        ({"answers": (True, False)}, "answers must be two different texts"),
        ({"answers": ("{statement}", "No")}, "without a placeholder"),
        ({"question": "{statement}"}, "a question is asked in a chat only"),
        ({"chat": True, "question": "What?"}, "the question 'What?' must hold {statement} exactly once"),
        ({"chat": True, "question": "{statement} {answer}"}, "must not hold {answer}"),
        ({"chat": True, "question": "{statement} {x}"}, "the question '{statement} {x}' holds {x}"),
        ({"chat": True, "text": "{statement}: {answer}"}, "must not hold {statement}"),
        ({"chat": True, "text": "I think so"}, "write {answer}"),
    ],
)
def test_templates_that_make_no_sense(options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Template(**options)
    assert message in str(caught.value)


# Words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A bomb is not bad.", "A bomb is ttt bad."),
        ("Not all, NOT any: (not).", "ttt all, ttt any: (ttt)."),
        ("not not\nnot", "ttt ttt\nttt"),
        ("not", "ttt"),
        ("\u201cnot\u201d \u2014 not\u2014so", "\u201cttt\u201d \u2014 ttt\u2014so"),
    ],
)
def test_a_word_is_replaced(text, expected):
    assert replace_word(pair(text, "other"), "not", "ttt") == (expected, "other")
    assert replace_word(pair("other", text), "not", "ttt") == ("other", expected)


@pytest.mark.parametrize(
    "text",
    [
        "nothing another knot cannot",
        "don't isn’t",
        "not-so do-not 'not'",
        "not\u2011so",
        "_not not_ 2not not2",
        "noté not\u0301 énot не\u0301not",
        "not\u200d",
        "",
    ],
)
def test_a_part_of_a_word_is_not(text):
    assert replace_word(pair(text or "-", "other"), "not", "ttt") is None


def test_replacement_of_more_than_a_word():
    assert replace_word(pair("ba a a", "x"), "a a", "b") == ("ba b", "x")
    assert replace_word(pair("a b. c", "x"), "b.", r"\1 \g<0>") is not None
    assert replace_word(pair("a b c", "x"), "b", r"\1 \g<0>") == (r"a \1 \g<0> c", "x")
    assert replace_word(pair("a.b axb", "x"), "a.b", "y") == ("y axb", "x")
    assert replace_word(pair("not", "x"), "not", "") == ("", "x")


def test_the_texts_may_become_the_same():
    assert replace_word(pair("It is so.", "It is not."), "not", "so") == ("It is so.", "It is so.")


def test_an_empty_word_is_not_replaced():
    with pytest.raises(ValueError, match="the word to replace is empty"):
        replace_word(BOMB, " ", "x")


LETTERS = st.text("nNoOtT\u0301'’-_é5 .,", min_size=1, max_size=14).filter(str.strip)
WORD = st.text("noté'-", min_size=1, max_size=4)
INSIDE = set(string.ascii_letters + "é5_'’-\u0301")


def words(text):
    """The words of a text, and what stands between them: a plain reading of the rule."""
    pieces, inside = [""], False
    for character in text:
        if (character in INSIDE) != inside:
            pieces, inside = [*pieces, ""], not inside
        pieces[-1] += character
    return pieces


@given(LETTERS, st.sampled_from(["not", "no", "t", "é"]), WORD)
def test_whole_words_change_and_nothing_else(text, old, new):
    found = replace_word(pair(text, "#"), old, new)
    expected = [new if piece.lower() == old else piece for piece in words(text)]
    assert ("".join(expected), "#") == (found or (text, "#"))
    assert (found is None) == (old not in [piece.lower() for piece in words(text)])


@given(LETTERS, st.sampled_from(["not", "no", "t", "é"]), WORD)
def test_replacing_again_changes_nothing(text, old, new):
    found = replace_word(pair(text, "#"), old, new)
    if found is not None and old not in new.lower() and found[0].split():
        assert replace_word(pair(*found), old, new) is None


def test_replacements_are_written_with_an_equals_sign():
    assert parse_replacement("not=ttt") == ("not", "ttt")
    assert parse_replacement(" is not = is ttt ") == ("is not", "is ttt")


@pytest.mark.parametrize("text", ["not", "=ttt", "not=", "", "=", "a=b=c", " = "])
def test_what_is_no_replacement(text):
    with pytest.raises(ValueError, match="a replacement is written OLD=NEW"):
        parse_replacement(text)


def test_a_word_cannot_replace_itself():
    with pytest.raises(ValueError, match="'not' is to be replaced by itself"):
        parse_replacement("not=NOT")


def test_a_distractor_is_appended():
    assert distracted("A bomb is dangerous.", "banana") == "A bomb is dangerous. banana"
    assert distracted("A bomb is dangerous.\n", " banana ") == "A bomb is dangerous. banana"
    with pytest.raises(ValueError, match="the word to append is empty"):
        distracted("A bomb", " ")
