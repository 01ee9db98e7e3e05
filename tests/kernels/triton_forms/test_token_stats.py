import pytest
import torch
from tolerance import assert_as_good_as_torch

from probing.errors import KernelUnavailable
from probing.kernels import output_head
from probing.kernels import token_stats as module
from probing.kernels.output_head import MASKED, Unembedding, finish_logits
from probing.kernels.token_stats import (
    BLOCK_COLUMNS,
    RowStats,
    compile_variants,
    launch_row_stats,
    row_stats,
    row_stats_reference,
    token_stats,
)
from probing.kernels.top_columns import TILE, tile_maxima, top_columns

# Small blocks, so that a few columns fill several; widths of one block and one off it, several blocks, one column.
BLOCK = 16
WIDTHS = [1, 3, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 6 * BLOCK + 5]
ROWS = 9
GUARD = 64
NUMBERS = ("logprob", "entropy", "logsumexp")
RESULTS = [torch.float32, torch.int64, torch.float32, torch.float32]
# What numpy says in the interpreter, since the maximum of Triton passes over NaN.
passes_over_nan = pytest.mark.filterwarnings("ignore:All-NaN slice encountered")


def kernel_stats(logits, targets, block_columns=BLOCK, head=None, maxima=None):
    """What the kernel leaves in poisoned buffers; behind their end, and in its input, it must leave all as it was."""
    rows, before = len(logits), logits.clone()
    numbers = torch.full((3, rows + GUARD), float("nan"), device=logits.device)
    ranks = torch.full((rows + GUARD,), -7, device=logits.device)
    stats = RowStats(numbers[0, :rows], ranks[:rows], numbers[1, :rows], numbers[2, :rows])
    launch_row_stats(logits, targets, stats, head, maxima, block_columns)
    assert numbers[:, rows:].isnan().all()
    assert (ranks[rows:] == -7).all()
    assert torch.equal(logits.view(torch.int32), before.view(torch.int32))  # as bits: NaN is not equal to itself
    return stats


def finished(logits, head):
    """The definition of what a head does to a product."""
    done = logits.clone()
    if head is not None:
        finish_logits(done, head, head.bias)
    return done


def check(logits, targets, block_columns=BLOCK, head=None):
    stats = kernel_stats(logits, targets, block_columns, head)
    plain = row_stats_reference(finished(logits, head), targets)
    exact = row_stats_reference(finished(logits.double(), head), targets)
    assert torch.equal(stats.rank, exact.rank)
    for name in NUMBERS:
        assert_as_good_as_torch(getattr(stats, name), getattr(plain, name), getattr(exact, name))
    return stats


def same(stats, others):
    return all(torch.equal(left, right) for left, right in zip(stats, others, strict=True))


@pytest.fixture
def normal(generator, device):
    return lambda rows, width: torch.randn(rows, width, generator=generator).to(device)


@pytest.fixture
def draw(generator, device):
    """Targets, the first and the last column among them."""

    def targets(rows, width):
        drawn = torch.randint(width, (rows,), generator=generator)
        drawn[:2] = torch.tensor([0, width - 1])[:rows]
        return drawn.to(device)

    return targets


@pytest.mark.parametrize("width", WIDTHS)
def test_as_good_as_torch(normal, draw, width):
    check(normal(ROWS, width), draw(ROWS, width))


@pytest.mark.parametrize("scale", [0.01, 10.0, 100.0])
def test_flat_and_peaky_logits(normal, draw, scale):
    check(normal(ROWS, 101) * scale, draw(ROWS, 101))


@pytest.mark.parametrize("shift", [-3000.0, 3000.0])
def test_logits_far_from_zero(normal, draw, shift):
    check(normal(ROWS, 101) + shift, draw(ROWS, 101))


@pytest.mark.parametrize("huge", [40.0, 1e4, 1e30])
def test_one_huge_logit(normal, draw, huge):
    """In each of the blocks, and as the target and not."""
    logits, targets = normal(ROWS, 101), draw(ROWS, 101)
    columns = torch.tensor([100, 15, 16, 0, 47, 50, 70, 90, 99])
    logits[torch.arange(ROWS), columns] = huge
    check(logits, targets)
    check(logits, columns.to(targets))


@pytest.mark.parametrize("slope", [-20.0, -0.1, 0.1, 20.0])
def test_a_new_largest_in_every_block_or_in_the_first_alone(normal, draw, device, slope):
    check(normal(ROWS, 101) + slope * torch.arange(101.0, device=device), draw(ROWS, 101))


def test_a_target_far_below_the_rest(normal, draw):
    logits, targets = normal(ROWS, 101), draw(ROWS, 101)
    logits.scatter_(1, targets[:, None], -200.0)
    assert (check(logits, targets).rank == 101).all()


@pytest.mark.parametrize("width", [7, 16, 85])
def test_tied_logits(generator, draw, device, width):
    """Half-integers, many of them alike: a rank counts those that are larger, not those that are as large."""
    logits = (torch.randint(-3, 4, (12, width), generator=generator) / 2).to(device)
    check(logits, draw(12, width))
    assert kernel_stats(torch.ones_like(logits), draw(12, width)).rank.tolist() == [1] * 12


def test_every_rank(generator, device):
    logits = torch.randperm(37, generator=generator).to(device, torch.float32).expand(37, 37)[:33].contiguous()
    targets = torch.arange(33, device=device)
    assert torch.equal(check(logits, targets).rank, 37 - logits[0, :33].long())


def test_columns_that_are_masked(normal, draw):
    """Some, whole blocks of them, the target, all but one, all."""
    logits, targets = normal(11, 53), draw(11, 53)
    logits[0, ::3] = MASKED
    logits[1, :20] = logits[2, 16:32] = logits[3, 30:] = logits[4, 48:] = MASKED
    logits[5, targets[5]] = logits[6, 1:] = logits[7, :-1] = logits[8, :20] = logits[8, 21:] = MASKED
    logits[9] = logits[10, :40] = MASKED
    targets[6:8] = targets.new_tensor([0, 1])
    stats = check(logits, targets)
    assert all(values.isfinite().all() for values in stats)


@pytest.mark.parametrize("lowest", [-3e30, -1e38])
def test_logits_below_those_that_are_masked(draw, device, lowest):
    """Columns beyond the last are no stand-ins for numbers: were they, they would outweigh a row this low."""
    check(torch.full((3, 21), lowest, device=device), draw(3, 21))


@passes_over_nan
@pytest.mark.parametrize("at_target", [False, True])
def test_nan_in_any_column(normal, device, at_target):
    logits = normal(33, 33)
    columns = torch.arange(33, device=device)
    targets = columns if at_target else (columns + 5) % 33
    logits[columns, columns] = float("nan")
    stats = kernel_stats(logits, targets)
    assert all(getattr(stats, name).isnan().all() for name in NUMBERS)
    assert torch.equal(stats.rank, row_stats_reference(logits.clone(), targets).rank)


@passes_over_nan
@pytest.mark.parametrize("columns", [slice(0, 16), slice(16, 32), slice(32, 37), slice(0, 37)])
def test_a_block_of_nan(normal, draw, columns):
    logits = normal(4, 37)
    logits[1:3, columns] = float("nan")
    stats = kernel_stats(logits, draw(4, 37))
    for name in NUMBERS:
        assert getattr(stats, name).isnan().tolist() == [False, True, True, False]


@passes_over_nan
def test_a_row_feels_no_other(normal, draw):
    logits, targets = normal(ROWS, 53), draw(ROWS, 53)
    together = kernel_stats(logits, targets)
    alone = [kernel_stats(logits[row : row + 1], targets[row : row + 1]) for row in range(ROWS)]
    assert same(together, [torch.cat(parts) for parts in zip(*alone, strict=True)])
    logits[3], logits[4], logits[5] = 1e30, -1e30, float("nan")
    poisoned = kernel_stats(logits, targets)
    others = torch.tensor([0, 1, 2, 6, 7, 8], device=logits.device)
    assert same([values[others] for values in together], [values[others] for values in poisoned])


def test_rows_that_do_not_lie_side_by_side(normal, draw, device):
    wide = torch.full((ROWS, 50), float("nan"), device=device)
    inner = wide[:, 3:40]
    inner[:] = normal(ROWS, 37)
    targets = draw(ROWS, 37)
    check(inner, targets)
    check(normal(37, ROWS).T, targets)
    check(normal(2 * ROWS, 37)[1::2], torch.stack((targets, targets * 0), dim=1)[:, 0])


def test_offsets_beyond_32_bits(device):
    """Rows so far apart that the last begins at element 2**31; on a CPU only their pages are ever touched."""
    stride = 2**30
    logits = torch.empty(2 * stride + 5, device=device).as_strided((3, 5), (stride, 1))
    logits[:] = torch.arange(15.0).reshape(3, 5).flip(1)
    stats = RowStats(*(torch.empty(3, device=device, dtype=dtype) for dtype in RESULTS))
    targets = torch.tensor([4, 3, 2], device=device)
    launch_row_stats(logits, targets, stats, block_columns=BLOCK)
    assert same(stats, kernel_stats(logits.contiguous(), targets))
    assert stats.rank.tolist() == [5, 4, 3]


class Recorder:
    """Takes the place of the kernel and keeps what it was launched with."""

    def __getitem__(self, grid):
        def launch(*arguments, num_warps, **constants):
            self.arguments, self.constants, self.num_warps, self.grid = arguments, constants, num_warps, grid

        return launch


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(module, "row_stats_kernel", recorder)
    return recorder


def test_no_rows_no_launch(recorder, device):
    """A card may refuse an empty grid; the interpreter does not."""
    stats = row_stats(torch.empty((0, 5), device=device), torch.empty(0, dtype=torch.long, device=device), "triton")
    assert [len(values) for values in stats] == [0, 0, 0, 0]
    assert not vars(recorder)


def test_blocks_are_as_small_as_asked_for(recorder, normal, draw):
    """Else no test above would reach a second block."""
    kernel_stats(normal(3, 37), draw(3, 37))
    assert (recorder.constants["block_columns"], recorder.constants["tile"]) == (BLOCK, BLOCK)


def head_of(width, device, generator=None, bias=True, scale=1.0, soft_cap=None):
    """A head of which only what comes after the product is used."""
    values = torch.randn(width, generator=generator).to(device) if bias else None
    return Unembedding(torch.empty((width, 1), device=device), values, scale, soft_cap)


FORMS = [{}, {"maxima": True}, {"head": True, "maxima": True}]


@pytest.mark.parametrize(
    ("width", "form", "variant"),
    [
        (width, form, compile_variants()[3 * at + which])
        for at, width in enumerate([4096, 4097])
        for which, form in enumerate(FORMS)
    ],
)
def test_what_is_launched_is_what_is_compiled_for_the_check(recorder, normal, draw, device, width, form, variant):
    logits, targets = normal(3, width), draw(3, width)
    stats = RowStats(*(torch.empty(3, device=device, dtype=dtype) for dtype in RESULTS))
    head = head_of(width, device, soft_cap=30.0) if form.get("head") else None
    maxima = torch.empty((3, -(-width // TILE)), device=device) if form.get("maxima") else None
    launch_row_stats(logits, targets, stats, head, maxima)
    assert (recorder.grid, recorder.constants, recorder.num_warps) == ((3,), variant.constants, variant.num_warps)
    tensors = {torch.float32: "*fp32", torch.int64: "*i64"}
    found = recorder.arguments
    kinds = [tensors[a.dtype] if torch.is_tensor(a) else "fp32" if isinstance(a, float) else "i32" for a in found]
    assert kinds == list(variant.types.values())
    aligned = [not isinstance(a, float) and (a.data_ptr() if torch.is_tensor(a) else a) % 16 == 0 for a in found]
    assert aligned == [name in variant.aligned for name in variant.types]


HEADS = [
    {"bias": False, "scale": 0.3},
    {"bias": False, "soft_cap": 2.5},
    {"bias": False, "scale": 3.0, "soft_cap": 30.0},
    {},
    {"scale": 0.0625},
    {"scale": 2.0, "soft_cap": 1.5},
]


@pytest.mark.parametrize("options", HEADS, ids=str)
@pytest.mark.parametrize("width", [1, BLOCK, 3 * BLOCK + 5])
def test_bias_scale_and_cap_inside_the_kernel(normal, draw, generator, device, options, width):
    """Ranks equal those in float64 although they are counted before the cap, which changes no order."""
    check(normal(ROWS, width) * 3, draw(ROWS, width), head=head_of(width, device, generator, **options))


def test_a_cap_far_below_the_logits(normal, draw, device):
    """In float32 the hyperbolic tangent is 1 from 9 on, so many logits equal the cap; their order is still known."""
    logits, targets = normal(ROWS, 53) * 50, draw(ROWS, 53)
    stats = kernel_stats(logits, targets, head=head_of(53, device, bias=False, soft_cap=1.0))
    assert torch.equal(stats.rank, row_stats_reference(logits.double(), targets).rank)
    logprob = row_stats_reference(logits.double().tanh(), targets).logprob
    torch.testing.assert_close(stats.logprob.double(), logprob, rtol=0, atol=1e-5)


@pytest.mark.parametrize("soft_cap", [None, 5.0])
@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_tokens_that_a_bias_takes_out(normal, draw, generator, device, scale, soft_cap):
    """Some, among them targets and whole blocks; nothing becomes NaN."""
    head = head_of(53, device, generator, scale=scale, soft_cap=soft_cap)
    head.bias[16:32] = head.bias[::7] = -float("inf")
    logits, targets = normal(ROWS, 53), draw(ROWS, 53)
    targets[:3] = torch.tensor([0, 20, 33])
    stats = check(logits, targets, head=head)
    assert all(values.isfinite().all() for values in stats)


@passes_over_nan
@pytest.mark.parametrize("options", HEADS[2::3], ids=str)
def test_nan_is_passed_on_by_every_head(normal, draw, generator, device, options):
    logits = normal(3, 37)
    logits[1, 20] = float("nan")
    stats = kernel_stats(logits, draw(3, 37), head=head_of(37, device, generator, **options))
    for name in NUMBERS:
        assert getattr(stats, name).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("options", [None, HEADS[5]], ids=str)
@pytest.mark.parametrize(
    ("width", "block", "tile"),
    [(1, BLOCK, BLOCK), (6 * BLOCK + 5, BLOCK, BLOCK), (1, BLOCK_COLUMNS, TILE), (3 * TILE + 40, BLOCK_COLUMNS, TILE)],
)
def test_maxima_of_tiles(normal, draw, generator, device, options, width, block, tile):
    """Those of the logits before the cap; poisoned before, and nothing written behind them."""
    tiles = -(-width // tile)
    whole = torch.full((ROWS * tiles + GUARD,), float("nan"), device=device)
    head = None if options is None else head_of(width, device, generator, **options)
    logits = normal(ROWS, width) - 100
    kernel_stats(logits, draw(ROWS, width), block, head, whole[: ROWS * tiles].view(ROWS, tiles))
    if head is not None:
        logits = finished(logits, Unembedding(head.weight, head.bias, head.scale))
    expected = torch.stack([part.amax(dim=1) for part in logits.split(tile, dim=1)], dim=1)
    assert torch.equal(whole[: ROWS * tiles].view(ROWS, tiles), expected)
    assert whole[ROWS * tiles :].isnan().all()


@pytest.mark.parametrize("options", [{"bias": False}, {}, {"bias": False, "soft_cap": 3.0}, HEADS[5]], ids=str)
def test_top_tokens_by_the_tiles_of_the_kernel(normal, draw, generator, device, options):
    """Three tiles and a ragged one; a tile holds several of the best, and the best of two tiles are alike."""
    width = 3 * TILE + 40
    head = head_of(width, device, generator, **options)
    logits, maxima = normal(4, width), torch.empty((4, 4), device=device)
    logits[0, [5, 6, 7, 300]] = 9.0
    logits[1, width - 2 :] = 9.0
    kernel_stats(logits, draw(4, width), BLOCK_COLUMNS, head, maxima)
    values, columns = top_columns(logits, 3, maxima, head)
    expected = finished(logits, head).topk(3).values
    assert torch.equal(values, expected)
    assert torch.equal(finished(logits, head).gather(1, columns), expected)
    bare = Unembedding(head.weight, head.bias, head.scale)
    assert torch.equal(maxima, tile_maxima(finished(logits, bare)))


@pytest.mark.parametrize("width", [11, BLOCK_COLUMNS + 5])
def test_the_operation_takes_the_kernel(normal, draw, width):
    logits, targets = normal(3, width), draw(3, width)
    before = logits.clone()
    stats = row_stats(logits, targets, impl="triton")
    assert torch.equal(logits, before)
    assert same(stats, check(logits, targets, BLOCK_COLUMNS))
    assert [values.dtype for values in stats] == RESULTS
    assert all(values.device == logits.device for values in stats)


def test_other_logits_are_refused(normal, draw):
    logits, targets = normal(3, 7).double(), draw(3, 7)
    with pytest.raises(KernelUnavailable, match="the Triton form of row_stats cannot run: it takes float32, not flo"):
        row_stats(logits, targets, impl="triton")
    exact = row_stats_reference(logits.clone(), targets)
    assert same(row_stats(logits, targets), exact)
    assert exact.logprob.dtype == torch.float64


@pytest.mark.parametrize("options", [{}, {"scale": 0.25, "soft_cap": 4.0}], ids=str)
@pytest.mark.parametrize("rows", [7, 20])
def test_token_stats_by_the_kernel(normal, draw, generator, device, monkeypatch, options, rows):
    monkeypatch.setattr(output_head, "CPU_LOGIT_BYTES", 4 * 450 * rows)
    hidden, weight, targets = normal(20, 12), normal(450, 12), draw(20, 450)
    targets[::5] = -100
    bias = torch.randn(450, generator=generator).to(device) if options else None
    head = Unembedding(weight, bias, **options)
    wide = Unembedding(weight.double(), None if bias is None else bias.double(), **options)
    stats = token_stats(hidden, head, targets, top=3, impl="triton")
    plain = token_stats(hidden, head, targets, top=3, impl="torch")
    exact = token_stats(hidden.double(), wide, targets, top=3)
    assert torch.equal(stats.rank, plain.rank)
    assert torch.equal(stats.top_ids, plain.top_ids)
    assert stats.logprob.isnan().tolist() == (targets < 0).tolist()
    assert_as_good_as_torch(stats.logprob[targets >= 0], plain.logprob[targets >= 0], exact.logprob[targets >= 0])
    for name in ("entropy", "top_logprob", "logsumexp"):
        assert_as_good_as_torch(getattr(stats, name), getattr(plain, name), getattr(exact, name))


def test_bf16_parity_is_finished_before_the_kernel(normal, draw, generator, device):
    """Since it rounds after every step."""
    head = Unembedding(normal(50, 12), torch.randn(50, generator=generator).to(device), 0.5, 3.0)
    hidden, targets = normal(20, 12), draw(20, 50)
    found, plain = (token_stats(hidden, head, targets, parity="bf16", impl=impl) for impl in ("triton", "torch"))
    assert torch.equal(found.rank, plain.rank)
    torch.testing.assert_close(found.logprob, plain.logprob, rtol=0, atol=1e-5)
