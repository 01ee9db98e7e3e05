import json

import pytest

from probing.data.columns import ColumnResolver, column_values, require_split_values
from probing.data.tables import read_table
from probing.errors import DataInvalid, UsageError

ROWS = [{"id": "a", "text": "x"}, {"id": "b", "kind": "k", "prompt": "y"}]
RESOLVER = ColumnResolver.of(ROWS, "some data")


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return read_table(str(path))


def test_all_columns_of_all_rows_in_order():
    assert RESOLVER.present == ("id", "text", "kind", "prompt")


def test_a_name_wins_over_the_usual_ones_and_the_first_usual_one_over_the_others():
    assert RESOLVER.find("kind", ("text", "prompt")) == "kind"
    assert RESOLVER.find(None, ("message", "prompt", "text")) == "prompt"
    assert RESOLVER.find(None, ("message",)) is None
    assert RESOLVER.find(None) is None


@pytest.mark.parametrize("missing", ["label", "", "ID"])
def test_a_name_that_is_not_there_is_refused(missing):
    message = f"^some data: there is no column '{missing}'; the columns are id, text, kind, prompt$"
    with pytest.raises(UsageError, match=message):
        RESOLVER.find(missing, ("text",))
    with pytest.raises(UsageError, match=f"there is no column '{missing}' to sort by; give one of id, text"):
        RESOLVER.check(missing, " to sort by", "give one of")


def test_a_column_that_must_be_there():
    error = RESOLVER.explain_missing("no kind", "--kind-column")
    assert isinstance(error, DataInvalid)
    assert str(error) == "some data: no kind; name one with --kind-column; the columns are id, text, kind, prompt"


def test_values_of_a_column(table):
    assert column_values(table, "id") == ["a", "b"]
    with pytest.raises(DataInvalid, match=r"x\.jsonl, line 1: has no 'kind'; it has id, text"):
        column_values(table, "kind")


@pytest.mark.parametrize("nothing", [None, "", " ", float("nan")])
def test_every_row_must_have_a_value(tmp_path, nothing):
    path = tmp_path / "y.jsonl"
    path.write_text("".join(json.dumps({"kind": kind}) + "\n" for kind in ("k", nothing)))
    with pytest.raises(DataInvalid, match=r"y\.jsonl, line 2: 'kind' is empty there"):
        column_values(read_table(str(path)), "kind")


def test_values_to_split_by_are_text_and_none_is_missing(table):
    assert require_split_values(table, "kind", ["a", "b"], [1, True], "row") == ["1", "True"]
    with pytest.raises(DataInvalid, match=r"x\.jsonl: pair 'b' has no kind to split by"):
        require_split_values(table, "kind", ["a", "b"], ["k", float("nan")], "pair")
