"""What rows are split by, of pairs of statements and of labelled texts alike."""

from types import SimpleNamespace

import pytest

from probing.errors import DataInvalid, UsageError
from probing.runs.common.groups import PAIRS, PROMPTS, values_to_split
from probing.types import ContrastPair, LabelledPrompt

ROWS = [{"topic": "seas", "text": "t"}, {"topic": "hills", "text": "u"}]


def table_of(rows):
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return SimpleNamespace(path="data.jsonl", rows=rows, columns=columns)


def prompts_of(categories=(None, None)):
    return [LabelledPrompt(f"p{at}", f"text {at}", True, category) for at, category in enumerate(categories)]


def pairs_of(categories=(None, None)):
    return [
        ContrastPair(f"s{at}", f"yes {at}", f"no {at}", True, category=category, formulation=f"f{at}")
        for at, category in enumerate(categories)
    ]


def split(by, rows, kind, table=ROWS):
    return values_to_split(SimpleNamespace(split_by=by), table_of(table), rows, kind)


@pytest.mark.parametrize(("rows", "kind"), [(prompts_of, PROMPTS), (pairs_of, PAIRS)])
def test_both_kinds_of_rows_are_split_alike(rows, kind):
    assert split(kind.itself, rows(), kind) is None
    assert split("topic", rows(), kind) == ["seas", "hills"]
    assert split("category", rows(["x", "y"]), kind) == ["x", "y"]
    with pytest.raises(DataInvalid, match=rf"{kind.noun} '.1' has no category to split by"):
        split("category", rows(["x", None]), kind)
    with pytest.raises(DataInvalid, match=rf"{kind.noun} '.0' has no category to split by"):
        split("category", rows(), kind)
    with pytest.raises(DataInvalid, match=rf"{kind.noun} '.1' has no topic to split by"):
        split("topic", rows(), kind, [ROWS[0], {"topic": " "}])
    with pytest.raises(UsageError, match=f"no column 'colour' to split by; give '{kind.itself}' or one of topic, text"):
        split("colour", rows(), kind)


def test_a_column_named_like_the_other_kind_is_a_column():
    assert split("text", pairs_of(), PAIRS) == ["t", "u"]
    assert split("formulation", pairs_of(), PAIRS) == ["f0", "f1"]
    with pytest.raises(UsageError, match="no column 'formulation'"):
        split("formulation", prompts_of(), PROMPTS)


def test_columns_need_one_row_each():
    with pytest.raises(UsageError, match="preference pairs can be split by text only"):
        split("topic", prompts_of(), PROMPTS, ROWS[:1])
    with pytest.raises(UsageError, match="splitting by 'topic' needs one row a pair; name it as --category-column"):
        split("topic", pairs_of(), PAIRS, ROWS * 2)
