import logging

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from probing import PreferencePair
from probing.errors import DataInvalid, ModelInvalid
from probing.tokens.encoding import warn_once
from probing.tokens.pairs import tokenize_pairs
from probing.tokens.templates import template_sha256

TOKENIZER = tiny.make_tokenizer()
BOS_AT_EVERY_TURN = tiny.TEMPLATE.replace("{{ bos_token }}", "").replace("{{ '<|'", "{{ bos_token + '<|'")
EOS, BOS = TOKENIZER.eos_token_id, TOKENIZER.bos_token_id


def tokenized(prompt="Is it ok?", chosen=" No", rejected=" Never", tokenizer=TOKENIZER, **options):
    return tokenize_pairs(tokenizer, [PreferencePair("x", prompt, chosen, rejected)], **options)[0]


def chat(prompt="Is it ok?", chosen="No", rejected="Never", tokenizer=TOKENIZER, **options):
    pair = PreferencePair(
        "x",
        [{"role": "user", "content": prompt}],
        [{"role": "assistant", "content": chosen}],
        [{"role": "assistant", "content": rejected}],
    )
    return tokenize_pairs(tokenizer, [pair], **options)[0]


def text_of(ids):
    return TOKENIZER.decode(ids)


def test_text_is_prompt_and_response_with_one_bos_and_one_eos():
    pair = tokenized()
    assert text_of(pair.chosen[: pair.prompt_tokens]) == "<|bos|>Is it ok?"
    assert text_of(pair.chosen[pair.prompt_tokens :]) == " No<|eos|>"
    assert text_of(pair.rejected[pair.prompt_tokens :]) == " Never<|eos|>"
    assert pair.chosen.count(BOS) == pair.chosen.count(EOS) == 1


def test_a_token_across_the_border_belongs_to_the_response():
    """The prompt alone ends in a token of its own, which the full text merges with what follows."""
    prompt, chosen = "The answer is near", "er"
    alone = TOKENIZER(prompt)["input_ids"]
    full = TOKENIZER(prompt + chosen)["input_ids"]
    assert full[: len(alone)] != alone, "the example no longer merges; choose another"
    pair = tokenized(prompt, chosen, "!")
    assert pair.prompt_tokens < len(alone)
    assert pair.chosen == [*full, EOS]
    assert pair.chosen[: pair.prompt_tokens] == pair.rejected[: pair.prompt_tokens]


@given(*[st.text("newarst .?", max_size=8)] * 3)
def test_the_border_is_the_longest_prefix_that_all_share(prompt, chosen, rejected):
    pair = tokenized(prompt, chosen, rejected)
    sequences = [TOKENIZER(text)["input_ids"] for text in (prompt, prompt + chosen, prompt + rejected)]
    border = pair.prompt_tokens
    assert sequences[0][:border] == sequences[1][:border] == sequences[2][:border]
    assert border <= len(sequences[0])
    following = {tuple(sequence[border : border + 1]) for sequence in sequences}
    assert len(following) > 1 or following == {()}


def test_the_border_never_goes_past_the_prompt():
    """Both answers begin with the same words; those are still answer."""
    pair = tokenized("Q:", " I cannot help", " I cannot say")
    assert text_of(pair.chosen[pair.prompt_tokens :]) == " I cannot help<|eos|>"


def test_a_template_is_rendered_once():
    pair = chat()
    assert text_of(pair.chosen) == "<|bos|><|user|>Is it ok?<|eos|>\n<|assistant|>No<|eos|>\n"
    assert text_of(pair.chosen[: pair.prompt_tokens]) == "<|bos|><|user|>Is it ok?<|eos|>\n<|assistant|>"
    assert pair.chosen.count(BOS) == 1


def test_an_end_of_turn_is_appended_only_where_the_template_brought_none():
    open_ended = tiny.make_tokenizer(template=tiny.TEMPLATE.replace(" + eos_token + '\n'", " + '\n'"))
    pair = chat(tokenizer=open_ended)
    assert text_of(pair.chosen[pair.prompt_tokens :]) == "No\n<|eos|>"


def test_text_that_was_rendered_before_gets_nothing_twice():
    pair = tokenized("<|bos|><|user|>Hi<|eos|>\n<|assistant|>", "No<|eos|>\n", "Never<|eos|>")
    assert text_of(pair.chosen) == "<|bos|><|user|>Hi<|eos|>\n<|assistant|>No<|eos|>\n"
    assert text_of(pair.rejected[pair.prompt_tokens :]) == "Never<|eos|>"


def test_without_eos_the_end_of_turn_is_cut_off():
    assert text_of(tokenized(eos=False).chosen) == "<|bos|>Is it ok? No"
    pair = chat(eos=False)
    assert text_of(pair.chosen[pair.prompt_tokens :]) == "No"
    assert tokenized("Q", " a\n", " b", eos=False).chosen == TOKENIZER("Q a\n")["input_ids"]


def test_padding_side_changes_nothing():
    left = tiny.make_tokenizer(padding_side="left")
    assert chat(tokenizer=left) == chat()
    assert tokenized(tokenizer=left) == tokenized()


@pytest.mark.parametrize(
    ("arguments", "status", "detail"),
    [
        ({}, "ok", ""),
        ({"rejected": " No"}, "identical", "the same"),
        ({"chosen": "  "}, "empty_response", "chosen response is empty"),
        ({"rejected": ""}, "empty_response", "rejected response is empty"),
        ({"max_length": 5}, "prompt_too_long", "the prompt alone has 5 tokens, the limit is 5"),
        ({"max_length": 6}, "truncated", "7 tokens, the limit is 6"),
    ],
)
def test_status_of_pairs_that_cannot_be_trusted(arguments, status, detail):
    pair = tokenized(**arguments)
    assert pair.status == status
    assert detail in pair.detail


def test_a_pair_that_just_fits_is_not_truncated():
    longest = max(len(tokenized().chosen), len(tokenized().rejected))
    assert tokenized(max_length=longest).status == "ok"
    assert tokenized(max_length=longest - 1).status == "truncated"


def test_no_token_before_the_response():
    bare = tiny.make_tokenizer(bos=False)
    assert tokenized("", "No", "Never", tokenizer=bare).status == "empty_prompt"
    pair = tokenized("", "No", "Never")  # a BOS alone is no prompt either: the column may have another name
    assert (pair.status, pair.detail) == (
        "empty_prompt",
        "there is no prompt: none is given, or the responses begin differently",
    )


def test_content_in_parts_is_one_text():
    parts = [{"type": "text", "text": "Is it "}, {"type": "text", "text": "ok?"}]
    answers = (
        [{"role": "assistant", "content": "No"}],
        [{"role": "assistant", "content": [{"type": "text", "text": "Never"}]}],
    )
    pair = PreferencePair("x", [{"role": "user", "content": parts}], *answers)
    assert tokenize_pairs(TOKENIZER, [pair])[0] == chat()


def test_a_template_that_ends_a_prompt_otherwise_than_an_answer():
    """As Phi-3 does: end of text unless a generation prompt is asked for."""
    template = tiny.TEMPLATE.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
    pair = chat(tokenizer=tiny.make_tokenizer(template=template))
    assert pair.status == "ok"
    assert text_of(pair.chosen[pair.prompt_tokens :]).startswith("No<|eos|>")


def test_a_tool_call_is_an_answer():
    calling = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    pair = PreferencePair("x", [{"role": "user", "content": "q"}], [calling], [{"role": "assistant", "content": "No"}])
    assert tokenize_pairs(TOKENIZER, [pair])[0].status == "ok"


def test_template_arguments_of_a_row_reach_the_template():
    template = "{{ style }}{% for t in tools or [] %}[{{ t['name'] }}]{% endfor %}" + tiny.TEMPLATE.replace(
        "{{ bos_token }}", ""
    )
    tokenizer = tiny.make_tokenizer(template=template)
    messages = (
        [{"role": "user", "content": "q"}],
        [{"role": "assistant", "content": "a"}],
        [{"role": "assistant", "content": "b"}],
    )
    pair = PreferencePair("x", *messages, tools=[{"name": "clock"}], chat_template_kwargs={"style": "short"})
    assert text_of(tokenize_pairs(tokenizer, [pair])[0].chosen).startswith("short[clock]<|user|>")


def test_a_prompt_that_ends_with_the_assistant_is_refused():
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "I"}]
    answers = [{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]
    pair = tokenize_pairs(TOKENIZER, [PreferencePair("x", messages, *answers)])[0]
    assert pair.status == "refused"
    assert "move that message into both responses" in pair.detail


@pytest.mark.parametrize("side", ["prompt", "rejected"])
def test_a_bos_inside_the_text_is_marked(side):
    arguments = {"prompt": "Is it ok?", "rejected": " Never"} | {side: " so<|bos|> what"}
    pair = tokenized(**arguments)
    assert pair.status == "extra_bos"
    assert "occurs 2 times" in pair.detail


def test_a_template_may_write_bos_with_every_message():
    pair = chat(tokenizer=tiny.make_tokenizer(template=BOS_AT_EVERY_TURN))
    assert pair.status == "ok"
    assert pair.chosen.count(BOS) == 2


HELD = "so<|bos|> what"
TURNS = {
    "prompt": [{"role": "user", "content": "Is it ok?"}],
    "chosen": [{"role": "assistant", "content": "No"}],
    "rejected": [{"role": "assistant", "content": "Never"}],
}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("prompt", [{"role": "system", "content": HELD}, {"role": "user", "content": "q"}]),
        ("prompt", [{"role": "user", "content": [{"type": "text", "text": "<|b"}, {"type": "text", "text": "os|>"}]}]),
        ("chosen", [{"role": "assistant", "content": HELD}]),
        ("rejected", [{"role": "assistant", "content": HELD}]),
        ("rejected", [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": HELD}}]}]),
        ("tools", [{"name": "clock", "parameters": {"zone": HELD}}]),
        ("tools", [{"name": "clock", "parameters": {HELD: 1}}]),
        ("chat_template_kwargs", {"style": HELD}),
    ],
)
@pytest.mark.parametrize("written", ["{{ bos_token + '<|'", "{{ '<|'"])
def test_a_bos_in_the_texts_of_a_conversation_is_marked(part, value, written):
    """Whether the template writes one at every turn, or none at all."""
    template = tiny.TEMPLATE.replace("{{ bos_token }}", "{{ tools }}{{ style }}").replace("{{ '<|'", written)
    template = template.replace("m['content']", "m['content'] + (m.tool_calls | string)")
    tokenizer = tiny.make_tokenizer(template=template)
    pair = tokenize_pairs(tokenizer, [PreferencePair("x", **(TURNS | {part: value}))])[0]
    assert pair.status == "extra_bos"
    assert f"the BOS token '<|bos|>' stands in the text of '{part}' itself" in pair.detail


@pytest.mark.parametrize(("text", "status"), [("nearer or nearest", "ok"), ("it is near now", "extra_bos")])
def test_a_bos_within_ordinary_words_is_none(text, status):
    tokenizer = tiny.make_tokenizer(bos=False, template=BOS_AT_EVERY_TURN)
    tokenizer.add_special_tokens({"bos_token": AddedToken("near", single_word=True, special=True)})
    assert chat(prompt=text, tokenizer=tokenizer).status == status


def test_a_bos_that_a_normaliser_brings_about_is_marked():
    tokenizer = tiny.make_tokenizer(bos=False, template=BOS_AT_EVERY_TURN)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_special_tokens({"bos_token": AddedToken("<begin>", normalized=True, special=True)})
    assert chat(prompt="now <end>", tokenizer=tokenizer).status == "ok"
    assert chat(prompt="now <BEGIN>", tokenizer=tokenizer).status == "extra_bos"


def test_a_tokenizer_without_bos_finds_none():
    tokenizer = tiny.make_tokenizer(bos=False, template=tiny.TEMPLATE.replace("{{ bos_token }}", ""))
    tokenizer.bos_token = None
    assert chat(prompt="so<|bos|> what", tokenizer=tokenizer).status == "ok"


def test_a_tokenizer_whose_bos_is_its_eos_may_hold_it_twice():
    tokenizer = tiny.make_tokenizer(bos=False)
    tokenizer.bos_token = tokenizer.eos_token
    assert tokenized("<|eos|>Is it?", tokenizer=tokenizer).status == "ok"
    assert chat("so<|eos|> what", tokenizer=tokenizer).status == "ok"


def test_no_chat_template():
    with pytest.raises(
        DataInvalid, match=r"pair 'x': the pair is made of messages, but the tokenizer has no chat template"
    ):
        chat(tokenizer=tiny.make_tokenizer(template=None))


def test_a_conversation_that_the_template_refuses_is_one_of_many():
    template = "{% if messages[0].content == 'no' %}{{ raise_exception('not that') }}{% endif %}" + tiny.TEMPLATE
    tokenizer = tiny.make_tokenizer(template=template)
    asked = {word: [{"role": "user", "content": word}] for word in ("yes", "no", "so")}
    pairs = [PreferencePair(word, **(TURNS | {"prompt": prompt})) for word, prompt in asked.items()]
    tokenized = tokenize_pairs(tokenizer, pairs)
    assert [(pair.id, pair.status) for pair in tokenized] == [("yes", "ok"), ("no", "refused"), ("so", "ok")]
    assert tokenized[1].detail == "the chat template refuses this conversation: not that"
    assert (tokenized[1].chosen_tokens, tokenized[1].rejected_tokens) == (0, 0)
    assert text_of(tokenized[2].chosen).startswith("<|bos|><|user|>so<|eos|>")


def test_a_template_that_rewrites_the_prompt_is_refused():
    pair = chat(tokenizer=tiny.make_tokenizer(template="{{ messages | length }}" + tiny.TEMPLATE))
    assert pair.status == "refused"
    assert "writes the prompt differently once an answer follows" in pair.detail


def test_two_bos_at_the_start_are_marked():
    doubled = chat(tokenizer=tiny.make_tokenizer(template="{{ bos_token }}" + tiny.TEMPLATE))
    plain = tokenized("<|bos|><|bos|>Is it?")
    assert (doubled.status, plain.status) == ("extra_bos", "extra_bos")
    assert "begins with two BOS tokens" in doubled.detail
    assert "begins with two BOS tokens" in plain.detail


def test_a_template_without_bos_is_said_once(caplog):
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        chat()
        tokenized()
        assert not caplog.records
        chat(tokenizer=tiny.make_tokenizer(template=tiny.TEMPLATE.replace("{{ bos_token }}", "")))
        chat(tokenizer=tiny.make_tokenizer(template=tiny.TEMPLATE.replace("{{ bos_token }}", "")))
    assert caplog.text.count("writes no BOS") == 1


def test_a_tokenizer_without_eos():
    tokenizer = tiny.make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelInvalid, match=r"no EOS token .* --no-eos"):
        tokenized(tokenizer=tokenizer)
    assert tokenized(tokenizer=tokenizer, eos=False).status == "ok"


def test_template_hash():
    assert template_sha256(tiny.make_tokenizer(template=None)) is None
    assert template_sha256(TOKENIZER) != template_sha256(tiny.make_tokenizer(template="x"))
