"""What the command line says of options that were given wrongly, and how tables fit a terminal."""

from pathlib import Path
from typing import Literal

import pandas as pd
import pytest

from probing.report.tables import render
from probing.usage import describe_type, explain, join_words, metavar_of, suggest

HINTS = {
    "model": str,
    "batch_tokens": int | None,
    "dtype": Literal["auto", "float32"],
    "out": Path,
    "keep_lowest": float,
}
OPTIONS = [f"--{name.replace('_', '-')}" for name in HINTS]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("unrecognized arguments: --modle x", "there is no option --modle (did you mean --model?)"),
        ("unrecognized arguments: --zzz=1", "there is no option --zzz"),
        ("Unrecognized arguments: extra", "'extra' belongs to no option"),
        ("Option 'modle' is not accepted", "there is no option --modle (did you mean --model?)"),
        ("the following arguments are required: model, out", "--model and --out are required"),
        ("the following arguments are required: model", "--model is required"),
        (
            'Parser key "batch_tokens":\n  Expected\n  Given value: foo',
            "--batch-tokens must be a whole number, not 'foo'",
        ),
        ("argument --model: expected one argument", "--model needs a value"),
        ("batch_tokens must be at least 1, not 0", "--batch-tokens must be at least 1, not 0"),
        ("model must be a folder", "--model must be a folder"),
        ("give one of keep_lowest, drop_highest", "give one of --keep-lowest, drop_highest"),
        (
            "give exactly one of keep_lowest and model; given: model and keep_lowest",
            "give exactly one of --keep-lowest and --model; given: --model and --keep-lowest",
        ),
        (
            "give at most one of model and out: model takes weights",
            "give at most one of --model and --out: --model takes weights",
        ),
        ("model is empty; name a folder", "--model is empty; name a folder"),
        ("two\n  lines", "two lines"),
    ],
)
def test_mistakes_are_told_in_one_sentence_with_options_as_they_are_typed(message, said):
    assert explain(message, HINTS, OPTIONS) == said


def test_types_are_told_in_words():
    assert describe_type(int | None) == "a whole number"
    assert describe_type(int | str) == "a whole number or a text"
    assert describe_type(Literal["a", "b"]) == "one of a, b"
    assert describe_type(str | list[str]) == "a text"
    assert (metavar_of(int | None), metavar_of(Path), metavar_of(Literal["a", "b"])) == ("N", "PATH", "{a,b}")


def test_only_close_words_are_suggested():
    assert suggest("--modle", OPTIONS) == " (did you mean --model?)"
    assert suggest("--xyz", OPTIONS) == ""
    assert join_words(["a", "b", "c"]) == "a, b and c"


WIDE = pd.DataFrame({"id": ["a" * 30, "b"], "text": ["x" * 60, "…" + "y" * 59], "value": [0.5, 2], "low": [1, 2]})


def test_a_table_that_fits_is_as_it_is():
    assert render({"T": WIDE}, 300) == render({"T": WIDE})


def test_a_number_among_texts_has_as_many_digits_as_one_among_numbers():
    table = pd.DataFrame({"p": [1 / 1001, "<= 0.048", float("nan"), "-"]})
    assert [line.strip() for line in render({"T": table}).splitlines()[2:]] == [
        "0.000999",
        "<= 0.048",
        "NaN",
        "-",
    ]


def test_texts_are_cut_before_columns_are_left_out():
    lines = render({"T": WIDE}, 80).splitlines()[1:]
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["id", "text", "value", "low"]
    assert "x…" in lines[1]
    assert "…y" in lines[2]


def test_columns_that_are_left_out_are_named():
    lines = render({"T": WIDE}, 36).splitlines()[1:]
    assert max(map(len, lines)) <= 36
    assert lines[0].split() == ["id", "text"]
    assert lines[-1] == "(--full also shows value, low)"


def test_sentences_are_wrapped_and_keep_every_word():
    note = "a sentence of many words that goes on for longer than a line of the terminal is wide"
    shown = render({"Notes": pd.DataFrame({"note": [note]})}, 40)
    assert max(map(len, shown.splitlines())) <= 40
    assert " ".join(shown.split()) == f"Notes note {note}"
