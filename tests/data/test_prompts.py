import json

import pytest

from probing import LabelledPrompt
from probing.data.prompts import Columns, prompts_from_table
from probing.data.tables import read_table
from probing.errors import DataInvalid, UsageError

TURNS = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Is a boat near?"}]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_table(str(path))


def test_rows_of_a_table(tmp_path):
    table = write(
        tmp_path / "x.jsonl",
        [
            {"id": 1, "instruction": "near", "label": True, "category": "a", "completion": " boat"},
            {"id": 2, "instruction": TURNS, "label": None},
        ],
    )
    first, second = prompts_from_table(table, Columns())
    assert first == LabelledPrompt("1", "near", True, "a", " boat")
    assert (second.id, second.text[1]["content"], second.label, second.response) == ("2", "Is a boat near?", None, None)


@pytest.mark.parametrize("label", [None, float("nan"), "", " "])
def test_labels_that_are_none(tmp_path, label):
    row = {"text": "near", "label": label, "category": label}
    (prompt,) = prompts_from_table(write(tmp_path / "x.jsonl", [row]), Columns())
    assert prompt.label is None
    assert prompt.category is None


def test_columns_can_be_named(tmp_path):
    table = write(
        tmp_path / "x.jsonl", [{"key": "a", "q": "near boat", "a": "ok", "kind": 3, "topic": 7, "at": [5, 9]}]
    )
    columns = Columns(id="key", text="q", response="a", label="kind", category="topic", span="at")
    assert prompts_from_table(table, columns) == [LabelledPrompt("a", "near boat", 3, "7", "ok", (5, 9))]


def test_a_pair_becomes_two_rows(tmp_path):
    table = write(tmp_path / "x.jsonl", [{"id": "a", "prompt": "Q:", "chosen": " yes", "rejected": " no"}])
    assert prompts_from_table(table, Columns()) == [
        LabelledPrompt("a#chosen", "Q:", "chosen", None, " yes"),
        LabelledPrompt("a#rejected", "Q:", "rejected", None, " no"),
    ]


def test_ids_are_made_from_the_content(tmp_path):
    rows = [{"text": "near"}, {"text": "boat"}, {"text": "near"}]
    ids = [prompt.id for prompt in prompts_from_table(write(tmp_path / "x.jsonl", rows), Columns())]
    again = [prompt.id for prompt in prompts_from_table(write(tmp_path / "y.jsonl", rows[::-1]), Columns())]
    assert len(set(ids)) == 3
    assert set(ids) == set(again)


@pytest.mark.parametrize(
    ("row", "columns", "substring", "error", "message"),
    [
        ({"body": "x"}, Columns(), None, DataInvalid, "no column of texts .* the columns are body"),
        ({"text": "x"}, Columns(text="body"), None, UsageError, "there is no column 'body'; the columns are text"),
        ({"text": 3}, Columns(), None, DataInvalid, "line 1: 'text' must be text or a list of messages, found int"),
        ({"text": "x", "label": [1]}, Columns(), None, DataInvalid, "line 1 .* the label must be text, a number"),
        ({"text": "x", "at": [1, "b"]}, Columns(span="at"), None, DataInvalid, "a span is a substring or"),
        ({"text": "x", "at": [4, 2]}, Columns(span="at"), None, DataInvalid, "characters 4 to 2 are no span"),
        ({"text": "x", "at": "x"}, Columns(span="at"), "x", UsageError, "the span is given twice"),
        ({"text": "x"}, Columns(), "", DataInvalid, "an empty substring is in every text"),
        ({"text": "x", "at": [0.5, 2]}, Columns(span="at"), None, DataInvalid, "a span is a substring or"),
        ({"text": "x", "label": "\ud800"}, Columns(), None, DataInvalid, "surrogates not allowed"),
        (
            {"prompt": "x", "chosen": "a", "rejected": "b"},
            Columns(label="prompt"),
            None,
            UsageError,
            "their own columns",
        ),
    ],
)
def test_tables_that_make_no_sense(tmp_path, row, columns, substring, error, message):
    with pytest.raises(error, match=message):
        prompts_from_table(write(tmp_path / "x.jsonl", [row]), columns, substring)
