"""``probing status``: jobs that run, died or ended, watched from outside."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pyarrow as pa
import pytest
from harness import as_options, make_pairs, make_rollouts, write

from probing.runs.status.data import read_status
from probing.store.files import file_sha256
from probing.store.manifest import SHARDS, claim
from probing.store.progress import NOTE
from probing.store.shards import count_statuses, shard_path, write_shard

# Every shard takes a while, so that there is time to look.
SLOWLY = """
import time
from probing.instruments.pair_scores import PairScorer
plain = PairScorer.score_tokenized
PairScorer.score_tokenized = lambda self, *given: (time.sleep(0.8), plain(self, *given))[1]
from probing.cli import main
main()
"""
LIMIT_SECONDS = 120


@pytest.fixture
def data(tmp_path):
    """Pairs, of which two have statuses of their own."""
    rows = make_pairs(80)
    rows[1]["chosen"] = " "
    rows[4]["rejected"] = rows[4]["chosen"]
    return write(tmp_path / "pairs.jsonl", rows)


@pytest.fixture
def options(model_folder, data, tmp_path):
    return {"model": model_folder, "data": data, "out": tmp_path / "out", "shard_pairs": 4}


@contextmanager
def running(program, said):
    """A process, which is killed afterwards if it still runs."""
    with (
        said.open("ab") as stream,
        subprocess.Popen(program, stdout=stream, stderr=stream, start_new_session=True) as process,
    ):
        try:
            yield process
        finally:
            # The processes of a launch end with their launcher.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(find, process, said):
    """What ``find`` gives once that is true."""
    until = time.monotonic() + LIMIT_SECONDS
    while not (found := find()):
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < until, "nothing came of it"
        time.sleep(0.05)
    return found


def look(probing, *folders):
    """Exit status, and the tables."""
    status, out, _ = probing("status", *folders, "--json")
    return status, json.loads(out)["tables"]


@pytest.mark.slow
def test_a_job_is_watched_while_it_runs_after_a_kill_and_at_its_end(probing, options, tmp_path):
    out, said = options["out"], tmp_path / "said"
    with running([sys.executable, "-c", SLOWLY, "score", *as_options(options)], said) as process:

        def find():
            found = read_status(out)
            return found.parts and found.parts[0][1].failures and found

        wait_for(find, process, said)
        status, tables = look(probing, out)
        (run,), (part,), (worker,) = tables["Runs"], tables["Parts"], tables["Workers"]
        assert (status, run["state"], run["command"], run["ended_by"]) == (0, "running", "score", None)
        assert run["noted_seconds_ago"] < LIMIT_SECONDS
        assert (part["doing"], part["unit"], part["of"], part["within"]) == ("scoring", "pairs", 80, "")
        assert 4 <= part["rows"] < 80
        assert part["rows_per_second"] == pytest.approx(part["rows"] / part["seconds"])
        assert part["seconds_left"] == pytest.approx((80 - part["rows"]) / part["rows_per_second"])
        assert part["tokens_per_second"] > 0
        assert {row["status"] for row in tables["Failures by status"]} <= {"empty_response", "identical"}
        assert (worker["worker"], worker["pid"], worker["rows"]) == (0, process.pid, part["rows"])
        assert process.poll() is None

        process.send_signal(signal.SIGKILL)
        process.wait()
    done = len(list((out / SHARDS).glob("*.parquet"))) * 4
    assert 0 < done < 80
    status, tables = look(probing, out)
    assert (status, tables["Runs"][0]["state"], tables["Runs"][0]["ended_by"]) == (1, "dead", None)
    _, text, _ = probing("status", out)
    assert "'probing score' died; the same command goes on from there; noted " in " ".join(text.split())

    # Counted from the files, it has at least as much as was noted last.
    noted = tables["Parts"][0]
    (out / NOTE).unlink()
    status, tables = look(probing, out)
    (part,), failures = tables["Parts"], {row["status"]: row["rows"] for row in tables["Failures by status"]}
    assert (status, tables["Runs"][0]["counted"], part["rows"], part["of"]) == (1, True, done, None)
    assert part["rows"] >= noted["rows"]
    assert failures == {"empty_response": 1, "identical": 1}

    assert probing("score", *as_options(options))[0] == 0
    status, tables = look(probing, out)
    (run,), (part,) = tables["Runs"], tables["Parts"]
    assert (status, run["state"], part["rows"], part["of"]) == (0, "finished", 80, 80)
    assert not (out / NOTE).exists()
    # What was watched has the same bytes.
    assert probing("score", *as_options({**options, "out": tmp_path / "other"}))[0] == 0
    assert file_sha256(out / "scores.parquet") == file_sha256(tmp_path / "other" / "scores.parquet")


def test_a_job_that_has_not_begun_to_work_is_running(probing, tmp_path):
    with claim(tmp_path / "out", "score"):
        status, out, _ = probing("status", tmp_path / "out")
        assert (status, "a command is running (it has not begun to work yet)" in " ".join(out.split())) == (0, True)


def test_an_interrupt_is_told(probing, options, monkeypatch):
    from probing.instruments.pair_scores import PairScorer

    plain, calls = PairScorer.score_tokenized, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(PairScorer, "score_tokenized", stop)
    assert probing("score", *as_options(options))[0] == 130
    status, tables = look(probing, options["out"])
    assert (status, tables["Runs"][0]["ended_by"], tables["Parts"][0]["rows"]) == (1, "KeyboardInterrupt", 8)
    monkeypatch.setattr(PairScorer, "score_tokenized", plain)
    assert probing("score", *as_options(options))[0] == 0
    assert look(probing, options["out"])[0] == 0


@pytest.fixture
def dead(options, tmp_path):
    """The folder of a run that died in the midst of its work, as files would have it."""
    folder = tmp_path / "dead"
    facts = {"tokens": 90, "seconds": 3.0, "problems": []}
    rows = pa.table({"id": ["a", "b", "c"], "status": ["ok", "truncated", "ok"]})
    with claim(folder, "displacement") as run:
        run.begin({}, {})
    for number in range(2):
        write_shard(shard_path(folder / SHARDS, number), rows, facts)
    write_shard(shard_path(folder / SHARDS, 0, "tokens_"), rows, {})
    write_shard(shard_path(folder / SHARDS, 1_000_000, "step_000000010_"), pa.table({"id": ["a", "b"]}), {})
    write_shard(shard_path(folder / SHARDS, 0, "step_000000020_"), pa.table({"place": ["a"]}), {})
    return folder


def counted_parts(tables):
    return {part["doing"]: (part["rows"], part["tokens"]) for part in tables["Parts"]}


def test_parts_of_a_dead_run_are_counted_from_the_files_and_named(probing, dead):
    (dead / SHARDS / "000007.parquet").write_bytes(b"PAR1 not whole")
    (dead / SHARDS / "000008.parquet").symlink_to(dead / SHARDS / "000000.parquet")
    status, tables = look(probing, dead)
    assert (status, tables["Runs"][0]["state"], tables["Runs"][0]["counted"]) == (1, "dead", True)
    assert counted_parts(tables) == {"rows": (6, 180), "step 000000010": (2, 0), "step 000000020": (1, 0)}
    assert tables["Parts"][0]["tokens_per_second"] == 30
    assert tables["Failures by status"] == [{"folder": str(dead), "doing": "rows", "status": "truncated", "rows": 2}]
    assert tables["Workers"] == []


@pytest.mark.parametrize("damage", ["{", "[]", '{"parts": 3}', "link"])
def test_a_damaged_note_is_told_and_the_files_are_counted(probing, dead, damage):
    if damage == "link":
        (dead / NOTE).symlink_to(dead / "run.json")
    else:
        (dead / NOTE).write_text(damage)
    status, tables = look(probing, dead)
    assert (status, tables["Runs"][0]["state"]) == (1, "dead")
    assert NOTE in tables["Runs"][0]["why"]
    assert counted_parts(tables)["rows"] == (6, 180)
    assert "counted from the parts that are there" in " ".join(probing("status", dead)[1].split())


def test_responses_of_a_group_are_one_row():
    rows = pa.table({"group": ["g", "g", "h"], "id": ["1", "2", "3"], "status": ["ok", "ok", "no_reward"]})
    assert count_statuses(rows) == {"ok": 1, "no_reward": 1}
    assert count_statuses(rows.drop_columns(["group"])) == {"ok": 2, "no_reward": 1}
    assert count_statuses(rows.drop_columns(["status"])) == {}


@pytest.mark.parametrize(("age", "state"), [(5, "running"), (1000, "dead")])
def test_a_run_on_another_machine_is_on_if_it_noted_something_lately(probing, dead, age, state):
    part = {"within": "", "doing": "scoring", "unit": "pairs", "total": 10, "earlier": 0, "earlier_statuses": {}}
    note = {"time": time.time() - age, "pid": 7, "host": "elsewhere", "ended": None, "parts": [{**part, "workers": []}]}
    (dead / NOTE).write_text(json.dumps(note))
    assert look(probing, dead)[1]["Runs"][0]["state"] == state
    # Of this machine the lock is known.
    (dead / NOTE).write_text(json.dumps({**note, "host": os.uname().nodename}))
    assert look(probing, dead)[1]["Runs"][0]["state"] == "dead"


def test_what_is_no_run_is_told(probing, tmp_path, dead):
    empty, foreign = tmp_path / "empty", tmp_path / "foreign"
    empty.mkdir()
    foreign.mkdir()
    (foreign / "manifest.json").write_text('{"name": "an app"}')
    status, out, _ = probing("status", tmp_path / "none")
    assert (status, " ".join(out.split())) == (2, f"{tmp_path / 'none'}: no run, there is no such folder")
    status, tables = look(probing, empty, dead)
    assert (status, [run["state"] for run in tables["Runs"]]) == (2, ["no run", "dead"])
    status, tables = look(probing, foreign)
    assert (status, tables["Runs"][0]["state"]) == (1, "unreadable")
    assert "schema_version missing" in tables["Runs"][0]["why"]
    assert sorted(path.name for path in foreign.iterdir()) == ["manifest.json"]
    assert probing("status")[0] == 2


def test_a_folder_that_may_not_be_read_is_told(probing, dead, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("probing.runs.status.data.is_claimed", refuse)
    status, out, errors = probing("status", dead)
    assert (status, " ".join(out.split()), errors) == (1, f"{dead}: unreadable, Permission denied", "")


def test_stores_of_states_and_finished_runs_of_groups_are_told(probing, tmp_path):
    states, rates = tmp_path / "states", tmp_path / "rates"
    texts = write(tmp_path / "texts.jsonl", [{"text": "One text."}, {"text": " "}, {"text": "Another."}])
    groups = write(tmp_path / "groups.jsonl", make_rollouts(5))
    model = ["--model", "bundled"]
    assert probing("capture", *model, "--data", texts, "--places", "final_norm", "--out", states)[0] == 0
    assert probing("rollouts", *model, "--data", groups, "--out", rates)[0] == 0
    status, tables = look(probing, states, rates)
    assert (status, [run["command"] for run in tables["Runs"]]) == (0, ["capture", "rollouts"])
    assert [part["rows"] for part in tables["Parts"]] == [3, 5]
    assert tables["Failures by status"][0]["status"] == "empty_text"


def test_states_within_a_run_are_counted(probing, dead, tmp_path):
    texts = write(tmp_path / "texts.jsonl", [{"text": "One text."}, {"text": "Another."}])
    states = dead / "states"
    given = ["--model", "bundled", "--data", texts, "--places", "final_norm", "--out", states]
    assert probing("capture", *given)[0] == 0
    _, tables = look(probing, dead)
    assert (tables["Parts"][0]["within"], tables["Parts"][0]["rows"]) == ("states", 2)
    assert look(probing, states)[1]["Runs"][0]["state"] == "finished"


def test_lines_fit_a_terminal_of_80_columns(probing, dead, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    statuses = {"ok": 100000, "truncated": 12345, "prompt_too_long": 2345, "empty_response": 345, "refused": 3}
    worker = {"rows": 1e7, "tokens": 10**10, "seconds": 1e5, "statuses": statuses, "pid": 1, "host": "node-12"}
    part = {"within": "", "doing": "scoring", "unit": "pairs", "total": 10**8, "earlier": 0, "earlier_statuses": {}}
    part["workers"] = [{"rank": rank, **worker} for rank in range(2)]
    note = {"time": time.time() - 200, "pid": 7, "host": "node-12", "ended": None, "parts": [part]}
    (dead / NOTE).write_text(json.dumps(note))
    with claim(shutil.copytree(dead, dead.parent / "on"), "displacement"):
        (dead.parent / "on" / NOTE).write_text(json.dumps(note))
        _, out, _ = probing("status", os.path.relpath(dead.parent / "on"))
    lines = out.splitlines()
    assert max(len(line) for line in lines[1:]) <= 80
    text = " ".join(out.split())
    assert "is running; noted 3 min ago by process 7 on node-12" in text
    assert "20,000,000 of 100,000,000 pairs (20%), 200.0 pairs/s, 200,000 tokens/s, 4 days, 15:06:40 left" in text
    assert "worker 1 10,000,000 pairs, 100.0 pairs/s, 100,000 tokens/s" in text
    assert "failed 24,690 truncated, 4,690 prompt_too_long, 690 empty_response, 6 others" in text


def test_torch_is_not_loaded(dead):
    code = (
        "import sys\nfrom probing.cli import main\n"
        f"try: main(['status', {str(dead)!r}])\n"
        "except SystemExit as left: print(left.code, {'torch', 'transformers'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "1 set()"


@pytest.mark.slow
@pytest.mark.distributed
def test_every_process_of_a_launch_is_told(probing, options, tmp_path):
    said, script = tmp_path / "said", tmp_path / "slowly.py"
    script.write_text(SLOWLY)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with running([*launch, script, "score", *as_options(options)], said) as process:

        def find():
            found = read_status(options["out"])
            works = [work for _, work in found.parts if len(work.workers) == 2]
            return works and works[0].workers[1].rows >= 4 and works[0].failures and found

        wait_for(find, process, said)
        status, tables = look(probing, options["out"])
        workers = tables["Workers"]
        assert (status, [worker["worker"] for worker in workers]) == (0, [0, 1])
        assert len({worker["pid"] for worker in workers}) == 2
        assert sum(worker["rows"] for worker in workers) == pytest.approx(tables["Parts"][0]["rows"])
        assert re.search(r"worker 1 +\d+ pairs, ", probing("status", options["out"])[1])
        assert process.wait(LIMIT_SECONDS) == 0, said.read_text()
    status, tables = look(probing, options["out"])
    assert (status, tables["Parts"][0]["rows"]) == (0, 80)
    assert not (options["out"] / NOTE).exists()
