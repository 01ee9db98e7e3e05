"""Benchmarks of capturing states: every way to get them, in turn, and all equal before a time is shown.

A job of ``bench.py``. The last token's state at half depth, for unrelated texts and for pairs of rows with one prompt.
On a card also: how much of the matrix ceiling an 8B model reaches (random weights, bf16).
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from measuring import spread_of
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from probing import LanguageModel
from probing.engine.budget import TokenBudget, choose_batch_tokens
from probing.engine.modes import Mode, choose_mode
from probing.engine.stream import Stream
from probing.engine.trees import Segment
from probing.models.layers import find_stack
from probing.models.passes import run_backbone
from probing.models.stack import Stack, output_site
from probing.types import Place

ROUNDS = 5
TEXTS_A_ROUND = 16
SHORTEST, LONGEST = 50, 400
TOLERANCE = 1e-4
ROWS_A_BATCH = 8
LARGE = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}

Way = Callable[[Sequence[Segment]], Tensor]


def bench_capture(language_model: LanguageModel, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a kind of text and way."""
    stack = find_stack(language_model)
    mode = choose_mode(stack)
    if mode.packing == "none":
        sys.exit(f"the packed way is switched off: {mode.reason}")
    place = Place("resid_post", len(stack.blocks) // 2 - 1)
    rows = []
    for share in (0.0, 1 / 3, 2 / 3):
        kind = "unrelated texts" if share == 0 else f"pairs, prompt {share:.2f} of each"
        rounds = [segments(language_model, share, seed, options.small) for seed in range(ROUNDS)]
        tokens = sum(segment.stop for part in rounds for segment in part)
        measured = measure(ways(stack, mode, place, share > 0), rounds)
        rows += [
            {"figure": "speed", "texts": kind, "way": way, "tokens": tokens, **found} for way, found in measured.items()
        ]
    if options.device == "cuda" and not options.small:
        rows.append(bench_large())
    return rows


def segments(language_model: LanguageModel, share: float, seed: int, small: bool) -> list[Segment]:
    """Rows of random tokens whose last state counts; with a share, two rows each begin with the same prompt."""
    generator = random.Random(seed)
    vocabulary = language_model.model.config.vocab_size
    shortest, longest = (10, 40) if small else (SHORTEST, LONGEST)
    rows: list[Segment] = []
    while len(rows) < TEXTS_A_ROUND:
        length = generator.randint(shortest, longest)
        prompt = [generator.randrange(vocabulary) for _ in range(int(length * share))]
        for _ in range(1 if share == 0 else 2):
            ids = prompt + [generator.randrange(vocabulary) for _ in range(length - len(prompt))]
            rows.append(Segment(ids, length - 1, length, len(prompt)))
    generator.shuffle(rows)
    return rows


def ways(stack: Stack, mode: Mode, place: Place, shared: bool) -> dict[str, Way]:
    """Every way to the same states, the plainest first."""
    layer = (place.layer or 0) + 1
    trial = Stream(stack, mode, [output_site(stack)], ("last",), TokenBudget(1, "not found yet"))
    budget = choose_batch_tokens(stack, trial.run_trial)
    alone, stacked = replace(mode, sharing=False), replace(mode, packing="none", sharing=False)

    def ours(mode: Mode, early: bool = True) -> Way:
        # The site after all others keeps the pass from ending early.
        sites = [*stack.sites([place]), *([] if early else [output_site(stack)])]
        stream = Stream(stack, mode, sites, ("last",), budget)
        return lambda rows: stream.read(rows).values["last"][0]

    found: dict[str, Way] = {
        "one at a time, whole model": lambda rows: plain(stack, rows, layer, 1, whole=True),
        "padded, file order, whole model": lambda rows: plain(stack, rows, layer, ROWS_A_BATCH, whole=True),
        "padded, sorted, whole model": lambda rows: by_length(
            rows, lambda some: plain(stack, some, layer, ROWS_A_BATCH, whole=True)
        ),
        "padded, sorted, backbone": lambda rows: by_length(
            rows, lambda some: plain(stack, some, layer, ROWS_A_BATCH, whole=False)
        ),
        "ours, stacked, all layers": ours(stacked, early=False),
        "ours, stacked, early stop": ours(stacked),
        "ours, packed, all layers": ours(alone, early=False),
        "ours, packed, early stop": ours(alone),
    }
    if shared:
        found["ours, packed, early stop, prompts shared"] = ours(mode)
    return found


def plain(stack: Stack, rows: Sequence[Segment], layer: int, batch: int, whole: bool) -> Tensor:
    """As a script would: batches in the order given, padded on the right, all hidden states."""
    device, states = stack.language_model.device, []
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        longest = max(segment.stop for segment in some)
        ids = torch.zeros((len(some), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, segment in enumerate(some):
            ids[row, : segment.stop] = torch.tensor(segment.ids)
            mask[row, : segment.stop] = 1
        options = {"attention_mask": mask.to(device), "output_hidden_states": True}
        with torch.no_grad():
            if whole:
                output = stack.language_model.model(input_ids=ids.to(device), **options)
            else:
                output = run_backbone(stack.backbone, ids.to(device), **options)
        last = torch.tensor([segment.stop - 1 for segment in some], device=device)
        states.append(output.hidden_states[layer][torch.arange(len(some), device=device), last].float().cpu())
    return torch.cat(states)


def by_length(rows: Sequence[Segment], way: Way) -> Tensor:
    """The same with the longest first, and the answer in the old order."""
    order = sorted(range(len(rows)), key=lambda row: -rows[row].stop)
    found = way([rows[row] for row in order])
    return found[torch.tensor(order).argsort()]


def measure(ways: dict[str, Way], rounds: Sequence[Sequence[Segment]]) -> dict[str, dict[str, float]]:
    """Each round runs every way on the same rows; how much faster than the first way each is."""
    first = next(iter(ways))
    for way in ways.values():
        way(rounds[0][:2])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for rows in rounds:
        expected = ways[first](rows)
        for name, way in ways.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            began = time.perf_counter()
            found = way(rows)
            seconds[name].append(time.perf_counter() - began)
            worst = float((found - expected).abs().max() / expected.abs().max())
            if not worst <= (TOLERANCE if expected.dtype == torch.float32 else 5e-2):
                sys.exit(f"'{name}' differs from '{first}' by {worst:.1e} of the largest value; no times are shown")
    rows = {}
    for name, own in seconds.items():
        ratios = [base / time for base, time in zip(seconds[first], own, strict=True)]
        rows[name] = spread_of(ratios)
        print(f"  {name}: {rows[name]['ratio_median']:.2f}x", file=sys.stderr)
    return rows


def bench_large() -> dict[str, Any]:
    """The share of the measured matrix ceiling that a pass through an 8B model reaches, with packed batches."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**LARGE)).to(torch.bfloat16).eval()
    language_model = LanguageModel(model, _NoTokenizer())
    stack = find_stack(language_model)
    mode = choose_mode(stack)
    generator = random.Random(0)
    rows = []
    for _ in range(256):
        length = generator.randint(200, 900)
        ids = [generator.randrange(LARGE["vocab_size"]) for _ in range(length)]
        rows.append(Segment(ids, length - 1, length))
    stream = Stream(stack, mode, [output_site(stack)], ("mean",), TokenBudget(32768, "for the benchmark"))
    stream.read(rows[:64])
    torch.cuda.synchronize()
    began = time.perf_counter()
    stream.read(rows)
    torch.cuda.synchronize()
    seconds, tokens = time.perf_counter() - began, sum(segment.stop for segment in rows)
    weights = sum(parameter.numel() for block in stack.blocks for parameter in block.parameters())
    attended = sum(segment.stop**2 for segment in rows) / 2
    work = 2 * weights * tokens + 4 * attended * LARGE["hidden_size"] * LARGE["num_hidden_layers"]
    ceiling = matrix_ceiling()
    return {
        "figure": "share of the matrix ceiling",
        "way": mode.describe(),
        "tokens": tokens,
        "microseconds_per_token": round(seconds / tokens * 1e6, 2),
        "tflops": round(work / seconds / 1e12, 1),
        "ceiling_tflops": round(ceiling / 1e12, 1),
        "share": round(work / seconds / ceiling, 3),
    }


class _NoTokenizer:
    """Stands where a tokenizer would; the rows are random ids."""

    def get_vocab(self) -> dict[str, int]:
        return {}


def matrix_ceiling(size: int = 8192, repeats: int = 20) -> float:
    """Operations a second of a large bf16 matrix product on random numbers, measured here."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        left @ right
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        left @ right
    torch.cuda.synchronize()
    return 2 * size**3 * repeats / (time.perf_counter() - began)
