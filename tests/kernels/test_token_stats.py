import oracles
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from probing.kernels import output_head as file
from probing.kernels import token_stats as kernel_file
from probing.kernels.output_head import Unembedding, logit_chunks
from probing.kernels.token_stats import row_stats_reference, token_stats

SHAPES = [(40, 8, 61), (17, 33, 960), (300, 16, 1001), (1, 4, 3), (15, 5, 2), (0, 5, 7)]


def dyadic(generator, *shape, scale=8):
    """Small multiples of 1/scale: products and sums of some are exact in float32."""
    return torch.randint(-scale, scale + 1, shape, generator=generator) / scale


def plain(hidden, weight, targets):
    """float64 log-softmax of all logits at once; ranks by comparing every column but the target."""
    logits = hidden.double() @ weight.double().T
    logprobs = logits.log_softmax(dim=1)
    target = logits.gather(1, targets.clamp_min(0)[:, None])
    larger = (logits > target).scatter(1, targets.clamp_min(0)[:, None], False)
    entropy = torch.special.entr(logprobs.exp()).sum(dim=1)
    return logprobs.gather(1, targets.clamp_min(0)[:, None])[:, 0], larger.sum(dim=1) + 1, entropy, logprobs


@pytest.mark.parametrize(("rows", "width", "vocabulary"), SHAPES)
def test_equals_float64_log_softmax(generator, rows, width, vocabulary):
    """Inputs whose logits are exact in float32, so that ranks have to be equal, ties included."""
    hidden, weight = dyadic(generator, rows, width), dyadic(generator, vocabulary, width)
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    logprob, rank, entropy, every = plain(hidden, weight, targets)
    found = token_stats(hidden, weight, targets, top=min(5, vocabulary))
    assert torch.equal(found.rank, rank)
    torch.testing.assert_close(found.logprob.double(), logprob, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.entropy.double(), entropy, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.top_logprob.double(), every.topk(min(5, vocabulary)).values, rtol=0, atol=1e-5)
    torch.testing.assert_close(every.gather(1, found.top_ids), found.top_logprob.double(), rtol=0, atol=1e-5)


def test_the_dumbest_oracle_agrees(generator):
    hidden, weight = torch.randn(6, 5, generator=generator), torch.randn(23, 5, generator=generator)
    bias, targets = torch.randn(23, generator=generator), torch.arange(6)
    head = Unembedding(weight, bias, scale=0.25, soft_cap=1.5)
    found = token_stats(hidden, head, targets)
    for row, target in enumerate(targets.tolist()):
        expected = oracles.token_stats(hidden[row].tolist(), weight.tolist(), target, bias.tolist(), 0.25, 1.5)
        got = [float(column[row]) for column in found[:3]]
        assert got == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
def test_random_and_peaky_logits(generator, scale):
    """Ranks may only differ where two logits lie closer than float32 can tell them apart."""
    hidden, weight = torch.randn(200, 64, generator=generator) * scale, torch.randn(997, 64, generator=generator)
    targets = torch.randint(0, 997, (200,), generator=generator)
    logprob, rank, entropy, _ = plain(hidden, weight, targets)
    found = token_stats(hidden, weight, targets)
    slack = 1e-5 * max(1.0, float(logprob.abs().max()))
    torch.testing.assert_close(found.logprob.double(), logprob, rtol=0, atol=slack)
    torch.testing.assert_close(found.entropy.double(), entropy, rtol=0, atol=slack)
    logits = hidden.double() @ weight.double().T
    near = ((logits - logits.gather(1, targets[:, None])).abs() < slack).sum(dim=1) - 1
    assert bool(((found.rank - rank).abs() <= near).all())
    assert float((found.rank == rank).double().mean()) > 0.99


def test_tied_tokens_do_not_outrank_the_target(generator):
    hidden, weight = torch.randn(50, 24, generator=generator), torch.randn(30, 24, generator=generator)
    twice = torch.cat([weight, weight, weight])  # every logit three times, to the bit or nearly so
    for copy in range(3):
        targets = torch.randint(0, 30, (50,), generator=generator)
        alone, among = token_stats(hidden, weight, targets), token_stats(hidden, twice, targets + 30 * copy)
        assert torch.equal(among.rank, 3 * (alone.rank - 1) + 1)


def test_masked_tokens_and_ignored_targets(generator):
    hidden, weight = torch.randn(20, 6, generator=generator), torch.randn(50, 6, generator=generator)
    targets = torch.randint(0, 40, (20,), generator=generator)
    bias = torch.zeros(50)
    bias[40:] = -float("inf")
    for scale in (0.05, 1.0):
        scaled = token_stats(hidden, Unembedding(weight, bias, scale), torch.full_like(targets, 45))
        assert (scaled.logprob == -float("inf")).all()
        assert (scaled.rank == 41).all()
    kept, masked = token_stats(hidden, weight[:40], targets), token_stats(hidden, Unembedding(weight, bias), targets)
    for left, right in zip(kept[:3], masked[:3], strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=2e-6)
    targets[::5] = -100
    targets[1] = 45
    found = token_stats(hidden, Unembedding(weight, bias), targets)
    assert found.logprob[::5].isnan().all()
    assert (found.rank[::5] == 0).all()
    assert found.logprob[1] == -float("inf")
    assert found.rank[1] == 41
    assert torch.equal(found.logprob[2:5], masked.logprob[2:5])


def test_nothing_finite_comes_from_a_broken_row(generator):
    hidden, weight = torch.randn(20, 6, generator=generator), torch.randn(50, 6, generator=generator)
    clean = token_stats(hidden, weight, torch.arange(20))
    for poison in (float("nan"), float("inf")):
        broken = hidden.clone()
        broken[7, 2] = poison
        found = token_stats(broken, weight, torch.arange(20))
        assert found.logprob.isfinite().tolist() == [row != 7 for row in range(20)]
        assert torch.equal(found.logprob[:7], clean.logprob[:7])


def test_a_row_is_the_same_to_the_bit_whatever_stands_beside_it(generator, monkeypatch):
    hidden, weight = torch.randn(70, 48, generator=generator), torch.randn(333, 48, generator=generator)
    targets = torch.randint(0, 333, (70,), generator=generator)
    whole = token_stats(hidden, weight, targets)
    for budget in (1, 1 << 16):
        monkeypatch.setattr(file, "CPU_LOGIT_BYTES", budget)
        for count in (1, 2, 15, 17, 70):
            some = token_stats(hidden[-count:], weight, targets[-count:])
            assert all(torch.equal(part, full[-count:]) for part, full in zip(some, whole, strict=True))


class Largest(TorchDispatchMode):
    """The most elements that any tensor made by an operation has."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else [result]
        self.elements = max([self.elements, *(x.numel() for x in made if isinstance(x, torch.Tensor))])
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_of_tokens_by_vocabulary_is_ever_made(generator, dtype, monkeypatch):
    monkeypatch.setattr(file, "CPU_LOGIT_BYTES", 4 * 64 * 500)
    hidden, weight = (torch.randn(n, 8, generator=generator).to(dtype) for n in (1000, 500))
    with Largest() as seen:
        token_stats(hidden, weight, torch.zeros(1000, dtype=torch.long), top=2)
    assert seen.elements == 64 * 500
    with Largest() as seen:
        (hidden.float() @ weight.float().T).log_softmax(dim=1)
    assert seen.elements == 1000 * 500  # the watcher sees what it is there to see


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_make_float32_logits(generator, dtype, monkeypatch):
    monkeypatch.setattr(file, "VOCABULARY_SLICE", 100)
    hidden, weight = (torch.randn(n, 32, generator=generator).to(dtype) for n in (40, 950))
    targets = torch.randint(0, 950, (40,), generator=generator)
    found, exact = token_stats(hidden, weight, targets), plain(hidden, weight, targets)
    assert found.logprob.dtype == torch.float32
    torch.testing.assert_close(found.logprob.double(), exact[0], rtol=0, atol=1e-5)
    mixed = token_stats(hidden.float(), weight, targets)
    torch.testing.assert_close(mixed.logprob, found.logprob, rtol=0, atol=1e-5)


def test_bf16_parity_rounds_as_published_code_did(generator):
    hidden, weight = torch.randn(400, 64, generator=generator), torch.randn(2000, 64, generator=generator) / 3
    targets = torch.randint(0, 2000, (400,), generator=generator)
    exact, rounded = token_stats(hidden, weight, targets), token_stats(hidden, weight, targets, parity="bf16")
    logits = (hidden.bfloat16().double() @ weight.bfloat16().double().T).float().bfloat16().double()
    target = logits.gather(1, targets[:, None])
    gap = (rounded.logprob.double() - logits.log_softmax(1).gather(1, targets[:, None])[:, 0]).abs()
    assert float(gap.quantile(0.9)) < 1e-5  # where the order of a sum turns a rounding to bf16, a whole step
    assert float((rounded.rank == (logits > target).sum(1) + 1).double().mean()) > 0.99
    assert float((rounded.rank != exact.rank).double().mean()) > 0.1
    assert float((rounded.logprob - exact.logprob).abs().mean()) > 1e-3


def test_float64_states_are_computed_in_float64(generator):
    hidden, weight = (torch.randn(n, 16, generator=generator, dtype=torch.float64) for n in (20, 90))
    targets = torch.arange(20)
    found, exact = token_stats(hidden, weight, targets), plain(hidden, weight, targets)
    torch.testing.assert_close(found.logprob, exact[0], rtol=0, atol=1e-13)
    assert torch.equal(found.rank, exact[1])


def test_chunks_cover_every_row_once(generator, monkeypatch):
    monkeypatch.setattr(file, "CPU_LOGIT_BYTES", 4 * 50 * 32)
    hidden, weight = torch.randn(70, 6, generator=generator), torch.randn(50, 6, generator=generator)
    logits = torch.cat([part.clone() for _, part in logit_chunks(hidden, Unembedding(weight))])
    torch.testing.assert_close(logits, hidden @ weight.T)


def test_logsumexp(generator):
    logits = torch.randn(9, 40, generator=generator) * 5
    found = row_stats_reference(logits.clone(), torch.zeros(9, dtype=torch.long))
    torch.testing.assert_close(found.logsumexp, logits.logsumexp(dim=1))


def test_bad_input():
    hidden, weight = torch.randn(3, 4), torch.randn(5, 4)
    with pytest.raises(ValueError, match=r"2 targets and states of shape \(3, 4\) do not fit"):
        token_stats(hidden, weight, torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="do not fit an unembedding of shape"):
        token_stats(hidden, torch.randn(5, 6), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="target 5 is not among the 5 tokens"):
        token_stats(hidden, weight, torch.tensor([0, 5, 1]))
    with pytest.raises(ValueError, match="the top 6 of 5 tokens"):
        token_stats(hidden, weight, torch.zeros(3, dtype=torch.long), top=6)
    with pytest.raises(ValueError, match="soft cap is positive"):
        Unembedding(weight, soft_cap=0.0)
    with pytest.raises(ValueError, match="bias \\[vocabulary\\]"):
        Unembedding(weight, torch.zeros(4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
@pytest.mark.parametrize("options", [{}, {"scale": 0.5, "soft_cap": 20.0}], ids=str)
@pytest.mark.parametrize("vocabulary", [32000, 50257])
def test_on_a_card_two_streams_change_nothing(generator, monkeypatch, options, vocabulary):
    """bf16 states in five chunks: to the bit as in one stream, and as near to float64 as float32 sums are."""
    hidden = torch.randn(9000, 512, generator=generator).bfloat16().cuda()
    weight = (torch.randn(vocabulary, 512, generator=generator) * 3 / 512**0.5).bfloat16().cuda()
    bias = torch.randn(vocabulary, generator=generator).cuda() if options else None
    targets = torch.randint(0, vocabulary, (9000,), generator=generator)
    head = Unembedding(weight, bias, **options)
    found = token_stats(hidden, head, targets, top=5)
    monkeypatch.setattr(kernel_file, "TWO_STREAMS", False)
    again = token_stats(hidden, head, targets, top=5)
    assert all(torch.equal(left, right) for left, right in zip(again, found, strict=True))
    wide = Unembedding(weight.cpu().double(), None if bias is None else bias.cpu().double(), **options)
    exact = token_stats(hidden[-40:].cpu().double(), wide, targets[-40:], top=5)
    for name in ("logprob", "entropy", "top_logprob"):
        torch.testing.assert_close(getattr(found, name)[-40:].cpu().double(), getattr(exact, name), rtol=0, atol=1e-4)
    assert float((found.rank[-40:].cpu() - exact.rank).abs().double().mean()) < 1
