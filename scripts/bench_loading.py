"""Benchmark of loading a checkpoint: its weights hashed while they are loaded, against afterwards, in turn.

    python scripts/bench_loading.py MODEL [--dtype bfloat16] [--rounds 9] [--record docs/benchmarks/loading.jsonl]

MODEL is a folder, which lies in the memory of the system after the first round: no disk is measured. Both ways must
find the same hash before a time is shown. One line also says how fast the files are hashed with nothing beside: how
many threads can help depends on the number of files, since each is one chain of blocks.
"""

import argparse
import json
import statistics
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from measuring import spread_of, timed

from probing import load
from probing.models import load as loading
from probing.models.hashes import FilesHash

ROUNDS = 9
GB = 1e9


def hashed_after(folder: Path, dtype: str, device: str) -> str | None:
    """The plain way: the weights are hashed once the model is loaded."""
    with mock.patch.object(loading, "hash_weights", return_value=nullcontext()):
        return load(str(folder), dtype=dtype, device=device).source.weights_sha256


def hashed_beside(folder: Path, dtype: str, device: str) -> str | None:
    """Ours."""
    return load(str(folder), dtype=dtype, device=device).source.weights_sha256


def hash_alone(folder: Path, files: int | None = None) -> str:
    """The hash of the first files (all of them for None), and nothing beside."""
    with FilesHash(sorted(folder.glob("*.safetensors"))[:files]) as weights:
        return weights.digest()


def bench_loading(folder: Path, dtype: str, device: str, rounds: int) -> list[dict[str, Any]]:
    """The ratio of the two ways, and gigabytes a second of hashing one file and all of them."""
    paths = sorted(folder.glob("*.safetensors"))
    sizes = [path.stat().st_size for path in paths]
    known, ratios = hash_alone(folder), []
    seconds: dict[str, list[float]] = {"after": [], "beside": [], "one": [], "all": []}
    for _ in range(rounds):
        for way, job in (("after", hashed_after), ("beside", hashed_beside)):
            found, taken = timed(lambda job=job: job(folder, dtype, device), device)
            seconds[way].append(taken)
            if found != known:
                sys.exit(f"hashed {way} loading the weights are {found}, alone {known}; no times are shown")
        for way, files in (("one", 1), ("all", None)):
            seconds[way].append(timed(lambda files=files: hash_alone(folder, files), device)[1])
        ratios.append(seconds["after"][-1] / seconds["beside"][-1])
        print(f"  {ratios[-1]:.2f}x", file=sys.stderr)
    median = {way: statistics.median(taken) for way, taken in seconds.items()}
    size = {"files": len(paths), "gigabytes": round(sum(sizes) / GB, 3)}
    return [
        {
            "figure": "loading, hashed after over hashed beside",
            **size,
            "dtype": dtype,
            **spread_of(ratios),
            "seconds_after": round(median["after"], 2),
            "seconds_beside": round(median["beside"], 2),
        },
        {
            "figure": "hashing alone",
            **size,
            "gigabytes_per_second_one_file": round(sizes[0] / GB / median["one"], 2),
            "gigabytes_per_second_all": round(sum(sizes) / GB / median["all"], 2),
        },
    ]


def main() -> None:
    """Read the command line, measure, print and append."""
    from bench import facts  # here: it imports every other benchmark

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--record", type=Path, help="append the lines to this file")
    options = parser.parse_args()
    rows = bench_loading(options.model, options.dtype, options.device, options.rounds)
    lines = [json.dumps({"bench": "loading", **row, **facts(options.device)}) for row in rows]
    print("\n".join(lines))
    if options.record:
        with options.record.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
