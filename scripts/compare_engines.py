"""Whether every way to spread a run gives the rows of one process: torchrun, Ray and an array, on generated pairs.

    python scripts/compare_engines.py [--rows 20000] [--few 2000] [--only score] [--record FILE]

Scores the pairs (``--rows``), and captures and compares the first of them (``--few``), plainly, by two processes under
torchrun, by two and by four actors of Ray, and by an array of seven shards that are merged. Every table is sorted by id
and compared with the plain one, column by column; the largest difference is relative to the largest number of its
column. One JSON line a run; the exit status is 1 if any differs by more than 1e-6.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from bench import facts
from bench_influence import repeat_pairs

from probing.store.activations import open_store

TOLERANCE = 1e-6
SHARDS = 7
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
COMMANDS = {
    "score": ["score", "--model", "bundled", "--columns", "all"],
    "capture": ["capture", "--model", "bundled", "--places", "resid_post:all"],
    "displacement": ["displacement", "--reference", "bundled", "--policy", "bundled-displaced"],
}
TABLES = {"score": "scores.parquet", "capture": "rows.parquet", "displacement": "displacement.parquet"}


def run(*words: str, launcher: list[str] | None = None) -> None:
    """Run one command line quietly; its output is shown if it fails."""
    given = [sys.executable, "-m", *(launcher or []), "probing", *words]
    done = subprocess.run(given, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr[-2000:]}")


def spread(command: str, data: Path, out: Path) -> Iterator[tuple[str, Path]]:
    """Run a command in every way; yields the way and its folder, plainly first."""
    words = [*COMMANDS[command], "--data", str(data), "--quiet"]
    run(*words, "--out", str(out / "plain"))
    yield "plain", out / "plain"
    run(*words, "--out", str(out / "torchrun"), launcher=TORCHRUN)
    yield "torchrun, 2 processes", out / "torchrun"
    for actors in (2, 4):
        run(*words, "--out", str(out / f"ray-{actors}"), "--engine", "ray", "--ray-actors", str(actors))
        yield f"Ray, {actors} actors", out / f"ray-{actors}"
    shards = [str(out / f"shard-{index}") for index in range(SHARDS)]
    for index, shard in enumerate(shards):
        run(*words, "--out", shard, "--shard-index", str(index), "--num-shards", str(SHARDS))
    run("merge", *shards, "--out", str(out / "merged"), "--quiet")
    yield f"{SHARDS} shards, merged", out / "merged"


def read(command: str, out: Path) -> pd.DataFrame:
    """The table of a run with its states, if it has any, by id."""
    frame = pd.read_parquet(out / TABLES[command])
    if command == "capture":
        store, good = open_store(out), frame.index[frame["status"] == "ok"]
        states = [
            pd.DataFrame(store.read(place).double().numpy(), good).add_prefix(f"{place}/") for place in store.places
        ]
        frame = pd.concat([frame, *states], axis="columns")
    # Which shard holds a row depends on how many there are.
    return frame.drop(columns=["shard"], errors="ignore").sort_values("id", ignore_index=True)


def compare(plain: pd.DataFrame, other: pd.DataFrame) -> float:
    """The largest difference of two tables, relative to its column; infinite where they have other rows or words."""
    if list(plain) != list(other) or len(plain) != len(other):
        return float("inf")
    worst = 0.0
    for name in plain:
        one, two = plain[name], other[name]
        if pd.api.types.is_float_dtype(one):
            if not (one.isna() == two.isna()).all():
                return float("inf")
            apart, size = np.nanmax(np.abs(one - two), initial=0.0), np.nanmax(np.abs(one), initial=0.0)
            worst = max(worst, float(apart / max(size, 1e-9)))
        elif not one.equals(two):
            return float("inf")
    return worst


def main() -> None:
    """Run and compare everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20000)
    parser.add_argument("--few", type=int, default=2000)
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--record", type=Path, help="append the lines to this file")
    given = parser.parse_args()
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for command in given.only:
            rows = given.rows if command == "score" else given.few
            data, out = Path(folder) / f"{command}.jsonl", Path(folder) / command
            data.write_text("".join(json.dumps(pair) + "\n" for pair in repeat_pairs(rows)), encoding="utf-8")
            plain: pd.DataFrame | None = None
            for way, made in spread(command, data, out):
                table = read(command, made)
                plain = table if plain is None else plain
                same = (made / TABLES[command]).read_bytes() == (out / "plain" / TABLES[command]).read_bytes()
                line = {"command": command, "way": way, "rows": len(table), "worst": compare(plain, table)}
                lines.append({**line, "same_bytes_of_the_table": same, **facts("cpu")})
                print(json.dumps(lines[-1]), flush=True)
    if given.record is not None:
        with given.record.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
    sys.exit(any(not line["worst"] <= TOLERANCE for line in lines))


if __name__ == "__main__":
    main()
