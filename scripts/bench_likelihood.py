"""The job ``likelihood`` of ``bench.py``: token statistics against full logits, and what likelihoods add to scores."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from measuring import peak_of, spread_of, timed
from torch import Tensor

from probing.instruments.columns import COLUMNS
from probing.kernels import token_stats as kernel_file
from probing.kernels.token_stats import token_stats
from probing.kernels.top_columns import top_columns
from probing.metrics.displacement import product_by_terms

if TYPE_CHECKING:
    from probing import LanguageModel, PreferencePair

TOKENS, VOCABULARY, WIDTH = 32768, 32000, 512
CUDA_VOCABULARY, CUDA_WIDTH = 128256, 4096
SMALL = (600, 1000, 32)
ROUNDS = 4
BLOCKS = 8
AGREE = 1e-4
TOP = 5
TOP_ROWS = 512
COLUMN_SETS = {"ches": COLUMNS, "all": ["all"], "all and rate": ["all", "displacement_rate"]}


def full_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities as a plain script computes them."""
    logits = (hidden @ weight.T).float()
    return torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]


def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same, with ranks and entropies besides."""
    return token_stats(hidden, weight, targets).logprob


WAYS = {"ours": ours, "plain": full_logits}


def inputs(tokens: int, vocabulary: int, width: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Random states and weights whose logits spread like those of a trained model."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    hidden = torch.randn(tokens, width, generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator) * 3 / width**0.5
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return hidden.to(device, dtype), weight.to(device, dtype), targets.to(device)


def memory_of(way: str, shape: Sequence[int], device: str) -> dict[str, Any]:
    """Peak memory beyond the inputs, in a process of its own."""
    command = [sys.executable, __file__, way, *map(str, shape), device]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def memory_job(way: str, shape: tuple[int, int, int], device: str) -> dict[str, Any]:
    """The inside of that process."""
    tensors = inputs(*shape, device)
    WAYS[way](*(part[:64] if part is not tensors[1] else part for part in tensors))
    return {"peak_mb": peak_of(lambda: WAYS[way](*tensors), device)[1]}


def compare_ways(shape: tuple[int, int, int], device: str) -> dict[str, Any]:
    """Both ways in turn on the same inputs; how many times the plain way's time ours takes."""
    tensors = inputs(*shape, device)
    for way in WAYS.values():
        way(*(part[:64] if part is not tensors[1] else part for part in tensors))
    ratios = []
    for _ in range(ROUNDS):
        (found, mine), (plain, other) = (timed(lambda way=way: way(*tensors), device) for way in WAYS.values())
        worst = float((found - plain).abs().max())
        if not worst <= (AGREE if device == "cpu" else 0.2):
            sys.exit(f"the two ways disagree by {worst:.1e}; no times are shown")
        ratios.append(mine / other)
        print(f"  token_stats {mine:.2f} s, full logits {other:.2f} s", file=sys.stderr)
    return {"figure": "time of token_stats over full logits", **spread_of(ratios)}


def ratio_of(
    figure: str, job: Callable[[], Tensor], base: Callable[[], Tensor], device: str, worst: float
) -> dict[str, Any]:
    """How many times the base's time a job takes, in turn, after both have said the same to within ``worst``."""
    gap = float((job().double() - base().double()).abs().max())
    if not gap <= worst:
        sys.exit(f"{figure}: the two differ by {gap:.1e}; no times are shown")
    ratios = []
    for _ in range(ROUNDS):
        mine, other = timed(job, device)[1], timed(base, device)[1]
        ratios.append(mine / other)
    return {"figure": figure, **spread_of(ratios)}


def compare_top(shape: tuple[int, int, int], device: str) -> dict[str, Any]:
    """The search for the largest logits of each row, by tiles and by sorting."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((min(TOP_ROWS, shape[0]), shape[1]), generator=generator).to(device)
    return ratio_of(
        f"time of the top {TOP} of each row by tiles over topk",
        lambda: top_columns(logits, TOP)[0],
        lambda: logits.topk(TOP).values,
        device,
        0.0,
    )


def compare_on_a_card(shape: tuple[int, int, int], device: str) -> list[dict[str, Any]]:
    """What can pay on a card only: two streams, products of half-precision states, of residuals as three terms."""
    figures = [
        "time of token_stats in two streams over one",
        "time of token_stats of bf16 states over the same in float32",
        "time of residuals times bf16 weights by three terms over float32",
    ]
    if device != "cuda":
        return [{"figure": figure, "not_run": "only measured on a card"} for figure in figures]
    hidden, weight, targets = inputs(*shape, device)

    def said(states: Tensor = hidden, streams: bool = True) -> Tensor:
        kernel_file.TWO_STREAMS = streams
        return token_stats(states, weight, targets).logprob

    residuals = torch.rand((1024, len(weight)), device=device) / len(weight)
    rows = [
        ratio_of(figures[0], said, lambda: said(streams=False), device, 0.0),
        ratio_of(figures[1], said, lambda: said(hidden.float()), device, 1e-3),
        ratio_of(
            figures[2],
            lambda: product_by_terms(residuals, weight),
            lambda: residuals @ weight.float(),
            device,
            1e-3,
        ),
    ]
    said()
    return rows


def compare_columns(language_model: "LanguageModel", pairs: "Sequence[PreferencePair]") -> list[dict[str, Any]]:
    """Scores with and without likelihoods, block by block in turn; how many times the time of CHES alone."""
    device = language_model.device.type
    # Not before: a process that measures the memory of the head alone has no use for models.
    from probing.instruments.pair_scores import PairScorer

    scorers = {name: PairScorer(language_model, columns=columns) for name, columns in COLUMN_SETS.items()}
    for scorer in scorers.values():
        scorer.score(pairs[:2])
    size = -(-len(pairs) // BLOCKS)
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    for start in range(0, len(pairs), size):
        block = pairs[start : start + size]
        frames = {}
        for name, scorer in scorers.items():
            scored, spent = timed(lambda scorer=scorer, block=block: scorer.score(block), device)
            frames[name] = scored.frame["ches"]
            seconds[name].append(spent)
        if not all(frame.equals(frames["ches"]) for frame in frames.values()):
            sys.exit("CHES differs with the columns beside it; no times are shown")
        print("  " + ", ".join(f"{name} {spent[-1]:.2f} s" for name, spent in seconds.items()), file=sys.stderr)
    rows = []
    for name in list(scorers)[1:]:
        ratios = [mine / base for mine, base in zip(seconds[name], seconds["ches"], strict=True)]
        rows.append({"figure": f"time of columns '{name}' over CHES alone", "pairs": len(pairs), **spread_of(ratios)})
    return rows


def bench_likelihood(
    language_model: "LanguageModel", pairs: "Sequence[PreferencePair]", options: argparse.Namespace
) -> list[dict[str, Any]]:
    """All figures."""
    large = (TOKENS, CUDA_VOCABULARY, CUDA_WIDTH) if options.device == "cuda" else (TOKENS, VOCABULARY, WIDTH)
    shape = SMALL if options.small else large
    sizes = dict(zip(("tokens", "vocabulary", "width"), shape, strict=True))
    rows = compare_columns(language_model, pairs)
    rows.append(compare_ways(shape, options.device) | sizes)
    rows.append(compare_top(shape, options.device) | sizes)
    rows += [row | sizes for row in compare_on_a_card(shape, options.device)]
    for way in WAYS:
        rows.append({"figure": "memory", "way": way, **memory_of(way, shape, options.device), **sizes})
    return rows


if __name__ == "__main__":
    print(json.dumps(memory_job(sys.argv[1], (int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])), sys.argv[5])))
