"""Groups of responses with rewards: every number by brute force, every status, restarts, and bad input."""

import json
import math

import make_rollouts as make_rollouts_script
import pandas as pd
import pytest
import torch
from harness import count_shards, kill, make_rollouts, note_calls, notes, read_lines, write

import probing
from probing import load
from probing.data.bundled import bundled_data
from probing.data.phrases import read_phrases
from probing.data.rollouts import rollouts_from_rows
from probing.errors import DataInvalid, NotFinite, SourceMismatch, StoreCorrupt
from probing.instruments import rollout_rates
from probing.instruments.rollout_rates import ROLLOUTS_SCHEMA, RolloutScorer
from probing.runs import report, rollouts
from probing.runs.rollouts import stages
from probing.runs.rollouts.config import RolloutsConfig

FILES = ["plots.html", "rollouts.parquet", "run.json", "tokens.parquet"]
TABLES = ("rollouts.parquet", "tokens.parquet")


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "rollouts.jsonl", make_rollouts(20))


@pytest.fixture
def config(model_folder, data, tmp_path):
    def make(**changes):
        values = {"model": str(model_folder), "data": str(data), "out": tmp_path / "out", "shard_groups": 6} | changes
        return RolloutsConfig(**values)

    return make


def read(folder, name="rollouts.parquet"):
    return pd.read_parquet(folder / name)


def by_hand(model, prompt_tokens, sequences):
    """Products of all tokens of all responses through the head and the shared states, in float64, by explicit sums."""
    weight = model.lm_head.weight.detach().double()
    states, residuals = [], []
    for ids in sequences:
        with torch.no_grad():
            hidden = model.model(torch.tensor([ids])).last_hidden_state[0, prompt_tokens - 1 : -1].double()
        residual = -(hidden @ weight.T).softmax(dim=1)
        response = ids[prompt_tokens:]
        residual[torch.arange(len(response)), torch.tensor(response)] += 1
        states.append(hidden)
        residuals.append(residual)
    count = len(sequences)
    gram = torch.zeros(count, count, dtype=torch.float64)
    pulls = {}
    for one in range(count):
        for other in range(count):
            weighted = (residuals[one] @ residuals[other].T) * (states[one] @ states[other].T)
            pulls[one, other] = weighted.sum(dim=0)
            left, right = (sequences[at][prompt_tokens:] for at in (one, other))
            shared = len(left)
            if one != other:
                equal = [a == b for a, b in zip(left, right, strict=False)]
                shared = equal.index(False) + 1 if False in equal else len(equal)
            backward = [residuals[at][:shared] @ weight for at in (one, other)]
            gram[one, other] = weighted.sum() + (backward[0] * backward[1]).sum()
    return gram, pulls


@pytest.mark.parametrize("paired", [1024, 0])
def test_every_number_by_brute_force(config, tmp_path, model_folder, monkeypatch, paired):
    """Both ways to the products, of which the second is for groups of many tokens."""
    monkeypatch.setattr("probing.metrics.displacement.PAIRED_TOKENS", paired)
    rollouts.run(config())
    frame, tokens = read(tmp_path / "out"), read(tmp_path / "out", "tokens.parquet")
    model = load(str(model_folder))
    rows = make_rollouts(20)
    tokenized = RolloutScorer(model).tokenize(rollouts_from_rows(rows))
    assert frame["id"].tolist() == [name for group in tokenized for name in group.names]
    at = 0
    for row, group in zip(rows, tokenized, strict=True):
        own = frame[frame["group"] == group.id].reset_index(drop=True)
        gram, pulls = by_hand(model.model, group.prompt_tokens, group.sequences)
        rewards = torch.tensor(row["rewards"], dtype=torch.float64)
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        rates = gram @ (advantages / torch.tensor(group.tokens))
        scale = float(gram.diagonal().max())
        assert own["rate"].tolist() == pytest.approx(rates.tolist(), abs=1e-5 * scale)
        assert own["advantage"].tolist() == pytest.approx(advantages.tolist())
        assert own["rate_per_token"].tolist() == pytest.approx((own["rate"] / group.tokens).tolist())
        assert own["response_tokens"].tolist() == group.tokens
        assert own["correct"].tolist() == [reward == 1 for reward in row["rewards"]]
        for number, ids in enumerate(group.sequences):
            with torch.no_grad():
                logits = model.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            total = sum(float(logits[k - 1, ids[k]]) for k in range(group.prompt_tokens, len(ids)))
            assert own["logprob"][number] == pytest.approx(total, abs=1e-3)
            if row["rewards"][number] == 1:
                continue
            good = [other for other, reward in enumerate(row["rewards"]) if reward == 1]
            expected = sum(pulls[other, number] for other in good)
            part = tokens[at : at + group.tokens[number]]
            assert part["pull"].tolist() == pytest.approx(expected.tolist(), abs=1e-5 * scale)
            assert part["id"].unique().tolist() == [f"{group.id}#{number}"]
            assert part["token_id"].tolist() == group.response_ids[number]
            assert part["position"].tolist() == list(range(group.tokens[number]))
            at += group.tokens[number]
    assert at == len(tokens)


def test_a_run_tells_what_it_wrote_and_what_holds_of_all_groups(config, tmp_path):
    answer = rollouts.run(config())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["rows_by_status"] == {"ok": 20}
    assert record["data"]["rows"] == 20
    assert set(record["sha256"]) == {*TABLES, "plots.html"}
    frame = read(tmp_path / "out")
    assert frame["row"].tolist() == [n for n, row in enumerate(make_rollouts(20)) for _ in row["responses"]]
    title = next(title for title in answer.tables if title.startswith("What one step of grpo does"))
    table = answer.tables[title].set_index("measure")["value"]
    means = [part.loc[part["correct"].astype(bool), "rate"].mean() for _, part in frame.groupby("group", sort=False)]
    assert table["share of groups whose correct responses fall"] == sum(m < 0 for m in means) / 20
    assert table["mean rate of the correct responses"] == pytest.approx(sum(means) / 20)
    right = frame[frame["correct"].astype(bool)]
    assert table["share of correct responses that fall"] == (right["rate"] < 0).mean()
    assert answer.tables[title]["n"].tolist() == [20, len(right), 20, 20, 20]


def test_groups_of_one_prompt_are_drawn_together(config, data):
    rows = make_rollouts(20)
    write(data, [row | {"prompt": rows[n // 2 * 2]["prompt"]} for n, row in enumerate(rows)])
    answer = rollouts.run(config())
    assert any("over 10 prompts, some of which have several groups" in title for title in answer.tables)


STATUSES = {
    "one_response": {"responses": [" a"], "rewards": [1]},
    "no_reward": {"responses": [" a", " b"], "rewards": [1, None]},
    "none_correct": {"responses": [" a", " b"], "rewards": [0, 0.5]},
    "all_correct": {"responses": [" a", " b"], "rewards": [True, 1.0]},
    "empty_response": {"responses": [" a", " "], "rewards": [1, 0]},
    "truncated": {"responses": [" a", " boat" * 60], "rewards": [1, 0]},
    "empty_prompt": {"prompt": "", "responses": ["a", "b"], "rewards": [1, 0]},
    "extra_bos": {"prompt": "<|bos|>Q: a <|bos|>", "responses": ["a", "b"], "rewards": [1, 0]},
    "prompt_too_long": {"prompt": "boat " * 60, "responses": [" a", " b"], "rewards": [1, 0]},
}


def test_every_status_is_told_and_has_no_numbers(config, tmp_path, data):
    bad = [{"id": status, "prompt": "Q: no", **row} for status, row in STATUSES.items()]
    write(data, [*bad, *make_rollouts(2)])
    answer = rollouts.run(config(max_length=50))
    frame = read(tmp_path / "out")
    for status in STATUSES:
        own = frame[frame["group"] == status]
        assert set(own["status"]) == {status}
        assert own[["rate", "rate_per_token", "advantage", "logprob"]].isna().all(axis=None)
    assert len(frame) == sum(len(row["responses"]) for row in [*bad, *make_rollouts(2)])
    assert frame["correct"].isna().sum() == 1
    assert not set(read(tmp_path / "out", "tokens.parquet")["id"].str.partition("#")[0]) & set(STATUSES)
    assert answer.tables["Groups by status"].set_index("status")["groups"].to_dict() == {"ok": 2} | dict.fromkeys(
        STATUSES, 1
    )
    problems = {entry["status"]: entry for entry in answer.facts["problems"]}
    assert set(problems) == set(STATUSES)
    assert problems["no_reward"]["detail"] == "the reward of response 1 is missing or NaN"
    assert problems["no_reward"]["line"] == "line 2"


def test_rewards_that_are_no_verdicts(config, data, tmp_path):
    """NaN and infinite ones, and a threshold of one's own."""
    rows = make_rollouts(4)
    rows[0]["rewards"], rows[1]["rewards"] = [math.nan, *rows[0]["rewards"][1:]], [math.inf, *rows[1]["rewards"][1:]]
    rows[2]["rewards"] = [0.9, 0.2, *rows[2]["rewards"][2:]]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = rollouts.run(config())
    assert answer.facts["rows_by_status"] == {"no_reward": 2, "ok": 2}
    assert "rewards are neither 0 nor 1: a response counts as correct if its reward is above 0.5" in notes(answer)
    again = rollouts.run(config(out=tmp_path / "other", correct_above=0.1))
    assert "Notes" not in again.tables
    assert read(tmp_path / "other").set_index("id").loc["g2#1", "correct"]


def test_where_no_group_can_be_measured_there_is_an_error_and_a_list(config, tmp_path, data):
    write(data, [row | {"rewards": [0] * len(row["rewards"])} for row in make_rollouts(3)])
    with pytest.raises(
        DataInvalid, match=r"no group could be measured \(3 none_correct\); the first: line 1 \(id 'g0'\)"
    ):
        rollouts.run(config())
    assert (tmp_path / "out" / "run.json").exists()


def test_a_model_with_broken_states_is_told(config, model_folder, tmp_path):
    model = load(str(model_folder))
    with torch.no_grad():
        model.model.model.layers[1].mlp.down_proj.weight.fill_(float("inf"))
    with pytest.raises(NotFinite, match="layer 1 on"):
        probing.rollouts(model=model, data=make_rollouts(3))


def test_conversations_and_other_columns(config, data, tmp_path):
    """Messages, or text that becomes messages: the same numbers. Rewards as true and false, lists as text in CSV."""
    rows = make_rollouts(5)
    turns = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    answers = [[[{"role": "assistant", "content": each}] for each in row["responses"]] for row in rows]
    chats = [
        row | {"prompt": turn, "responses": answer} for row, turn, answer in zip(rows, turns, answers, strict=True)
    ]
    mixed = [row | {"prompt": turn} for row, turn in zip(rows, turns, strict=True)]
    half = [row | {"responses": answer} for row, answer in zip(rows, answers, strict=True)]
    found = []
    for number, each in enumerate((chats, mixed, half)):
        write(data, each)
        rollouts.run(config(out=tmp_path / f"out{number}"))
        found.append(read(tmp_path / f"out{number}"))
    for other in found[1:]:
        pd.testing.assert_frame_equal(other, found[0], check_exact=True)
    frame = pd.DataFrame(
        {
            "id": [row["id"] for row in rows],
            "question": [json.dumps(turn) for turn in turns],
            "samples": [json.dumps(row["responses"]) for row in rows],
            "right": [json.dumps([reward == 1 for reward in row["rewards"]]) for row in rows],
        }
    )
    frame.to_csv(tmp_path / "rollouts.csv", index=False)
    named = {"prompt_column": "question", "responses_column": "samples", "rewards_column": "right"}
    rollouts.run(config(out=tmp_path / "csv", data=str(tmp_path / "rollouts.csv"), **named))
    pd.testing.assert_frame_equal(read(tmp_path / "csv"), found[0], check_exact=True)
    pd.DataFrame(mixed).to_parquet(tmp_path / "rollouts.parquet")
    rollouts.run(config(out=tmp_path / "parquet", data=str(tmp_path / "rollouts.parquet")))
    pd.testing.assert_frame_equal(read(tmp_path / "parquet"), found[0], check_exact=True)


def test_numbers_do_not_depend_on_batches_shards_order_or_memory(config, tmp_path, data, monkeypatch):
    rollouts.run(config(shard_groups=100))
    whole = read(tmp_path / "out").set_index("id").drop(columns="row")
    monkeypatch.setattr("probing.instruments.pair_scores.STATE_BYTES", 1)
    rows = make_rollouts(20)
    write(data, rows[::-1])
    rollouts.run(config(out=tmp_path / "other", batch_tokens=17, shard_groups=3))
    other = read(tmp_path / "other").set_index("id").drop(columns="row")
    pd.testing.assert_frame_equal(other.loc[whole.index], whole, check_exact=True)


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(config, tmp_path, monkeypatch, stop):
    rollouts.run(config(out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        calls = note_calls(patch, RolloutScorer, "score", stop)
        with pytest.raises(KeyboardInterrupt):
            rollouts.run(config())
    assert len(calls) == stop
    with monkeypatch.context() as patch:
        calls = note_calls(patch, RolloutScorer, "score")
        rollouts.run(config())
    assert len(calls) == 4 - stop
    for name in (*TABLES, "plots.html"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_shard_whose_tokens_are_damaged_is_made_again(config, tmp_path, monkeypatch):
    rollouts.run(config(out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        note_calls(patch, RolloutScorer, "score", 2)
        with pytest.raises(KeyboardInterrupt):
            rollouts.run(config())
    (tmp_path / "out/shards/tokens_000001.parquet").write_bytes(b"damaged")
    with monkeypatch.context() as patch:
        calls = note_calls(patch, RolloutScorer, "score")
        rollouts.run(config())
    assert len(calls) == 3
    assert (tmp_path / "out/tokens.parquet").read_bytes() == (tmp_path / "whole/tokens.parquet").read_bytes()


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_in_the_same_bytes(config, tmp_path):
    few = {"shard_groups": 2}
    rollouts.run(config(out=tmp_path / "whole", **few))
    options = {name: getattr(config(**few), name) for name in ("model", "data", "out", "shard_groups")}
    kill("rollouts", options, tmp_path / "said", lambda: count_shards(tmp_path / "out"))
    assert not (tmp_path / "out" / "rollouts.parquet").exists()
    rollouts.run(config(**few))
    for name in (*TABLES, "plots.html"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


def test_a_finished_run_is_answered_again_and_checked(config, tmp_path, monkeypatch, data):
    first = rollouts.run(config())
    calls = note_calls(monkeypatch, stages, "measure_shards")
    again = rollouts.run(config())
    assert not calls
    assert all(table.equals(again.tables[title]) for title, table in first.tables.items())
    with pytest.raises(SourceMismatch, match=r"options\.correct_above was 0\.5, is 0\.7"):
        rollouts.run(config(correct_above=0.7))
    with pytest.raises(SourceMismatch, match=r"options\.advantage was grpo, is dapo"):
        rollouts.run(config(advantage="dapo"))
    path = tmp_path / "out" / "tokens.parquet"
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    with pytest.raises(StoreCorrupt, match=r"tokens\.parquet: gone or changed"):
        rollouts.run(config())


def test_rows_with_other_ids_are_another_run(config, data):
    write(data, [row | {"key": f"k{n}"} for n, row in enumerate(make_rollouts(3))])
    rollouts.run(config())
    with pytest.raises(SourceMismatch, match="rows with other ids"):
        rollouts.run(config(id_column="key"))


ROW = {"id": "a", "prompt": "Q", "responses": [" a", " b"], "rewards": [1, 0]}
BAD = {
    "counts that differ": (ROW | {"rewards": [1]}, [], "line 1 (id 'a'): there are 2 responses and 1 rewards"),
    "no list": (ROW | {"responses": 3}, [], "line 1: 'responses' must be a list, found int (3)"),
    "text": (ROW | {"responses": "a"}, [], "line 1: 'responses' must be a list, found text that is none"),
    "an empty list": (ROW | {"responses": []}, [], "line 1: 'responses' is an empty list"),
    "a reward that is text": (ROW | {"rewards": ["good", 0]}, [], "line 1, reward 0: 'rewards' must hold numbers"),
    "a response that is a number": (ROW | {"responses": [" a", 3]}, [], "line 1, response 1: 'responses' must be text"),
    "no rewards": ({"prompt": "Q", "responses": [" a"]}, [], "there is no column of the rewards (rewards, scores)"),
    "no such column": (ROW, ["--rewards-column", "r"], "there is no column 'r'"),
    "a threshold that is no number": (ROW, ["--correct-above", "nan"], "--correct-above must be a number, not 'nan'"),
    "an unknown advantage": (ROW, ["--advantage", "ppo"], "advantage"),
    "a whole conversation": (
        ROW | {"responses": [[{"role": "user", "content": "Q"}], " b"]},
        [],
        "a response begins with a message of the user; give responses without the prompt",
    ),
    "no correct one": (ROW | {"rewards": [0, 0]}, [], "no group could be measured (1 none_correct)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_line(probing, model_folder, tmp_path, case):
    row, arguments, message = BAD[case]
    write(tmp_path / "bad.jsonl", [row])
    given = ["--model", model_folder, "--data", tmp_path / "bad.jsonl", "--out", tmp_path / "out", *arguments]
    status, shown, errors = probing("rollouts", *given)
    assert (status, shown) == (2, "")
    assert message in errors.splitlines()[-1]
    assert "Traceback" not in errors
    if case != "no correct one":  # this run ended, and lists each row
        assert errors.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_the_schema_of_the_rows_is_that_of_the_frame(model_folder):
    scorer = RolloutScorer(load(str(model_folder)))
    groups = rollouts_from_rows(make_rollouts(2))
    assert scorer.score(scorer.tokenize(groups)).frame.columns.tolist() == ROLLOUTS_SCHEMA.names
    assert rollout_rates.NUMBERS == ("logprob", "advantage", "rate", "rate_per_token")


def test_the_bundled_rollouts():
    rows = read_lines(bundled_data("rollouts"))
    assert len(rows) == 96
    assert {len(row["responses"]) for row in rows} == {len(row["rewards"]) for row in rows} == {6}
    assert bundled_data("rollouts").stat().st_size < 100_000
    assert all(group.conversational for group in rollouts_from_rows(rows))
    prompts = read_lines(bundled_data("prompts"))
    objects, by_id = {row["object"] for row in prompts}, {row["id"]: row for row in prompts}
    for row in rows:
        rewards = [
            make_rollouts_script.is_right(a, by_id[row["id"]], objects, read_phrases()) for a in row["responses"]
        ]
        assert rewards == row["rewards"]


def test_a_report_shows_the_responses_while_the_data_are_those_of_the_run(config, tmp_path, data):
    rollouts.run(config())
    out = tmp_path / "report.html"
    found = report.run(report.ReportConfig(folders=[tmp_path / "out"], out=out))
    assert {check["name"] for check in found.facts["checks"]} == {"share_falling", "rows_left_out"}
    # Groups of one kind only are as they should be.
    write(
        data,
        [row | {"rewards": [1] * len(row["rewards"])} if at < 9 else row for at, row in enumerate(make_rollouts(20))],
    )
    rollouts.run(config(out=tmp_path / "alike"))
    alike = report.run(report.ReportConfig(folders=[tmp_path / "alike"], out=tmp_path / "alike.html"))
    left_out = next(check for check in alike.facts["checks"] if check["name"] == "rows_left_out")
    assert (left_out["state"], left_out["value"]) == ("ok", 0.0)
    rows = make_rollouts(20)
    write(data, rows)
    assert all(json.dumps(row["responses"][0])[1:-1] in out.read_text(encoding="utf-8") for row in rows)
    write(data, [row | {"rewards": row["rewards"][::-1]} for row in rows])
    again = report.run(report.ReportConfig(folders=[tmp_path / "out"], out=out))
    assert "these are not the groups of the run any more" in " ".join(again.facts["remarks"])
    assert json.dumps(rows[0]["responses"][0])[1:-1] not in out.read_text(encoding="utf-8")
