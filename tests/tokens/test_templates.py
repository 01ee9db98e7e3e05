import pytest
import tiny

from probing import PreferencePair
from probing.tokens.pairs import tokenize_pairs
from probing.tokens.templates import ConversationRenderer, plain_contents

TOKENIZER = tiny.make_tokenizer()
ASKED = [{"role": "user", "content": "Is it ok?"}]
ANSWERS = [[{"role": "assistant", "content": text}] for text in ("No", "Never")]


def test_an_answer_begins_where_the_prompt_ends():
    prompt, answered = ConversationRenderer(TOKENIZER).render_answers(ASKED, ANSWERS)
    assert prompt == TOKENIZER.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    assert answered == [TOKENIZER.apply_chat_template([*ASKED, *answer], tokenize=False) for answer in ANSWERS]
    assert all(text.startswith(prompt) for text in answered)


@pytest.mark.parametrize("written_before", ["", "{{ bos_token }}"])
def test_a_prompt_that_an_answer_changes_is_told(written_before):
    tokenizer = tiny.make_tokenizer(template=written_before + "{{ messages | length }}" + tiny.TEMPLATE)
    assert ConversationRenderer(tokenizer).render_answers(ASKED, ANSWERS) is None


def test_arguments_of_a_row_reach_the_template():
    tokenizer = tiny.make_tokenizer(template="{{ style }} {{ tools | length }}")
    assert ConversationRenderer(tokenizer, [{}], {"style": "short"}).render(ASKED) == "short 1"


@pytest.mark.parametrize("given", [{"tokenize": True}, {"chat_template": "x"}, ["x"], {"f": print}])
def test_arguments_that_no_row_may_give_are_refused(given):
    """Also of a pair that no reader of data has checked."""
    pair = tokenize_pairs(TOKENIZER, [PreferencePair("x", ASKED, *ANSWERS, chat_template_kwargs=given)])[0]
    assert pair.status == "refused"
    assert "chat_template_kwargs" in pair.detail


def test_contents_become_one_text():
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    calling = {"role": "assistant", "content": None, "tool_calls": [{}]}
    assert plain_contents([parts, calling]) == [{"role": "user", "content": "ab"}, calling]
