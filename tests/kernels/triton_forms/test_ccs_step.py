import pytest
import torch
from tolerance import assert_as_good_as_torch

from probing.errors import KernelUnavailable
from probing.kernels import ccs_step as module
from probing.kernels.ccs_step import (
    BLOCK_ROWS,
    LOSSES,
    ccs_gradient,
    ccs_gradient_in_place,
    ccs_gradient_reference,
    ccs_step,
    compile_variants,
    launch_ccs_gradient,
)

# Small blocks, so that a few rows fill several; one block and one off it, several blocks, one row.
BLOCK = 8
ROWS = [1, BLOCK - 1, BLOCK, BLOCK + 1, 4 * BLOCK, 4 * BLOCK + 3]
GUARD = 64
PLAIN = [ccs_gradient_reference, ccs_gradient_in_place]
both_losses = pytest.mark.parametrize("loss", LOSSES)


def kernel_gradient(logits, row_weights, loss="original", targets=None, supervision=0.0, block_rows=BLOCK):
    """Losses and gradients in poisoned buffers; before and behind them, and in its inputs, all must stay as it was."""
    entries, probes, _, rows = logits.shape
    losses = torch.full((entries * probes + 2 * GUARD,), float("nan"), device=logits.device)
    buffer = torch.full((logits.numel() + 2 * GUARD,), float("nan"), device=logits.device)
    inner, inner_losses = (values[GUARD:-GUARD] for values in (buffer, losses))
    gradient = inner.view(entries, probes, 2, rows)
    gradient.copy_(logits)
    read = [values for values in (row_weights, targets) if values is not None]
    before = [values.clone() for values in read]
    value = inner_losses.view(entries, probes)
    launch_ccs_gradient(gradient, row_weights, loss, targets, supervision, value, block_rows)
    for guarded in (losses, buffer):
        assert guarded[:GUARD].isnan().all()
        assert guarded[-GUARD:].isnan().all()
    assert all(torch.equal(values, others) for values, others in zip(read, before, strict=True))
    return value, gradient


def check(logits, row_weights, loss="original", targets=None, supervision=0.0, block_rows=BLOCK):
    """Against float64, where either plain form may be as far off; yes and no forms are told apart exactly in both."""
    found = kernel_gradient(logits, row_weights, loss, targets, supervision, block_rows)
    gradient = logits.double()
    truth = None if targets is None else targets.double()
    exact = ccs_gradient_reference(gradient, row_weights.double(), loss, truth, supervision), gradient
    for plain in PLAIN:
        overwritten = logits.clone()
        value = plain(overwritten, row_weights, loss, targets, supervision)
        for mine, other, right in zip(found, (value, overwritten), exact, strict=True):
            assert_as_good_as_torch(mine, other, right)
    return found


@pytest.fixture
def draw(generator, device):
    """Logits, weights of rows (a third of them zero), and targets."""

    def inputs(entries, probes, rows, splits, scale=2.0):
        logits = torch.randn(entries, probes, 2, rows, generator=generator) * scale
        row_weights = torch.rand(rows, splits, generator=generator) + 0.1
        row_weights[1::3] = 0
        targets = (torch.rand(rows, generator=generator) < 0.5).float()
        return logits.to(device), row_weights.to(device), targets.to(device)

    return inputs


@both_losses
@pytest.mark.parametrize("rows", ROWS)
def test_as_good_as_torch(draw, rows, loss):
    logits, row_weights, targets = draw(2, 3, rows, 1)
    check(logits, row_weights, loss)
    check(logits, row_weights, loss, targets, 0.7)


@both_losses
@pytest.mark.parametrize(("entries", "probes", "splits"), [(1, 1, 1), (3, 4, 2), (2, 6, 3), (2, 5, 5)])
def test_every_probe_has_the_rows_of_its_split(draw, entries, probes, splits, loss):
    logits, row_weights, targets = draw(entries, probes, 2 * BLOCK + 1, splits)
    check(logits, row_weights, loss, targets, 0.3)
    row_weights[:, -1] = 0
    value, gradient = check(logits, row_weights, loss, targets, 0.3)
    assert (value[:, -probes // splits :] == 0).all()
    assert (gradient[:, -probes // splits :] == 0).all()


@both_losses
@pytest.mark.parametrize("scale", [0.01, 30.0, 100.0])
def test_flat_and_huge_logits(draw, scale, loss):
    logits, row_weights, targets = draw(1, 3, 21, 1, scale)
    value, gradient = check(logits, row_weights, loss, targets, 0.5)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


@both_losses
def test_logits_of_a_hundred_on_either_side(device, loss):
    sides = torch.tensor([-100.0, -20.0, 20.0, 100.0], device=device)
    logits = torch.cartesian_prod(sides, sides + 0.5).T.contiguous()[None, None]
    targets = (torch.arange(16, device=device) % 3 == 0).float()
    value, _ = check(logits, torch.ones(16, 1, device=device), loss, targets, 1.0)
    assert float(value) > 900


@both_losses
def test_ties(device, loss):
    """Of two forms, of opposite forms, of all four; and zero, which is positive and negative alike."""
    yes = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0, -3.0, -0.5, -0.0, 0.5, 3.0, 0.0], device=device)
    no = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0, 3.0, 0.5, 0.0, -0.5, -3.0, 1.0], device=device)
    check(torch.stack((yes, no))[None, None].contiguous(), torch.ones(11, 1, device=device), loss)


def test_logits_whose_probabilities_round_to_the_same(device):
    yes = torch.linspace(-9, 9, 19, device=device)
    no = torch.nextafter(yes, torch.full_like(yes, 10.0))
    for logits in (torch.stack((yes, no)), torch.stack((no, yes))):
        for loss in LOSSES:
            check(logits[None, None], torch.ones(19, 1, device=device), loss)


@both_losses
@pytest.mark.parametrize("form", [0, 1])
def test_nan_stays_in_its_probe(draw, form, loss):
    logits, row_weights, targets = draw(2, 3, 2 * BLOCK + 3, 1)
    for row in (0, BLOCK - 1, BLOCK, 2 * BLOCK + 2):
        poisoned = logits.clone()
        poisoned[1, 1, form, row] = float("nan")
        supervised = {"targets": targets, "supervision": 0.5} if row < BLOCK else {}
        value, gradient = kernel_gradient(poisoned, row_weights, loss, **supervised)
        clean, clean_gradient = kernel_gradient(logits, row_weights, loss, **supervised)
        assert value.isnan().nonzero().tolist() == [[1, 1]]
        assert gradient.isnan().nonzero().tolist() == [[1, 1, 0, row], [1, 1, 1, row]]
        assert torch.equal(value.nan_to_num(0), clean.where(~value.isnan(), 0.0))
        assert torch.equal(gradient.nan_to_num(0), clean_gradient.where(~gradient.isnan(), 0.0))


def test_a_probe_feels_no_other_and_not_how_often_it_is_asked(draw):
    logits, row_weights, targets = draw(2, 4, 21, 2)
    together = kernel_gradient(logits, row_weights, "symmetric", targets, 0.4)
    again = kernel_gradient(logits, row_weights, "symmetric", targets, 0.4)
    assert all(torch.equal(left, right) for left, right in zip(together, again, strict=True))
    alone = kernel_gradient(logits[1:, 2:], row_weights[:, 1:], "symmetric", targets, 0.4)
    assert torch.equal(alone[0], together[0][1:, 2:])
    assert torch.equal(alone[1], together[1][1:, 2:])


def test_offsets_beyond_32_bits(device):
    """Probes so far apart that the last begins at element 2**31; on a CPU only their pages are ever touched."""
    stride = 2**30
    logits = torch.empty(2 * stride + 10, device=device).as_strided((1, 3, 2, 5), (3 * stride, stride, 5, 1))
    logits[:] = torch.arange(30.0).reshape(1, 3, 2, 5) / 10 - 1
    row_weights, losses = torch.ones(5, 1, device=device), torch.empty(1, 3, device=device)
    value, gradient = kernel_gradient(logits, row_weights)
    launch_ccs_gradient(logits, row_weights, "original", None, 0.0, losses, BLOCK)
    assert torch.equal(losses, value)
    assert torch.equal(logits, gradient)


class Recorder:
    """Takes the place of the kernel and keeps what it was launched with."""

    def __getitem__(self, grid):
        def launch(*arguments, num_warps, **constants):
            self.arguments, self.constants, self.num_warps, self.grid = arguments, constants, num_warps, grid

        return launch


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(module, "ccs_gradient_kernel", recorder)
    return recorder


def test_no_probes_no_launch(recorder, device):
    """A card may refuse an empty grid; the interpreter does not."""
    value = ccs_gradient(torch.empty((0, 3, 2, 5), device=device), torch.ones(5, 1, device=device), impl="triton")
    assert value.shape == (0, 3)
    assert not vars(recorder)


def test_blocks_are_as_small_as_asked_for(recorder, draw):
    """Else no test above would reach a second block."""
    kernel_gradient(*draw(1, 2, 21, 1)[:2])
    assert recorder.constants["block_rows"] == BLOCK


VARIANTS = [
    (loss, supervised, rows) for loss in LOSSES for supervised in (False, True) for rows in (4096, 4097)
]  # in the order of compile_variants


@pytest.mark.parametrize(("form", "variant"), list(zip(VARIANTS, compile_variants(), strict=True)))
def test_what_is_launched_is_what_is_compiled_for_the_check(recorder, draw, form, variant):
    loss, supervised, rows = form
    logits, row_weights, targets = draw(3, 6, rows, 2)
    ccs_gradient(logits, row_weights, loss, targets, 0.5 if supervised else 0.0, impl="triton")
    assert (recorder.grid, recorder.constants, recorder.num_warps) == ((18,), variant.constants, variant.num_warps)
    kinds = ["*fp32" if torch.is_tensor(a) else "fp32" if isinstance(a, float) else "i32" for a in recorder.arguments]
    assert kinds == list(variant.types.values())
    assert all(not torch.is_tensor(a) or (a.dtype == torch.float32 and a.is_contiguous()) for a in recorder.arguments)
    named = dict(zip(variant.types, recorder.arguments, strict=True))
    assert all(named[name].data_ptr() % 16 == 0 for name in variant.aligned[:4])
    assert [named[name] % 16 == 0 for name in ("rows", "probe_stride")] == [rows == 4096, rows == 4096]
    assert ("rows" in variant.aligned, "probe_stride" in variant.aligned) == (rows == 4096, rows == 4096)


@both_losses
@pytest.mark.parametrize("rows", [11, BLOCK_ROWS + 5])
def test_the_operation_takes_the_kernel(draw, rows, loss):
    logits, row_weights, targets = draw(1, 2, rows, 2)
    found = logits.clone()
    value = ccs_gradient(found, row_weights, loss, targets, 0.5, impl="triton")
    expected = check(logits, row_weights, loss, targets, 0.5, BLOCK_ROWS)
    assert torch.equal(value, expected[0])
    assert torch.equal(found, expected[1])
    assert value.device == logits.device


def test_other_logits_are_refused(draw):
    logits, row_weights, _ = (values.double() for values in draw(1, 2, 5, 1))
    with pytest.raises(KernelUnavailable, match="the Triton form of ccs_gradient cannot run: it takes float32, not fl"):
        ccs_gradient(logits, row_weights, impl="triton")
    assert ccs_gradient(logits, row_weights).dtype == torch.float64


@both_losses
def test_a_step_by_the_kernel(generator, device, loss):
    def normal(*shape):
        return torch.randn(shape, generator=generator).to(device)

    tensors = (normal(2, 2, 19, 6), normal(2, 2, 2, 6), normal(19, 2).abs(), normal(2, 4, 6), normal(2, 4))
    targets = (normal(19) > 0).float()
    found = ccs_step(*tensors, loss, targets, 0.5, impl="triton")
    plain = ccs_step(*tensors, loss, targets, 0.5, impl="torch")
    exact = ccs_step(*(values.double() for values in tensors), loss, targets.double(), 0.5)
    for mine, other, right in zip(found, plain, exact, strict=True):
        assert_as_good_as_torch(mine, other, right)
