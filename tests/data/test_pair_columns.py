"""Pairs of the layouts that public datasets have, and what is refused rather than guessed."""

import json
import logging

import pytest

from probing.data.pair_columns import PairColumns
from probing.data.pairs import content_sha256, leave_out_ties, pairs_from_rows
from probing.data.tables import read_table
from probing.errors import DataInvalid, UsageError


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def by(sender, text):
    return {"from": sender, "value": text}


ANSWERS = {"chosen": "A spider has eight legs.", "rejected": "A spider has six legs."}
CHAT = {"chosen": [said("Yes.")], "rejected": [said("No.")]}
OPENING = [user("Is it?"), said("What?"), user("A cake.")]
LAYOUTS = {
    "orca": (
        {"system": "Be careful.", "question": "How many?", **ANSWERS},
        ([system("Be careful."), user("How many?")], [said(ANSWERS["chosen"])], [said(ANSWERS["rejected"])]),
    ),
    "orca without a system prompt": (
        {"system": "", "question": "How many?", **ANSWERS},
        ([user("How many?")], [said(ANSWERS["chosen"])], [said(ANSWERS["rejected"])]),
    ),
    "orca by argilla": (
        {"system": "S", "input": "How many?", **ANSWERS, "generations": ["a", "b"], "rating": [9.0, 7.0], "order": []},
        ([system("S"), user("How many?")], [said(ANSWERS["chosen"])], [said(ANSWERS["rejected"])]),
    ),
    "argilla": (
        {
            "source": "s",
            "instruction": "How many?",
            "chosen_response": "a",
            "rejected_response": "b",
            "chosen_model": "m",
        },
        ("How many?", "a", "b"),
    ),
    "instruction": ({"instruction": "How many?", "input": "", **ANSWERS}, ("How many?", *ANSWERS.values())),
    "ultrafeedback": (
        {
            "prompt": "Is it?",
            "prompt_id": "p",
            "chosen": [user("Is it?"), said("Yes.")],
            "rejected": [user("Is it?"), said("No.")],
            "messages": [user("Is it?"), said("Yes.")],
        },
        ([user("Is it?")], [said("Yes.")], [said("No.")]),
    ),
    "ultrafeedback with a system turn": (
        {
            "prompt": "Is it?",
            "chosen": [system("S"), user("Is it?"), said("Yes.")],
            "rejected": [system("S"), user("Is it?"), said("No.")],
        },
        ([system("S"), user("Is it?")], [said("Yes.")], [said("No.")]),
    ),
    "capybara": (
        {"source": "s", "prompt": "Is it?", "chosen": [*OPENING, said("Yes.")], "rejected": [*OPENING, said("No.")]},
        (OPENING, [said("Yes.")], [said("No.")]),
    ),
    "the last turn as the prompt": (
        {"prompt": "A cake.", "chosen": [*OPENING, said("Yes.")], "rejected": [*OPENING, said("No.")]},
        (OPENING, [said("Yes.")], [said("No.")]),
    ),
    "response_w": ({"prompt": "p", "response_w": "a", "response_l": "b"}, ("p", "a", "b")),
    "HelpSteer2": (
        {"prompt": "p", "response_1": "b", "response_2": "a", "preference_strength": 2, "split": "train"},
        ("p", "a", "b"),
    ),
    "HelpSteer3": (
        {"domain": "d", "context": [user("q")], "response1": "a", "response2": "b", "overall_preference": -1},
        ([user("q")], [said("a")], [said("b")]),
    ),
    "SHP": (
        {
            "post_id": "x",
            "history": "h",
            "human_ref_A": "b",
            "human_ref_B": "a",
            "labels": 0,
            "score_A": 5,
            "score_B": 9,
        },
        ("h", "a", "b"),
    ),
    "SHP, the first one": ({"history": "h", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}, ("h", "a", "b")),
    "SafeRLHF": ({"prompt": "p", "response_0": "b", "response_1": "a", "better_response_id": 1}, ("p", "a", "b")),
    "ShareGPT": (
        {
            "conversations": [by("system", "S"), by("human", "q")],
            "chosen": by("gpt", "a"),
            "rejected": by("gpt", "b"),
        },
        ([system("S"), user("q")], [said("a")], [said("b")]),
    ),
    "ShareGPT lists": (
        {"chosen": [by("human", "q"), by("gpt", "a")], "rejected": [by("human", "q"), by("gpt", "b")]},
        ([user("q")], [said("a")], [said("b")]),
    ),
    "whole conversations beside their question": (
        {"question": "other", "chosen": [user("q"), *CHAT["chosen"]], "rejected": [user("q"), *CHAT["rejected"]]},
        ([user("q")], [said("Yes.")], [said("No.")]),
    ),
}


def sides(row, **columns):
    pair = pairs_from_rows([row], columns=PairColumns(**columns))[0]
    return pair.prompt, pair.chosen, pair.rejected


@pytest.mark.parametrize("name", LAYOUTS)
def test_known_layouts_give_the_right_pair(name):
    row, expected = LAYOUTS[name]
    assert sides(row) == expected


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_conversations_that_are_json_text_are_read_as_messages(name, form):
    row, expected = LAYOUTS[name]
    as_text = {key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in row.items()}
    if form == "csv":
        as_text = {key: str(value) for key, value in as_text.items()}
    assert sides(as_text) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("orca", "prompt from question, system from system, chosen and rejected from chosen and rejected"),
        ("argilla", "prompt from instruction, chosen and rejected from chosen_response and rejected_response"),
        ("SHP", "chosen and rejected from human_ref_A and human_ref_B, preference from labels"),
        ("ultrafeedback", None),
        ("whole conversations beside their question", None),
    ],
)
def test_columns_of_a_known_layout_are_said(name, message, caplog):
    with caplog.at_level(logging.WARNING):
        sides(LAYOUTS[name][0])
    assert (message in caplog.text) if message else not caplog.records


def test_named_columns_are_read_as_if_they_had_their_usual_names():
    row = {"ask": "p", "good": "a", "bad": "b", "id": "x"}
    usual = pairs_from_rows([{"prompt": "p", "chosen": "a", "rejected": "b", "id": "x"}])
    named = pairs_from_rows([row], columns=PairColumns("ask", "good", "bad"))
    assert named == usual
    assert content_sha256(named) == content_sha256(usual)
    assert sides({"prompt": "other", "ask": "p", **ANSWERS}, prompt="ask")[0] == "p"


def test_a_system_prompt_makes_every_row_a_conversation():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "sys": "S"}
    assert sides(row, system="sys") == ([system("S"), user("p")], [said("a")], [said("b")])
    assert sides({**row, "sys": None}, system="sys") == ([user("p")], [said("a")], [said("b")])
    assert sides({**row, "prompt": [user("p")]}, system="sys")[0] == [system("S"), user("p")]
    assert sides({**row, "prompt": [system("S"), user("p")]}, system="sys")[0] == [system("S"), user("p")]
    assert sides({**row, "prompt": ""}, system="sys") == ("", "a", "b")
    with pytest.raises(DataInvalid, match="not the one that the conversation has"):
        sides({**row, "prompt": [system("T"), user("p")]}, system="sys")
    with pytest.raises(DataInvalid, match="a system prompt stands before a question"):
        sides({"chosen": "x a", "rejected": "x b", "sys": "S"}, system="sys", implicit_prompt=True)


def test_a_system_prompt_that_is_not_read_is_said(caplog):
    assert sides({"prompt": "p", "system": "S", **ANSWERS})[0] == "p"
    assert "the column 'system' is not read; name it with --system-column" in caplog.text


REFUSED = {
    "no prompt": (
        ANSWERS,
        r"row 0: there is no 'prompt'\. Name the column of the prompts with --prompt-column, or say",
    ),
    "a column of unknown name": (
        {"id": "i", "task": "How many?", "n": 3, **ANSWERS},
        r"row 0 \(id 'i'\): there is no 'prompt'; the text in 'task' is not read",
    ),
    "two prompts": (
        {"question": "How many?", "context": "Spiders.", **ANSWERS},
        r"row 0: the prompt could be 'question' or 'context'; name its column with --prompt-column",
    ),
    "a prompt that is null": ({"prompt": None, **ANSWERS}, r"row 0: there is no 'prompt'"),
    "a tie": (
        {"prompt": "p", "response_1": "b", "response_2": "a", "preference_strength": 0},
        r"row 0: a tie by column 'preference_strength', so neither response is the chosen one",
    ),
    "no verdict": (
        {"prompt": "p", "response_1": "b", "response_2": "a", "preference_strength": None},
        r"row 0: None in column 'preference_strength' does not say which response was preferred",
    ),
    "a verdict that is too large": (
        {"prompt": "p", "response_1": "b", "response_2": "a", "preference_strength": 10**400},
        r"in column 'preference_strength' does not say which response was preferred",
    ),
    "another verdict": (
        {"history": "p", "human_ref_A": "b", "human_ref_B": "a", "labels": 2},
        r"row 0: 2 in column 'labels' does not say which",
    ),
    "an unknown sender": (
        {"conversations": [by("narrator", "q")], "chosen": by("gpt", "a"), "rejected": by("gpt", "b")},
        r"'conversations' has a message from 'narrator'; senders are human, user, gpt",
    ),
    "messages in Python's notation": (
        {"chosen": "[{'role': 'user', 'content': 'q'}, {'role': 'assistant'}]", "rejected": "b"},
        r"'chosen' holds messages that are no JSON; in Python's notation",
    ),
    "a message in Python's notation": (
        {"prompt": "p", "chosen": "{'role': 'assistant', 'content': 'a'}", "rejected": "b"},
        r"'chosen' holds messages that are no JSON",
    ),
    "tools that are no JSON": ({"prompt": "p", **ANSWERS, "tools": "[{"}, r"row 0 .*'tools' is text that is no JSON"),
    "tools that are no list": ({"prompt": "p", **ANSWERS, "tools": "3"}, r"row 0 .*'tools' must be a list"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rows_whose_pair_would_be_a_guess_are_refused(case):
    row, message = REFUSED[case]
    with pytest.raises(DataInvalid, match=message):
        pairs_from_rows([row])


def test_columns_that_do_not_exist_are_named():
    with pytest.raises(
        UsageError, match=r"there is no column 'ask' of the prompt texts; the columns are chosen, rejected"
    ):
        sides(ANSWERS, prompt="ask")
    with pytest.raises(UsageError, match="is named as both"):
        sides({"prompt": "p", **ANSWERS}, chosen="rejected")


def test_an_implicit_prompt_is_taken_where_it_is_asked_for():
    assert sides(ANSWERS, implicit_prompt=True) == ("A spider has", " eight legs.", " six legs.")


def test_tools_as_json_text_are_a_list():
    tools = [{"name": "f", "parameters": {"a": {"type": "int"}}}]
    row = {"prompt": [user("p")], **CHAT}
    for given in (tools, json.dumps(tools)):
        assert pairs_from_rows([{**row, "tools": given}])[0].tools == tools
    assert pairs_from_rows([{**row, "tools": " "}])[0].tools is None


def test_ties_are_left_out_with_their_number(tmp_path, caplog):
    row = {"prompt": "p", "response1": "a", "response2": "b"}
    lines = [json.dumps({**row, "overall_preference": sign}) + "\n" for sign in (1, 0, -2, 0)]
    (tmp_path / "h.jsonl").write_text("".join(lines))
    table = leave_out_ties(read_table(str(tmp_path / "h.jsonl")))
    assert [pair.chosen for pair in pairs_from_rows(table.rows)] == ["b", "a"]
    assert table.lines == ["line 1", "line 3"]
    assert table.original == [lines[0].strip().encode(), lines[2].strip().encode()]
    assert "2 of 4 rows are ties, in which neither response was preferred; they are left out, the first at line 2" in (
        caplog.text
    )
    (tmp_path / "t.jsonl").write_text(lines[1])
    with pytest.raises(DataInvalid, match="every row is a tie"):
        leave_out_ties(read_table(str(tmp_path / "t.jsonl")))
