"""Which arguments a row may give the chat template, and how tools are written."""

import inspect

import pytest
import tiny
from transformers import PreTrainedTokenizerBase

from probing import score_pairs
from probing.data.pairs import pairs_from_rows
from probing.data.prompts import Columns, prompts_from_rows
from probing.data.rows import RESERVED_ARGUMENTS
from probing.errors import DataInvalid

MESSAGES = {
    "prompt": [{"role": "user", "content": "q"}],
    "chosen": [{"role": "assistant", "content": "a"}],
    "rejected": [{"role": "assistant", "content": "b"}],
}
GOOD = {"style": "short", "think": False, "steps": 3, "share": 0.5, "documents": [{"title": "t", "text": None}]}


def read_pair(**columns):
    return pairs_from_rows([MESSAGES | {"id": "p"}, MESSAGES | {"id": "q"} | columns], "line {}".format)[1]


def read_prompt(**columns):
    rows = [{"id": "p", "text": "near"}, {"id": "q", "text": "near"} | columns]
    return prompts_from_rows(rows, Columns(), where="line {}".format)[1]


READERS = pytest.mark.parametrize("read", [read_pair, read_prompt])


@READERS
def test_plain_values_under_free_names_are_taken(read):
    assert read(chat_template_kwargs=GOOD).chat_template_kwargs == {**GOOD, "documents": [{"title": "t"}]}
    assert read(chat_template_kwargs=None).chat_template_kwargs is None
    assert read(chat_template_kwargs={}).chat_template_kwargs is None


@READERS
@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["style"], "must be an object"),
        ('{"style": "short"}', "must be an object"),
        (7, "must be an object"),
        ({1: "short"}, "must be an object"),
        ({"style": object()}, "'style' must be a plain JSON value"),
        ({"style": {1: 2}}, "'style' must be a plain JSON value"),
        ({"style": [float("nan")]}, "'style' must be a plain JSON value"),
        ({"style": b"short"}, "'style' must be a plain JSON value"),
        ({"chat_template": "{{ messages }}"}, "no template is taken from data"),
        ({"tools": []}, "holds 'tools', which is set for every row alike"),
        ({"bos_token": "x"}, "holds 'bos_token'"),
    ],
)
def test_others_are_refused_with_the_row(read, given, told):
    with pytest.raises(DataInvalid, match=r"line 1 \(id 'q'\): 'chat_template_kwargs'") as caught:
        read(chat_template_kwargs=given)
    assert told in str(caught.value)


def test_every_argument_of_rendering_is_reserved():
    """A name that a later version of transformers takes, and a row could give, is found here."""
    taken = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    # Texts for retrieval belong to a row; a template is refused in words of its own.
    assert taken - RESERVED_ARGUMENTS == {"documents", "chat_template", "kwargs"}
    assert {"where", "messages", *PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES} <= RESERVED_ARGUMENTS


@pytest.mark.parametrize("name", sorted(RESERVED_ARGUMENTS | {"chat_template"}))
def test_no_reserved_name_ends_in_a_traceback(name):
    with pytest.raises(DataInvalid, match=r"id 'q'"):
        score_pairs(tiny.make_model(), [MESSAGES | {"id": "q", "chat_template_kwargs": {name: 1}}])


@READERS
def test_tools_as_json_text_are_read(read):
    tools = [{"name": "clock", "parameters": {"zone": "x"}}]
    assert read(tools='[{"name": "clock", "parameters": {"zone": "x", "none": null}}]').tools == tools
    assert read(tools=[{**tools[0], "other": None}]).tools == tools
    assert [read(tools=nothing).tools for nothing in (None, "", " ", [], "[]")] == [None] * 5


@READERS
@pytest.mark.parametrize("given", ["clock", '{"name": "clock"}', "[1]", ["clock"], 7, {"name": "clock"}, "[" * 100_000])
def test_tools_that_are_no_list_of_objects_are_refused(read, given):
    with pytest.raises(DataInvalid, match=r"line 1 \(id 'q'\): 'tools' "):
        read(tools=given)


@READERS
@pytest.mark.parametrize("name", ["tools", "chat_template_kwargs"])
def test_values_that_are_nested_too_deeply_are_refused(read, name):
    nested = {}
    for _ in range(5000):
        nested = {"x": nested}
    with pytest.raises(DataInvalid, match=r"line 1 \(id 'q'\): .*nested too deeply"):
        read(**{name: [nested] if name == "tools" else nested})
