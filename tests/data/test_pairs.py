import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probing.data.pair_columns import PairColumns
from probing.data.pairs import content_sha256, pairs_from_rows
from probing.errors import DataInvalid

USER, SURE, NO = (
    {"role": role, "content": text} for role, text in (("user", "Hi?"), ("assistant", "Sure"), ("assistant", "No"))
)


def sides(implicit_prompt=False, **row):
    pair = pairs_from_rows([row], columns=PairColumns(implicit_prompt=implicit_prompt))[0]
    return pair.prompt, pair.chosen, pair.rejected


def test_explicit_text_stays_as_it_is():
    assert sides(prompt="Q: ", chosen=" a ", rejected="b") == ("Q: ", " a ", "b")


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("Is it ok? No", "Is it ok? Never", ("Is it ok?", " No", " Never")),
        ("Is it ok?\n\nNo", "Is it ok?\n\nNever", ("Is it ok?", "\n\nNo", "\n\nNever")),
        ("Is it ok?No", "Is it ok?Never", ("Is it ok?", "No", "Never")),
        ("Is it ok? No", "Is it ok? No way", ("Is it ok?", " No", " No way")),
        ("No", "Never", ("", "No", "Never")),
        ("好吗？不好", "好吗？好", ("好吗？", "不好", "好")),
        ("same text here", "same text here", ("same text", " here", " here")),
        ("a b", "x y", ("", "a b", "x y")),
        ("No, I can help", "No, I can't help", ("No, I", " can help", " can't help")),
        ("It is 3.14", "It is 3.5", ("It is", " 3.14", " 3.5")),
        ("Use snake_case", "Use snake_bite", ("Use", " snake_case", " snake_bite")),
        ("Un cafe\u0301", "Un cafe", ("Un", " cafe\u0301", " cafe")),
        ("ok कि", "ok की", ("ok", " कि", " की")),
        ("A 👨‍👩‍👧", "A 👨‍👩‍👦", ("A", " 👨‍👩‍👧", " 👨‍👩‍👦")),
        ("ok? 👍🏽", "ok? 👍🏿", ("ok?", " 👍🏽", " 👍🏿")),
        ("Done. Yes", "Done. No", ("Done.", " Yes", " No")),
    ],
)
def test_an_implicit_text_prompt_ends_before_a_word(chosen, rejected, expected):
    assert sides(True, chosen=chosen, rejected=rejected) == expected


@given(st.text("ab ?\n", max_size=12), st.text("ab ?\n", max_size=12))
def test_an_implicit_split_loses_no_character_and_no_answer(chosen, rejected):
    prompt, left, right = sides(True, chosen=chosen, rejected=rejected)
    assert (prompt + left, prompt + right) == (chosen, rejected)
    if chosen.strip() and rejected.strip():
        assert left.strip()
        assert right.strip()


def dialogue(*turns):
    return "".join(f"\n\n{who}:{text}" for who, text in zip(["Human", "Assistant"] * 9, turns, strict=False))


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (dialogue(" hi", " I can", " ok", " yes"), dialogue(" hi", " I can", " ok", " yep"), (" yes", " yep")),
        (dialogue(" hi", " I can"), dialogue(" hi", " I cannot"), (" I can", " I cannot")),
        (
            dialogue(" hi", " I can", " more", " x"),
            dialogue(" hi", " no"),
            (" I can\n\nHuman: more\n\nAssistant: x", " no"),
        ),
        (dialogue(" hi", ""), dialogue(" hi", " no"), ("", " no")),
        (dialogue(" a", " x"), dialogue(" b", " x"), (dialogue(" a", " x"), dialogue(" b", " x"))),
    ],
)
def test_dialogues_are_cut_after_the_last_shared_turn(chosen, rejected, expected):
    prompt, left, right = sides(chosen=chosen, rejected=rejected)
    assert (left, right) == expected
    assert (prompt + left, prompt + right) == (chosen, rejected)
    assert prompt == "" or prompt.endswith("\n\nAssistant:")


def test_a_dialogue_beside_its_prompt_is_not_doubled():
    prompt = dialogue(" hi", "")
    assert sides(prompt=prompt, chosen=prompt + " a", rejected=prompt + " b") == (prompt, " a", " b")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [SURE], "rejected": [NO]},
        {"prompt": None, "chosen": [USER, SURE], "rejected": [USER, NO]},
        {"chosen": [USER, SURE], "rejected": [USER, NO]},
        {"prompt": "Hi?", "chosen": [SURE], "rejected": [NO]},
        {"prompt": "Hi?", "chosen": [USER, SURE], "rejected": [USER, NO]},
        {"prompt": [USER], "chosen": [USER, SURE], "rejected": [USER, NO]},
        {"prompt": [USER], "chosen": "Sure", "rejected": "No"},
        {"prompt": [USER], "chosen": [SURE], "rejected": [USER, NO]},
        {"prompt": "Hi?", "chosen": [SURE], "rejected": [USER, NO]},
        {"prompt": np.array([USER]), "chosen": np.array([SURE]), "rejected": np.array([NO])},
    ],
)
def test_every_way_to_write_a_conversation(row):
    assert sides(**row) == ([USER], [SURE], [NO])


def test_keys_that_a_table_filled_with_none_are_dropped():
    filled = {**USER, "tool_calls": None, "name": None}
    assert sides(prompt=[filled], chosen=[SURE], rejected=[NO])[0] == [USER]
    tools = [{"name": "f", "parameters": {"a": {"type": "int", "enum": None}, "b": None}}]
    row = {
        "prompt": [USER],
        "chosen": [SURE],
        "rejected": [NO],
        "tools": tools,
        "chat_template_kwargs": {"think": None},
    }
    pair = pairs_from_rows([row])[0]
    assert pair.tools == [{"name": "f", "parameters": {"a": {"type": "int"}}}]
    assert pair.chat_template_kwargs is None


def test_longer_dialogues_share_all_but_the_answer():
    assert sides(chosen=[USER, SURE, USER, SURE], rejected=[USER, SURE, USER, NO]) == ([USER, SURE, USER], [SURE], [NO])
    assert sides(chosen=[USER, SURE], rejected=[USER, SURE]) == ([USER], [SURE], [SURE])


def rows_with(**columns):
    return [
        {"prompt": "p", "chosen": "a", "rejected": "b", **{k: v[i] for k, v in columns.items()}}
        for i in range(len(next(iter(columns.values()))))
    ]


def ids(rows, **options):
    return [pair.id for pair in pairs_from_rows(rows, **options)]


def test_ids_come_from_the_column():
    assert ids(rows_with(id=[3, "x"])) == ["3", "x"]
    assert ids(rows_with(id=["1", "1"], key=["u", "v"]), id_column="key") == ["u", "v"]


def test_ids_from_content_are_unique_and_do_not_feel_the_order():
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "n": n} for n in (2, 0, 1, 0)] + [
        {"chosen": "x y", "rejected": "x z"}
    ]
    implicit = {"columns": PairColumns(implicit_prompt=True)}
    made = ids(rows, **implicit)
    assert len(set(made)) == 5
    order = [4, 2, 0, 3, 1]
    moved = dict(zip(order, ids([rows[index] for index in order], **implicit), strict=True))
    assert [moved[index] for index in (0, 2, 4)] == [made[0], made[2], made[4]]
    assert {moved[1], moved[3]} == {made[1], made[3]}  # two rows that are the same throughout


def test_ids_from_content_ignore_further_columns():
    assert ids(rows_with(n=[1])) == ids(rows_with(n=[2]))


def test_content_hash_depends_on_texts_alone():
    rows = rows_with(id=["1", "2"], n=[1, 2])
    known = content_sha256(pairs_from_rows(rows))
    assert content_sha256(pairs_from_rows(rows[::-1])) == known
    assert content_sha256(pairs_from_rows([{**row, "n": 0} for row in rows])) == known
    assert content_sha256(pairs_from_rows([{**row, "chosen": "c"} for row in rows])) != known


BAD = {
    "no column": (
        [{"prompt": "p", "chosen": "a", "answer": "b"}],
        r"row 0: there is no column 'rejected'; the columns are prompt, chosen, answer",
    ),
    "in one row": (
        [*rows_with(id=[1]), {"prompt": "p", "chosen": "a", "id": 2}],
        r"row 1 \(id '2'\): this row has no 'rejected', though others have",
    ),
    "type": (
        [{"prompt": "p", "chosen": 5, "rejected": "b", "id": "k"}],
        r"row 0 \(id 'k'\): 'chosen' must be text or a list of messages, found int \(5\)",
    ),
    "none": ([{"prompt": "p", "chosen": None, "rejected": "b"}], r"found NoneType"),
    "empty list": ([{"chosen": [], "rejected": [SURE]}], r"'chosen' must be .* found an empty list"),
    "mixed": (
        [{"prompt": "p", "chosen": "a", "rejected": [SURE]}],
        r"one of 'chosen' and 'rejected' is text, the other a list",
    ),
    "no role": ([{"prompt": [USER], "chosen": [{"content": "x"}], "rejected": [NO]}], r"'chosen' has no 'role'"),
    "no message": ([{"prompt": [USER], "chosen": ["x"], "rejected": [NO]}], r"'chosen' must hold messages like"),
    "image": (
        [{"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": [SURE], "rejected": [NO]}],
        r"images are not read",
    ),
    "one side foreign": (
        [{"prompt": [USER], "chosen": [SURE], "rejected": [{"role": "user", "content": "Ho"}, NO]}],
        r"'rejected' neither begins with the messages of 'prompt' nor with an answer",
    ),
    "surrogate id": (rows_with(id=["a\ud800"]), r"'id' holds half of a surrogate pair"),
    "foreign": (
        [{"prompt": "other", "chosen": [USER, SURE], "rejected": [USER, NO]}],
        r"'chosen' neither begins with the messages of 'prompt' nor with an answer to them",
    ),
    "no shared": (
        [{"chosen": [USER, SURE], "rejected": [{"role": "user", "content": "Ho"}, NO]}],
        r"share no message that could be the prompt",
    ),
    "surrogate": (
        [{"prompt": "p", "chosen": "a\ud800", "rejected": "b"}],
        r"'chosen' holds half of a surrogate pair at character 1",
    ),
    "duplicate": (
        rows_with(id=["x", "y", "x"]),
        r"row 2: id 'x' in column 'id' was already used at row 0; .* --id-column",
    ),
    "some ids": (rows_with(id=["x", None]), r"row 1: there is no id in column 'id'"),
    "empty id": (rows_with(id=[""]), r"the id in column 'id' is empty"),
    "blank id": (rows_with(id=["x", " "]), r"row 1: the id in column 'id' is empty"),
    "a list as an id": (rows_with(id=["x", [1]]), r"row 1: the id in column 'id' must be text or a number, not list"),
    "an object as an id": (rows_with(id=[{"a": 1}]), r"row 0: the id in column 'id' must be .* not dict"),
    "true as an id": (rows_with(id=[1, True]), r"row 1: the id in column 'id' must be .* not bool \(True\)"),
    "an array as an id": (rows_with(id=[np.array([1, 2])]), r"not list"),
    "an infinite id": (rows_with(id=[float("1e400")]), r"row 0: the id in column 'id' must be finite, not inf"),
    "id of NaN": (rows_with(id=["x", float("nan")]), r"row 1: there is no id in column 'id'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_named(case):
    rows, message = BAD[case]
    with pytest.raises(DataInvalid, match=message):
        pairs_from_rows(rows)


def test_an_unknown_id_column_names_those_present():
    with pytest.raises(DataInvalid, match=r"no id in column 'key'; the columns are prompt, chosen, rejected, id"):
        pairs_from_rows(rows_with(id=["x"]), id_column="key")
