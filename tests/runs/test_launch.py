"""Commands launched in several processes: the same bytes as in one, whatever dies on the way."""

import os
import signal

import pytest
import refusal_runs
import tiny
from harness import (
    ON_A_SLOW_DISK,
    PATIENCE_SECONDS,
    as_options,
    count_shards,
    make_pairs,
    make_rollouts,
    make_texts,
    read_files,
    read_lines,
    wait_for,
    write,
)
from launches import find_rank, launch, launched

from probing.runs import capture, clusters, displacement, influence, rollouts, score
from probing.store.manifest import claim
from probing.store.shards import read_shard

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write(folder / "pairs.jsonl", make_pairs(40))
    write(folder / "held.jsonl", make_pairs(4, seed=1))
    write(folder / "rollouts.jsonl", make_rollouts(20))
    write(folder / "texts.jsonl", make_texts(60))
    tiny.save_model(folder / "other", seed=1)
    return folder


def options(command, model_folder, inputs, out):
    """A small run of a command, in parts of a few rows."""
    model, inputs = str(model_folder), f"{inputs}/"
    of_rows = {"model": model, "out": out}
    return {
        "score": of_rows | {"data": inputs + "pairs.jsonl", "shard_pairs": 4, "pull": True},
        "displacement": {
            **{"reference": model, "policy": inputs + "other", "data": inputs + "pairs.jsonl"},
            **{"shard_pairs": 4, "out": out},
        },
        "influence": {
            **of_rows,
            **{"data": inputs + "pairs.jsonl", "target": inputs + "held.jsonl", "joint": True, "shard_pairs": 8},
            **{"pilot_steps": 2, "learning_rate": 1e-3, "pilot_influence": True, "null_draws": 2, "step": 0.01},
            **{"batch_pairs": 4, "optimizer_batches": 2},
        },
        "rollouts": of_rows | {"data": inputs + "rollouts.jsonl", "shard_groups": 3},
        "capture": of_rows | {"data": inputs + "texts.jsonl", "places": "resid_post:all", "shard_rows": 7},
        "clusters": {
            **{"model": [model], "data": inputs + "texts.jsonl", "out": out},
            **{"components": 2, "tsne": False},
        },
    }[command]


RUNS = {
    "score": score,
    "displacement": displacement,
    "rollouts": rollouts,
    "influence": influence,
    "capture": capture,
    "clusters": clusters,
}


def score_words(model_folder, inputs, tmp_path, **changes):
    """The command line of a scoring into the folder ``out``."""
    return ["score", *as_options(options("score", model_folder, inputs, tmp_path / "out") | changes)]


@pytest.mark.parametrize("command", list(RUNS))
def test_two_processes_write_the_bytes_of_one(command, model_folder, inputs, tmp_path):
    status, printed, said = launch([command, *as_options(options(command, model_folder, inputs, tmp_path / "two"))], 2)
    assert status == 0, said
    config = RUNS[command].run.__annotations__["config"]
    plain = RUNS[command].run(config(**options(command, model_folder, inputs, tmp_path / "one")))
    assert read_files(tmp_path / "two") == read_files(tmp_path / "one")
    assert printed.count(next(iter(plain.tables))) == 1
    assert said.count("wrote ") == 1


def test_two_processes_measure_an_edit_as_one_does(refusal_run, tmp_path):
    data = refusal_run / "prompts.jsonl"
    status, _, said = launch(refusal_runs.options_of("evaluate", data, refusal_run, tmp_path / "two"), 2)
    assert status == 0, said
    assert read_files(tmp_path / "two") == read_files(refusal_run / "evaluate")


def test_a_rank_that_is_killed_loses_nothing_that_others_finished(model_folder, inputs, tmp_path):
    words = score_words(model_folder, inputs, tmp_path)
    with launched(words, 2) as launcher:
        rank = wait_for(lambda: count_shards(tmp_path / "out") > 2 and find_rank(launcher, 1), launcher)
        os.kill(rank, signal.SIGKILL)
        assert launcher.wait(PATIENCE_SECONDS) != 0
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").glob("0*.parquet")}
    assert 2 < len(kept) < 10
    # Three processes go on where two stopped.
    with launched(words, 3) as launcher:
        wait_for(lambda: count_shards(tmp_path / "out") > len(kept), launcher)
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        assert launcher.wait(PATIENCE_SECONDS) == 0
    score.run(score.ScoreConfig(**options("score", model_folder, inputs, tmp_path / "one")))
    assert read_files(tmp_path / "out") == read_files(tmp_path / "one")


def test_a_full_disk_of_one_rank_ends_the_launch_and_loses_nothing(model_folder, inputs, tmp_path):
    # A real limit on file size, as a quota sets it, in a process that only writes shards.
    limit = "import os, resource\nif os.environ['RANK'] == '1': resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))"
    words = score_words(model_folder, inputs, tmp_path)
    status, printed, said = launch(words, 2, f"{limit}\n{ON_A_SLOW_DISK}")
    assert status != 0
    assert not printed
    assert said.count("File too large; nothing partial was left") == 1
    config = score.ScoreConfig(**options("score", model_folder, inputs, tmp_path / "out"))
    score.run(config)
    score.run(score.ScoreConfig(**options("score", model_folder, inputs, tmp_path / "one")))
    assert read_files(tmp_path / "out") == read_files(tmp_path / "one")


def test_a_damaged_part_is_made_again_by_whoever_gets_it(model_folder, inputs, tmp_path):
    words = score_words(model_folder, inputs, tmp_path)
    with launched(words, 2) as launcher:
        wait_for(lambda: count_shards(tmp_path / "out") > 3, launcher)
        os.kill(wait_for(lambda: find_rank(launcher, 0), launcher), signal.SIGKILL)
        assert launcher.wait(PATIENCE_SECONDS) != 0
    damaged = min((tmp_path / "out" / "shards").glob("0*.parquet"))
    schema = read_shard(damaged, pa_schema(damaged))[0].schema
    damaged.write_bytes(damaged.read_bytes()[:-40])
    assert read_shard(damaged, schema) is None
    assert launch(words, 2)[0] == 0
    score.run(score.ScoreConfig(**options("score", model_folder, inputs, tmp_path / "one")))
    assert read_files(tmp_path / "out") == read_files(tmp_path / "one")


def pa_schema(path):
    import pyarrow.parquet as pq

    return pq.read_schema(path).remove_metadata()


def test_a_launch_into_a_folder_that_is_held_is_refused(model_folder, inputs, tmp_path):
    with claim(tmp_path / "out", "score"):
        status, printed, said = launch(score_words(model_folder, inputs, tmp_path), 2)
    assert status != 0
    assert said.count("another process is writing there") == 1
    assert not printed


def test_a_row_that_cannot_be_run_is_a_status(model_folder, inputs, tmp_path):
    rows = read_lines(inputs / "pairs.jsonl")
    rows[13]["chosen"] = ""
    words = score_words(model_folder, inputs, tmp_path, data=str(write(tmp_path / "bad.jsonl", rows)))
    status, printed, said = launch(words, 2)
    assert status == 0, said
    assert "empty_response" in printed


def test_wrong_input_is_told_once(model_folder, inputs, tmp_path):
    words = score_words(model_folder, inputs, tmp_path, data=str(tmp_path / "none.jsonl"))
    status, _, said = launch(words, 2)
    assert status != 0
    assert said.count("none.jsonl: no such file") == 1


def test_commands_without_rows_run_once(model_folder, inputs, tmp_path):
    values = {"data": inputs / "pairs.jsonl", "scores": tmp_path / "out", "by": "ches", "drop_highest": 0.5}
    score.run(score.ScoreConfig(**options("score", model_folder, inputs, tmp_path / "out")))
    status, _, said = launch(["filter", *as_options({**values, "out": tmp_path / "kept.jsonl"})], 2)
    assert status == 0, said
    assert len(read_lines(tmp_path / "kept.jsonl")) == 20
    assert said.count("wrote ") == 1
