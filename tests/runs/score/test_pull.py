"""``--pull``: the tokens of rejected responses with the pull of each, beside scores that stay as they were."""

import json

import pandas as pd
import pytest
import torch
from harness import count_shards, kill, make_pairs, note_calls, write

from probing import load, score_pairs, token_pulls
from probing.errors import DataInvalid, SourceMismatch, StoreCorrupt
from probing.instruments.pair_scores import PairScorer, as_pairs
from probing.report.pulls import LISTED_PLACES, LISTED_TOKENS
from probing.runs import score
from probing.runs.score import stages
from probing.runs.score.config import ScoreConfig

SUMS = "Tokens that pull most, summed over the dataset (above 0: lowering the token lowers ln p(chosen))"
PLACES = "Single tokens that pull most (above 0: lowering the token lowers ln p(chosen))"


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "pairs.jsonl", make_pairs(30))


@pytest.fixture
def config(model_folder, data, tmp_path):
    def make(**changes):
        values = {"model": str(model_folder), "data": str(data), "out": tmp_path / "out", "shard_pairs": 8}
        return ScoreConfig(**(values | {"pull": True} | changes))

    return make


def tokens(folder):
    return pd.read_parquet(folder / "tokens.parquet")


def pulls_by_hand(model, pair):
    """Sums over the tokens of the chosen response, in float64, from the logits of one sequence at a time."""
    weight, sides = model.lm_head.weight.detach().double(), []
    for ids in (pair.chosen, pair.rejected):
        with torch.no_grad():
            states = model.model(torch.tensor([ids])).last_hidden_state[0, pair.prompt_tokens - 1 : -1].double()
        residuals = -(states @ weight.T).softmax(dim=1)
        response = ids[pair.prompt_tokens :]
        residuals[torch.arange(len(response)), torch.tensor(response)] += 1
        sides.append((states, residuals))
    (h, r), (g, q) = sides
    return [sum(float(r[k] @ q[t]) * float(h[k] @ g[t]) for k in range(len(h))) for t in range(len(g))]


def test_every_token_of_every_rejected_response_by_brute_force(config, tmp_path, model_folder):
    score.run(config())
    frame, model = tokens(tmp_path / "out"), load(str(model_folder))
    at = 0
    for pair in PairScorer(model).tokenize(as_pairs(make_pairs(30))):
        part = frame[at : at + pair.rejected_tokens]
        expected = pulls_by_hand(model.model, pair)
        # Rounding of float32 states and sums, in parts of the largest pull.
        assert part["pull"].tolist() == pytest.approx(expected, abs=2e-5 * max(map(abs, expected)))
        assert part["id"].unique().tolist() == [pair.id]
        assert part["position"].tolist() == list(range(pair.rejected_tokens))
        assert part["token_id"].tolist() == pair.rejected[pair.prompt_tokens :]
        assert part["token"].tolist() == [model.tokenizer.decode([id]) for id in part["token_id"]]
        at += pair.rejected_tokens
    assert at == len(frame)
    pd.testing.assert_frame_equal(token_pulls(model, make_pairs(30)), frame, check_exact=True)


def test_scores_and_rates_stay_as_they_were(config, tmp_path, model_folder):
    columns = "all,displacement_rate"
    score.run(config(columns=columns))
    score.run(config(columns=columns, pull=False, out=tmp_path / "plain"))
    assert not (tmp_path / "plain" / "tokens.parquet").exists()
    left, right = (pd.read_parquet(tmp_path / name / "scores.parquet") for name in ("out", "plain"))
    pd.testing.assert_frame_equal(left, right, check_exact=True)
    scores = score_pairs(load(str(model_folder)), make_pairs(30), columns=["displacement_rate"])
    assert scores["displacement_rate"].tolist() == left["displacement_rate"].tolist()


def test_the_tables_name_tokens_and_places(config, tmp_path):
    report = score.run(config())
    frame, sums, places = tokens(tmp_path / "out"), report.tables[SUMS], report.tables[PLACES]
    total = frame.groupby("token")["pull"].agg(["sum", "size", "mean"]).sort_values("sum", ascending=False)
    most = total[total["sum"] > 0].head(LISTED_TOKENS)
    assert sums["token"].tolist() == [repr(token) for token in most.index]
    assert sums["sum of pulls"].tolist() == pytest.approx(most["sum"].tolist())
    assert sums["mean pull"].tolist() == pytest.approx(most["mean"].tolist())
    assert sums["times"].tolist() == most["size"].tolist()
    first = frame.sort_values("pull", ascending=False).head(LISTED_PLACES)
    assert places[["pull", "id", "position"]].values.tolist() == first[["pull", "id", "position"]].values.tolist()
    for context, token in zip(places["context"], first["token"], strict=True):
        assert f"[{token.strip()}]" in context.replace("[ ", "[")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert set(record["sha256"]) == {"tokens.parquet", "plots.html"}
    assert str(tmp_path / "out" / "tokens.parquet") in report.facts["wrote"]


def test_pairs_without_a_score_have_no_tokens(config, tmp_path, data):
    write(data, [*make_pairs(4), {"id": "same", "prompt": "Q", "chosen": " a", "rejected": " a"}])
    score.run(config())
    assert set(tokens(tmp_path / "out")["id"]) == {"r0", "r1", "r2", "r3"}
    write(data, [{"id": "same", "prompt": "Q", "chosen": " a", "rejected": " a"}])
    with pytest.raises(DataInvalid, match="no pair could be scored"):
        score.run(config(out=tmp_path / "none"))


@pytest.mark.parametrize("stop", [0, 2])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(config, tmp_path, monkeypatch, stop):
    score.run(config(out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        note_calls(patch, stages, "_new_shard", stop)
        with pytest.raises(KeyboardInterrupt):
            score.run(config())
    if stop:
        (tmp_path / "out/shards/tokens_000001.parquet").unlink()  # its shard is made again
    with monkeypatch.context() as patch:
        calls = note_calls(patch, stages, "_new_shard")
        score.run(config(batch_tokens=None))
    assert len(calls) == (3 if stop else 4)
    for name in ("scores.parquet", "tokens.parquet", "plots.html"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_in_the_same_bytes(config, tmp_path):
    score.run(config(out=tmp_path / "whole"))
    options = {name: getattr(config(), name) for name in ("model", "data", "out", "shard_pairs", "pull")}
    kill("score", options, tmp_path / "said", lambda: count_shards(tmp_path / "out"))
    assert not (tmp_path / "out" / "tokens.parquet").exists()
    score.run(config())
    for name in ("scores.parquet", "tokens.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_it_is_part_of_the_run_and_its_file_is_checked(config, tmp_path):
    score.run(config())
    with pytest.raises(SourceMismatch, match=r"options\.pull was True, is False"):
        score.run(config(pull=False))
    path = tmp_path / "out" / "tokens.parquet"
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    with pytest.raises(StoreCorrupt, match=r"tokens\.parquet: gone or changed"):
        score.run(config())


def test_a_folder_of_a_version_without_pulls_is_gone_on_with(config, tmp_path):
    score.run(config(pull=False))
    path = tmp_path / "out" / "run.json"
    record = json.loads(path.read_text())
    del record["config"]["pull"], record["identity"]["options"]["pull"], record["record_sha256"]
    path.write_text(json.dumps(record))
    assert "Pairs by status" in score.run(config(pull=False)).tables
