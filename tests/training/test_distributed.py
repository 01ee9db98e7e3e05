"""Two processes that train together log what one process would."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import pairs_of

from probing import capture, load, score_pairs
from probing.metrics.drift import linear_cka
from probing.types import Capture

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def run(out):
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / "tests"))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    running = subprocess.Popen(
        [*command, HERE / "run_distributed.py", out],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, said = running.communicate(timeout=300)
    finally:
        # The processes that the launcher started outlive it where they hang.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 0, said[-3000:]
    return [json.loads((out / f"rows-{rank}.json").read_text()) for rank in (0, 1)], said


def test_both_processes_log_what_one_measures(tmp_path):
    (rows, others), said = run(tmp_path)
    assert rows == others
    assert [step for step, row in rows.items() if "chosen_change" in row or "cka/resid_post:3" in row] == [
        "2",
        "4",
        "6",
    ]
    near = pairs_of("near_identical_refusal")[48:61]
    after = load(str(tmp_path / "checkpoint-4"))
    columns = ["chosen_logprob", "rejected_logprob", "ches"]
    old, new = (score_pairs(model, near, columns=columns) for model in (load("bundled"), after))
    history = (tmp_path / "probing/displacement/history.jsonl").read_text().splitlines()
    last = json.loads(history[-1])
    assert [json.loads(line)["step"] for line in history] == [2, 4]
    for side in ("chosen", "rejected"):
        expected = (new[f"{side}_logprob"] - old[f"{side}_logprob"]).mean()
        assert last[f"{side}_change"] == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert last["ches"] == pytest.approx(new["ches"].mean(), rel=1e-5)
    prompts = [row["prompt"][0]["content"] for row in near]
    request = Capture(("resid_post:3",), "last", "prompt", chat=True)
    states = [capture(model, prompts, request).values[:, 0] for model in (load("bundled"), after)]
    geometry = json.loads((tmp_path / "probing/geometry/history.jsonl").read_text().splitlines()[1])
    assert geometry["cka/resid_post:3"] == pytest.approx(linear_cka(*states, debiased=True), rel=1e-5)

    # At step 6 one process failed, which ended this callback in both, and not the other one.
    assert "chosen_change" not in rows["6"]
    assert "no luck in here" in said
    assert "cka/resid_post:3" in rows["6"]
