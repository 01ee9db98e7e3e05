"""Rows of a report page as JSON: what is in it, and what is left out first."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from report_pages import NAN, make_planted_rows, make_pulled_rows, make_rows

from probing.report.page import write_report
from probing.report.page_data import embed_rows, encode_number, encode_text, order_by_use, show_ids, show_text
from probing.report.parts import Page, RowColumn, RowTable

PLENTY = 10**9


def read(tables, most_bytes=PLENTY):
    text, told = embed_rows(tables, most_bytes, 8_000_000)
    return json.loads(text), told, len(text.encode("utf-8"))


def read_texts(data, number=0):
    """Texts by what they are, as they were given: None where there is none, "left out" where they were left out."""
    spelled = {-1: None, -2: "left out", **dict(enumerate(data["strings"]))}
    return {text["name"]: [spelled[at] for at in text["values"]] for text in data["tables"][number]["texts"]}


def test_tokens_with_pulls_are_two_lists():
    rows = make_pulled_rows()
    data, told, _ = read([rows])
    (found,) = data["tables"][0]["tokens"]
    none, (texts, pulls), last = found["values"]
    assert (none, last, told) == (None, None, [])
    pulled = rows.tokens["response"]
    assert [data["strings"][at] for at in texts] == [show_text(token) for token in pulled.tokens]
    assert pulls == [None if pull != pull else pull for pull in pulled.pulls]


def test_what_is_embedded_is_what_was_given():
    rows = make_rows(40, 60, 5)
    data, told, _ = read([rows])
    table = data["tables"][0]
    assert told == []
    assert table["ids"] == rows.ids
    assert read_texts(data) == rows.texts
    for column, found in zip(rows.columns, table["columns"], strict=True):
        if column.kind == "text":
            assert [data["strings"][at] for at in found["values"]] == column.values
        elif column.kind == "flag":
            assert found["values"] == [int(value) for value in column.values]
        else:
            known = [math.nan if value is None else value for value in found["values"]]
            np.testing.assert_allclose(known, column.values, rtol=5e-5)
    for name, found in ((response["name"], response["values"]) for response in table["tokens"]):
        tokens = rows.tokens[name]
        assert found[-1] is None
        for row, (texts, before, change, gained) in enumerate(found[:-1]):
            span = slice(tokens.offsets[row], tokens.offsets[row + 1])
            assert [data["strings"][at] for at in texts] == tokens.tokens[span]
            # Log-probabilities are whole thousandths of a nat, probabilities whole millionths.
            np.testing.assert_allclose(np.array(before) / 1000, tokens.before[span], atol=5.01e-4)
            changes = np.subtract(tokens.after[span], tokens.before[span])
            np.testing.assert_allclose(np.array(change) / 1000, changes, atol=5.01e-4)
            for some, given in zip(gained, tokens.gained[span], strict=True):
                assert [data["strings"][at] for at in some[::3]] == [text for text, _, _ in given]
                np.testing.assert_allclose(np.array(some[1::3]) / 1e6, [low for _, low, _ in given], atol=5.01e-7)
                np.testing.assert_allclose(np.array(some[2::3]) / 1e6, [high for _, _, high in given], atol=5.01e-7)


def test_every_string_is_there_once():
    same = RowTable("t", "t", ["a", "b"], [RowColumn("k", "k", ["x", "x"], "text")], {"prompt": ["x", "x"]})
    data, _, _ = read([same, same])
    assert data["strings"] == ["x"]


@pytest.mark.parametrize("most", [900_000, 500_000, 250_000, 120_000, 60_000, 20_000])
def test_it_is_never_larger_than_it_may_be_and_uses_what_it_may(most):
    tables = [make_rows(600, 200, 10), make_rows(300, 60, 5, "others")]
    data, told, size = read(tables, most)
    assert size <= most
    largest = read(tables)[2]
    assert size > 0.95 * min(most, largest)
    assert bool(told) == (most < largest)
    for number, rows in enumerate(tables):
        table = data["tables"][number]
        # What is told is what is missing.
        gone = len(rows.ids) - len(table["ids"])
        texts = sum(text == "left out" for text in read_texts(data, number)["prompt"])
        tokens = sum(cell == 0 for cell in table["tokens"][0]["values"])
        for kind, count in (("numbers", gone), ("texts", texts), ("tokens", tokens)):
            sentence = f"{rows.title}: the {kind} of {count:,} of {len(rows.ids):,} rows were left out to keep the page"
            assert any(line.startswith(sentence) for line in told) == (count > 0)


def test_rows_at_both_ends_and_at_the_median_keep_theirs():
    rows = make_rows(601, 200, 10)
    values = np.array(rows.columns[0].values)
    ranked = [row for row in np.argsort(values) if not math.isnan(values[row])]
    data, _, _ = read([rows], 250_000)
    texts = read_texts(data)["prompt"]
    tokens = [cell != 0 for cell in data["tables"][0]["tokens"][0]["values"]]
    for kept in ([text != "left out" for text in texts], tokens):
        inside = [kept[row] for row in ranked]
        assert sum(inside) < 400
        assert all(inside[:5] + inside[298:303] + inside[-5:])
        assert not any(inside[100:200] + inside[400:500])
    assert len(data["tables"][0]["ids"]) == 601


def test_rows_without_a_number_lose_theirs_first():
    rows = RowTable("t", "t", list("abcde"), [RowColumn("x", "x", [NAN, 3.0, 1.0, None, 2.0], "number")], first="x")
    order = order_by_use(rows)
    assert set(order[:3]) == {1, 2, 4}
    assert order[3:] == [0, 3]
    assert order_by_use(RowTable("t", "t", list("abc"), [])) == [0, 1, 2]


def test_one_text_that_is_too_long_does_not_take_the_others_turn():
    texts = ["x" * 100_000, *("short" for _ in range(50))]
    rows = RowTable(
        "t", "t", [str(n) for n in range(51)], [RowColumn("x", "x", list(range(51)), "number")], {"prompt": texts}
    )
    data, told, _ = read([rows], 5_000)
    assert read_texts(data)["prompt"] == ["left out", *texts[1:]]
    assert told == [
        "t: the texts of 1 of 51 rows were left out to keep the page under 8 MB; "
        "those of the lowest, median and highest rows of the table were kept first."
    ]


def test_the_whole_page_is_under_its_size_and_says_what_is_missing():
    page = Page("t", [], [], [make_rows(400, 200, 10), make_planted_rows()], [], ["A remark." * 2_000])
    written = write_report(page, most_bytes=300_000).text
    assert 280_000 < len(written.encode("utf-8")) < 300_000
    remarks = written[written.index('id="page-remarks"') :]
    assert remarks.index("A remark.") < remarks.index("rows were left out to keep the page under 0.3 MB")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (1.23456789, "1.2346"),
        (1234567, "1234567"),
        (np.int64(7), "7"),
        (123456.0, "123456"),
        (1.5e-7, "1.5e-07"),
        (True, "1"),
        (np.float32(0.5), "0.5"),
        (NAN, "null"),
        (math.inf, "null"),
        (None, "null"),
        (pd.NA, "null"),
    ],
)
def test_numbers_have_five_digits_and_what_is_no_number_is_null(value, written):
    assert encode_number(value) == written


def test_texts_cannot_leave_their_script_and_are_read_as_they_were():
    for text in ("</script><!-- ]]>", "a & b < c", "\u2028\u2029", 'quotes " and \\ and \n'):
        written = encode_text(text)
        assert not set("<>&\u2028\u2029\n") & set(written)
        assert json.loads(written) == text


def test_what_does_not_print_is_spelled_but_lines_and_emoji_are_kept():
    assert show_text("a\n\tb\x1b[0m\u202e\ud800 👨‍👩‍👧 שלום") == "a\n\tb\\x1b[0m\\u202e\\ud800 👨‍👩‍👧 שלום"
    assert show_ids(["a\n", "a\\n", "b"]) == ["a\\n", "a\\n (2)", "b"]
