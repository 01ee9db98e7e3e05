"""The sizes that are measured: those of an 8B model, and tiny ones for the dry run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Every number that decides how much work is done; the defaults are those of the measurement on a card.

    Attributes:
        width, inner, kv_width, layers, heads, kv_heads, vocabulary: the shape of the model, a Llama of 8B parameters.
        square: side of the square matrix products that give the ceiling.
        held_seconds: how long they are repeated, so that the clocks settle.
        copied: bytes of the copy that gives the ceiling of memory.
        tokens: rows of the products of a layer: one full batch.
        chunk: rows of one product with the output head.
        pairs: that are scored.
        few: of them, for what is slow or is profiled.
        text: length of the texts, relative to 200 prompt and 400 response tokens.
        head_rows: states whose token statistics are taken.
        segment: tokens of a row that is summed up.
        points: of one layer, for distances and cluster indices.
        few_points: whose distances show how far products on tensor cores are off.
        point_layers: layers of which cluster indices are wanted.
        probe_layers, probes, probe_pairs: contrast-consistent probes that are trained together.
        epochs: between two trainings whose difference is timed.
        rounds: how often the ways of a kernel are run in turn.
    """

    width: int = 4096
    inner: int = 14336
    kv_width: int = 1024
    layers: int = 32
    heads: int = 32
    kv_heads: int = 8
    vocabulary: int = 128256
    square: int = 8192
    held_seconds: float = 4.0
    copied: int = 2**30
    tokens: int = 65536
    chunk: int = 2048
    pairs: int = 256
    few: int = 64
    text: float = 1.0
    head_rows: int = 16384
    segment: int = 600
    points: int = 20000
    few_points: int = 512
    point_layers: int = 33
    probe_layers: int = 33
    probes: int = 32
    probe_pairs: int = 5000
    epochs: int = 200
    rounds: int = 7


FULL = Sizes()
SMALL = Sizes(
    width=64,
    inner=224,
    kv_width=16,
    layers=3,
    heads=4,
    kv_heads=1,
    vocabulary=4096,
    square=128,
    held_seconds=0.05,
    copied=2**16,
    tokens=256,
    chunk=64,
    pairs=12,
    few=4,
    text=0.05,
    head_rows=96,
    segment=30,
    points=120,
    few_points=48,
    point_layers=3,
    probe_layers=2,
    probes=3,
    probe_pairs=40,
    epochs=200,
    rounds=4,
)
