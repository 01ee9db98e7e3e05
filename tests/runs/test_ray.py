"""Blocks of a run made by actors of Ray: the bytes of one process, whatever dies on the way."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
import ray
import tiny
from harness import (
    ON_A_SLOW_DISK,
    as_options,
    count_shards,
    make_pairs,
    make_rollouts,
    make_texts,
    note_calls,
    read_files,
    read_lines,
    wait_for,
    write,
)
from ray.cluster_utils import Cluster

import probing
from probing.engine.budget import TokenBudget
from probing.errors import FolderBusy, ModelInvalid, SourceMismatch, UsageError, WorkerLost
from probing.runs import capture, displacement, rollouts, score
from probing.runs.common import on_ray
from probing.runs.common.makers import Block
from probing.runs.common.options import EngineOptions
from probing.runs.score import stages
from probing.store.manifest import claim

pytestmark = pytest.mark.distributed

ON_RAY = {"engine": "ray", "ray_cpus": 0.5}


@pytest.fixture(scope="module")
def cluster():
    """Ray in this process, for all tests that need no cluster of their own."""
    # The actors unpickle workers of this module, which they cannot import.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with on_ray.connect(EngineOptions(engine="ray", ray_actors=4)):
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write(folder / "pairs.jsonl", make_pairs(40))
    write(folder / "rollouts.jsonl", make_rollouts(20))
    write(folder / "texts.jsonl", make_texts(60))
    tiny.save_model(folder / "other", seed=1)
    return folder


JOBS = {"score": score, "displacement": displacement, "rollouts": rollouts, "capture": capture}


def configure(command, model_folder, inputs, out, **changes):
    """A small run of a command, in parts of a few rows."""
    model = str(model_folder)
    values = {
        "score": {"model": model, "data": str(inputs / "pairs.jsonl"), "shard_pairs": 4, "pull": True},
        "displacement": {
            **{"reference": model, "policy": str(inputs / "other"), "data": str(inputs / "pairs.jsonl")},
            "shard_pairs": 4,
        },
        "rollouts": {"model": model, "data": str(inputs / "rollouts.jsonl"), "shard_groups": 3},
        "capture": {
            **{"model": model, "data": str(inputs / "texts.jsonl"), "places": "resid_post:all", "shard_rows": 7},
        },
    }[command]
    return JOBS[command].run.__annotations__["config"](**{**values, "out": out, **changes})


@pytest.mark.parametrize("command", list(JOBS))
def test_actors_write_the_bytes_of_one_process(command, model_folder, inputs, tmp_path, cluster):
    actors = 2 if command == "score" else 1
    made = JOBS[command].run(configure(command, model_folder, inputs, tmp_path / "ray", ray_actors=actors, **ON_RAY))
    plain = JOBS[command].run(configure(command, model_folder, inputs, tmp_path / "one"))
    assert read_files(tmp_path / "ray") == read_files(tmp_path / "one")
    assert list(made.tables) == list(plain.tables)
    # The run is finished: without Ray it is shown again.
    again = JOBS[command].run(configure(command, model_folder, inputs, tmp_path / "ray"))
    assert again.tables.keys() == plain.tables.keys()


def test_a_finished_run_is_shown_again(model_folder, inputs, tmp_path, cluster):
    score.run(configure("score", model_folder, inputs, tmp_path / "out"))
    before = read_files(tmp_path / "out")
    report = score.run(configure("score", model_folder, inputs, tmp_path / "out", **ON_RAY))
    assert report.facts["rows_by_status"] == {"ok": 40}
    assert read_files(tmp_path / "out") == before


def test_rows_are_added_to_a_store_by_actors(model_folder, inputs, tmp_path, cluster):
    more = write(tmp_path / "more.jsonl", [{**row, "id": f"more-{row['id']}"} for row in make_texts(20)])
    for name, engine in (("one", {}), ("ray", ON_RAY)):
        capture.run(configure("capture", model_folder, inputs, tmp_path / name))
        added = {**engine, "data": str(more), "append": True}
        capture.run(configure("capture", model_folder, inputs, tmp_path / name, **added))
    assert read_files(tmp_path / "ray") == read_files(tmp_path / "one")
    assert len(pd.read_parquet(tmp_path / "ray" / "rows.parquet")) == 80


def test_a_row_that_cannot_be_run_is_a_status(model_folder, inputs, tmp_path, cluster):
    rows = read_lines(inputs / "pairs.jsonl")
    rows[13]["chosen"] = ""
    data = str(write(tmp_path / "bad.jsonl", rows))
    score.run(configure("score", model_folder, inputs, tmp_path / "ray", data=data, **ON_RAY))
    frame = pd.read_parquet(tmp_path / "ray" / "scores.parquet")
    assert Counter(frame["status"]) == {"ok": 39, "empty_response": 1}
    assert frame["status"][13] == "empty_response"


def test_what_an_actor_cannot_load_is_told_as_without_ray(model_folder, inputs, tmp_path, cluster):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    with pytest.raises(ModelInvalid) as plain:
        score.run(configure("score", model_folder, inputs, tmp_path / "one", model=str(broken)))
    with pytest.raises(ModelInvalid) as told:
        score.run(configure("score", model_folder, inputs, tmp_path / "ray", model=str(broken), **ON_RAY))
    assert str(told.value) == str(plain.value)
    assert not (tmp_path / "ray").exists()


def test_a_folder_of_another_run_is_refused(model_folder, inputs, tmp_path, cluster):
    score.run(configure("score", model_folder, inputs, tmp_path / "out"))
    with pytest.raises(SourceMismatch, match="weights_sha256"):
        score.run(configure("score", model_folder, inputs, tmp_path / "out", model=str(inputs / "other"), **ON_RAY))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ray_address": "ray://head:10001"}, "must be auto or HOST:PORT"),
        ({"ray_address": "localhost:1"}, "no cluster of Ray answers at localhost:1"),
        ({"ray_actors": 4, "ray_max_actors": 2}, "less than ray_actors"),
        ({"engine": "local", "ray_actors": 4}, "give --engine ray with it"),
    ],
)
def test_what_ray_cannot_do_is_told_before_it_is_started(changes, why, monkeypatch):
    monkeypatch.setattr(ray, "init", None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ValueError, match=why), on_ray.connect(EngineOptions(**{**ON_RAY, **changes})):
        pass


def test_cards_that_are_not_there_are_not_waited_for(cluster):
    with pytest.raises(UsageError, match="more cards than this machine has for Ray, 0"):
        run_stub(2, ray_gpus=1)


def test_two_drivers_on_one_folder_are_refused(model_folder, inputs, tmp_path, monkeypatch):
    # Before anything of Ray is started.
    monkeypatch.setattr(on_ray, "connect", None)
    with claim(tmp_path / "out", "score"), pytest.raises(FolderBusy, match="another process is writing there"):
        score.run(configure("score", model_folder, inputs, tmp_path / "out", **ON_RAY))


def test_a_model_in_memory_is_refused(tmp_path):
    model = tiny.make_model()
    with pytest.raises(UsageError, match="name its folder or its hub id"):
        probing.score(model=model, data=make_pairs(4), out=tmp_path / "out", engine="ray")


@dataclass
class Stub:
    """A worker without a model; it makes a number of every row.

    Attributes:
        config: the options.
        die_on: a row that ends the process of its actor; "once" only the first time, by a file.
        differs: whether every process says that it has another model.
        seconds: time that it takes for a block.
    """

    config: object
    die_on: object = None
    once: str = ""
    differs: bool = False
    seconds: float = 0.02

    @property
    def streams(self):
        return [SimpleNamespace(budget=TokenBudget(8, "of a stub"))]

    def describe(self):
        return {"model": os.getpid() if self.differs else 1}

    def how(self):
        return "as it is"

    def prepare(self, rows, where):
        return rows

    def make(self, rows, report):
        time.sleep(self.seconds)
        if self.die_on in rows and not (self.once and os.path.exists(self.once)):
            if self.once:
                open(self.once, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        report(len(rows), 0)
        return [row * 10 for row in rows]


def make_blocks(count):
    return [Block(number, [2 * number, 2 * number + 1], str) for number in range(count)]


def run_stub(count, ray_gpus=None, **facts):
    """The answers to so many blocks of stubs, by number."""
    config = EngineOptions(ray_actors=2, ray_gpus=ray_gpus, **ON_RAY)
    with on_ray.RayWorkers(config, partial(Stub, **facts), make_blocks(count), None) as workers:
        made = list(workers.maker(None).receive())
    assert sorted(delivery.number for delivery in made) == list(range(count))
    return made


def test_a_row_that_kills_its_actor_once_is_made_by_another(cluster, tmp_path):
    made = run_stub(12, die_on=8, once=str(tmp_path / "died"))
    assert (tmp_path / "died").exists()
    assert {delivery.number: delivery.made for delivery in made}[4] == [80, 90]


def test_a_row_that_kills_every_actor_ends_the_run(cluster, monkeypatch):
    monkeypatch.setattr(on_ray, "RESTARTS", 1)
    with pytest.raises(WorkerLost, match="the same command goes on from here"):
        run_stub(12, die_on=8)


def test_actors_that_differ_are_refused(cluster):
    with pytest.raises(SourceMismatch, match="does not compute what the others do"):
        run_stub(40, differs=True)


def test_blocks_come_as_they_are_done_and_are_counted_for_their_actors(cluster):
    made = run_stub(60)
    last = {delivery.rank: delivery.worker for delivery in made}
    assert sum(worker.rows for worker in last.values()) == 120
    assert len({worker.pid for worker in last.values()}) == len(last) == 2


def test_killed_actors_and_a_killed_command_lose_nothing_that_is_done(model_folder, inputs, tmp_path):
    data = str(write(tmp_path / "many.jsonl", make_pairs(400)))
    config = configure("score", model_folder, inputs, tmp_path / "out", data=data)
    given = {name: value for name, value in config.plain().items() if value is not None}
    words = ["score", *as_options({**given, **ON_RAY, "ray_actors": 2})]
    with started_on_ray(words) as process:
        actor = wait_for(lambda: find_actor(tmp_path / "out", process.pid), process)
        os.kill(actor, signal.SIGKILL)
        known = count_shards(tmp_path / "out")
        wait_for(lambda: count_shards(tmp_path / "out") > known + 5, process)
        process.kill()
        process.wait()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").glob("0*.parquet")}
    assert 8 < len(kept) < 100
    # What Ray began this process ends.
    with pytest.MonkeyPatch.context() as patch:
        made = note_calls(patch, stages, "_new_shard")
        score.run(config)
    assert len(made) == 100 - len(kept)
    score.run(configure("score", model_folder, inputs, tmp_path / "one", data=data))
    assert read_files(tmp_path / "out") == read_files(tmp_path / "one")


@contextlib.contextmanager
def started_on_ray(words):
    """A command that starts Ray by itself, on a slow disk; it is ended with the block."""
    given = [sys.executable, "-c", ON_A_SLOW_DISK, *words]
    with subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def find_actor(folder, command):
    """The process of an actor, as the note of a running command names it; None while there is none."""
    with contextlib.suppress(OSError):
        workers = json.loads((folder / "progress.json").read_text())["parts"][-1]["workers"]
        return next((worker["pid"] for worker in workers if worker["pid"] != command), None)
    return None


def test_a_machine_of_the_cluster_is_lost(tmp_path):
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1, "include_dashboard": False})
    try:
        lost = cluster.add_node(num_cpus=2, num_gpus=1)
        cluster.wait_for_nodes()
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        # One actor a card, of which Ray believes that there are two.
        config = EngineOptions(engine="ray", ray_address=cluster.address)
        with on_ray.RayWorkers(config, partial(Stub, seconds=0.2), make_blocks(60), None) as workers:
            made = []
            for delivery in workers.maker(None).receive():
                made.append(delivery)
                if len({each.worker.pid for each in made}) == 2 and lost is not None:
                    cluster.remove_node(lost, allow_graceful=False)
                    # Where the actor that was on it starts again.
                    cluster.add_node(num_cpus=2, num_gpus=1)
                    lost = None
        assert lost is None
        assert sorted(each.number for each in made) == list(range(60))
        assert {each.number: each.made for each in made}[7] == [140, 150]
    finally:
        ray.shutdown()
        cluster.shutdown()
