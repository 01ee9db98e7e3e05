"""Benchmarks: ours against the straightforward way, interleaved in one run, correctness first.

    python scripts/bench.py score --data PAIRS [--rows 200] [--record docs/benchmarks/score.jsonl]
    python scripts/bench.py capture [--record docs/benchmarks/capture.jsonl]
    python scripts/bench.py likelihood --data PAIRS [--record docs/benchmarks/likelihood.jsonl]
    python scripts/bench.py ccs [--record docs/benchmarks/ccs.jsonl]
    python scripts/bench.py clusters [--record docs/benchmarks/clusters.jsonl]
    python scripts/bench.py kernels [--record docs/benchmarks/kernels.jsonl]
    python scripts/bench.py refusal [--record docs/benchmarks/refusal.jsonl]
    python scripts/bench.py influence [--rows 2000] [--record docs/benchmarks/influence.jsonl]
    python scripts/bench.py scale [--rows 20000] [--record docs/benchmarks/scale.jsonl]
    python scripts/bench.py reading [--record docs/benchmarks/reading.jsonl]

Every figure is one JSON line with device, versions and commit. Absolute times of a shared machine are noise; the ratio
of neighbouring runs is what counts. No time is printed when the two ways do not agree.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench_capture import bench_capture
from bench_ccs import bench_ccs
from bench_clusters import bench_clusters
from bench_influence import bench_influence
from bench_kernels import bench_kernels
from bench_likelihood import bench_likelihood
from bench_reading import bench_reading
from bench_refusal import bench_refusal
from bench_scale import bench_scale
from measuring import spread_of, status_bytes, timed
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from probing import LanguageModel, PreferencePair
from probing.data.bundled import BUNDLED, bundled_model
from probing.instruments.pair_scores import BLOCK_PAIRS, PairScorer
from probing.runs.common.datasets import read_pairs
from probing.runs.common.options import PairDataOptions
from probing.runs.common.versions import versions
from probing.tokens.pairs import TokenizedPair, tokenize_pairs

WHAT = ("score", "capture", "likelihood", "ccs", "clusters", "kernels", "refusal", "influence", "scale", "reading")
BLOCKS = 8
TOLERANCE = 1e-4


def make_model(device: str, small: bool) -> LanguageModel:
    """A random Llama of about 50M parameters with a vocabulary of 32k (or a very small one), and a real tokenizer."""
    width, layers, vocabulary = (64, 2, 2000) if small else (512, 6, 32000)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval().to(device)
    return LanguageModel(model, AutoTokenizer.from_pretrained(bundled_model()))


def straightforward(language_model: LanguageModel, pairs: Sequence[TokenizedPair]) -> list[float]:
    """CHES as a plain script computes it: one sequence at a time, the whole model, all hidden states."""
    scores = []
    for pair in pairs:
        sums = []
        for ids in (pair.chosen, pair.rejected):
            with torch.no_grad():
                output = language_model.model(
                    input_ids=torch.tensor([ids], device=language_model.device), output_hidden_states=True
                )
            sums.append(output.hidden_states[-1][0, pair.prompt_tokens - 1 : -1].sum(dim=0).double())
        scores.append(float(sums[0] @ (sums[1] - sums[0])))
    return scores


def check(ours: Sequence[float], plain: Sequence[float]) -> None:
    """Stop unless both ways agree, relative to the largest score of the block."""
    scale = max(map(abs, plain))
    worst = max(abs(a - b) for a, b in zip(ours, plain, strict=True)) / scale
    if not worst <= TOLERANCE:
        sys.exit(f"the two ways disagree by {worst:.1e} of the largest score; no times are shown")


def interleaved(language_model: LanguageModel, pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    """Both ways, block by block in turn; the ratio of each block, and all tokens over all seconds."""
    scorer, device = PairScorer(language_model), language_model.device.type
    tokenized = tokenize_pairs(language_model.tokenizer, pairs, max_length=language_model.max_positions)
    good = [(pair, ids) for pair, ids in zip(pairs, tokenized, strict=True) if ids.status == "ok"]
    size = -(-len(good) // BLOCKS)
    blocks = [good[start : start + size] for start in range(0, len(good), size)]
    warm = blocks[0][:2]
    scorer.score([pair for pair, _ in warm])
    straightforward(language_model, [ids for _, ids in warm])
    ratios, seconds, tokens = [], {"ours": 0.0, "plain": 0.0}, 0
    for block in blocks:
        scored, ours = timed(lambda block=block: scorer.score([pair for pair, _ in block]), device)
        plain_scores, plain = timed(
            lambda block=block: straightforward(language_model, [ids for _, ids in block]), device
        )
        check(scored.frame["ches"].tolist(), plain_scores)
        ratios.append(plain / ours)
        seconds["ours"] += ours
        seconds["plain"] += plain
        tokens += scored.tokens
        print(f"  block of {len(block)} pairs: {plain / ours:.2f}x", file=sys.stderr)
    return {
        "figure": "speed",
        "pairs": len(good),
        "tokens": tokens,
        **spread_of(ratios),
        "tokens_per_second_ours": round(tokens / seconds["ours"]),
        "tokens_per_second_plain": round(tokens / seconds["plain"]),
    }


def memory_of(way: str, data: str, rows: int, device: str, small: bool) -> dict[str, Any]:
    """One way in a process of its own: seconds, tokens, and the peak memory beyond the loaded model."""
    command = [sys.executable, __file__, "memory", way, "--data", data, "--rows", str(rows), "--device", device]
    done = subprocess.run(command + ["--small"] * small, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def memory_job(way: str, data: str, rows: int, device: str, small: bool) -> dict[str, Any]:
    """The inside of that process."""
    language_model = make_model(device, small)
    pairs = spread(read_pairs(PairDataOptions(data=data, out=Path()))[1], rows)
    scorer = PairScorer(language_model)
    tokenized = tokenize_pairs(language_model.tokenizer, pairs[:2])
    straightforward(language_model, tokenized) if way == "plain" else scorer.score(pairs[:2])
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device == "cuda" else resident()
    if way == "plain":
        tokenized = tokenize_pairs(language_model.tokenizer, pairs, max_length=language_model.max_positions)
        good = [pair for pair in tokenized if pair.status == "ok"]
        _, seconds = timed(lambda: straightforward(language_model, good), device)
        tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in good)
    else:
        # In blocks, as ``probing score`` does it.
        parts = [pairs[start : start + BLOCK_PAIRS] for start in range(0, len(pairs), BLOCK_PAIRS)]
        scored, seconds = timed(lambda: [scorer.score(part) for part in parts], device)
        tokens = sum(block.tokens for block in scored)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else status_bytes("VmHWM")
    return {"rows": rows, "tokens": tokens, "seconds": round(seconds, 3), "peak_mb": round((peak - before) / 2**20, 1)}


def spread(pairs: Sequence[PreferencePair], rows: int) -> list[PreferencePair]:
    """Rows from all over the file, always the longest among them, so that sizes differ in number and not in kind."""
    longest = max(range(len(pairs)), key=lambda index: len(str(pairs[index])))
    chosen = {longest, *(index * len(pairs) // rows for index in range(rows - 1))}
    return [pairs[index] for index in sorted(chosen)]


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def facts(device: str) -> dict[str, Any]:
    """Where and with what a figure was measured."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.processor() or platform.machine()} cpu"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    libraries = {
        key: value
        for key, value in versions().items()
        if key in ("python", "torch", "triton", "transformers", "probing")
    }
    return {"device": name, "threads": torch.get_num_threads(), "commit": commit, "versions": libraries}


def bench_score(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Speed against the plain way, memory of both, and growth with the number of rows."""
    language_model = make_model(options.device, options.small)
    parameters = sum(parameter.numel() for parameter in language_model.model.parameters())
    rows = spread(read_pairs(PairDataOptions(data=options.data, out=Path()))[1], options.rows)
    results = [{**interleaved(language_model, rows), "parameters": parameters}]
    del language_model
    common = (options.data, options.device, options.small)
    for way in ("ours", "plain"):
        few = memory_of(way, common[0], max(options.rows // 4, 3), *common[1:])
        results.append({"figure": "memory", "way": way, **few})
    for share in (16, 4, 1):
        grown = memory_of("ours", common[0], max(options.rows // share, 3), *common[1:])
        grown["microseconds_per_token"] = round(grown["seconds"] / grown["tokens"] * 1e6, 2)
        results.append({"figure": "growth", "way": "ours", **grown})
    return results


def main() -> None:
    """Read the command line, measure, print and append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*WHAT, "memory"])
    parser.add_argument("way", nargs="?", choices=["ours", "plain"])
    parser.add_argument("--data", default=BUNDLED, help="preference pairs (default: the bundled ones)")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="a very small model: seconds, to see that it works")
    parser.add_argument("--record", type=Path, help="append the lines to this file")
    options = parser.parse_args()
    if options.what == "memory":
        print(json.dumps(memory_job(options.way, options.data, options.rows, options.device, options.small)))
        return
    jobs = {
        "score": lambda: bench_score(options),
        "capture": lambda: bench_capture(make_model(options.device, options.small), options),
        "likelihood": lambda: bench_likelihood(
            make_model(options.device, options.small),
            spread(read_pairs(PairDataOptions(data=options.data, out=Path()))[1], options.rows),
            options,
        ),
        "ccs": lambda: bench_ccs(options),
        "clusters": lambda: bench_clusters(options),
        "kernels": lambda: bench_kernels(options),
        "refusal": lambda: bench_refusal(options),
        "influence": lambda: bench_influence(options),
        "scale": lambda: bench_scale(options),
        "reading": lambda: bench_reading(options),
    }
    where = facts(options.device)
    lines = [json.dumps({"bench": options.what, **row, **where}) for row in jobs[options.what]()]
    print("\n".join(lines))
    if options.record:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        with options.record.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
