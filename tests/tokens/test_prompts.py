import pytest
import tiny

from probing import Capture, LabelledPrompt, Place
from probing.errors import DataInvalid
from probing.tokens.prompts import tokenize_prompts
from probing.tokens.templates import template_ending

TOKENIZER = tiny.make_tokenizer()
BARE = tiny.make_tokenizer(bos=False)
PLACE = [Place("resid_post", 0)]


def located(prompt, over="text", chat=False, tokenizer=TOKENIZER, **options):
    request = Capture(PLACE, over=over, chat=chat)
    return tokenize_prompts(tokenizer, [prompt], request, **options)[0]


def text(prompt, over, tokenizer=TOKENIZER, **options):
    """What counts, as text."""
    row = located(prompt, over, tokenizer=tokenizer, **options)
    assert row.status == "ok", row.detail
    return tokenizer.decode(row.ids[row.start : row.stop])


QUESTION = LabelledPrompt("q", "Is a boat near?", response=" No, never.")
TURNS = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Is a boat near?"}]
CHAT = LabelledPrompt("c", TURNS, response=[{"role": "assistant", "content": "No, never."}])


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ("text", "<|bos|>Is a boat near? No, never.<|eos|>"),
        ("content", "Is a boat near? No, never."),
        ("prompt", "<|bos|>Is a boat near?"),
        ("response", " No, never.<|eos|>"),
    ],
)
def test_parts_of_a_text_with_its_response(over, expected):
    assert text(QUESTION, over) == expected


def test_the_end_of_turn_can_be_left_out():
    assert text(QUESTION, "response", eos=False) == " No, never."
    assert text(CHAT, "response", eos=False) == "No, never."


def test_parts_of_a_conversation():
    assert text(CHAT, "response") == "No, never.<|eos|>\n"
    assert text(CHAT, "prompt").endswith("<|user|>Is a boat near?<|eos|>\n<|assistant|>")
    asked = LabelledPrompt("c", TURNS)
    assert text(asked, "text") == text(CHAT, "prompt")


def test_the_template_after_an_instruction():
    assert TOKENIZER.decode(template_ending(TOKENIZER)) == "<|eos|>\n<|assistant|>"
    plain = LabelledPrompt("p", "Is a boat near?")
    assert text(plain, "template", chat=True) == "<|eos|>\n<|assistant|>"
    assert text(CHAT, "template") == "<|eos|>\n<|assistant|>"
    assert located(plain, "template").status == "no_template"
    answered = LabelledPrompt("a", [*TURNS, {"role": "assistant", "content": "No."}])
    assert located(answered, "template").status == "no_template"


def test_a_template_that_writes_nothing_after_an_instruction():
    silent = tiny.make_tokenizer(template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    row = located(LabelledPrompt("p", "near"), "template", chat=True, tokenizer=silent)
    assert (row.status, row.detail) == ("no_template", "the chat template writes nothing after an instruction")


def test_a_template_that_refuses_an_instruction_alone():
    template = "{% if messages[0].role == 'user' %}{{ raise_exception('no system') }}{% endif %}" + tiny.TEMPLATE
    row = located(LabelledPrompt("t", TURNS), "template", tokenizer=tiny.make_tokenizer(template=template))
    assert row.status == "no_template"
    assert "what stands after an instruction is not known" in row.detail
    assert row.detail.endswith("no system")


def test_chat_needs_a_template():
    with pytest.raises(DataInvalid, match="row 'p': the row is a conversation, but the tokenizer has no chat template"):
        located(LabelledPrompt("p", "near"), chat=True, tokenizer=tiny.make_tokenizer(template=None))


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ("boat", "boat"),
        ((5, 9), "boat"),
        ("near? No", "near? No"),
        ((0, 26), "Is a boat near? No, never."),
    ],
)
def test_spans(span, expected):
    """Tokens may reach beyond the span, never inside it only."""
    found = text(LabelledPrompt("s", "Is a boat near?", response=" No, never.", span=span), "span")
    assert expected in found
    assert len(found) <= len(expected) + 6


@pytest.mark.parametrize("word", ["user", "assistant", "a", "eos", "|"])
def test_spans_are_not_found_in_what_the_template_writes(word):
    turns = [{"role": "user", "content": f"the {word} now"}]
    assert word in text(LabelledPrompt("c", turns, span=word if word != "a" else (4, 5)), "span")
    other = located(LabelledPrompt("c", [{"role": "user", "content": "near"}], span=word), "span")
    assert other.status == ("span_not_found" if word != "a" else "ok")


def test_a_template_that_strips_white_space():
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'].strip() }}\n{% endfor %}"
    stripping = tiny.make_tokenizer(template=template)
    turns = [{"role": "user", "content": "  near boat "}]
    assert "boat" in text(LabelledPrompt("c", turns, span=(7, 11)), "span", tokenizer=stripping)
    shouting = tiny.make_tokenizer(template="{% for m in messages %}{{ m['content'].upper() }}{% endfor %}")
    assert located(LabelledPrompt("c", turns, span="boat"), "span", tokenizer=shouting).status == "span_not_found"


def test_tools_reach_the_template():
    template = (
        "{% if tools %}{{ tools | length }} tools {% endif %}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    tokenizer = tiny.make_tokenizer(template=template, bos=False)
    turns = [{"role": "user", "content": "near"}]
    assert text(LabelledPrompt("c", turns, tools=[{}, {}]), "text", tokenizer=tokenizer) == "2 tools near"


def test_unknown_tokens_are_content():
    tokenizer = tiny.make_tokenizer()
    tokenizer.unk_token = "<|user|>"
    assert text(LabelledPrompt("x", "<|user|>near<|system|>"), "content", tokenizer=tokenizer) == "<|user|>near"


def test_spans_of_characters_of_several_bytes():
    smile = LabelledPrompt("s", "near \U0001f600 boat", span="\U0001f600")
    assert "\U0001f600" in text(smile, "span")


def test_characters_of_a_conversation_count_in_its_last_message():
    assert "boat" in text(LabelledPrompt("c", TURNS, span=(5, 9)), "span")
    assert "never" in text(LabelledPrompt("c", TURNS, response=CHAT.response, span=(4, 9)), "span")


@pytest.mark.parametrize(
    ("prompt", "over", "status", "detail"),
    [
        (LabelledPrompt("x", ""), "text", "empty_text", "the text is empty"),
        (LabelledPrompt("x", " \n"), "text", "empty_text", "the text is empty"),
        (LabelledPrompt("x", "near " * 30), "text", "too_long", r"tokens, the limit is 20"),
        (LabelledPrompt("x", "near"), "response", "no_response", "the row has no response"),
        (LabelledPrompt("x", "near", response=" "), "response", "empty_response", "the response is empty"),
        (LabelledPrompt("x", "near"), "span", "no_span", "the row names no span"),
        (LabelledPrompt("x", "near", span="far"), "span", "span_not_found", "'far' is not in the text"),
        (LabelledPrompt("x", "near near", span="near"), "span", "span_not_unique", "'near' occurs more than once"),
        (LabelledPrompt("x", "near", span=(2, 9)), "span", "span_not_found", "characters 2 to 9 are not in the text"),
        (LabelledPrompt("x", "<|bos|><|eos|>"), "content", "nothing_left", "no token counts as 'content'"),
    ],
)
def test_what_cannot_be_read_has_a_status(prompt, over, status, detail):
    row = located(prompt, over, max_length=20)
    assert row.status == status
    assert detail in row.detail


def test_a_tokenizer_that_adds_nothing():
    assert text(LabelledPrompt("x", "near"), "text", tokenizer=BARE) == "near"
