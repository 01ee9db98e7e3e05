import pytest
import torch
from tolerance import assert_as_good_as_torch

from probing.errors import KernelUnavailable
from probing.kernels import token_stats as module
from probing.kernels.token_stats import (
    BLOCK_COLUMNS,
    MASKED,
    RowStats,
    compile_variants,
    launch_row_stats,
    row_stats,
    row_stats_reference,
    token_stats,
)

# Small blocks, so that a few columns fill several; widths of one block and one off it, several blocks, one column.
BLOCK = 16
WIDTHS = [1, 3, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 6 * BLOCK + 5]
ROWS = 9
GUARD = 64
NUMBERS = ("logprob", "entropy", "logsumexp")
RESULTS = [torch.float32, torch.int64, torch.float32, torch.float32]
# What numpy says in the interpreter, since the maximum of Triton passes over NaN.
passes_over_nan = pytest.mark.filterwarnings("ignore:All-NaN slice encountered")


def kernel_stats(logits, targets, block_columns=BLOCK):
    """What the kernel leaves in poisoned buffers; behind their end, and in its input, it must leave all as it was."""
    rows, before = len(logits), logits.clone()
    numbers = torch.full((3, rows + GUARD), float("nan"), device=logits.device)
    ranks = torch.full((rows + GUARD,), -7, device=logits.device)
    stats = RowStats(numbers[0, :rows], ranks[:rows], numbers[1, :rows], numbers[2, :rows])
    launch_row_stats(logits, targets, stats, block_columns)
    assert numbers[:, rows:].isnan().all()
    assert (ranks[rows:] == -7).all()
    assert torch.equal(logits.view(torch.int32), before.view(torch.int32))  # as bits: NaN is not equal to itself
    return stats


def check(logits, targets, block_columns=BLOCK):
    stats = kernel_stats(logits, targets, block_columns)
    plain = row_stats_reference(logits.clone(), targets)
    exact = row_stats_reference(logits.double(), targets)
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
    launch_row_stats(logits, targets, stats, BLOCK)
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
    assert recorder.constants == {"block_columns": BLOCK}


@pytest.mark.parametrize(("width", "variant"), list(zip([4096, 4097], compile_variants(), strict=True)))
def test_what_is_launched_is_what_is_compiled_for_the_check(recorder, normal, draw, width, variant):
    row_stats(normal(3, width), draw(3, width), impl="triton")
    assert (recorder.grid, recorder.constants, recorder.num_warps) == ((3,), variant.constants, variant.num_warps)
    tensors = {torch.float32: "*fp32", torch.int64: "*i64"}
    found = recorder.arguments
    assert [tensors[a.dtype] if torch.is_tensor(a) else "i32" for a in found] == list(variant.types.values())
    aligned = [(a.data_ptr() if torch.is_tensor(a) else a) % 16 == 0 for a in found]
    assert aligned == [name in variant.aligned for name in variant.types]


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


def test_token_stats_by_the_kernel(normal, draw):
    hidden, weight, targets = normal(20, 12), normal(300, 12), draw(20, 300)
    targets[::5] = -100
    stats = token_stats(hidden, weight, targets, top=3, impl="triton")
    plain = token_stats(hidden, weight, targets, top=3, impl="torch")
    exact = token_stats(hidden.double(), weight.double(), targets, top=3)
    assert torch.equal(stats.rank, plain.rank)
    assert torch.equal(stats.top_ids, plain.top_ids)
    assert stats.logprob.isnan().tolist() == (targets < 0).tolist()
    assert_as_good_as_torch(stats.logprob[targets >= 0], plain.logprob[targets >= 0], exact.logprob[targets >= 0])
    for name in ("entropy", "top_logprob"):
        assert_as_good_as_torch(getattr(stats, name), getattr(plain, name), getattr(exact, name))
