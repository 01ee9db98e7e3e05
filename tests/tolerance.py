"""How far a kernel may be from float64: as far as plain torch in the same dtype, and a little further."""

import torch

SLACK = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def assert_as_good_as_torch(kernel, plain, exact):
    """``|kernel - exact| <= |plain - exact| + slack`` for every element, NaN never.

    The slack belongs to the dtype of the result; it is relative where the exact value exceeds one. A bound that follows
    plain torch grows with the length of a sum by itself, where a fixed one would be too tight or too loose.
    """
    assert kernel.shape == plain.shape == exact.shape
    assert kernel.dtype == plain.dtype
    assert exact.dtype == torch.float64
    kernel, plain, slack = kernel.cpu().double(), plain.cpu().double(), SLACK[kernel.dtype]
    exact = exact.cpu()
    allowed = (plain - exact).abs() + slack * exact.abs().clamp(min=1)
    excess = (kernel - exact).abs() - allowed
    worst = int(excess.argmax()) if excess.numel() else 0
    # Not ``> 0``, which is false of NaN.
    assert (excess <= 0).all(), (
        f"{int((~(excess <= 0)).sum())} of {excess.numel()} elements are off, flat element {worst} by "
        f"{(kernel - exact).flatten()[worst]:.3g} where {allowed.flatten()[worst]:.3g} is allowed"
    )
