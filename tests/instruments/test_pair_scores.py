import logging

import datasets
import oracles
import pandas as pd
import pytest
import tiny
import torch

from probing import PreferencePair, filter_pairs, score_pairs
from probing.engine.stream import TokenBudget
from probing.errors import DataInvalid, UsageError
from probing.instruments.columns import COLUMNS, SCORE_COLUMNS
from probing.instruments.pair_scores import PairScorer

ROWS = tiny.PAIRS


def approx(value, scale):
    """float32 states against float64 ones: what is lost is relative to the terms, not to their difference."""
    return pytest.approx(value, rel=1e-5, abs=1e-5 * scale)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_column_equals_the_brute_force_oracle(family):
    language_model = tiny.make_model(family)
    frame = score_pairs(language_model, ROWS).set_index("id")
    for row in ROWS:
        expected = oracles.pair_scores(language_model, row["prompt"], row["chosen"], row["rejected"])
        found = frame.loc[row["id"]]
        scale = {name: 0.0 for name in expected}
        width = language_model.model.config.hidden_size
        scale |= {
            "ches": width * expected["chosen_tokens"] ** 2,
            "ches_normalized": width,
            "last_state_similarity": width,
        }
        for name, value in expected.items():
            assert found[name] == approx(value, scale[name]), (row["id"], name)
        assert found["status"] == "ok"


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_numbers_do_not_feel_batch_order_or_padding_side(family):
    left = tiny.make_model(family, tokenizer=tiny.make_tokenizer(padding_side="left"))
    plain = score_pairs(tiny.make_model(family), ROWS)
    for options in ({"batch_tokens": 1}, {"batch_tokens": 33}, {"batch_tokens": 10**6}):
        pd.testing.assert_frame_equal(score_pairs(left, ROWS, **options), plain, check_exact=True)
    turned = score_pairs(left, ROWS[::-1])
    pd.testing.assert_frame_equal(turned[::-1].reset_index(drop=True), plain, check_exact=True)


def test_columns_and_order():
    language_model = tiny.make_model()
    frame = score_pairs(language_model, ROWS)
    assert tuple(frame.columns) == COLUMNS
    assert frame["id"].tolist() == [row["id"] for row in ROWS]
    assert score_pairs(language_model, ROWS, columns=["ches"]).columns.tolist() == ["id", "status", "ches"]
    with pytest.raises(UsageError, match="unknown columns chess; there are id, status"):
        score_pairs(language_model, ROWS, columns=["chess"])


@pytest.mark.parametrize(
    "pairs",
    [
        [PreferencePair(**row) for row in ROWS],
        datasets.Dataset.from_list(ROWS),
        pd.DataFrame(ROWS),
        pd.DataFrame([*ROWS, {"id": "implicit", "chosen": "Is it ok? No", "rejected": "Is it ok? Never"}]),
    ],
    ids=["pairs", "dataset", "frame", "frame with gaps"],
)
def test_pairs_from_every_holder(pairs):
    language_model = tiny.make_model()
    found = score_pairs(language_model, pairs, implicit_prompt=True)[: len(ROWS)]
    pd.testing.assert_frame_equal(found, score_pairs(language_model, ROWS))


def test_columns_with_other_names_are_named():
    language_model = tiny.make_model()
    names = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    rows = [{names.get(key, key): value for key, value in row.items()} for row in ROWS]
    reading = {f"{role}_column": name for role, name in names.items()}
    scores = score_pairs(language_model, rows, **reading)
    pd.testing.assert_frame_equal(scores, score_pairs(language_model, ROWS))
    kept = filter_pairs(rows, scores, keep_lowest=1.0, bad="keep", **reading)
    assert kept == rows
    with pytest.raises(DataInvalid, match="name the chosen responses with --chosen-column"):
        filter_pairs(rows, scores, keep_lowest=1.0)


def test_responses_of_one_token_have_a_ches_of_exactly_zero():
    frame = score_pairs(tiny.make_model(), [{"prompt": "Is it ok?", "chosen": "!", "rejected": "?"}], eos=False)
    assert frame["chosen_tokens"].item() == frame["rejected_tokens"].item() == 1
    assert frame["ches"].item() == frame["ches_normalized"].item() == 0.0


BAD = [
    {"id": "same", "prompt": "Q", "chosen": " a", "rejected": " a"},
    {"id": "empty", "prompt": "Q", "chosen": "", "rejected": " a"},
    {"id": "far", "prompt": "Q" * 600, "chosen": " a", "rejected": " b"},
    {"id": "cut", "prompt": "Q", "chosen": " a" * 600, "rejected": " b"},
]


def test_pairs_that_cannot_be_trusted_get_a_status_and_no_number():
    frame = score_pairs(tiny.make_model(), [ROWS[0], *BAD, ROWS[1]]).set_index("id")
    expected = {"same": "identical", "empty": "empty_response", "far": "prompt_too_long", "cut": "truncated"}
    assert frame["status"].to_dict() == {"short": "ok", "long": "ok", **expected}
    assert frame.loc[list(expected), list(SCORE_COLUMNS)].isna().all(axis=None)
    assert frame.loc[["short", "long"], list(SCORE_COLUMNS)].notna().all(axis=None)


def test_states_that_are_not_finite():
    language_model = tiny.make_model()
    with torch.no_grad():
        language_model.model.model.layers[1].mlp.up_proj.weight[0] = float("nan")
    scored = PairScorer(language_model).score([PreferencePair(**row) for row in ROWS])
    assert set(scored.frame["status"]) == {"not_finite"}
    assert scored.frame[list(SCORE_COLUMNS)].isna().all(axis=None)
    assert [problem.detail for problem in scored.problems][:2] == [
        "states are NaN or infinite from layer 1 on",
        "states are NaN or infinite",
    ]


def test_one_bad_embedding_marks_only_the_pairs_that_hold_it():
    language_model = tiny.make_model()
    bad = language_model.tokenizer("!", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        language_model.model.model.embed_tokens.weight[bad] = float("inf")
    frame = score_pairs(language_model, ROWS).set_index("id")
    assert frame["status"].to_dict() == {row["id"]: "not_finite" if row["id"] == "long" else "ok" for row in ROWS}


def test_out_of_memory_changes_the_speed_and_not_the_numbers(monkeypatch, caplog):
    language_model = tiny.make_model()
    plain = score_pairs(language_model, ROWS)
    backbone, forward = language_model.model.model, language_model.model.model.forward

    def small(input_ids, **options):
        if input_ids.numel() > 70:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **options)

    monkeypatch.setattr(backbone, "forward", small)
    with caplog.at_level(logging.WARNING):
        pd.testing.assert_frame_equal(score_pairs(language_model, ROWS), plain, check_exact=True)
    assert "out of memory" in caplog.text


def test_the_model_leaves_as_it_came():
    language_model = tiny.make_model()
    before = {name: tensor.clone() for name, tensor in language_model.model.state_dict().items()}
    config = language_model.model.config.to_dict()
    score_pairs(language_model, ROWS)
    assert language_model.model.config.to_dict() == config
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in language_model.model.modules())
    for name, tensor in language_model.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_model_in_training_is_scored_without_dropout_and_goes_on_training():
    language_model = tiny.make_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    plain = score_pairs(language_model, ROWS)
    language_model.model.train()
    frozen = language_model.model.transformer.h[1].eval()
    pd.testing.assert_frame_equal(score_pairs(language_model, ROWS), plain, check_exact=True)
    assert language_model.model.training
    assert language_model.model.transformer.h[0].mlp.training
    assert not frozen.training


def test_limits():
    language_model = tiny.make_model()
    with pytest.raises(UsageError, match="max_length is 600, but the model only has positions for 512"):
        score_pairs(language_model, ROWS, max_length=600)
    with pytest.raises(UsageError, match="batch_tokens must be at least 1"):
        score_pairs(language_model, ROWS, batch_tokens=0)
    with pytest.raises(UsageError, match="max_length must be at least 2"):
        score_pairs(language_model, ROWS, max_length=1)
    assert (score_pairs(language_model, ROWS, max_length=8)["status"] != "ok").any()


def test_positions_that_are_no_multiple_of_the_padding():
    """GPT-2 has a table of positions: padding past its end would be an index error."""
    language_model = tiny.make_model("gpt2", n_positions=21)
    row = {"prompt": "Q", "chosen": "?" * 17, "rejected": " b"}
    frame = score_pairs(language_model, [row])
    assert frame["prompt_tokens"].item() + frame["chosen_tokens"].item() <= 21
    assert frame["status"].item() == "ok"


def test_no_pairs():
    with pytest.raises(DataInvalid, match="no pairs to score"):
        score_pairs(tiny.make_model(), [])


def test_duplicate_ids_of_pairs_made_by_hand():
    with pytest.raises(DataInvalid, match="'short' was already used"):
        score_pairs(tiny.make_model(), [PreferencePair(**ROWS[0])] * 2)


@pytest.mark.parametrize(
    "pairs", [["a"], [PreferencePair(**ROWS[0]), 3], datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})]
)
def test_things_that_are_no_pairs(pairs):
    with pytest.raises(DataInvalid, match="pairs must be mappings with 'chosen' and 'rejected'"):
        score_pairs(tiny.make_model(), pairs)


def test_more_pairs_than_a_block(monkeypatch):
    monkeypatch.setattr("probing.instruments.pair_scores.BLOCK_PAIRS", 2)
    language_model = tiny.make_model()
    blocks = score_pairs(language_model, ROWS)
    monkeypatch.undo()
    pd.testing.assert_frame_equal(blocks, score_pairs(language_model, ROWS), check_exact=True)


def test_the_budget_that_was_asked_for_is_used():
    scorer = PairScorer(tiny.make_model(), batch_tokens=77)
    assert scorer.stream.budget == TokenBudget(77, "as asked for")
