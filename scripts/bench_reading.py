"""The job ``reading`` of ``bench.py``: peak memory and rows a second of whole commands, by the number of rows.

    python scripts/bench.py reading [--small] [--record docs/benchmarks/reading.jsonl]

Each command is a process of its own, and its peak is what the kernel counts for it (``VmHWM``). Every case is run on a
tenth of its rows and on all of them; the ratio of the two peaks is what counts.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TENTH = 10
FILTERED, SCORED = 1_000_000, 200_000
SMALL = 200
BLOCK = 10_000
WORDS = "answer near boat small wood paper glue string letter river stone window garden quiet morning number".split()
CHILD = """
import re, sys
from probing.cli import main
try:
    main(sys.argv[1:])
finally:
    with open("/proc/self/status") as status:
        print("PEAK", re.search(r"VmHWM:\\s+(\\d+)", status.read())[1], file=sys.stderr)
"""


def make_pairs(rows: int, words: int, named: bool) -> Iterator[dict[str, str]]:
    """Generated pairs of texts with so many words each, which all differ.

    Args:
        rows: number of pairs.
        words: number of words of a text.
        named: whether pairs have ids of their own.
    """
    draw = random.Random(0)
    for row in range(rows):
        prompt, chosen, rejected = (" ".join(draw.choices(WORDS, k=words)) for _ in range(3))
        pair = {"prompt": f"{prompt} {row}", "chosen": f" {chosen}", "rejected": f" {rejected}"}
        yield {"id": f"pair-{row:09d}", **pair} if named else pair


def content_id(pair: dict[str, str]) -> str:
    """The id that a pair without one gets, which is made from its texts."""
    texts = json.dumps([pair["prompt"], pair["chosen"], pair["rejected"]], ensure_ascii=False) + "\n"
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


def write_pairs(rows: int, words: int, path: Path) -> list[str]:
    """Write pairs as JSONL, with ids, or as Parquet, without; returns their ids."""
    named = path.suffix == ".jsonl"
    pairs = make_pairs(rows, words, named)
    if named:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(pair) + "\n" for pair in pairs)
        return [f"pair-{row:09d}" for row in range(rows)]
    whole = list(pairs)
    # In one group of rows, as most writers make it: nothing of it can be read without what precedes it.
    pq.write_table(pa.Table.from_pylist(whole), path)
    return [content_id(pair) for pair in whole]


def write_scores(ids: list[str], path: Path) -> None:
    """Write a table of random scores of some pairs, as a scoring does."""
    draws = np.random.default_rng(0)
    columns: dict[str, Any] = {"id": ids, "status": ["ok"] * len(ids)}
    columns |= {name: draws.integers(1, 99, len(ids)) for name in ("prompt_tokens", "chosen_tokens", "rejected_tokens")}
    names = ("ches", "ches_normalized", "last_state_similarity", "edit_similarity")
    columns |= {name: draws.normal(size=len(ids)) for name in names}
    pq.write_table(pa.table(columns), path)


def run_measured(arguments: list[str]) -> tuple[float, float]:
    """Peak memory of a command in MB, and its seconds; stops the benchmark if it fails."""
    began = time.monotonic()
    program = [sys.executable, "-c", CHILD, *arguments, "--quiet"]
    ended = subprocess.run(program, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    seconds = time.monotonic() - began
    if ended.returncode:
        sys.exit(f"{' '.join(arguments[:2])} failed: {ended.stderr[-2000:]}")
    return int(ended.stderr.rpartition("PEAK")[2]) / 1024, seconds


def describe(what: str, rows: int, least: tuple[float, float], most: tuple[float, float]) -> dict[str, Any]:
    """The line of one case.

    Args:
        what: name of the case.
        rows: number of rows of the larger one.
        least: peak in MB and seconds on a tenth of the rows.
        most: the same on all.
    """
    more = rows - rows // TENTH
    return {
        "figure": f"peak memory of {what}",
        "rows": rows,
        "peak_mb": round(most[0], 1),
        "peak_mb_of_a_tenth": round(least[0], 1),
        "ratio": round(most[0] / least[0], 3),
        "bytes_a_row": round((most[0] - least[0]) * 2**20 / more),
        "rows_per_second": round(rows / most[1]),
    }


def measure_filter(folder: Path, rows: int, form: str) -> tuple[float, float]:
    """Peak in MB and seconds of ``probing filter`` on so many pairs."""
    data, scores = folder / f"pairs-{rows}.{form}", folder / f"scores-{rows}.parquet"
    write_scores(write_pairs(rows, 12, data), scores)
    given = [
        "--scores",
        str(scores),
        "--by",
        "ches_normalized",
        "--drop-highest",
        "0.1",
        "--out",
        str(folder / f"kept-{rows}.{form}"),
    ]
    found = run_measured(["filter", "--data", str(data), *given])
    data.unlink()
    return found


def measure_score(folder: Path, rows: int) -> tuple[float, float]:
    """The same of ``probing score`` with the bundled model on short pairs."""
    data = folder / f"short-{rows}.jsonl"
    write_pairs(rows, 3, data)
    return run_measured(["score", "--data", str(data), "--model", "bundled", "--out", str(folder / f"scores-{rows}")])


def bench_reading(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every case on a tenth of its rows and on all of them."""
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for form in ("jsonl", "parquet"):
            rows = SMALL if options.small else FILTERED
            few, all_ = (measure_filter(folder, count, form) for count in (rows // TENTH, rows))
            lines.append(describe(f"filter, {form}", rows, few, all_))
            print(f"  {lines[-1]}", file=sys.stderr)
        rows = SMALL if options.small else SCORED
        few, all_ = (measure_score(folder, count) for count in (rows // TENTH, rows))
        lines.append(describe("score, jsonl", rows, few, all_))
        print(f"  {lines[-1]}", file=sys.stderr)
    return lines
