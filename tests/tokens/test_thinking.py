import pytest
import tiny

from probing.errors import DataInvalid, UsageError
from probing.tokens.prompts import tokenize_prompts
from probing.tokens.templates import template_ending
from probing.tokens.thinking import find_thinking_switch, thinking_arguments
from probing.types import Capture, LabelledPrompt, Place

PLAIN = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
SWITCHED = {
    "enable_thinking": PLAIN + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}",
    "thinking": PLAIN + "{% if thinking %}<think>{% else %}</think>{% endif %}",
}


@pytest.mark.parametrize("name", SWITCHED)
def test_the_switch_is_found_by_what_the_template_writes(name):
    tokenizer = tiny.make_tokenizer(template=SWITCHED[name])
    assert find_thinking_switch(tokenizer) == name
    assert thinking_arguments(tokenizer, "on", "m") == {name: True}
    assert thinking_arguments(tokenizer, "off", "m") == {name: False}
    assert thinking_arguments(tokenizer, "default", "m") == {}


def test_a_template_without_a_switch():
    mentioned = tiny.make_tokenizer(template=PLAIN + "{# enable_thinking #}{% set enable_thinking = 1 %}")
    assert find_thinking_switch(mentioned) is None
    with pytest.raises(UsageError, match="chat template of m has no switch"):
        thinking_arguments(mentioned, "on", "m")
    with pytest.raises(DataInvalid, match="no chat template"):
        find_thinking_switch(tiny.make_tokenizer(template=None))


def test_the_end_of_a_prompt_is_that_of_its_own_arguments():
    tokenizer = tiny.make_tokenizer(template=SWITCHED["enable_thinking"])
    ends = [tokenizer.decode(template_ending(tokenizer, arguments)) for arguments in (None, {"enable_thinking": False})]
    assert ends == ["<assistant>", "<assistant><think></think>"]
    prompt = LabelledPrompt("a", "Hello", chat_template_kwargs={"enable_thinking": False})
    request = Capture((Place("resid_pre", 0),), "tokens", "template", chat=True)
    (found,) = tokenize_prompts(tokenizer, [prompt], request)
    assert found.problem is None
    assert tuple(found.ids[found.start : found.stop]) == template_ending(tokenizer, {"enable_thinking": False})
