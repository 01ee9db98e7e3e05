"""Stage ``ceilings``: what the card itself does, which every share is a share of."""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from card.run import Run
from card.timing import held, seconds


def ceilings(run: Run) -> None:
    """Burst and held matrix products, copying, the products of a layer, and the product with the output head."""
    with run.part(figure="matrix product"):
        matrix_product(run)
    with run.part(figure="copy"):
        copy(run)
    with run.part(figure="products of a layer"):
        products_of_a_layer(run)
    with run.part(figure="output head"):
        head_product(run)


def drawn(run: Run, *shape: int) -> Tensor:
    """Random numbers in bf16: products of zeros are faster, since they take less power."""
    return torch.randn(shape, device=run.device, dtype=torch.bfloat16)


def matrix_product(run: Run) -> None:
    """A large bf16 product: for a moment, and for as long as the clocks take to settle under load."""
    n = run.sizes.square
    left, right = drawn(run, n, n), drawn(run, n, n)
    work = 2 * n**3
    burst = work / seconds(lambda: left @ right, run.device)
    lasting = work / held(lambda: left @ right, run.device, run.sizes.held_seconds)
    run.measured |= {"matmul": burst, "matmul_held": lasting}
    run.say(
        figure="matrix product",
        size=n,
        tflop_s_burst=burst / 1e12,
        tflop_s_held=lasting / 1e12,
        held_seconds=run.sizes.held_seconds,
    )


def copy(run: Run) -> None:
    """Bytes read and written a second when memory is copied."""
    source = torch.empty(run.sizes.copied, dtype=torch.uint8, device=run.device)
    target = torch.empty_like(source)
    rate = 2 * source.numel() / seconds(lambda: target.copy_(source), run.device)
    run.measured["copy"] = rate
    run.say(figure="copy", bytes=source.numel(), tb_s=rate / 1e12)


def layer_products(run: Run) -> list[tuple[str, int, int, int]]:
    """Name, inner and outer width of the products of a layer, and how many there are of each."""
    size = run.sizes
    return [
        ("q, o", size.width, size.width, 2),
        ("k, v", size.width, size.kv_width, 2),
        ("gate, up", size.width, size.inner, 2),
        ("down", size.inner, size.width, 1),
    ]


def products_of_a_layer(run: Run) -> None:
    """Each at the size of a full batch; together they are what the body of a model cannot be faster than."""
    tokens, spent, work = run.sizes.tokens, 0.0, 0.0
    for name, inner, outer, count in layer_products(run):
        states, weight = drawn(run, tokens, inner), drawn(run, outer, inner)
        own = seconds(partial(linear, states, weight), run.device, rounds=5)
        spent, work = spent + count * own, work + count * 2 * tokens * inner * outer
        rate = 2 * tokens * inner * outer / own
        run.say(figure="product", product=name, m=tokens, k=inner, n=outer, tflop_s=rate / 1e12)
    run.measured["layer"] = work / spent
    run.say(
        figure="products of a layer",
        tflop_s=work / spent / 1e12,
        share_of_held=run.share(work / spent, "matmul_held"),
    )


def head_product(run: Run) -> None:
    """bf16 states and weights with float32 sums and results, as token statistics need them."""
    size = run.sizes
    states, weight = drawn(run, size.chunk, size.width), drawn(run, size.vocabulary, size.width)
    if not run.card:
        run.say(figure="output head", not_run="torch has this product on a CUDA card only")
        return
    out = torch.empty(size.chunk, size.vocabulary, device=run.device)
    own = seconds(lambda: torch.ops.aten.mm.dtype_out(states, weight.T, torch.float32, out=out), run.device, rounds=5)
    rate = 2 * size.chunk * size.width * size.vocabulary / own
    run.measured["head"] = rate
    run.say(
        figure="output head",
        rows=size.chunk,
        tflop_s=rate / 1e12,
        share_of_held=run.share(rate, "matmul_held"),
    )
