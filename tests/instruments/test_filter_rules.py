"""Rules for filtering, against sets of ids and SciPy's rank correlation."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from probing import filter_pairs
from probing.errors import UsageError
from probing.instruments.columns import RATE_COLUMNS, SCORE_COLUMNS
from probing.instruments.filter_rules import (
    USUAL_ENDS,
    FilterRule,
    compare_rules,
    correlate_rules,
    count_kept,
    measure_agreement,
    measure_lengths,
    parse_rules,
)

COUNT, KEEP = 40, 0.3
EVERY = ["ches_normalized:lowest", "displacement_rate:highest", "margin_change:smallest", "margin_before:largest"]


@pytest.fixture
def scores():
    generator = np.random.default_rng(0)
    columns = ("ches", "ches_normalized", "displacement_rate", "margin_before", "margin_change", "chosen_change")
    return pd.DataFrame(
        {
            "id": [f"r{number:02d}" for number in generator.permutation(COUNT)],
            "status": "ok",
            "prompt_tokens": 9,
            "chosen_tokens": generator.integers(1, 20, COUNT),
            "rejected_tokens": generator.integers(2, 20, COUNT),
            # Few different values, so that ids decide between pairs of one score.
            **{name: np.round(generator.standard_normal(COUNT) * 3) for name in columns},
            "row": range(COUNT),
        }
    )


def compare(scores, rules, keep=KEEP):
    return compare_rules(scores, parse_rules(rules, scores), keep)


def keep_slowly(scores, rule, keep=KEEP):
    """Ids that a rule keeps: sorted one by one."""
    column, _, end = rule.partition(":")

    def key(row):
        value = abs(row[column]) if end in ("smallest", "largest") else row[column]
        return (-value if end in ("highest", "largest") else value, row["id"])

    rows = sorted(scores.to_dict("records"), key=key)
    return {row["id"] for row in rows[: round(keep * len(rows))]}


def test_rules_keep_what_a_sort_keeps(scores):
    compared = compare(scores, ",".join(EVERY))
    for rule, kept in zip(compared.rules, compared.kept, strict=True):
        assert set(compared.pairs["id"][kept]) == keep_slowly(scores, str(rule))


@pytest.mark.parametrize(("rule", "option"), [("ches:lowest", "keep_lowest"), ("ches:highest", "keep_highest")])
def test_a_rule_keeps_what_the_filter_keeps(scores, rule, option):
    rows = [{"id": name, "prompt": "a", "chosen": f"b {name}", "rejected": "c"} for name in scores["id"]]
    kept = filter_pairs(rows, scores, "ches", **{option: KEEP})
    compared = compare(scores, f"{rule},margin_change")
    assert set(compared.pairs["id"][compared.kept[0]]) == {row["id"] for row in kept}


def test_agreement_is_that_of_sets_and_of_scipy(scores):
    compared = compare(scores, ",".join(EVERY))
    units = np.arange(COUNT) // 2
    found = measure_agreement(compared, correlate_rules(compared, units))
    assert len(found) == 6
    signs = {"lowest": 1, "highest": -1, "smallest": 1, "largest": -1}
    for row in found.to_dict("records"):
        one, other = (keep_slowly(scores, row[name]) for name in ("rule", "other"))
        assert row["both"] == len(one & other)
        assert row["share"] == len(one & other) / len(one)
        assert row["Jaccard"] == len(one & other) / len(one | other)
        sides = []
        for column, end in (row[name].split(":") for name in ("rule", "other")):
            sides.append(signs[end] * (scores[column].abs() if end in ("smallest", "largest") else scores[column]))
        assert row["Spearman"] == pytest.approx(spearmanr(*sides).statistic, abs=1e-12)
        assert -1 <= row["low"] < row["Spearman"] < row["high"] <= 1


def test_lengths_are_means_of_what_is_kept_and_say_whether_a_rule_sorts_by_length(scores):
    total = scores["chosen_tokens"] + scores["rejected_tokens"]
    scores["margin_before"] = total * 1.0
    compared = compare(scores, "margin_before:highest,margin_before:lowest,displacement_rate")
    found = measure_lengths(compared, correlate_rules(compared, np.arange(COUNT))).set_index("rule")
    assert found.loc["(all pairs)", "kept"] == COUNT
    assert found.loc["(all pairs)", "chosen tokens"] == scores["chosen_tokens"].mean()
    assert found.loc["margin_before:highest", "Spearman with tokens"] == pytest.approx(1)
    assert found.loc["margin_before:lowest", "Spearman with tokens"] == pytest.approx(-1)
    rate = spearmanr(scores["displacement_rate"], total).statistic
    assert found.loc["displacement_rate:highest", "Spearman with tokens"] == pytest.approx(rate, abs=1e-12)
    kept = scores["id"].isin(keep_slowly(scores, "displacement_rate:highest"))
    assert found.loc["displacement_rate:highest", "kept"] == kept.sum()
    assert found.loc["displacement_rate:highest", "rejected tokens"] == scores["rejected_tokens"][kept].mean()


def test_pairs_with_the_value_of_the_last_that_is_kept_are_counted(scores):
    scores["margin_before"] = np.where(np.arange(COUNT) < 3, 2.0, 1.0)
    compared = compare(scores, "margin_before:highest,displacement_rate")
    kept = int(compared.kept[0].sum())
    assert kept > 3
    assert compared.count_tied()["margin_before:highest"] == COUNT - kept


def test_pairs_are_counted_by_group(scores):
    compared = compare(scores, ",".join(EVERY))
    groups = [f"kind {len(name) + int(name[1:]) % 3}" for name in compared.pairs["id"]]
    found = count_kept(compared, groups)
    assert len(found) == 3 * len(EVERY)
    for row in found.to_dict("records"):
        of_group = {name for name, group in zip(compared.pairs["id"], groups, strict=True) if group == row["group"]}
        assert row["pairs"] == len(of_group)
        assert row["kept"] == len(of_group & keep_slowly(scores, row["rule"]))
        assert row["share"] == row["kept"] / row["pairs"]
    assert (found.groupby("rule")["kept"].sum() == round(KEEP * COUNT)).all()


def test_pairs_that_a_rule_cannot_rank_are_left_out_for_all(scores):
    scores["status"] = scores["status"].where(scores.index != 3, "truncated")
    scores.loc[5, "margin_change"] = np.nan
    scores.loc[[0, 1], ["chosen_tokens", "rejected_tokens"]] = 1
    with_ches = compare(scores, "ches_normalized,margin_change")
    assert with_ches.rows.tolist() == [row for row in range(COUNT) if row not in (0, 1, 3, 5)]
    without = compare(scores, "displacement_rate,chosen_change:highest")
    assert without.rows.tolist() == [row for row in range(COUNT) if row != 3]
    assert without.kept.sum(axis=1).tolist() == [12, 12]


def test_the_order_of_rows_does_not_matter(scores):
    shuffled = scores.sample(frac=1, random_state=1).reset_index(drop=True)
    one, other = (compare(frame, ",".join(EVERY)) for frame in (scores, shuffled))
    for kept, again in zip(one.kept, other.kept, strict=True):
        assert set(one.pairs["id"][kept]) == set(other.pairs["id"][again])


def test_every_column_with_an_end_of_its_own_is_kept_there():
    assert {USUAL_ENDS[name] for name in SCORE_COLUMNS} == {"lowest"}
    assert {USUAL_ENDS[name] for name in (*RATE_COLUMNS, "influence", "joint_rate", "pilot_change")} == {"highest"}
    assert not {"rejected_rate", "joint_rejected_rate", "pilot_rejected_change"} & set(USUAL_ENDS)


def test_all_stands_for_the_columns_that_are_there(scores):
    known = ["ches:lowest", "ches_normalized:lowest", "displacement_rate:highest", "margin_before:largest"]
    assert list(map(str, parse_rules("all", scores))) == [*known, "margin_change:lowest"]
    further = parse_rules("all, chosen_change:highest", scores)
    assert further[-1] == FilterRule("chosen_change", "highest")
    assert len(further) == 6


BAD_RULES = {
    "unknown": ("ches,chess", r"no score column 'chess'; there are ches, ches_normalized, .*chosen_change$"),
    "no score": ("ches,row", "no score column 'row'"),
    "length": ("ches,chosen_tokens:lowest", "no score column 'chosen_tokens'"),
    "nothing": ("ches,", "no score column ''"),
    "end": ("ches,ches_normalized:low", "'ches_normalized:low': the end that is kept is one of lowest, highest, sm"),
    "no end": ("ches,ches_normalized:", "the end that is kept is one of lowest, highest, smallest, largest, not ''"),
    "no usual end": ("ches,chosen_change", "which end of chosen_change to keep; write chosen_change:lowest or"),
    "one": ("ches", "'ches' names 1 rule, and a comparison needs two; there are the columns ches"),
    "twice": ("ches,ches:lowest", "the rule ches:lowest is given twice"),
    "twice by all": ("all,margin_change", "the rule margin_change:lowest is given twice"),
}


@pytest.mark.parametrize("case", BAD_RULES)
def test_rules_that_cannot_be_compared(scores, case):
    text, message = BAD_RULES[case]
    with pytest.raises(UsageError, match=message):
        parse_rules(text, scores)


def test_a_share_that_keeps_nothing_or_everything_is_refused(scores):
    with pytest.raises(UsageError, match=r"a share of 0\.01 of 40 pairs is none of them"):
        compare(scores, "ches,margin_change", 0.01)
    with pytest.raises(UsageError, match=r"a share of 0\.99 of 40 pairs is all of them"):
        compare(scores, "ches,margin_change", 0.99)
    with pytest.raises(UsageError, match="of 0 pairs is none of them"):
        compare(scores.assign(status="truncated"), "ches,margin_change")
