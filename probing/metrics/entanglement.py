"""How the gradients of a pair's two responses lie to each other, and so which way training on the pair moves each."""

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.metrics.preference_losses import Slopes

PairRegime = Literal["disentangled", "both_fall", "both_rise"]
PAIR_REGIMES: tuple[PairRegime, ...] = get_args(PairRegime)


class PairProducts(NamedTuple):
    """Inner products of ``s_w`` and ``s_l``, the gradients of ``ln p(y+)`` and ``ln p(y-)`` of each pair, [pair] each.

    Attributes:
        chosen: ``<s_w, s_w>``, in float64, as all of them.
        cross: ``<s_w, s_l>``.
        rejected: ``<s_l, s_l>``; NaN where it was not computed.
        difference: ``<s_w, s_w - s_l>``, which is a small difference of large products where both are alike.
    """

    chosen: Tensor
    cross: Tensor
    rejected: Tensor
    difference: Tensor


class PairRates(NamedTuple):
    """How fast both log-probabilities rise at the first moment of gradient descent on the pair's loss, [pair] each.

    Attributes:
        chosen: of ``ln p(y+)``, per unit of the learning rate.
        rejected: of ``ln p(y-)``.
    """

    chosen: Tensor
    rejected: Tensor


def pair_rates(products: PairProducts, slopes: Slopes) -> PairRates:
    """Rates of both log-probabilities where the weights move along ``d_w s_w - d_l s_l``.

    Args:
        products: products of the gradients.
        slopes: ``d_w`` and ``d_l``.

    Returns:
        ``d_w <s_w, s_w> - d_l <s_w, s_l>`` and ``d_w <s_w, s_l> - d_l <s_l, s_l>``.
    """
    chosen = slopes.rejected * products.difference + (slopes.chosen - slopes.rejected) * products.chosen
    return PairRates(chosen, slopes.chosen * products.cross - slopes.rejected * products.rejected)


def entanglement(products: PairProducts) -> Float[Tensor, " pair"]:
    """Cosine of both gradients, ``rho``, -1 to 1; NaN where one of them is 0."""
    cosine = products.cross / (products.chosen.sqrt() * products.rejected.sqrt())
    return _where_positive(cosine.clamp(-1, 1), products.chosen, products.rejected)


def gradient_ratio(products: PairProducts) -> Float[Tensor, " pair"]:
    """Length of the rejected response's gradient over that of the chosen one's, ``r*``; NaN where the latter is 0."""
    return _where_positive((products.rejected / products.chosen).sqrt(), products.chosen)


def find_regimes(rates: PairRates) -> list[PairRegime | None]:
    """The regime of each pair, by the signs of its rates.

    With both slopes above 0 the chosen response rises if and only if ``d_w / d_l > rho r*``, and the rejected one falls
    if and only if ``d_w / d_l < r* / rho``, for ``rho`` above 0.

    Args:
        rates: see ``pair_rates``.

    Returns:
        "disentangled": the chosen response rises and the rejected one falls; "both_fall"; "both_rise". None where a
        rate is 0 or NaN, and where the chosen response falls and the rejected one rises, which slopes of at least 0
        cannot bring about, by Cauchy and Schwarz.

    Source: arXiv 2604.18239; for equal slopes the gradient entanglement condition of arXiv 2410.13828.
    """
    ways: dict[tuple[float, float], PairRegime] = {(1, -1): "disentangled", (-1, -1): "both_fall", (1, 1): "both_rise"}
    signs = torch.stack([rates.chosen.sign(), rates.rejected.sign()], dim=1)
    return [ways.get((chosen, rejected)) for chosen, rejected in signs.tolist()]


def least_sft_weight(
    products: PairProducts, slopes: Slopes, chosen_tokens: Int[Tensor, " pair"]
) -> Float[Tensor, " pair"]:
    """Least weight of the chosen response's mean negative log-likelihood that keeps ``ln p(y+)`` from falling.

    With the term of weight ``alpha`` the weights move along ``(d_w + alpha / n) s_w - d_l s_l``. For DPO the least
    weight is ``(n beta / 2) (<s_w, s_l> / |s_w|^2 - 1)``, at least 0.

    Args:
        products: products of the gradients.
        slopes: ``d_w`` and ``d_l`` of the preference loss alone.
        chosen_tokens: n, the number of tokens over which the likelihood's mean is taken.

    Returns:
        At least 0; NaN where the gradient of the chosen response is 0.
    """
    rates = pair_rates(products, slopes).chosen
    return _where_positive((-rates / products.chosen * chosen_tokens).clamp(min=0), products.chosen)


def _where_positive(values: Tensor, *squares: Tensor) -> Tensor:
    """The values, NaN where a squared length is 0, infinite or NaN."""
    for square in squares:
        values = values.where((square > 0) & square.isfinite(), torch.nan)
    return values
