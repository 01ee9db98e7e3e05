import json
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from harness import count_shards, kill, make_pairs, note_calls, read_lines, started, write

from probing import PreferenceLoss, load, score_pairs
from probing.engine.stream import TokenBudget
from probing.errors import DataInvalid, FolderBusy, ModelInvalid, NotFinite, SourceMismatch, StoreCorrupt, UsageError
from probing.instruments.pair_scores import PairScorer
from probing.runs import score
from probing.runs.score import stages
from probing.runs.score.config import ScoreConfig
from probing.store.manifest import claim


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "pairs.jsonl", make_pairs(40))


@pytest.fixture
def config(model_folder, data, tmp_path):
    def make(**changes):
        values = {"model": str(model_folder), "data": str(data), "out": tmp_path / "out", "shard_pairs": 8} | changes
        return ScoreConfig(**values)

    return make


def scores(folder):
    return pd.read_parquet(folder / "scores.parquet")


def test_a_run_accounts_for_every_row_in_order(config, tmp_path, model_folder, data):
    report = score.run(config())
    frame = scores(tmp_path / "out")
    rows = read_lines(data)
    assert frame["id"].tolist() == [row["id"] for row in rows]
    assert frame.pop("row").tolist() == list(range(len(rows)))
    pd.testing.assert_frame_equal(frame, score_pairs(load(str(model_folder)), rows), check_exact=True)
    names = ["plots.html", "run.json", "scores.parquet"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert sorted(Path(path).name for path in report.facts["wrote"]) == names
    assert list(report.tables) == [
        "Pairs by status",
        "Quantiles of the scores (higher: the responses look more alike to the model)",
        "Histogram of ches_normalized",
        "Most alike by ches_normalized",
        "Least alike by ches_normalized",
    ]


def test_run_json_tells_what_was_done(config, tmp_path, model_folder, data):
    write(data, [*make_pairs(3), {"id": "same", "prompt": "Q", "chosen": " a", "rejected": " a"}])
    score.run(config(max_length=200))
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert facts["status"] == "done"
    assert facts["config"]["max_length"] == 200
    assert facts["rows_by_status"] == {"identical": 1, "ok": 3}
    assert facts["problems"] == [
        {"id": "same", "status": "identical", "detail": "chosen and rejected are the same", "line": "line 4"}
    ]
    assert (
        len(facts["model"]["weights_sha256"])
        == len(facts["data"]["sha256"])
        == len(facts["model"]["tokenizer_sha256"])
        == 64
    )
    assert facts["how"] == "packed (a sequence at a time), prompts shared"
    assert facts["identity"]["versions"]["torch"]
    assert facts["identity"]["options"] == config(max_length=200).identity()
    assert facts["tokens"] > 0
    assert facts["tokens_per_second"] > 0
    assert facts["wall_seconds"] >= facts["scoring_seconds"] > 0


def test_a_folder_of_an_earlier_version_is_gone_on_with(config, tmp_path, data):
    """Its record has options in the identity that no longer are, and lacks one that came later."""
    tables = score.run(config()).tables
    path = tmp_path / "out" / "run.json"
    record = json.loads(path.read_text())
    del record["config"]["compile"], record["identity"]["options"]["compile"]
    record["identity"]["options"] |= {"revision": None, "split": None, "id_column": None}
    path.write_text(json.dumps(record))
    before = (tmp_path / "out" / "scores.parquet").read_bytes()
    again = score.run(config()).tables
    assert all(again[title].equals(table) for title, table in tables.items())
    assert (tmp_path / "out" / "scores.parquet").read_bytes() == before
    with pytest.raises(SourceMismatch, match=r"options\.compile was False, is True"):
        score.run(config(compile=True))


def test_a_run_without_a_result_makes_way_for_the_corrected_command(config, tmp_path, data, caplog):
    """One in which no row is ok, and one that ended before it had anything but a record."""
    with pytest.raises(DataInvalid, match="no pair could be scored"):
        score.run(config(max_length=2))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "done"
    mine = tmp_path / "out" / "states" / "manifest.json"
    mine.parent.mkdir()
    mine.write_text("a store that somebody put there")
    score.run(config())
    assert mine.exists()
    assert "ended without a result; it is replaced" in caplog.text
    assert scores(tmp_path / "out")["status"].tolist() == ["ok"] * 40
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["config"]["max_length"] is None
    with pytest.raises(SourceMismatch, match="made from something else"):
        score.run(config(max_length=100))
    begun = {name: record[name] for name in ("schema_version", "command", "config", "identity")} | {"status": "running"}
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "run.json").write_text(json.dumps(begun))
    score.run(config(out=tmp_path / "bare", max_length=100))
    assert len(scores(tmp_path / "bare")) == 40


def test_regimes_are_words_in_the_table_and_rates_are_those_of_the_loss(config, tmp_path, model_folder, data):
    report = score.run(config(columns="regime", loss="dpo", beta=0.3, sft_weight=0.1))
    path = tmp_path / "out" / "scores.parquet"
    assert pq.read_schema(path).field("regime").type == pa.string()
    loss = PreferenceLoss("dpo", beta=0.3, sft_weight=0.1)
    wanted = score_pairs(load(str(model_folder)), read_lines(data), columns=["regime"], loss=loss)
    pd.testing.assert_frame_equal(scores(tmp_path / "out")[wanted.columns], wanted, check_exact=True)
    titles = {title.partition(" (")[0]: title for title in report.tables}
    assert "(dpo, beta 0.3, SFT weight 0.1; below 0: " in titles["Quantiles of displacement rates"]
    shares = report.tables[titles["Regimes"]].set_index("regime")
    counted = wanted["regime"].value_counts()
    assert {word: row.pairs for word, row in shares.iterrows()} == {
        word: counted.get(word, 0) for word in ("disentangled", "both_fall", "both_rise")
    }
    assert shares["share"].sum() == pytest.approx(1)
    assert ((shares["low"] <= shares["share"]) & (shares["share"] <= shares["high"])).all()
    [note] = report.tables["Notes"]["note"]
    assert note.startswith("least_sft_weight: alpha = ")
    assert (
        score.run(config(columns="regime", loss="dpo", beta=0.3, sft_weight=0.1)).tables["Notes"]["note"] == note
    ).all()
    for changed in ({"loss": "ipo"}, {"beta": 0.1}, {"sft_weight": 0.0}):
        with pytest.raises(SourceMismatch, match=f"options.{next(iter(changed))} was "):
            score.run(config(**{"columns": "regime", "loss": "dpo", "beta": 0.3, "sft_weight": 0.1} | changed))


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"loss": "dpo"}, True), ({"sft_weight": 1.0}, True), ({}, False), ({"loss": "dpo", "columns": "regime"}, False)],
)
def test_a_loss_that_no_column_depends_on_is_told(config, caplog, changes, told):
    score.run(config(**changes))
    said = [record.getMessage() for record in caplog.records]
    assert any("none of the columns depends on the loss" in each for each in said) == told


def test_a_scoring_of_rates_without_a_loss_is_one_of_the_margin(config, tmp_path):
    """What a version did that had no such options."""
    score.run(config(columns="displacement_rate"))
    path = tmp_path / "out" / "run.json"
    record = json.loads(path.read_text())
    for name in ("loss", "beta", "gamma", "label_smoothing", "sft_weight"):
        del record["config"][name], record["identity"]["options"][name]
    path.write_text(json.dumps(record))
    before = (tmp_path / "out" / "scores.parquet").read_bytes()
    report = score.run(config(columns="displacement_rate"))
    assert (tmp_path / "out" / "scores.parquet").read_bytes() == before
    assert "Quantiles of displacement rates (below 0: training on the pair pushes ln p(chosen) down)" in report.tables
    with pytest.raises(SourceMismatch, match=r"options\.loss was margin, is dpo"):
        score.run(config(columns="displacement_rate", loss="dpo"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--loss", "aot"], "aot sorts the log-ratios of a batch"),
        (["--loss", "sigmoid"], "sigmoid is called dpo here"),
        (["--loss", "nonsense"], "there is no loss 'nonsense'; there are margin, dpo"),
        (["--loss", "exo_pair"], "exo_pair needs a --label-smoothing above 0"),
        (["--beta", "0"], "--beta must be above 0"),
        (["--sft-weight", "-1"], "--sft-weight must be at least 0"),
    ],
)
def test_losses_without_a_start_are_refused_by_name(probing, tmp_path, data, options, told):
    given = ["score", "--model", "bundled", "--data", str(data), "--out", str(tmp_path / "out"), *options]
    status, _, errors = probing(*given)
    assert (status, errors.count("\n")) == (2, 1)
    assert told in errors
    assert not (tmp_path / "out").exists()


def test_a_table_with_words_is_shown_filtered_and_reported(probing, config, tmp_path, data):
    score.run(config(columns="ches_normalized,regime", loss="dpo"))
    out, status = tmp_path / "out", []
    status.append(probing("show", str(out), "--by", "least_sft_weight", "--highest", "2")[:2])
    assert "regime disentangled" in status[0][1] or "regime both" in status[0][1]
    kept = ["filter", "--data", str(data), "--scores", str(out), "--out", str(tmp_path / "kept.jsonl")]
    status.append(probing(*kept, "--by", "entanglement", "--drop-highest", "0.2")[:2])
    assert all("probing_regime" in row for row in read_lines(tmp_path / "kept.dropped.jsonl"))
    refused, _, errors = probing(*kept, "--by", "regime", "--drop-highest", "0.2", "--overwrite")
    assert refused == 2
    assert "there is no score column 'regime'" in errors
    status.append(probing("report", str(out), "--out", str(tmp_path / "page.html"))[:2])
    assert [code for code, _ in status] == [0, 0, 0]
    page = (tmp_path / "page.html").read_text()
    assert "Share of each regime over 40 pairs (dpo, beta 0.1)" in page
    assert "Least weight of an SFT term" in page


def test_rows_with_other_ids_are_another_run(config, tmp_path, data):
    rows = [{**row, "key": f"k{n}"} for n, row in enumerate(make_pairs(4))]
    write(data, rows)
    score.run(config())
    with pytest.raises(SourceMismatch, match="rows with other ids \\(row 1 is 'k0' now\\)"):
        score.run(config(id_column="key"))


def test_compiled_blocks_score_alike_and_are_another_run(config, tmp_path, monkeypatch):
    plain = score.run(config()).facts
    monkeypatch.setattr("probing.engine.compiled.BACKEND", "eager")
    with pytest.raises(SourceMismatch, match=r"options\.compile was False, is True"):
        score.run(config(compile=True))
    facts = score.run(config(compile=True, out=tmp_path / "compiled")).facts
    assert facts["how"] == plain["how"] + "; blocks compiled"
    assert facts["identity"]["options"]["compile"] is True
    pd.testing.assert_frame_equal(scores(tmp_path / "compiled"), scores(tmp_path / "out"), rtol=1e-4, atol=1e-4)


def test_a_slower_way_is_said_aloud_and_recorded(config, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("probing.engine.modes.configs_of", lambda module: 1 / 0)
    facts = score.run(config()).facts
    assert facts["how"].startswith("stacked by length, prompts not shared (fails with ZeroDivisionError")
    assert "runs stacked by length, prompts not shared" in caplog.text


def test_a_finished_run_is_answered_again_without_work(config, tmp_path, monkeypatch):
    first = score.run(config())
    before = (tmp_path / "out" / "run.json").read_bytes()
    monkeypatch.setattr("probing.runs.score.stages.PairScorer", None)
    again = score.run(config())
    assert (tmp_path / "out" / "run.json").read_bytes() == before
    for title, table in first.tables.items():
        pd.testing.assert_frame_equal(again.tables[title], table)


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(config, tmp_path, monkeypatch, stop):
    score.run(config(out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        note_calls(patch, stages, "_new_shard", stop)
        with pytest.raises(KeyboardInterrupt):
            score.run(config())
    assert not (tmp_path / "out" / "scores.parquet").exists()
    assert count_shards(tmp_path / "out") == stop
    made = note_calls(monkeypatch, stages, "_new_shard")
    score.run(config())
    assert len(made) == 5 - stop
    assert (tmp_path / "out" / "scores.parquet").read_bytes() == (tmp_path / "whole" / "scores.parquet").read_bytes()


def test_a_damaged_shard_is_made_again(config, tmp_path, monkeypatch):
    score.run(config(out=tmp_path / "whole"))
    monkeypatch.setattr(stages, "join_shards", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        score.run(config())
    shards = sorted((tmp_path / "out" / "shards").iterdir())
    content = bytearray(shards[1].read_bytes())
    content[60] ^= 0xFF
    shards[1].write_bytes(content)
    shards[2].write_bytes(shards[2].read_bytes()[:-20])
    shutil.copy(shards[0], shards[3])
    monkeypatch.undo()
    score.run(config())
    assert (tmp_path / "out" / "scores.parquet").read_bytes() == (tmp_path / "whole" / "scores.parquet").read_bytes()


def test_a_run_keeps_the_budget_that_it_began_with(config, tmp_path, monkeypatch):
    """What is found by itself may be found differently at the next start."""
    used, plain = [], stages._new_shard
    monkeypatch.setattr("probing.engine.budget.choose_batch_tokens", lambda *_: TokenBudget(64, "first"))
    monkeypatch.setattr(stages, "_new_shard", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        score.run(config())
    monkeypatch.setattr("probing.engine.budget.choose_batch_tokens", lambda *_: TokenBudget(999, "second"))
    monkeypatch.setattr(
        stages, "_new_shard", lambda scorer, *rest: used.append(scorer.stream.budget) or plain(scorer, *rest)
    )
    score.run(config())
    assert used[0] == TokenBudget(64, "first")


def test_a_budget_that_shrank_stays_so_after_a_restart(config, tmp_path, monkeypatch):
    """The budget is part of what a later shard is computed with; a restart must not forget it."""
    budgets, plain = [], stages._new_shard

    def shrinking(scorer, *arguments):
        budgets.append(scorer.stream.budget.tokens)
        if len(budgets) == 2:
            scorer.stream.budget.shrink(64)
        if len(budgets) == 4:
            raise KeyboardInterrupt
        return plain(scorer, *arguments)

    monkeypatch.setattr(stages, "_new_shard", shrinking)
    with pytest.raises(KeyboardInterrupt):
        score.run(config(batch_tokens=100))
    score.run(config(batch_tokens=100))
    assert budgets == [100, 100, 32, 32, 32, 32]


def changed_model(config, tmp_path, model_folder):
    return config(model=str(tiny.save_model(tmp_path / "other", seed=1)))


def edited(name, **values):
    def change(config, tmp_path, model_folder):
        folder = shutil.copytree(model_folder, tmp_path / "edited")
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | values))
        return config(model=str(folder))

    return change


def changed_template(config, tmp_path, model_folder):
    folder = shutil.copytree(model_folder, tmp_path / "edited")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return config(model=str(folder))


def changed_data(config, tmp_path, model_folder):
    write(tmp_path / "pairs.jsonl", make_pairs(41))
    return config()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (changed_model, r"model\.weights_sha256 was \w{12}\.\.\., is \w{12}"),
        (edited("config.json", rms_norm_eps=1.0), r"model\.config_sha256 was"),
        (edited("tokenizer_config.json", eos_token="<|user|>"), r"model\.tokenizer_sha256 was"),
        (changed_template, r"model\.template_sha256 was"),
        (changed_data, r"data\.sha256 was"),
        (lambda config, *_: config(eos=False), r"options\.eos was True, is False"),
        (lambda config, *_: config(max_length=100), r"options\.max_length was None, is 100"),
        (lambda config, *_: config(dtype="bfloat16"), r"dtype was float32, is bfloat16"),
    ],
)
def test_a_folder_of_another_run_is_refused_with_what_changed(config, tmp_path, model_folder, change, told):
    score.run(config())
    before = (tmp_path / "out" / "scores.parquet").read_bytes()
    with pytest.raises(SourceMismatch, match=told):
        score.run(change(config, tmp_path, model_folder))
    assert (tmp_path / "out" / "scores.parquet").read_bytes() == before


def test_the_same_model_and_data_may_lie_elsewhere(config, tmp_path, model_folder, data):
    score.run(config())
    before = (tmp_path / "out" / "run.json").read_bytes()
    moved = shutil.copytree(model_folder, tmp_path / "moved")
    report = score.run(config(model=str(moved), data=str(shutil.copy(data, tmp_path / "copy.jsonl"))))
    assert report.facts["rows_by_status"] == {"ok": 40}
    assert (tmp_path / "out" / "run.json").read_bytes() == before


def test_a_folder_with_other_things_in_it_is_left_alone(config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    (tmp_path / "out" / ".download.partial").write_text("x")
    with pytest.raises(
        SourceMismatch, match=r"is not empty and holds no run of 'probing score' \(\.download\.partial, thesis\.tex\)"
    ):
        score.run(config())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".download.partial", "thesis.tex"]


def test_what_a_killed_run_left_is_removed(config, tmp_path):
    """Before it began, and after it ended but for its shards."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".run.json.1.partial").write_text("half")
    score.run(config())
    (tmp_path / "out" / "shards").mkdir()
    (tmp_path / "out" / ".scores.parquet.1.partial").write_text("half")
    score.run(config())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["plots.html", "run.json", "scores.parquet"]


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(path.read_bytes() + b"x")])
def test_finished_scores_that_changed_are_not_answered(config, tmp_path, change):
    score.run(config())
    change(tmp_path / "out" / "scores.parquet")
    with pytest.raises(StoreCorrupt, match=r"scores\.parquet: gone or changed since the run ended"):
        score.run(config())


def test_a_folder_of_another_command_is_refused(config, tmp_path):
    with claim(tmp_path / "out", "capture") as folder:
        folder.begin({}, {})
    with pytest.raises(SourceMismatch, match="holds a run of 'probing capture', not of 'probing score'"):
        score.run(config())


def test_a_file_as_folder_is_refused(config, tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(SourceMismatch, match="is a file"):
        score.run(config())


def test_a_second_writer_is_refused(config, tmp_path):
    with claim(tmp_path / "out", "score"), pytest.raises(FolderBusy, match="another process is writing there"):
        score.run(config())


def test_a_damaged_run_json_is_named(config, tmp_path):
    score.run(config())
    (tmp_path / "out" / "run.json").write_text("{")
    with pytest.raises(StoreCorrupt, match=r"run\.json: damaged"):
        score.run(config())


def test_a_run_that_fails_before_it_began_leaves_no_folder(config, tmp_path):
    with pytest.raises(DataInvalid):
        score.run(config(data=str(tmp_path / "missing.jsonl")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelInvalid, match="no config"):
        score.run(config(model=str(tmp_path / "empty")))
    with pytest.raises(UsageError, match="only has positions for 512"):
        score.run(config(max_length=600))
    assert not (tmp_path / "out").exists()
    score.run(config(max_length=500))  # the mistake mended, the same folder will do


def test_when_no_pair_can_be_scored_there_is_an_error_and_a_list(config, tmp_path):
    folder = tiny.save_model(tmp_path / "broken")
    language_model = tiny.make_model()
    language_model.model.model.layers[0].mlp.down_proj.weight.data[:] = float("nan")
    language_model.model.save_pretrained(folder)
    with pytest.raises(
        NotFinite, match=r"40 not_finite.*first: line 1 \(id 'r0'\): states are NaN or infinite from layer 0 on"
    ):
        score.run(config(model=str(folder)))
    assert set(scores(tmp_path / "out")["status"]) == {"not_finite"}


def test_a_shuffled_file_has_the_same_scores(config, tmp_path, data):
    score.run(config())
    rows = make_pairs(40)
    random.Random(1).shuffle(rows)
    score.run(config(data=str(write(tmp_path / "shuffled.jsonl", rows)), out=tmp_path / "out2"))
    first, second = (scores(tmp_path / name).set_index("id").drop(columns="row") for name in ("out", "out2"))
    pd.testing.assert_frame_equal(first, second.loc[first.index], check_exact=True)


def options(config):
    return {name: getattr(config, name) for name in ("model", "data", "out", "shard_pairs")}


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_in_the_same_bytes(config, tmp_path, monkeypatch):
    """kill -9 when some shards are there, an interrupt of the run that goes on, then a run to the end."""
    score.run(config(out=tmp_path / "whole"))
    kill("score", options(config()), tmp_path / "said", lambda: count_shards(tmp_path / "out"))
    assert not (tmp_path / "out" / "scores.parquet").exists()
    assert 1 <= count_shards(tmp_path / "out") <= 5
    with monkeypatch.context() as patch:
        note_calls(patch, stages, "_new_shard", 1)
        with pytest.raises(KeyboardInterrupt):
            score.run(config())
    score.run(config())
    for name in ("scores.parquet", "plots.html"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["plots.html", "run.json", "scores.parquet"]


@pytest.mark.slow
def test_ctrl_c_leaves_with_130_and_can_be_resumed(config, tmp_path):
    said, few, at = tmp_path / "said", config(shard_pairs=1), 0
    with started("score", options(few), said, lambda: count_shards(tmp_path / "out")) as process:
        while process.poll() is None:
            # Python drops an interrupt that falls into a finaliser; whoever sees that it goes on hits the keys again.
            if count_shards(tmp_path / "out") > at and "interrupted" not in said.read_text():
                at = count_shards(tmp_path / "out") + 3
                process.send_signal(signal.SIGINT)
            time.sleep(0.05)
    assert process.returncode == 130, said.read_text()
    assert "interrupted; the same command goes on from here" in said.read_text()
    assert "Traceback" not in said.read_text()
    assert 1 <= count_shards(tmp_path / "out") < 40
    score.run(few)
    assert len(scores(tmp_path / "out")) == 40


REAL = "hh-rlhf-harmless-test.jsonl.gz"


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_row_of_a_real_dataset_whatever_the_batch_and_the_order(real_data, tmp_path, config):
    from probing.data.bundled import bundled_model
    from probing.data.pairs import pairs_from_table
    from probing.data.tables import read_table
    from probing.data.writing import write_rows

    table = read_table(str(real_data / REAL))
    pairs = pairs_from_table(table)
    tokenized = PairScorer(load("bundled")).tokenize(pairs)
    assert Counter(pair.status for pair in tokenized) == {"ok": 2308, "empty_response": 4}
    # All rows that have no score, and every fourth of the others, are scored in both ways.
    some = [at for at, pair in enumerate(tokenized) if pair.status != "ok" or at % 4 == 0]
    shuffled = random.Random(0).sample(some, len(some))
    for order, name in ((some, "some.jsonl"), (shuffled, "shuffled.jsonl")):
        write_rows(table, order, tmp_path / name, "jsonl")
    right = shutil.copytree(bundled_model(), tmp_path / "right")
    side = (right / "tokenizer_config.json").read_text()
    assert '"padding_side": "left"' in side
    (right / "tokenizer_config.json").write_text(side.replace('"left"', '"right"'))
    score.run(
        config(
            model="bundled", data=str(tmp_path / "some.jsonl"), out=tmp_path / "a", batch_tokens=512, shard_pairs=128
        )
    )
    changed = {"model": str(right), "data": str(tmp_path / "shuffled.jsonl"), "batch_tokens": 16384, "shard_pairs": 225}
    score.run(config(out=tmp_path / "b", **changed))
    one, other = (scores(tmp_path / name).set_index("id").drop(columns="row") for name in ("a", "b"))
    assert len(one) > 2312 / 4
    assert one.index.tolist() == [pairs[at].id for at in some]
    assert (one["status"] != "ok").sum() == 4
    pd.testing.assert_frame_equal(other.loc[one.index], one, rtol=1e-5, atol=0)


def test_the_plots_are_told_checked_and_not_in_the_way(config, tmp_path):
    """They are part of the record; a run of an earlier version has none."""
    report = score.run(config())
    page = tmp_path / "out" / "plots.html"
    text = page.read_text()
    for name in ("ches", "ches_normalized", "last_state_similarity", "edit_similarity"):
        assert f"Distribution of {name} over " in text
    assert "--drop-highest 0.2" in text
    assert "probing score --data " in text
    assert list(report.facts["sha256"]) == ["plots.html"]
    page.write_text("another")
    with pytest.raises(StoreCorrupt, match=r"plots\.html: gone or changed"):
        score.run(config())
    page.write_text(text)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    for key in ("sha256", "record_sha256"):
        del record[key]
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    page.unlink()
    report = score.run(config())
    assert [Path(path).name for path in report.facts["wrote"]] == ["scores.parquet", "run.json"]


def save_as(form, rows, folder):
    """The rows in a format, with one column whose type JSON does not have; and how its files are read again."""
    dataset = datasets.Dataset.from_list(rows).cast_column("rank", datasets.Value("int8"))
    if form == "jsonl":
        return write(folder / "pairs.jsonl", rows), lambda path: read_lines(path.with_suffix(".jsonl"))
    if form == "parquet":
        dataset.to_parquet(folder / "pairs.parquet")
        return folder / "pairs.parquet", lambda path: datasets.Dataset.from_parquet(str(path.with_suffix(".parquet")))
    dataset.save_to_disk(folder / "pairs")
    return folder / "pairs", lambda path: datasets.load_from_disk(str(path))


@pytest.mark.parametrize("form", ["jsonl", "parquet", "datasets"])
def test_pairs_are_written_with_reference_log_probabilities(form, config, tmp_path, model_folder, monkeypatch, caplog):
    rows = [{**row, "rank": number, "source": {"n": number}} for number, row in enumerate(make_pairs(6))]
    same = {**rows[0], "id": "same", "rejected": rows[0]["chosen"]}
    data, read = save_as(form, [*rows[:2], same, *rows[2:]], tmp_path)
    options = config(data=str(data), write_ref_logps=True)
    with monkeypatch.context() as stopped:
        # Whatever stands there when a run is stopped is written anew.
        stopped.setattr(stages, "write_pages", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            score.run(options)
    report = score.run(options)
    found = read(tmp_path / "out/ref_logps")
    scored = score_pairs(load(str(model_folder)), rows, ["chosen_logprob", "rejected_logprob"])
    assert list(found) == [
        {**row, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        for row, chosen, rejected in zip(rows, scored["chosen_logprob"], scored["rejected_logprob"], strict=True)
    ]
    assert form == "jsonl" or found.features["rank"].dtype == "int8"
    assert "1 of 7 pairs are left out (1 identical)" in caplog.text
    assert {"ches_normalized", "chosen_logprob"} <= set(scores(tmp_path / "out"))
    assert report.facts["ref_logps"]["left_out"] == 1
    name = report.facts["ref_logps"]["file"]
    assert str(tmp_path / "out" / name) in report.facts["wrote"]
    assert score.run(options).facts["wrote"] == report.facts["wrote"]
    with pytest.raises(UsageError, match="has a column ref_chosen_logps and ref_rejected_logps already"):
        score.run(config(data=str(tmp_path / "out" / name), write_ref_logps=True))
    written = tmp_path / "out" / name
    written = written if written.is_file() else written / "dataset_info.json"
    written.write_bytes(written.read_bytes() + b" ")
    with pytest.raises(StoreCorrupt, match=f"{name}: gone or changed since the run ended"):
        score.run(options)


def test_reference_log_probabilities_have_the_end_of_turn(config):
    with pytest.raises(ValueError, match="leave out --no-eos"):
        config(write_ref_logps=True, eos=False)


def test_nothing_is_written_where_no_pair_has_a_score(config, tmp_path):
    rows = [{**row, "rejected": row["chosen"]} for row in make_pairs(2)]
    with pytest.raises(DataInvalid, match="no pair could be scored"):
        score.run(config(data=str(write(tmp_path / "same.jsonl", rows)), write_ref_logps=True))
    assert not list(tmp_path.glob("out/ref_logps*"))
