"""The job ``scale`` of ``bench.py``: a scoring by one process against two under torchrun, and against Ray."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from bench_influence import repeat_pairs
from bench_refusal import make_model
from measuring import spread_of

ROUNDS = 2
SMALL, LARGE = (2, 64), (6, 320)
"""Layers and width of the model: of the large one the passes take nearly all of the time."""
TOLERANCE = 1e-6
LEAST, MOST = 1.6, 1.15
"""Times the throughput of one process that two must have on two cores; times the time of one process that one actor of
Ray may take."""
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
WAYS: dict[str, tuple[list[str], list[str]]] = {
    "one process": ([], []),
    "two processes": (TORCHRUN, []),
    "one actor of Ray": ([], ["--engine", "ray", "--ray-actors", "1"]),
}
"""What starts Python's module, and what the command gets besides."""


def run_scoring(model: Path, data: Path, out: Path, device: str, way: str) -> dict[str, float]:
    """Seconds of the whole command, and of its work after the data were read, which includes loading the model."""
    launcher, further = WAYS[way]
    given = ["score", "--model", str(model), "--data", str(data), "--device", device, "--out", str(out), "--quiet"]
    program = [sys.executable, "-m", *launcher, "probing", *given, *further]
    began = time.monotonic()
    subprocess.run(program, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    whole = time.monotonic() - began
    return {"whole": whole, "work": json.loads((out / "run.json").read_text())["wall_seconds"]}


def check_same(one: Path, two: Path) -> None:
    """Stop unless two runs have the same numbers."""
    before, after = (pd.read_parquet(out / "scores.parquet").sort_values("id") for out in (one, two))
    numbers = list(before.select_dtypes("number"))
    ours, plain = (frame[numbers].to_numpy(np.float64) for frame in (after, before))
    # Relative to the largest number of each column.
    worst = float(np.nanmax(np.abs(ours - plain) / np.nanmax(np.abs(plain), axis=0).clip(1e-9)))
    if after["id"].tolist() != before["id"].tolist() or not worst <= TOLERANCE:
        sys.exit(f"the tables of one and of two processes differ by {worst:.1e}; no times are shown")


def bench_scale(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Whole commands in turn, which of them is first changing from round to round."""
    rows = 80 if options.small else max(options.rows, 20_000)
    seconds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        model, data = Path(folder) / "model", Path(folder) / "pairs.jsonl"
        made = make_model(*SMALL if options.small else LARGE, "cpu")
        made.model.save_pretrained(model)
        made.tokenizer.save_pretrained(model)
        data.write_text("".join(json.dumps(pair) + "\n" for pair in repeat_pairs(rows)), encoding="utf-8")
        for number in range(ROUNDS):
            outs = {way: Path(folder) / f"out-{number}-{way.replace(' ', '-')}" for way in WAYS}
            for way in list(WAYS) if number % 2 else reversed(WAYS):
                seconds[way].append(run_scoring(model, data, outs[way], options.device, way))
                print(f"  {way}: {seconds[way][-1]}", file=sys.stderr, flush=True)
            for out in outs.values():
                check_same(outs["one process"], out)
    plain = seconds["one process"]
    results: list[dict[str, Any]] = []
    for part in ("whole", "work"):
        faster = [one[part] / two[part] for one, two in zip(plain, seconds["two processes"], strict=True)]
        slower = [ray[part] / one[part] for one, ray in zip(plain, seconds["one actor of Ray"], strict=True)]
        common = {"pairs": rows, "seconds_of_one_process": round(plain[0][part], 1)}
        results += [
            {"figure": f"throughput of two processes, {part}", **common, **spread_of(faster), "least_wanted": LEAST},
            {"figure": f"time of one actor of Ray, {part}", **common, **spread_of(slower), "most_wanted": MOST},
        ]
    return results
