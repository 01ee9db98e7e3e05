"""The output head of a language model: from states to logits in float32, for some rows at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from probing.kernels.dispatch import can_sum_wide, fall_back

Parity = Literal["bf16"]
Result = TypeVar("Result")

CPU_LOGIT_BYTES = 1 << 26
"""Logits of one chunk of rows. In smaller chunks the matrix product is slower: it packs the unembedding every time."""
CUDA_ROWS = 2048
LEAST_ROWS = 16
"""A matrix product of fewer rows rounds differently from one of many."""
MOST_ROWS = 2048
FEWEST_ROWS = 128
"""When memory runs out, chunks are not halved below this number of rows: their logits hardly take memory then."""
VOCABULARY_SLICE = 4096
"""Rows of a half-precision unembedding that are widened together where the product is in float32."""
MASKED = -1e30
"""Stands for minus infinity, which would make the entropy 0 x inf."""
OUT_OF_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch says when memory runs out on a CPU, or inside the matrix library of a card, without an error class."""


@dataclass(frozen=True, eq=False, repr=False)
class Unembedding:
    """The map from states to logits: ``z = (h W' + b) scale``, then ``cap tanh(z / cap)`` where there is a cap.

    Attributes:
        weight: W, [vocabulary width].
        bias: b, [vocabulary]; minus infinity takes a token out.
        scale: multiplies what the head returns (Cohere, Granite).
        soft_cap: no logit is larger (Gemma 2); None where there is none.

    Raises:
        ValueError: shapes that do not belong together, or a cap that is not positive.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or (self.bias is not None and self.bias.shape != self.weight.shape[:1]):
            shape = None if self.bias is None else tuple(self.bias.shape)
            raise ValueError(f"weight is [vocabulary width] and bias [vocabulary], not {self.weight.shape} and {shape}")
        if self.soft_cap is not None and not self.soft_cap > 0:
            raise ValueError(f"a soft cap is positive, not {self.soft_cap}")

    def __repr__(self) -> str:
        bias = "a bias" if self.bias is not None else "no bias"
        shape = " x ".join(map(str, self.weight.shape))
        return f"Unembedding({shape}, {bias}, scale {self.scale:g}, soft cap {self.soft_cap})"


def logit_chunks(
    hidden: Float[Tensor, "token width"], head: Unembedding, rows: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Logits of consecutive rows, [row vocabulary], in a buffer that the next ones are written into.

    Args:
        hidden: states after the final norm.
        head: the output head.
        rows: number of rows that are made together; by default ``count_rows_at_a_time``.

    Yields:
        Which rows, and their logits: float32, or float64 for float64 states.
    """
    chunks = chunks_of(len(hidden), rows or count_rows_at_a_time(hidden, len(head.weight)))
    buffers = logit_buffers(hidden, len(head.weight), chunks, 1)
    for chunk in chunks:
        yield chunk, chunk_logits(buffers[0], hidden[chunk], head)


def count_rows_at_a_time(hidden: Tensor, vocabulary: int) -> int:
    """The number of rows of logits that are made together."""
    if hidden.device.type == "cuda":
        return CUDA_ROWS
    return min(max(CPU_LOGIT_BYTES // (4 * vocabulary), LEAST_ROWS), MOST_ROWS)


def chunks_of(count: int, size: int) -> list[slice]:
    """``count`` rows in parts of ``size`` rows, the last one shorter."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def logit_buffers(hidden: Tensor, vocabulary: int, chunks: list[slice], count: int) -> list[Tensor]:
    """Unfilled buffers that hold the logits of the longest of these chunks."""
    rows = max((chunk.stop - chunk.start for chunk in chunks), default=0)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return [hidden.new_empty((max(rows, LEAST_ROWS), vocabulary), dtype=dtype) for _ in range(count)]


def chunk_logits(
    buffer: Tensor, hidden: Float[Tensor, "row width"], head: Unembedding, parity: Parity | None = None
) -> Float[Tensor, "row vocabulary"]:
    """The logits of one chunk, the first rows of ``buffer``; few rows are multiplied as if there were more."""
    missing = LEAST_ROWS - len(hidden)
    filled = torch.cat([hidden, hidden[:1].expand(missing, -1)]) if missing > 0 else hidden
    write_logits(buffer[: len(filled)], filled, head, slice(0, len(head.weight)), parity)
    return buffer[: len(hidden)]


def write_logits(
    out: Tensor,
    hidden: Float[Tensor, "row width"],
    head: Unembedding,
    columns: slice,
    parity: Parity | None = None,
) -> None:
    """Fill ``out``, [row column], with the logits of some columns of the vocabulary."""
    weight = head.weight[columns]
    if parity is not None:
        hidden, weight = hidden.bfloat16(), weight.bfloat16()
    write_product(out, hidden, weight)
    bias = None if head.bias is None else head.bias[columns]
    finish_logits(out, head, bias, parity)


def finish_logits(
    products: Float[Tensor, "row column"], head: Unembedding, bias: Tensor | None, parity: Parity | None = None
) -> None:
    """Apply bias, scale and soft cap of a head, in place.

    Args:
        products: ``h W'``, some columns of it.
        head: the output head, of which the weight is not used.
        bias: bias of these columns, [column] or [row column]; None where the head has none.
        parity: "bf16" rounds after each step.
    """

    def round_products() -> None:
        if parity is not None:
            products.copy_(products.bfloat16())

    if bias is not None:
        products += bias.to(products)
    round_products()
    if head.scale != 1.0:
        products *= head.scale
        round_products()
    if bias is not None:
        products.clamp_min_(MASKED)
    if head.soft_cap is not None:
        for step in (lambda: products.div_(head.soft_cap), products.tanh_, lambda: products.mul_(head.soft_cap)):
            step()
            round_products()


def write_product(out: Tensor, hidden: Tensor, weight: Tensor) -> None:
    """``hidden @ weight.T`` with sums and result in the dtype of ``out``."""
    if hidden.dtype == weight.dtype == out.dtype:
        torch.mm(hidden, weight.T, out=out)
    elif out.is_cuda and hidden.dtype == weight.dtype and can_sum_wide():
        # The factors are in half precision, the sums in float32.
        torch.ops.aten.mm.dtype_out(hidden, weight.T, out.dtype, out=out)
    else:
        if out.is_cuda:
            why = "they would have to be alike" if can_sum_wide() else "torch before 2.8 multiplies none into float32"
            fall_back(
                "products of the output head in float32, without tensor cores",
                f"states are {hidden.dtype}, weights {weight.dtype}: {why}",
            )
        wide = hidden.to(out.dtype)
        for start in range(0, len(weight), VOCABULARY_SLICE):
            part = slice(start, start + VOCABULARY_SLICE)
            out[:, part] = wide @ weight[part].to(out.dtype).T


def with_fewer_rows(work: Callable[[int], Result], rows: int) -> Result:
    """Call ``work(rows)``, and again with half as many rows a chunk whenever memory runs out.

    Raises:
        RuntimeError: (``torch.OutOfMemoryError``) memory runs out with ``FEWEST_ROWS`` too.
    """
    while True:
        try:
            return work(rows)
        except RuntimeError as error:
            if not is_out_of_memory(error) or rows <= FEWEST_ROWS:
                raise
        # Outside of the handler, since the frames of the error keep the memory that is missing.
        rows = max(rows // 2, FEWEST_ROWS)
        fall_back("logits of fewer rows at a time", f"memory ran out with {2 * rows} rows")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether this is what torch raises when memory runs out."""
    return isinstance(error, torch.OutOfMemoryError) or any(sentence in str(error) for sentence in OUT_OF_MEMORY)
