import math

import datasets
import pandas as pd
import pytest
import tiny
import torch

from probing import PreferencePair, add_ref_logps, filter_dataset, filter_pairs, score_pairs
from probing.errors import DataInvalid, UsageError
from probing.instruments import pair_datasets

ROWS = [
    {**pair, "id": f"{pair['id']}-{number}", "source": {"n": number}, "chosen": pair["chosen"] + " no" * number}
    for number in range(2)
    for pair in tiny.PAIRS
]
SAME = {"id": "same", "prompt": "Q", "chosen": " a", "rejected": " a", "source": {"n": 9}}


@pytest.fixture(scope="module")
def model():
    return tiny.make_model()


def as_rows(held):
    return held.to_dict("records") if isinstance(held, pd.DataFrame) else list(held)


@pytest.mark.parametrize(
    ("hold", "by", "rule"),
    [
        (list, "ches_normalized", {"drop_highest": 0.3}),
        (datasets.Dataset.from_list, "chosen_logprob", {"keep_highest": 0.5}),
        (pd.DataFrame, "last_state_similarity", {"below": 100.0}),
    ],
    ids=["list", "dataset", "frame"],
)
def test_what_two_calls_keep_in_one(model, hold, by, rule):
    given = hold([*ROWS[:3], SAME, *ROWS[3:]])
    scores = score_pairs(model, given, ["all"])
    kept, dropped = filter_dataset(given, model, by, bad="drop", return_dropped=True, **rule)
    assert type(kept) is type(dropped) is type(given)
    assert as_rows(kept) == as_rows(filter_pairs(given, scores, by, bad="drop", **rule))
    of_id = scores.set_index("id")
    assert {row["id"] for row in as_rows(kept)} | {row["id"] for row in as_rows(dropped)} == set(of_id.index)
    for row in as_rows(dropped):
        assert row["probing_status"] == of_id.loc[row["id"], "status"]
        found, expected = row[f"probing_{by}"], of_id.loc[row["id"], by]
        assert found == expected or (math.isnan(found) and row["id"] == "same")
        assert {name: value for name, value in row.items() if not name.startswith("probing_")} in [*ROWS, SAME]


def test_pairs_without_a_score_are_refused_before_anything_is_run(model, monkeypatch):
    monkeypatch.setattr(pair_datasets, "score_pairs", None)
    for call in (lambda rows: filter_dataset(rows, model, below=0.0), lambda rows: add_ref_logps(rows, model)):
        with pytest.raises(DataInvalid, match=r"1 of 11 pairs .*\(1 identical\); first: \(id 'same'\): identical"):
            call([*ROWS, SAME])


def test_pairs_whose_numbers_are_not_finite_are_refused_too():
    broken = tiny.make_model()
    with torch.no_grad():
        broken.model.lm_head.weight[broken.tokenizer(" x")["input_ids"][-1]] = float("nan")
    # This row of the head takes part in every sum over the vocabulary.
    with pytest.raises(DataInvalid, match="10 not_finite"):
        add_ref_logps(ROWS, broken)
    with pytest.raises(DataInvalid, match="10 not_finite"):
        add_ref_logps(ROWS, broken, bad="drop")


@pytest.mark.parametrize("hold", [list, datasets.Dataset.from_list, pd.DataFrame], ids=["list", "dataset", "frame"])
def test_reference_log_probabilities_are_added_in_kind(model, hold):
    given = hold([*ROWS[:3], SAME, *ROWS[3:]])
    found = add_ref_logps(given, model, bad="drop")
    assert type(found) is type(given)
    scores = score_pairs(model, ROWS, ["chosen_logprob", "rejected_logprob"])
    assert as_rows(found) == [
        {**row, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        for row, chosen, rejected in zip(ROWS, scores["chosen_logprob"], scores["rejected_logprob"], strict=True)
    ]
    assert len(as_rows(given)[0]) == len(ROWS[0])
    with pytest.raises(UsageError, match="a column ref_chosen_logps and ref_rejected_logps already; remove it first"):
        add_ref_logps(found, model)


def test_a_dataset_in_another_format_keeps_it(model):
    given = datasets.Dataset.from_list(ROWS).with_format("pandas")
    kept = filter_dataset(given, model, keep_lowest=0.5)
    assert kept.format["type"] == "pandas"
    assert kept[:]["id"].tolist() == [row["id"] for row in filter_dataset(ROWS, model, keep_lowest=0.5)]


PAIRS = [PreferencePair(**{name: row[name] for name in ("id", "prompt", "chosen", "rejected")}) for row in ROWS]
DATASET = datasets.Dataset.from_list(ROWS)


@pytest.mark.parametrize(
    ("rows", "options", "error", "said"),
    [
        (ROWS, {"by": "ches"}, ValueError, "give exactly one of"),
        (ROWS, {"by": "chess", "below": 0.0}, UsageError, "unknown columns chess"),
        (ROWS, {"by": "chosen_tokens", "below": 0.0}, UsageError, "'chosen_tokens' is no score"),
        (ROWS, {"below": 0.0, "bad": "skip"}, ValueError, "bad must be one of keep, drop, fail, not 'skip'"),
        (ROWS, {"below": 0.0, "max_length": 1}, UsageError, "at least 2 tokens"),
        ("pairs.jsonl", {"below": 0.0}, TypeError, "not a str; read the file first"),
        (datasets.DatasetDict(train=DATASET), {"below": 0.0}, TypeError, "not a DatasetDict; name one of its splits"),
        (DATASET.to_iterable_dataset(), {"below": 0.0}, TypeError, "not IterableDataset, which is read once"),
        (DATASET.select([]), {"below": 0.0}, DataInvalid, "there are no pairs"),
        (
            DATASET.add_column("probing_ches", [0.0] * 10),
            {"below": 0.0, "return_dropped": True},
            UsageError,
            "_ches al",
        ),
        (PAIRS, {"below": 0.0, "return_dropped": True}, TypeError, "to mappings, not to a PreferencePair"),
        (ROWS, {"below": -1e9}, UsageError, "no pair of 10 would be kept"),
    ],
)
def test_mistakes_are_named(model, rows, options, error, said):
    with pytest.raises(error, match=said):
        filter_dataset(rows, model, **options)


def test_mistakes_with_reference_log_probabilities_are_named(model):
    with pytest.raises(TypeError, match="to mappings, not to a PreferencePair"):
        add_ref_logps(PAIRS, model)
    with pytest.raises(ValueError, match="bad must be fail or drop, not 'keep'"):
        add_ref_logps(ROWS, model, bad="keep")
    with pytest.raises(TypeError, match="without its tokenizer"):
        add_ref_logps(ROWS, model.model)


def test_a_list_of_pairs_is_filtered(model):
    scores = score_pairs(model, PAIRS)
    assert filter_dataset(PAIRS, model, keep_lowest=0.2) == filter_pairs(PAIRS, scores, keep_lowest=0.2)


def test_a_model_in_the_place_of_the_dataset_is_named(model):
    with pytest.raises(TypeError, match=r"not LanguageModel$"):
        filter_dataset(model, ROWS, below=0.0)
