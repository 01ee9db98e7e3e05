"""How training on a preference pair moves the probability of its chosen response, and where it goes."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.kernels.token_stats import VOCABULARY_SLICE, Unembedding, logit_chunks, logits_into


def free_feature_rate(
    chosen_states: Float[Tensor, "chosen width"],
    rejected_states: Float[Tensor, "rejected width"],
    chosen_ids: Int[Tensor, " chosen"],
    rejected_ids: Int[Tensor, " rejected"],
    head: Unembedding,
) -> float:
    """How fast ``ln p(y+)`` changes at first under preference training on this pair alone; negative is displacement.

    Exact for a model whose states and unembedding are all free parameters: ``<grad ln p(y+), grad (ln p(y+) - ln
    p(y-))>`` over them. CHES is what is left when every coefficient of a pair of states is taken for 1. With residuals
    ``r_k = e_{y_k} - softmax(W h_k)`` it is

        sum_kk' <r+_k, r+_k'> <h+_k, h+_k'> - sum_kk' <r+_k, r-_k'> <h+_k, h-_k'>
        + sum_k |W' r+_k|^2 - sum_k <W' r+_k, W' r-_k>

    where the last sum is over the states that both responses share: the one after the prompt, and one more for each
    token with which both begin (the theorem has responses that differ from the first token on). Residuals go through
    scale and soft cap of the head; its bias is held fixed.

    Args:
        chosen_states: the states that predict the chosen response's tokens, after the final norm.
        rejected_states: the same of the rejected one.
        chosen_ids: the tokens they predict.
        rejected_ids: the same of the rejected one.
        head: the output head.

    Returns:
        Per unit of ``-l'``, the slope of the loss; for DPO with equal models that is beta / 2.

    Source: Razin et al. 2024, arXiv 2410.08847, Theorems 4 and 6.
    """
    states = torch.cat([chosen_states, rejected_states])
    ids, chosen = torch.cat([chosen_ids, rejected_ids]).to(states.device), len(chosen_ids)
    exact = torch.promote_types(states.dtype, torch.float32)
    total = torch.cat([logits.logsumexp(dim=1) for _, logits in logit_chunks(states, head)])
    products = torch.zeros((chosen, len(ids)), dtype=torch.float64, device=states.device)
    pulls = torch.zeros(states.shape, dtype=torch.float64, device=states.device)
    for start in range(0, len(head.weight), VOCABULARY_SLICE):
        columns = slice(start, min(start + VOCABULARY_SLICE, len(head.weight)))
        residuals = _residuals(states, ids, total, head, columns)
        products += (residuals[:chosen] @ residuals.T).double()
        pulls += (residuals @ head.weight[columns].to(residuals)).double()
    wide = states.to(exact).double()
    weighted = products * (wide[:chosen] @ wide.T)
    own, other = weighted[:, :chosen].sum() + pulls[:chosen].square().sum(), weighted[:, chosen:].sum()
    shared = shared_states(chosen_ids, rejected_ids)
    return float(own - other - (pulls[:shared] * pulls[chosen : chosen + shared]).sum())


def shared_states(chosen_ids: Tensor, rejected_ids: Tensor) -> int:
    """How many of the states that predict two responses are the same: up to the first token that differs."""
    shortest = min(len(chosen_ids), len(rejected_ids))
    differ = (chosen_ids[:shortest] != rejected_ids[:shortest]).nonzero()
    return int(differ[0]) + 1 if len(differ) else shortest


def _residuals(states: Tensor, ids: Tensor, total: Tensor, head: Unembedding, columns: slice) -> Tensor:
    """Derivative of each token's log-probability by the products ``W h``, some columns of it."""
    logits = torch.empty((len(states), columns.stop - columns.start), dtype=total.dtype, device=states.device)
    logits_into(logits, states, head, columns)
    slope = head.scale if head.soft_cap is None else head.scale * (1 - (logits / head.soft_cap).square())
    residuals = -(logits - total[:, None]).exp()
    inside = ((ids >= columns.start) & (ids < columns.stop)).nonzero()[:, 0]
    residuals[inside, ids[inside] - columns.start] += 1
    return residuals * slope


class MovedTokens(NamedTuple):
    """The tokens whose probability rose and fell most, [token k] each, most first.

    Attributes:
        gained_ids: that rose.
        gained_before: their probability under the first model.
        gained_after: under the second.
        lost_ids: that fell.
        lost_before: their probability under the first model.
        lost_after: under the second.
    """

    gained_ids: Tensor
    gained_before: Tensor
    gained_after: Tensor
    lost_ids: Tensor
    lost_before: Tensor
    lost_after: Tensor


def moved_tokens(
    before: Float[Tensor, "token width"],
    before_head: Unembedding,
    after: Float[Tensor, "token other"],
    after_head: Unembedding,
    count: int,
) -> MovedTokens:
    """Which tokens gained and lost most probability between two models, exactly, over the whole vocabulary.

    Args:
        before: states of the first model, after its final norm.
        before_head: its output head.
        after: states of the second model at the same tokens.
        after_head: its output head, with the same vocabulary.
        count: how many tokens to name each way.
    """
    parts = []
    chunks = zip(logit_chunks(before, before_head), logit_chunks(after, after_head), strict=True)
    for (_, first), (_, second) in chunks:
        old, new = first.softmax(dim=1), second.softmax(dim=1).to(first.device)
        gained = (new - old).topk(count).indices
        lost = (old - new).topk(count).indices
        columns = [gained, old.gather(1, gained), new.gather(1, gained), lost, old.gather(1, lost), new.gather(1, lost)]
        parts.append([column.cpu() for column in columns])
    return MovedTokens(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
