import json
import logging
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probing.data.bundled import bundled_data
from probing.data.layouts import StatementColumns
from probing.data.statements import contrast_pairs_from_rows, contrast_pairs_from_table, text_groups
from probing.data.tables import read_table
from probing.data.writing import write_rows
from probing.errors import DataInvalid, UsageError
from probing.types import ContrastPair

C = StatementColumns
PAIRS = [
    ContrastPair("a", "A bomb is bad.", "A bomb is not bad.", True, "weapons", "negation"),
    ContrastPair("b", "A cake is bad.", "A cake is good.", False, "food", "concurrent"),
    ContrastPair("c", "A kite is bad.", "A kite is not bad.", False, None, "negation"),
]
BOMB, CAKE, KITE = PAIRS


def wide(*pairs):
    return [
        {
            "id": pair.id,
            "statement": pair.statement,
            "opposite": pair.opposite,
            "label": pair.label,
            "category": pair.category,
            "formulation": pair.formulation,
        }
        for pair in pairs
    ]


def sides(*pairs):
    """One row a statement: the statements, then the opposites."""
    rows = wide(*pairs)
    return [
        {
            "id": row["id"] + mark,
            "pair": row["id"],
            "polarity": mark == "",
            "statement": row["opposite"] if mark else row["statement"],
            "label": row["label"] ^ bool(mark),
            "category": row["category"],
            "formulation": row["formulation"],
        }
        for mark in ("", "'")
        for row in rows
    ]


def without(rows, *names):
    return [{key: value for key, value in row.items() if key not in names} for row in rows]


def changed(rows, **columns):
    """Rows with other values: each given as (index, value)."""
    rows = [dict(row) for row in rows]
    for name, (index, value) in columns.items():
        rows[index][name] = value
    return rows


def read(rows, columns=None, layout="auto"):
    return contrast_pairs_from_rows(rows, columns or C(), layout)


def keys(rows):
    return [(pair.statement, pair.opposite, pair.label) for pair in rows]


# Layouts


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet", "jsonl.gz"])
@pytest.mark.parametrize("layout", ["wide", "long", "halves"])
def test_every_layout_in_every_format_gives_the_same_pairs(tmp_path, suffix, layout):
    rows = wide(*PAIRS) if layout == "wide" else sides(*PAIRS)
    rows = without(rows, "pair", "polarity") if layout == "halves" else rows
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    target = tmp_path / f"target.{suffix}"
    table = read_table(str(source))
    write_rows(table, range(len(rows)), target, suffix.split(".")[0], zipped=suffix.endswith(".gz"))
    table = read_table(str(target))
    assert contrast_pairs_from_table(table, C(), layout) == PAIRS
    if layout != "halves":
        assert contrast_pairs_from_table(table, C()) == PAIRS


def test_rows_of_a_pair_may_stand_anywhere():
    rows = sides(*PAIRS)
    assert read([rows[at] for at in (3, 2, 1, 0, 5, 4)]) == [BOMB, KITE, CAKE]


def test_the_bundled_statements():
    pairs = contrast_pairs_from_table(read_table(str(bundled_data("statements"))), C())
    assert len(pairs) == 416
    assert pairs[0] == ContrastPair(
        "negation-bomb-dangerous", "A bomb is dangerous.", "A bomb is not dangerous.", True, "weapons", "negation"
    )
    groups = text_groups(pairs)
    assert sorted(set(groups)) == list(range(208))
    assert set(Counter(groups).values()) == {2}
    assert all(sum(group == other for other in groups) == 2 for group in groups[:3])
    for group in range(208):
        first, second = (pair for pair, its in zip(pairs, groups, strict=True) if its == group)
        assert first.statement == second.statement
        assert [first.formulation, second.formulation] == ["negation", "concurrent"]


@pytest.mark.parametrize(
    ("usual", "others"),
    [
        ("statement", ["text"]),
        ("opposite", ["negation"]),
        ("label", ["is_true", "truth"]),
    ],
)
def test_columns_have_usual_names(usual, others):
    for other in others:
        assert (
            read([{{usual: other}.get(key, key): value for key, value in row.items()} for row in wide(*PAIRS)]) == PAIRS
        )
    # The first of the usual names wins.
    assert read([{**row, others[0]: "something else"} for row in wide(*PAIRS)]) == PAIRS


def test_the_pair_column_may_be_called_pair_id():
    rows = [{**row, "pair_id": row["pair"]} for row in sides(*PAIRS)]
    assert read(without(rows, "pair")) == PAIRS


def test_columns_can_be_named():
    names = {name: name[::-1] for name in ("id", "statement", "opposite", "label", "category", "formulation")}
    rows = [{names[key]: value for key, value in row.items()} for row in wide(*PAIRS)]
    assert read(rows, C(**names)) == PAIRS
    names = {name: name[::-1] for name in ("pair", "polarity", "statement", "label", "category", "formulation")}
    rows = [{names.get(key, key): value for key, value in row.items()} for row in sides(*PAIRS)]
    assert read(rows, C(**names)) == PAIRS


def test_a_named_pair_column_makes_it_long():
    rows = [{**row, "opposite": "no text of a pair"} for row in sides(*PAIRS)]
    assert read(rows, C(pair="pair")) == PAIRS
    assert read(rows, layout="long") == PAIRS
    with pytest.raises(DataInvalid, match="'no text of a pair' is true by its label here, but false at row 0"):
        read(rows)


def test_what_may_be_absent():
    bare = read(without(wide(*PAIRS), "category", "formulation", "id"))
    assert keys(bare) == keys(PAIRS)
    assert {(pair.category, pair.formulation) for pair in bare} == {(None, None)}
    halves = read(without(sides(*PAIRS), "id", "pair", "polarity"), layout="halves")
    assert len({pair.id for pair in [*bare, *halves]}) == 3
    again = read(without(wide(*PAIRS), "category", "formulation", "id")[::-1])
    assert {pair.id: pair.statement for pair in again} == {pair.id: pair.statement for pair in bare}
    assert read(changed(wide(BOMB, CAKE), category=(0, ""), formulation=(1, float("nan"))))[0].category is None
    assert read(changed(wide(BOMB, CAKE), category=(0, 7)))[0].category == "7"
    assert read([]) == []


def test_ids_of_halves_are_those_of_the_first():
    rows = [{**row, "id": at % 3} for at, row in enumerate(sides(*PAIRS))]
    assert [pair.id for pair in read(rows, layout="halves")] == ["0", "1", "2"]
    # Also where the statement is in the second half.
    rows = [{**row, "polarity": not row["polarity"], "id": at} for at, row in enumerate(rows)]
    turned = read(rows, layout="halves")
    assert [(pair.id, pair.statement, pair.label) for pair in turned[:2]] == [
        ("0", BOMB.opposite, False),
        ("1", CAKE.opposite, True),
    ]


def test_ids_may_hold_the_mark():
    assert [pair.id for pair in read(changed(wide(*PAIRS), id=(0, "a#b")))] == ["a#b", "b", "c"]


@pytest.mark.parametrize(
    ("yes", "no"),
    [
        (True, False),
        (1, 0),
        (1.0, 0.0),
        ("True", "FALSE"),
        ("yes", " No "),
        ("1", "0"),
        ("1.0", "0.0"),
        (np.bool_(True), np.bool_(False)),
        (np.int64(1), np.float32(0)),
    ],
)
def test_labels_can_be_written(yes, no):
    rows = [{**row, "label": yes if row["label"] else no} for row in wide(*PAIRS)]
    found = read(rows)
    assert found == PAIRS
    assert all(isinstance(pair.label, bool) for pair in found)


@pytest.mark.parametrize(
    ("affirmative", "negative"),
    [
        (True, False),
        (1, 0),
        (1, -1),
        (1.0, -1.0),
        ("1.0", "-1.0"),
        ("true", "False"),
        ("affirmative", "Negative"),
        ("POSITIVE", "negative"),
        ("A", "n"),
        ("+", "-"),
        ("1", "-1"),
    ],
)
def test_polarities_can_be_written(affirmative, negative):
    rows = [{**row, "polarity": affirmative if row["polarity"] else negative} for row in sides(*PAIRS)]
    assert read(rows) == PAIRS
    assert read([{**row, "polarity": row["polarity"]} for row in rows[::-1]]) == [KITE, CAKE, BOMB]


# What is refused

WIDE, LONG = wide(*PAIRS), sides(*PAIRS)
BARE = without(LONG, "pair", "polarity")
BAD = {
    "no layout": (BARE, {}, "auto", UsageError, ["--layout halves", "--opposite-column", "--pair-column"]),
    "no layout, options": (BARE, {}, "auto", UsageError, ["--polarity-column", "--label-column", "--category-column"]),
    "no layout, more": (BARE, {}, "auto", UsageError, ["--statement-column", "--formulation-column", "--id-column"]),
    "no layout, columns": (BARE, {}, "auto", UsageError, ["the columns are id, statement, label, category"]),
    "absent": (WIDE, {"label": "lable"}, "auto", UsageError, ["no column 'lable'", "the columns are id, statement"]),
    "no use, wide": (LONG, {"pair": "pair"}, "wide", UsageError, ["'wide' has no use for --pair-column"]),
    "no use, polarity": (
        [{**row, "polarity": 1} for row in WIDE],
        {"polarity": "polarity"},
        "auto",
        UsageError,
        ["'wide' has no use for --polarity-column"],
    ),
    "no use, long": (LONG, {"id": "id"}, "long", UsageError, ["'long' has no use for --id-column"]),
    "no use, halves": (LONG, {"pair": "pair"}, "halves", UsageError, ["'halves' has no use for --pair-column"]),
    "both": (
        [{**row, "pair": "x"} for row in WIDE],
        {"pair": "pair", "opposite": "opposite"},
        "auto",
        UsageError,
        ["no use for --pair-column"],
    ),
    "no opposite": (LONG, {}, "wide", DataInvalid, ["no column of the opposite (opposite, negation)", "--opposite-"]),
    "no pair": (BARE, {}, "long", DataInvalid, ["no column of the pair (pair, pair_id)", "--pair-column"]),
    "no polarity": (
        without(LONG, "polarity"),
        {},
        "auto",
        DataInvalid,
        ["column of the polarity", "--polarity-column"],
    ),
    "no statement": (without(WIDE, "statement"), {}, "auto", DataInvalid, ["(statement, text)", "--statement-column"]),
    "no label": (
        without(WIDE, "label"),
        {},
        "auto",
        DataInvalid,
        [
            "the data: ",
            "(label, is_true, truth)",
            "nothing can be said of truth",
            "--label-column",
            "the columns are id",
        ],
    ),
    "no label, long": (without(LONG, "label"), {}, "auto", DataInvalid, ["--label-column"]),
    "label": (
        changed(WIDE, label=(1, "maybe")),
        {},
        "auto",
        DataInvalid,
        ["row 1: 'maybe'", "'label'", "yes/no or 1/0"],
    ),
    "label 2": (changed(WIDE, label=(1, 2)), {}, "auto", DataInvalid, ["row 1: 2 in column 'label' is not"]),
    "label half": (changed(WIDE, label=(1, 0.5)), {}, "auto", DataInvalid, ["row 1: 0.5 in column"]),
    "label -1": (changed(WIDE, label=(1, -1)), {}, "auto", DataInvalid, ["row 1: -1 in column"]),
    "label list": (changed(WIDE, label=(1, [1])), {}, "auto", DataInvalid, ["row 1: [1] in column"]),
    "label array": (changed(WIDE, label=(1, np.ones(2))), {}, "auto", DataInvalid, ["row 1: [1.0, 1.0] in column"]),
    "label None": (
        changed(WIDE, label=(2, None)),
        {},
        "auto",
        DataInvalid,
        ["row 2: there is nothing in column 'label'"],
    ),
    "label NaN": (changed(WIDE, label=(2, float("nan"))), {}, "auto", DataInvalid, ["row 2: there is nothing in"]),
    "label blank": (
        changed(WIDE, label=(2, " ")),
        {},
        "auto",
        DataInvalid,
        ["row 2: there is nothing in", "true/false"],
    ),
    "polarity": (
        changed(LONG, polarity=(3, "up")),
        {},
        "auto",
        DataInvalid,
        ["row 3: 'up'", "'polarity'", "affirmative/negative", "A/N", "1/0 or 1/-1"],
    ),
    "polarity blank": (changed(LONG, polarity=(3, "")), {}, "auto", DataInvalid, ["row 3: there is nothing in column"]),
    "three polarities": (
        changed([{**row, "polarity": int(row["polarity"])} for row in LONG], polarity=(4, -1)),
        {},
        "auto",
        DataInvalid,
        ["row 0, row 3, row 4", "more than two polarities (1, 0, -1)"],
    ),
    "one polarity": (
        changed(LONG, polarity=(4, True)),
        {},
        "auto",
        DataInvalid,
        ["row 1 and row 4", "one polarity only: both rows of a pair are affirmative"],
    ),
    "one polarity everywhere": (
        [{**row, "polarity": "N"} for row in LONG],
        {},
        "auto",
        DataInvalid,
        ["the data: one polarity only: every row is negative"],
    ),
    "one polarity of halves": (
        without(changed(LONG, polarity=(1, False)), "pair"),
        {},
        "halves",
        DataInvalid,
        ["row 1 and row 4: one polarity only: both rows of a pair are negative"],
    ),
    "alone": (LONG[:5], {}, "auto", DataInvalid, ["row 2: pair 'c' has no other row, so no partner"]),
    "three": (changed(LONG, pair=(5, "a")), {}, "auto", DataInvalid, ["row 0, row 3, row 5: pair 'a' has 3 rows"]),
    "pair None": (changed(LONG, pair=(5, None)), {}, "auto", DataInvalid, ["row 5: there is nothing in column 'pair'"]),
    "odd": (BARE[:5], {}, "halves", DataInvalid, ["row 4: 5 rows cannot be halved", "partner"]),
    "labels alike": (
        changed(LONG, label=(4, False)),
        {},
        "auto",
        DataInvalid,
        ["row 1 and row 4: both rows of a pair are labelled false", "--layout"],
    ),
    "labels alike in halves": (changed(BARE, label=(3, True)), {}, "halves", DataInvalid, ["row 0 and row 3", "true"]),
    "category": (
        changed(LONG, category=(5, "x")),
        {},
        "auto",
        DataInvalid,
        ["row 2 and row 5: the category", "None, 'x'"],
    ),
    "formulation": (
        changed(LONG, formulation=(3, "x")),
        {},
        "auto",
        DataInvalid,
        ["row 0 and row 3: the formulation of"],
    ),
    "same text": (
        changed(WIDE, opposite=(1, " A cake  is bad.\n")),
        {},
        "auto",
        DataInvalid,
        ["row 1: a statement and its opposite are the same"],
    ),
    "same text in two rows": (
        changed(LONG, statement=(3, BOMB.statement)),
        {},
        "auto",
        DataInvalid,
        ["row 0 and row 3: a"],
    ),
    "true and false": (
        changed(WIDE, opposite=(2, "A  bomb is bad. "), label=(2, True)),
        {},
        "auto",
        DataInvalid,
        ["row 2: 'A  bomb is bad. ' is false by its label here, but true at row 0"],
    ),
    "true and false in two rows": (
        changed(LONG, statement=(4, BOMB.opposite)),
        {},
        "auto",
        DataInvalid,
        ["row 4: 'A bomb is not bad.' is true by its label here, but false at row 3"],
    ),
    "true and false of two statements": (
        changed(wide(BOMB, CAKE), statement=(1, BOMB.statement)),
        {},
        "auto",
        DataInvalid,
        ["row 1: 'A bomb is bad.' is false by its label here, but true at row 0"],
    ),
    "empty": (changed(WIDE, statement=(2, " \n")), {}, "auto", DataInvalid, ["row 2: 'statement' is empty"]),
    "empty opposite": (changed(WIDE, opposite=(2, "")), {}, "auto", DataInvalid, ["row 2: 'opposite' is empty"]),
    "None": (
        changed(WIDE, statement=(1, None)),
        {},
        "auto",
        DataInvalid,
        ["row 1: 'statement' must be plain text", "None"],
    ),
    "number": (
        changed(WIDE, opposite=(1, 3)),
        {},
        "auto",
        DataInvalid,
        ["row 1: 'opposite' must be plain text, found int"],
    ),
    "conversation": (
        changed(WIDE, statement=(1, [{"role": "user", "content": "x"}])),
        {},
        "auto",
        DataInvalid,
        ["row 1: 'statement' must be plain text, found list", "conversations are not taken"],
    ),
    "missing in a row": (
        [*WIDE[:2], *without(WIDE[2:], "opposite")],
        {},
        "auto",
        DataInvalid,
        ["row 2: this row has no"],
    ),
    "surrogate": (
        changed(WIDE, statement=(0, "\ud800 x")),
        {},
        "auto",
        DataInvalid,
        ["row 0: 'statement' holds half of"],
    ),
    "surrogate category": (
        changed(WIDE, category=(1, "\ud800")),
        {},
        "auto",
        DataInvalid,
        ["row 1: 'category' holds half"],
    ),
    "surrogate pair": (
        [{**row, "pair": "\ud800"} if row["pair"] == "b" else row for row in LONG],
        {},
        "auto",
        DataInvalid,
        ["row 1: 'pair' holds half"],
    ),
    "id twice": (changed(WIDE, id=(2, "a")), {}, "auto", DataInvalid, ["row 2: id 'a'", "already used at row 0"]),
    "id twice in halves": (changed(BARE, id=(1, "a")), {}, "halves", DataInvalid, ["row 1: id 'a'", "used at row 0"]),
    "id missing": (changed(WIDE, id=(1, None)), {}, "auto", DataInvalid, ["row 1: there is no id in column 'id'"]),
    "id of a pair left out": ([*WIDE, WIDE[1]], {}, "auto", DataInvalid, ["row 3: id 'b'", "already used at row 1"]),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_pair_is_refused(name):
    rows, columns, layout, error, parts = BAD[name]
    with pytest.raises(error) as caught:
        read(rows, C(**columns), layout)
    assert type(caught.value) is error
    for part in parts:
        assert part in str(caught.value)


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="'tall' is none of auto, wide, long, halves"):
        read(WIDE, layout="tall")


def test_messages_name_the_line_of_a_file(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('statement,opposite,label\nA b.,A not b.,1\n"[{""role"": ""user"", ""content"": ""x""}]",n,0\n')
    with pytest.raises(DataInvalid, match=r"x\.csv, line 3: 'statement' must be plain text, found list"):
        contrast_pairs_from_table(read_table(str(path)), C())
    path.write_text("statement,opposite,truth,pair\nA b.,A not b.,1,\n")
    with pytest.raises(UsageError, match=r"x\.csv: there is no column 'label'; the columns are statement, opposite,"):
        contrast_pairs_from_table(read_table(str(path)), C(label="label"))


# Repeats and groups


def test_a_repeated_pair_is_left_out_with_a_warning(caplog):
    twice = ContrastPair("d", " A bomb  is bad.", BOMB.opposite, True)
    mirrored = ContrastPair("e", CAKE.opposite, CAKE.statement, True)
    with caplog.at_level(logging.WARNING):
        assert read(wide(*PAIRS, twice, mirrored)) == PAIRS
    assert len(caplog.records) == 1
    assert (
        "the data: pairs whose two texts occurred before are left out: 2, the first at row 3 (as at row 0)"
        in caplog.text
    )
    caplog.clear()
    assert read(sides(*PAIRS, twice)) == PAIRS
    assert "the first at row 3 and row 7 (as at row 0 and row 4)" in caplog.text
    caplog.clear()
    assert read(wide(*PAIRS)) == PAIRS
    assert not caplog.records


def test_ids_from_the_content_do_not_feel_what_is_left_out():
    rows = without(wide(BOMB, CAKE), "id")
    more = [{**rows[0], "category": "earlier in the alphabet? " + letter} for letter in "az"]
    expected = {pair.id for pair in read(rows)}
    assert {pair.id for pair in read([*rows, *more])} == expected
    assert {pair.id for pair in read([*more, *rows])} == expected


def pair(statement, opposite, id="x"):
    return ContrastPair(id, statement, opposite, True)


def test_pairs_that_share_a_text_are_one_group():
    chain = [pair("a", "b"), pair("x", "y"), pair("c", " d"), pair("b ", "c"), pair("z", "y"), pair("A", "B")]
    assert text_groups(chain) == [0, 1, 0, 0, 1, 2]
    assert text_groups([]) == []
    assert text_groups([pair("a  b", "c"), pair("a b", "d"), pair("ab", "e")]) == [0, 0, 1]


TEXTS = st.sampled_from(["a", "b", "c c", "c  c", "d", "e", "f", " f", "g", "h"])


@given(st.lists(st.tuples(TEXTS, TEXTS).filter(lambda two: two[0].split() != two[1].split()), max_size=12))
def test_groups_are_the_connected_components(texts):
    pairs = [pair(*two) for two in texts]
    sets = [{" ".join(text.split()) for text in two} for two in texts]
    expected = list(range(len(pairs)))
    for _ in pairs:
        for left in range(len(pairs)):
            for right in range(len(pairs)):
                if sets[left] & sets[right]:
                    expected[left] = expected[right] = min(expected[left], expected[right])
    order = list(dict.fromkeys(expected))
    assert text_groups(pairs) == [order.index(group) for group in expected]


def test_a_long_chain_is_one_group():
    chain = [pair(f"t{at}", f"t{at + 1}") for at in range(5000)]
    assert set(text_groups([*chain[::2], *chain[1::2]])) == {0}
