"""What is shown of scores and of comparisons, against sums by hand over small tables."""

import math

import numpy as np
import pandas as pd
import pytest

from probing.runs.displacement.config import DisplacementConfig
from probing.runs.displacement.data import Inputs
from probing.runs.displacement.tables import Results, course_frame, make_tables
from probing.runs.score.tables import score_tables
from probing.types import PreferencePair

NAN = float("nan")
PAIRS = [PreferencePair(id=name, prompt=f"Q {name}", chosen="yes", rejected="no") for name in "abcde"]
SUMMARY = "From reference to policy, with 95 % bootstrap intervals over pairs (ln p in nats)"


def compared():
    """Five pairs: one without numbers in the middle, one tie before, one displaced."""
    frame = pd.DataFrame(
        {
            "id": list("abcde"),
            "status": ["ok", "ok", "identical", "ok", "ok"],
            "chosen_tokens": [2, 4, 3, 1, 5],
            "rejected_tokens": [2, 2, 3, 1, 5],
            "chosen_logprob_before": [-1.0, -2.0, NAN, -3.0, -4.0],
            "chosen_logprob_after": [-2.0, -1.0, NAN, -3.5, -4.0],
            "rejected_logprob_before": [-1.0, -5.0, NAN, -1.0, -6.0],
            "rejected_logprob_after": [-4.0, -5.5, NAN, -1.0, -9.0],
            "ches": [3.0, 1.0, NAN, 0.0, 2.0],
        }
    )
    for side in ("chosen", "rejected"):
        frame[f"{side}_change"] = frame[f"{side}_logprob_after"] - frame[f"{side}_logprob_before"]
        frame[f"{side}_change_per_token"] = frame[f"{side}_change"] / frame[f"{side}_tokens"]
    for time in ("before", "after"):
        frame[f"margin_{time}"] = frame[f"chosen_logprob_{time}"] - frame[f"rejected_logprob_{time}"]
        frame[f"ranking_correct_{time}"] = (frame[f"margin_{time}"] >= 0).where(frame["status"] == "ok", None)
    frame["margin_change"] = frame["margin_after"] - frame["margin_before"]
    frame["displaced"] = ((frame["chosen_change"] < 0) & (frame["margin_change"] > 0)).where(frame["status"] == "ok")
    return frame


def tables(frame=None, groups=None, shares=None, course=None, **changes):
    frame = compared() if frame is None else frame
    config = DisplacementConfig(
        reference="r", policy="p", data="d", out="o", predictors="ches", **({"beta": 1.0} | changes)
    )
    facts = {"rows_by_status": frame["status"].value_counts().to_dict()}
    return make_tables(Results(frame, course, None), config, Inputs(None, PAIRS, groups, shares), facts, [])


def values(table):
    return dict(zip(table["measure"], table["value"], strict=True))


def test_the_summary_is_about_the_pairs_with_numbers():
    found = values(tables()[SUMMARY])
    assert found["share displaced"] == 1 / 4  # a; d lost more than its rejected response did
    assert found["change of ln p(chosen)"] == pytest.approx((-1 + 1 - 0.5 + 0) / 4)
    assert found["change of ln p(chosen) per token"] == pytest.approx((-0.5 + 0.25 - 0.5 + 0) / 4)
    assert found["change of ln p(rejected)"] == pytest.approx((-3 - 0.5 + 0 - 3) / 4)
    assert found["change of the margin"] == pytest.approx((2 + 1.5 - 0.5 + 3) / 4)
    assert found["ranking accuracy before"] == 3 / 4
    assert found["of these, ties before"] == 1 / 4
    assert "of these, ties after" not in found
    assert found["ranking accuracy after"] == 3 / 4
    assert tables()["Chosen responses that lost most"]["id"].tolist() == ["a", "d"]


def test_groups_and_raters_stay_with_their_pairs():
    """The pair without numbers must not move what comes after it to another one."""
    made = tables(groups=["x", "y", "z", "x", "y"], shares=[0.9, 0.5, 0.0, 0.9, 1.0], group_column="kind")
    groups = made["By group: kind"].set_index("group")
    assert groups["pairs"].to_dict() == {"x": 2, "y": 2}
    assert groups["chosen_change"].to_dict() == {"x": -0.75, "y": 0.5}
    assert groups["displaced"].to_dict() == {"x": 0.5, "y": 0.0}
    # ln(.9 / .1) = 2.2 raises a (margin 0) and d (-2); b has 3 by itself, and e is unanimous.
    assert values(made[SUMMARY])["idealised ranking accuracy (beta 1)"] == 1.0
    turned = tables(shares=[0.5, 0.1, 0.9, 0.5, 0.1])
    # a is undecided, b 3 - 2.2, d -2, e 2 - 2.2
    assert values(turned[SUMMARY])["idealised ranking accuracy (beta 1)"] == 1 / 4
    assert values(turned[SUMMARY])["of the pairs, exactly undecided"] == 1 / 4


def test_one_token_pairs_are_told_and_left_out():
    made = tables()
    ranked = made["Rank correlation of scores of the reference with the change of ln p(chosen)"].iloc[0]
    assert ranked["pairs"] == 3
    assert ranked["Spearman"] == pytest.approx(-1.0)  # ches 3, 1, 2 against -1, 1, 0
    assert made["Notes"]["note"].str.contains("1 pair has responses of one token").any()


def test_the_course_keeps_pairs_that_every_step_knows():
    steps = {
        5: pd.DataFrame(
            {"id": list("abcde"), "chosen_logprob": [-0.5, NAN, NAN, -5.0, -4.0], "rejected_logprob": [-1.0] * 5}
        )
    }
    course = course_frame(compared(), steps, 9)
    assert course["step"].unique().tolist() == [0, 5, 9]
    assert course[course["step"] == 5]["id"].tolist() == ["a", "d", "e"]
    made = tables(course=course)
    rows = made["Course over training, mean over pairs"].set_index("step")
    assert rows["pairs"].tolist() == [3, 3, 3]
    assert rows.loc[5, "change of ln p(chosen)"] == pytest.approx((0.5 - 2 + 0) / 3)
    # At 5 only d has lost, and its margin fell from -2 to -4; at 9 only a is displaced.
    assert rows["displaced"].tolist() == [0, 0, pytest.approx(1 / 3)]
    drops = values(made["Drop of the chosen response, mean over pairs"])
    assert drops["ln p(chosen), first to last step"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert drops["ln p(chosen), largest between any two steps"] == pytest.approx((1.5 + 2 + 0) / 3)
    probabilities = np.exp([[-1, -0.5, -2], [-3, -5, -3.5], [-4, -4, -4]])
    largest = [max(row[i] - row[j] for i in range(3) for j in range(i, 3)) for row in probabilities]
    assert drops["p(chosen), largest between any two steps"] == pytest.approx(sum(largest) / 3)


def scores():
    frame = pd.DataFrame(
        {
            "id": list("abcde"),
            "status": ["ok", "ok", "identical", "ok", "ok"],
            "prompt_tokens": [3] * 5,
            "chosen_tokens": [2, 4, 3, 1, 5],
            "rejected_tokens": [2, 2, 3, 1, 5],
            "ches": [3.0, 1.0, NAN, 0.0, -2.0],
            "ches_normalized": [3.0, 1.0, NAN, 0.0, -2.0],
            "chosen_logprob": [-1.0, -2.0, NAN, -3.0, 0.0],
            "rejected_logprob": [-1.0, -5.0, NAN, -1.0, -6.0],
            "chosen_rank_surprisal": [4.0, 3.0, NAN, 2.0, NAN],
            "rejected_rank_surprisal": [1.0, 1.0, NAN, 1.0, 1.0],
        }
    )
    for side in ("chosen", "rejected"):
        frame[f"{side}_logprob_per_token"] = frame[f"{side}_logprob"] / frame[f"{side}_tokens"]
    frame["ranking_correct"] = pd.array([True, True, None, False, True], dtype="boolean")
    return frame


def test_ranking_and_ratios_of_a_dataset():
    made = score_tables(scores(), PAIRS, {"rows_by_status": {"ok": 4, "identical": 1}})
    found = values(made["Ranking, with 95 % bootstrap intervals over pairs"])
    assert found["ranking accuracy"] == 3 / 4
    assert found["of these, ties"] == 1 / 4
    # a -.5 and -.5, b -.5 and -2.5, d -3 and -1, e 0 and -1.2
    assert found["ranking accuracy per token"] == 3 / 4
    surprisals, ratios = [0.5, 0.5, 3.0, 0.0], [4.0, 3.0, 2.0]
    ranks = [ratio * surprisal for ratio, surprisal in zip(ratios, surprisals, strict=False)] + [1.0]
    assert found["rank-surprisal ratio, chosen"] == pytest.approx(sum(ranks) / sum(surprisals))


def test_one_token_pairs_are_not_ranked_by_ches():
    made = score_tables(scores(), PAIRS, {"rows_by_status": {"ok": 4}})
    assert made["Most alike by ches_normalized"]["id"].tolist() == ["a", "b", "e"]
    quantiles = made["Quantiles of the scores (higher: the responses look more alike to the model)"].set_index("score")
    assert quantiles.loc["ches", "pairs"] == 3
    assert made["Notes"]["note"].str.contains("1 pair has responses of one token").any()
    assert not math.isnan(quantiles.loc["ches", "50%"])
