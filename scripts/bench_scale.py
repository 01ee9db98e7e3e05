"""The job ``scale`` of ``bench.py``: a scoring by one process against the same by two, on one thread each."""

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

ROUNDS = 3
SMALL, LARGE = (2, 64), (12, 512)
"""Layers and width of the model: of the large one the passes take nearly all of the time."""
TOLERANCE = 1e-6
LEAST = 1.6
"""Times the throughput of one process that two must have on two cores."""
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]


def run_scoring(model: Path, data: Path, out: Path, device: str, several: bool) -> dict[str, float]:
    """Seconds of the whole command, and of its work after the data were read, which includes loading the model."""
    given = ["score", "--model", str(model), "--data", str(data), "--device", device, "--out", str(out), "--quiet"]
    program = [sys.executable, "-m", *(TORCHRUN if several else []), "probing", *given]
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
    rows = 80 if options.small else max(options.rows, 3000)
    ratios: dict[str, list[float]] = {"whole": [], "work": []}
    with tempfile.TemporaryDirectory() as folder:
        model, data = Path(folder) / "model", Path(folder) / "pairs.jsonl"
        made = make_model(*SMALL if options.small else LARGE, "cpu")
        made.model.save_pretrained(model)
        made.tokenizer.save_pretrained(model)
        data.write_text("".join(json.dumps(pair) + "\n" for pair in repeat_pairs(rows)), encoding="utf-8")
        for number in range(2 if options.small else ROUNDS):
            found: dict[bool, dict[str, float]] = {}
            for several in (False, True) if number % 2 else (True, False):
                out = Path(folder) / f"out-{number}-{several}"
                found[several] = run_scoring(model, data, out, options.device, several)
            check_same(*(Path(folder) / f"out-{number}-{several}" for several in (False, True)))
            for name, each in ratios.items():
                each.append(found[False][name] / found[True][name])
            print(f"  one process {found[False]}, two {found[True]}", file=sys.stderr)
    return [
        {"figure": f"throughput of two processes, {name}", "pairs": rows, **spread_of(each), "least_wanted": LEAST}
        for name, each in ratios.items()
    ]
