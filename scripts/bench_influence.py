"""The job ``influence`` of ``bench.py``: influences of a dataset against scoring the same pairs, and memory by rows."""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from measuring import peak_of, spread_of, timed

import probing
from probing.data.bundled import bundled_data

ROUNDS = 3
LIKELY = "chosen_logprob,rejected_logprob"
TOLERANCE = 1e-3
LIMIT = 3.5
"""Times the price of scoring that an influence may cost."""


def repeat_pairs(rows: int) -> list[dict[str, Any]]:
    """So many pairs: the bundled ones again and again, in a random order, each with an id of its own."""
    lines = bundled_data("pairs").read_text(encoding="utf-8").splitlines()
    pairs = [{**json.loads(lines[at % len(lines)]), "id": f"pair-{at}"} for at in range(rows)]
    random.Random(0).shuffle(pairs)
    return pairs


def run_influence(model: Any, pairs: Any, optimizer: str = "adamw", out: Path | None = None) -> None:
    """An influence on the refusals of the bundled harmful prompts, with everything that the command does by default."""
    given = {"target": "bundled", "target_split": "[:64]", "quantity": "refusal", "refusal_text": "I am sorry, but I"}
    probing.influence(model=model, data=pairs, optimizer=optimizer, out=out, **given)


def check(model: Any, pairs: list[dict[str, Any]]) -> None:
    """Stop unless the passes of an influence see the log-probabilities that a scoring sees."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        run_influence(model, pairs, out=out / "influence")
        probing.score(model=model, data=pairs, columns=LIKELY, out=out / "scores")
        ours, plain = (pd.read_parquet(out / name / f"{name}.parquet") for name in ("influence", "scores"))
    worst = float(((ours["chosen_logprob"] - plain["chosen_logprob"]) / plain["chosen_logprob"]).abs().max())
    if not worst <= TOLERANCE:
        sys.exit(f"log-probabilities differ by {worst:.1e} of their size; no times are shown")


def bench_influence(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Whole commands in turn, in one process: times the price of scoring; and the peak memory of N and 4 N pairs."""
    rows = 60 if options.small else max(options.rows, 2000)
    model, pairs = probing.load("bundled", device=options.device), repeat_pairs(rows)
    # It also runs everything once before anything is timed.
    check(model, pairs[:50])
    results = []
    for optimizer in ("adamw", "sgd"):
        ratios: dict[str, list[float]] = {"scores": [], "log-probabilities": []}
        for _ in range(2 if options.small else ROUNDS):
            # Each has its own scoring beside it.
            for name, columns in (("scores", None), ("log-probabilities", LIKELY)):
                plain = measure_seconds(lambda c=columns: probing.score(model=model, data=pairs, columns=c), options)
                ours = measure_seconds(lambda o=optimizer: run_influence(model, pairs, o), options)
                ratios[name].append(ours / plain)
                print(f"  {optimizer}, against {name}: {ours / plain:.2f}x of {plain:.1f} s", file=sys.stderr)
        for name, found in ratios.items():
            results.append(
                {
                    "figure": "price",
                    "pairs": rows,
                    "optimizer": optimizer,
                    "against": name,
                    **spread_of(found),
                    "within_limit": spread_of(found)["ratio_median"] <= LIMIT,
                }
            )
    results += [{"figure": "memory", **measure_memory(count, options.device)} for count in (rows, 4 * rows)]
    return results


def measure_seconds(job: Callable[[], Any], options: argparse.Namespace) -> float:
    """Seconds of a job: those of the processor without a card, since others share it; otherwise those of a clock."""
    began = time.process_time()
    seconds = timed(job, options.device)[1]
    return time.process_time() - began if options.device == "cpu" else seconds


def measure_memory(rows: int, device: str) -> dict[str, Any]:
    """Peak memory of the command beyond the model and the rows, in a process of its own."""
    command = [sys.executable, __file__, str(rows), device]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def measure_here(rows: int, device: str) -> dict[str, Any]:
    """The inside of that process."""
    model, pairs = probing.load("bundled", device=device), repeat_pairs(rows)
    run_influence(model, pairs[:50])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
        del pairs
        _, peak = peak_of(lambda: run_influence(model, str(path)), device)
    return {"rows": rows, "peak_mb": peak}


if __name__ == "__main__":
    print(json.dumps(measure_here(int(sys.argv[1]), sys.argv[2])))
