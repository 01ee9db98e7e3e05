"""The loss of contrast-consistent probes and its gradient: many entries x probes that share their states at once."""

# Triton is not imported here, so annotations such as ``tl.constexpr`` must not be evaluated.
from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, no_type_check

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from probing.kernels.dispatch import choose
from probing.kernels.jit import ELEMENT_TYPES, Variant, lazy_jit

if TYPE_CHECKING:
    import triton.language as tl

Loss = Literal["original", "symmetric"]
LOSSES: tuple[Loss, ...] = ("original", "symmetric")
LOGIT_TYPES = {torch.float32: ELEMENT_TYPES[torch.float32]}
"""Logits that the Triton form of ``ccs_gradient`` takes."""
# Each thread takes eight rows, and reads each form of them in two instructions of 128 bits.
BLOCK_ROWS = 1024
NUM_WARPS = 4


class CCSStep(NamedTuple):
    """Loss of every probe and its gradient.

    Attributes:
        loss: [entry probe].
        weight: gradient of the weights, [entry probe width].
        bias: gradient of the biases, [entry probe].
    """

    loss: Tensor
    weight: Tensor
    bias: Tensor


def ccs_gradient_reference(
    logits: Float[Tensor, "entry probe 2 row"],
    row_weights: Float[Tensor, "row split"],
    loss: Loss = "original",
    targets: Float[Tensor, " row"] | None = None,
    supervision: float = 0.0,
) -> Float[Tensor, "entry probe"]:
    """``ccs_gradient`` in plain torch: the definition.

    The smallest probabilities are determined from the logits, which still differ where probabilities round to the same
    number.
    """
    shares = row_weights.T.repeat_interleave(logits.shape[1] // row_weights.shape[1], dim=0)
    both, size = torch.sigmoid(logits), logits.abs()
    excess = both.sum(dim=2) - 1
    if loss == "original":
        least, toward, order = both.amin(dim=2), torch.ones_like(logits), logits
    else:
        # The smaller one of p and 1 - p is sigmoid(-|z|).
        least, toward, order = torch.sigmoid(-size.amax(dim=2)), -torch.sign(logits), -size
    # This is -1 where the yes form has the smallest value, and 1 where the no form has.
    side = torch.sign(order[:, :, 0] - order[:, :, 1])
    parts = torch.stack((1 - side, 1 + side), dim=2) / 2
    value = excess.square() + least.square()
    gradient = 2 * excess[:, :, None] * both * (1 - both)
    gradient += (2 * least.square() * (1 - least))[:, :, None] * parts * toward
    if targets is not None and supervision:
        truth = torch.stack((targets, 1 - targets))
        value += supervision * softplus((1 - 2 * truth) * logits).sum(dim=2)
        gradient += supervision * (both - truth)
    logits.copy_(gradient * shares[:, None])
    return (value * shares).sum(dim=2)


def ccs_gradient_in_place(
    logits: Float[Tensor, "entry probe 2 row"],
    row_weights: Float[Tensor, "row split"],
    loss: Loss = "original",
    targets: Float[Tensor, " row"] | None = None,
    supervision: float = 0.0,
) -> Float[Tensor, "entry probe"]:
    """``ccs_gradient_reference`` for a CPU, where memory limits the speed: a few buffers are used again and again."""
    yes, no = logits.unbind(2)
    shares, times = row_weights.T, logits.shape[1] // row_weights.shape[1]
    shares = shares.repeat_interleave(times, dim=0) if times > 1 else shares
    both = torch.sigmoid(logits)
    p, q = both.unbind(2)
    excess = (p + q).sub_(1)
    if loss == "original":
        least, side = torch.minimum(p, q), (yes - no).sign_()
    else:
        least = torch.maximum(p, q).neg_().add_(1)
        for other in (p, q):
            torch.minimum(least, other, out=least)
        side, signs = no.abs().sub_(yes.abs()).sign_(), torch.sign(logits)
    # ``square()`` takes ten times as long as this product.
    value = least * least
    pull = torch.addcmul(value, least, value, value=-1, out=least).mul_(shares)
    side *= pull
    value.addcmul_(excess, excess)
    error = None
    if targets is not None and supervision:
        truth = torch.stack((targets, 1 - targets))
        value.add_(softplus((1 - 2 * truth) * logits).sum(dim=2), alpha=supervision)
        error = (both - truth).mul_(shares[:, None])
    # p (1 - p) is the slope of the sigmoid.
    torch.addcmul(both, both, both, value=-1, out=logits)
    logits *= excess.mul_(shares).mul_(2)[:, :, None]
    if loss == "original":
        yes.add_(pull).sub_(side)
        no.add_(pull).add_(side)
    else:
        yes.addcmul_(signs[:, :, 0], pull - side, value=-1)
        no.addcmul_(signs[:, :, 1], pull.add_(side), value=-1)
    if error is not None:
        logits.add_(error, alpha=supervision)
    return value.mul_(shares).sum(dim=2)


@lazy_jit
@no_type_check
def ccs_gradient_kernel(
    logits,
    row_weights,
    targets,
    losses,
    supervision,
    rows,
    probe_stride,
    probes,
    probes_of_split,
    symmetric: tl.constexpr,
    supervised: tl.constexpr,
    block_rows: tl.constexpr,
):
    """One program a probe of an entry walks all of its rows, so that the order of the sum depends on nothing else."""
    probe = tl.program_id(0)
    # 33 layers x 256 probes x 300,000 rows overflow 32 bits, so the offset is computed in 64.
    yes_logits = logits + probe.to(tl.int64) * probe_stride
    no_logits = yes_logits + rows
    weights = row_weights + (probe % probes // probes_of_split).to(tl.int64) * rows
    total = tl.zeros((block_rows,), tl.float32)
    for first in range(0, rows, block_rows):
        row = first + tl.arange(0, block_rows)
        inside = row < rows
        yes = tl.load(yes_logits + row, mask=inside, other=0.0)
        no = tl.load(no_logits + row, mask=inside, other=0.0)
        share = tl.load(weights + row, mask=inside, other=0.0)
        # exp(-|z|) cannot overflow, and this way 1 - p is as exact as p. NaN stays NaN in each.
        yes_exp, no_exp = tl.exp(-tl.abs(yes)), tl.exp(-tl.abs(no))
        p, not_p = tl.where(yes < 0, yes_exp, 1.0) / (1.0 + yes_exp), tl.where(yes < 0, 1.0, yes_exp) / (1.0 + yes_exp)
        q, not_q = tl.where(no < 0, no_exp, 1.0) / (1.0 + no_exp), tl.where(no < 0, 1.0, no_exp) / (1.0 + no_exp)
        excess = p + q - 1.0
        # The gradient goes to the probabilities that are smallest, which the logits tell: 2 for a single one, 1 for
        # each of two.
        if symmetric:
            least = tl.minimum(tl.minimum(p, not_p), tl.minimum(q, not_q))
            yes_larger, no_larger = tl.abs(yes) > tl.abs(no), tl.abs(no) > tl.abs(yes)
            yes_sign = tl.where(yes < 0, 1.0, 0.0) - tl.where(yes > 0, 1.0, 0.0)
            no_sign = tl.where(no < 0, 1.0, 0.0) - tl.where(no > 0, 1.0, 0.0)
        else:
            least = tl.minimum(p, q)
            yes_larger, no_larger = yes < no, no < yes
            yes_sign, no_sign = 1.0, 1.0
        side = tl.where(no_larger, 1.0, 0.0) - tl.where(yes_larger, 1.0, 0.0)
        square = least * least
        pull = square * (1.0 - least)
        value = excess * excess + square
        by_yes = 2.0 * excess * p * not_p + pull * (1.0 - side) * yes_sign
        by_no = 2.0 * excess * q * not_q + pull * (1.0 + side) * no_sign
        if supervised:
            truth = tl.load(targets + row, mask=inside, other=0.0)
            sign = 2.0 * truth - 1.0
            error = tl.maximum(-sign * yes, 0.0) + tl.log(1.0 + yes_exp) + tl.maximum(sign * no, 0.0)
            value += supervision * (error + tl.log(1.0 + no_exp))
            by_yes += supervision * (p - truth)
            by_no += supervision * (truth - not_q)
        total += value * share
        tl.store(yes_logits + row, by_yes * share, mask=inside)
        tl.store(no_logits + row, by_no * share, mask=inside)
    tl.store(losses + probe, tl.sum(total, axis=0))


def ccs_gradient(
    logits: Float[Tensor, "entry probe 2 row"],
    row_weights: Float[Tensor, "row split"],
    loss: Loss = "original",
    targets: Float[Tensor, " row"] | None = None,
    supervision: float = 0.0,
    impl: str = "auto",
) -> Float[Tensor, "entry probe"]:
    """The loss of every probe from its logits, which are overwritten with the gradient.

    With ``p`` and ``q`` the probabilities of the yes and the no form, a row's loss is ``(p + q - 1)^2 + min(p, q)^2``
    (Burns et al. 2022, arXiv 2212.03827), or in its symmetric form ``(p + q - 1)^2 + min(p, q, 1 - p, 1 - q)^2``
    (arXiv 2312.10029). Where several are least, each takes an equal part of the gradient, as ``torch.amin`` has it.

    Args:
        logits: logits of the yes forms ``[:, :, 0]`` and the no forms ``[:, :, 1]``, finite or NaN; contiguous;
            overwritten. One NaN makes the loss of its probe NaN.
        row_weights: weight of each row, for each split of the rows; zero leaves the row out. The probes of a split
            are consecutive, and as many for each.
        loss: "original" or "symmetric".
        targets: 1 where the statement is true, 0 where not, for the supervised term.
        supervision: weight of the cross-entropy of both forms with the targets, which is added to the loss.
        impl: "torch", "triton" (float32 on a CUDA card), or "auto": Triton where it can run.

    Returns:
        The loss of every probe: the weighted sum over rows.

    Raises:
        ValueError: probes that cannot be divided evenly among the splits, logits that are not contiguous, an unknown
            loss, or no such ``impl``.
        KernelUnavailable: "triton" cannot run here.
    """
    entries, probes, _, _ = logits.shape
    if loss not in LOSSES:
        raise ValueError(f"the loss is one of {', '.join(LOSSES)}, not {loss!r}")
    if probes % row_weights.shape[1]:
        raise ValueError(f"{probes} probes cannot be shared out to {row_weights.shape[1]} splits")
    if not logits.is_contiguous():
        raise ValueError("the logits, which are overwritten, have to be contiguous")
    if choose("ccs_gradient", impl, logits, LOGIT_TYPES).impl == "torch":
        return ccs_gradient_in_place(logits, row_weights, loss, targets, supervision)
    losses = logits.new_empty((entries, probes))
    launch_ccs_gradient(logits, row_weights, loss, targets, supervision, losses)
    return losses


def launch_ccs_gradient(
    logits: Float[Tensor, "entry probe 2 row"],
    row_weights: Float[Tensor, "row split"],
    loss: Loss,
    targets: Float[Tensor, " row"] | None,
    supervision: float,
    losses: Float[Tensor, "entry probe"],
    block_rows: int = BLOCK_ROWS,
) -> None:
    """Have the kernel write over ``logits`` and fill ``losses`` (both float32, contiguous), every element of them.

    Args:
        logits, row_weights, loss, targets, supervision: see ``ccs_gradient``; not checked.
        losses: tensor that the kernel fills with the loss of every probe.
        block_rows: number of rows that are held at a time, a power of two; small ones are for tests.
    """
    # An empty grid cannot be launched.
    if not losses.numel():
        return
    _, probes, _, rows = logits.shape
    shares = row_weights.T.to(logits).contiguous()
    supervised = targets is not None and supervision != 0
    # Triton launches on the current card, whichever card holds the tensors.
    with torch.cuda.device_of(logits):
        ccs_gradient_kernel[(losses.numel(),)](
            logits,
            shares,
            # Where no targets are read, any address will do.
            targets.to(logits).contiguous() if targets is not None and supervised else shares,
            losses,
            float(supervision),
            rows,
            logits.stride(1),
            probes,
            probes // row_weights.shape[1],
            symmetric=loss == "symmetric",
            supervised=supervised,
            block_rows=block_rows,
            num_warps=NUM_WARPS,
        )


def compile_variants() -> list[Variant]:
    """Compile both losses, with and without targets, for numbers of rows that are multiples of 16 and for others."""
    arguments = "logits row_weights targets losses supervision rows probe_stride probes probes_of_split".split()
    kinds = "*fp32 *fp32 *fp32 *fp32 fp32 i32 i32 i32 i32".split()
    return [
        Variant(
            ccs_gradient_kernel,
            f"{loss}{' with targets' if supervised else ''}, {label} rows",
            types=dict(zip(arguments, kinds, strict=True)),
            constants={"symmetric": loss == "symmetric", "supervised": supervised, "block_rows": BLOCK_ROWS},
            aligned=aligned,
            instructions=instructions,
            num_warps=NUM_WARPS,
        )
        for loss in LOSSES
        for supervised in (False, True)
        for label, aligned, instructions in (
            ("aligned", (*arguments[:4], "rows", "probe_stride"), ("LDG.128",)),
            ("unaligned", tuple(arguments[:4]), ()),
        )
    ]


def ccs_step(
    states: Float[Tensor, "entry 2 row width"],
    centers: Float[Tensor, "entry 2 split width"],
    row_weights: Float[Tensor, "row group"],
    weight: Float[Tensor, "entry probe width"],
    bias: Float[Tensor, "entry probe"],
    loss: Loss = "original",
    targets: Float[Tensor, " row"] | None = None,
    supervision: float = 0.0,
    pairings: Int[Tensor, "pairing row"] | None = None,
    inverses: Int[Tensor, "pairing row"] | None = None,
    impl: str = "auto",
) -> CCSStep:
    """Loss of every probe and its gradient: the probes of all splits in two products with the same states.

    Each split has a centre of its own, which is taken off the logits rather than off a copy of the states. Pairings are
    handled in the same way: the logits of the no forms are permuted, and their gradients are permuted back.

    Args:
        states: states of the yes and the no form of every row, at every entry (a layer).
        centers: centre of each split, form and entry.
        row_weights: see ``ccs_gradient``, of every split or of every probe.
        loss, targets, supervision, impl: see there.
        weight: weight vector of every probe; those of a split are consecutive, and among these those of a pairing.
        bias: bias of every probe.
        pairings: the row whose no form meets the yes form of each row, a permutation; by default its own.
        inverses: the inverse permutations, ``inverses_of(pairings)``, where they are known.

    Raises:
        ValueError: probes of a split that cannot be divided evenly among the pairings; or see ``ccs_gradient``.
        KernelUnavailable: see ``ccs_gradient``.
    """
    entries, _, rows, width = states.shape
    probes, splits = weight.shape[1], centers.shape[2]
    groups = splits * (1 if pairings is None else len(pairings))
    if probes % groups:
        raise ValueError(f"{probes} probes cannot be shared out to {groups} splits and pairings")
    flat = states.reshape(entries, 2 * rows, width)
    own = (entries * splits, probes // splits)
    own_centers = centers.transpose(1, 2).reshape(entries * splits, 2, width)
    shift = torch.bmm(weight.reshape(*own, width), own_centers.transpose(1, 2)).view(entries, probes, 2, 1)
    # The probes, of which there are few, come first in each product: on a CPU this is three times as fast as [row
    # width] x [width probe].
    logits = torch.bmm(weight, flat.transpose(1, 2)).view(entries, probes, 2, rows)
    logits += bias[:, :, None, None] - shift
    if pairings is not None:
        _exchange(logits, pairings, splits)
    value = ccs_gradient(logits, row_weights, loss, targets, supervision, impl)
    if pairings is not None:
        _exchange(logits, inverses_of(pairings) if inverses is None else inverses, splits)
    by_weight = torch.bmm(logits.view(entries, probes, 2 * rows), flat)
    sums = logits.sum(dim=3)
    by_weight.view(*own, width).baddbmm_(sums.view(*own, 2), own_centers, alpha=-1)
    return CCSStep(value, by_weight, sums.sum(dim=2))


def _exchange(logits: Float[Tensor, "entry probe 2 row"], order: Int[Tensor, "pairing row"], splits: int) -> None:
    """Put into every row of the no forms the values of the row that ``order`` names."""
    entries, probes, _, rows = logits.shape
    no = logits.view(entries * splits, len(order), probes // (splits * len(order)), 2, rows)[..., 1, :]
    no.copy_(no.gather(-1, order[:, None].expand(no.shape)))


def inverses_of(permutations: Int[Tensor, "pairing row"]) -> Int[Tensor, "pairing row"]:
    """The permutations that undo these."""
    numbers = torch.arange(permutations.shape[1], device=permutations.device).expand_as(permutations)
    return torch.empty_like(permutations).scatter_(1, permutations, numbers)
