"""What rows are split by, of pairs of statements and of labelled texts alike."""

from types import SimpleNamespace

import pytest

from probing.data.pair_units import pair_units
from probing.errors import DataInvalid, UsageError
from probing.runs.common.groups import PAIRS, PROMPTS, refuse_twin_labels, values_to_split
from probing.types import ContrastPair, LabelledPrompt, PreferencePair

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


def pair_of(number, prompt, chosen, rejected):
    return PreferencePair(f"p{number}", prompt, chosen, rejected)


def test_pairs_that_share_a_prompt_or_a_whole_text_are_of_one_group():
    texts = [
        ("Ask one", "yes", "no"),
        ("Ask  one", "maybe", "never"),  # the same prompt but for white space
        ("Ask two", "yes", "no"),  # a response alone is nothing in common
        ("", "a whole dialogue", "x"),
        ("", "y", "a whole dialogue"),  # the same text on the other side
        ("", "z", "w"),  # an empty prompt is nothing in common
        ("a whole", " dialogue", "another"),  # the same text, cut elsewhere
    ]
    pairs = [pair_of(number, *text) for number, text in enumerate(texts)]
    assert pair_units(pairs).tolist() == [0, 0, 1, 2, 2, 3, 2]


def test_conversations_are_compared_as_messages():
    def turn(role, text):
        return [{"role": role, "content": text}]

    sides = [("one", "yes", "no"), ("two", "yes", "no"), ("one", "so", "not so")]
    pairs = [
        pair_of(number, turn("user", prompt), turn("assistant", chosen), turn("assistant", rejected))
        for number, (prompt, chosen, rejected) in enumerate(sides)
    ]
    assert pair_units(pairs).tolist() == [0, 1, 0]


def test_labels_that_differ_in_white_space_are_refused():
    rows = [LabelledPrompt(str(at), "text", label) for at, label in enumerate([None, "safe", "unsafe", "safe\t", True])]
    refuse_twin_labels("data.jsonl", rows[:3])
    message = r"data.jsonl: the labels 'safe' \(row '1'\) and 'safe\\t' \(row '3'\) differ in white space only"
    with pytest.raises(DataInvalid, match=message):
        refuse_twin_labels("data.jsonl", rows)
