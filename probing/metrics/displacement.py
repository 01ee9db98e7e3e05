"""How training on a preference pair moves the probability of its chosen response, and where it goes."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probing.kernels.dispatch import can_sum_wide
from probing.kernels.output_head import (
    LEAST_ROWS,
    VOCABULARY_SLICE,
    Unembedding,
    count_rows_at_a_time,
    logit_chunks,
    with_fewer_rows,
    write_logits,
    write_product,
)
from probing.kernels.top_columns import top_columns

MOVED_BYTES = 1 << 31
"""Bytes, on a card, of the four tensors [row vocabulary] in which ``find_moved_tokens`` looks for tokens."""
PAIRED_TOKENS = 1024
"""Tokens of a group up to which the products of all pairs of them are formed, which is faster for so few."""
GROUP_BYTES = 1 << 28
"""Bytes that ``free_feature_group`` uses at once for the columns of the head that it works on."""
LEAST_COLUMNS = 64
TERMS = 3
"""Number of bf16 numbers of 8 bits each whose sum is a float32 number of 24 bits."""


def free_feature_rate(
    chosen_states: Float[Tensor, "chosen width"],
    rejected_states: Float[Tensor, "rejected width"],
    chosen_ids: Int[Tensor, " chosen"],
    rejected_ids: Int[Tensor, " rejected"],
    head: Unembedding,
    logsumexp: Float[Tensor, " state"] | None = None,
) -> Float[Tensor, ""]:
    """Initial rate of change of ``ln p(y+)`` in preference training on this pair alone; negative is displacement.

    Exact for a model whose states and unembedding are all free parameters: ``<grad ln p(y+), grad (ln p(y+) - ln
    p(y-))>`` over them. CHES results when every coefficient of a pair of states is replaced by 1. With residuals
    ``r_k = e_{y_k} - softmax(W h_k)`` it is

        sum_kk' <r+_k, r+_k'> <h+_k, h+_k'> - sum_kk' <r+_k, r-_k'> <h+_k, h-_k'>
        + sum_k |W' r+_k|^2 - sum_k <W' r+_k, W' r-_k>

    where the last sum is over the states that both responses share: the one after the prompt, and one more for each
    token with which both begin (the theorem has responses that differ from the first token on). Residuals go through
    scale and soft cap of the head; its bias is held fixed.

    Args:
        chosen_states: the states that predict the chosen response's tokens, after the final norm.
        rejected_states: the states that predict the rejected response's tokens, after the final norm.
        chosen_ids: ids of the chosen response's tokens.
        rejected_ids: ids of the rejected response's tokens.
        head: the output head.
        logsumexp: ln of the sum of exp(logit) at each chosen and then each rejected state, as in ``TokenStats``, which
            saves one product with the whole head; computed where it is not given.

    Returns:
        One number on the device of the states, in float64. Per unit of ``-l'``, the slope of the loss; for DPO with
        equal models that is beta / 2.

    Source: Razin et al. 2024, arXiv 2410.08847, Theorems 4 and 6.
    """
    products = free_feature_products(
        [chosen_states, rejected_states], [chosen_ids, rejected_ids], head, logsumexp, against=1
    )
    return products.gram[0, 0] - products.gram[0, 1]


class FreeFeatureProducts(NamedTuple):
    """Inner products of the gradients of several responses' ``ln p``, over head and states as free parameters.

    Attributes:
        gram: ``<grad ln p(y_a), grad ln p(y_b)>``, [against response], in float64.
        pulls: ``sum_k <r_a,k, r_t> <h_a,k, h_t>`` of every token t of all responses, one response after the other,
            [against token], in float64: the part of the product that the token contributes through the head. It leaves
            out what the responses share in states, so that ``pulls`` of response b sum to ``gram[a, b]`` only where
            both share no state. Source: the token scores of NTHR, arXiv 2505.18830.
    """

    gram: Tensor
    pulls: Tensor


def free_feature_products(
    states: Sequence[Float[Tensor, "_ width"]],
    ids: Sequence[Int[Tensor, " _"]],
    head: Unembedding,
    logsumexp: Float[Tensor, " state"] | None = None,
    against: int | None = None,
) -> FreeFeatureProducts:
    """Products of the gradients of the first responses to a prompt with those of all; see ``free_feature_rate``.

    Args:
        states: the states that predict the tokens of each response to the same prompt, after the final norm.
        ids: ids of the tokens of each response.
        head: the output head.
        logsumexp: ln of the sum of exp(logit) at each state, response after response; computed where it is not given.
        against: the number of responses, from the first, whose products with all responses are wanted; all by default.

    Returns:
        Products on the device of the states.
    """
    lengths = [len(row) for row in ids]
    count = len(lengths) if against is None else against
    together, tokens = torch.cat(list(states)), torch.cat(list(ids))
    tokens, rows = tokens.to(together.device), sum(lengths[:count])
    exact = torch.promote_types(together.dtype, torch.float32)
    total = logsumexp
    if total is None:
        total = torch.cat([logits.logsumexp(dim=1) for _, logits in logit_chunks(together, head)])
    firsts = [slice(*ends) for ends in itertools.pairwise([0, *itertools.accumulate(lengths[:count])])]
    products = torch.zeros((rows, len(tokens)), dtype=torch.float64, device=together.device)
    backward = torch.zeros(together.shape, dtype=torch.float64, device=together.device)
    for start in range(0, len(head.weight), VOCABULARY_SLICE):
        columns = slice(start, min(start + VOCABULARY_SLICE, len(head.weight)))
        residuals = _residuals(together, tokens, total, head, columns)
        # One product for each of the first responses, so that their numbers do not depend on how many these are.
        for part in firsts:
            products[part] += (residuals[part] @ residuals.T).double()
        backward += _multiply_by_head(residuals, head.weight[columns]).double()
    wide = together.to(exact).double()
    pulls = torch.stack([(products[part] * (wide[part] @ wide.T)).sum(dim=0) for part in firsts])
    gram = torch.stack([part.sum(dim=1) for part in pulls.split(lengths, dim=1)], dim=1)
    parts = backward.split(lengths)
    for one in range(count):
        for other in range(len(lengths)):
            shared = lengths[one] if one == other else count_shared_states(ids[one], ids[other])
            gram[one, other] += (parts[one][:shared] * parts[other][:shared]).sum()
    return FreeFeatureProducts(gram, pulls)


def group_products(
    states: Sequence[Float[Tensor, "_ width"]],
    ids: Sequence[Int[Tensor, " _"]],
    head: Unembedding,
    wanted: Sequence[bool],
    logsumexp: Float[Tensor, " state"] | None = None,
) -> FreeFeatureProducts:
    """Products of the gradients of all responses to a prompt, and the pulls of those that are not wanted on the others.

    Args, Returns: see ``free_feature_group``, which computes them where there are many tokens.
    """
    lengths = [len(own) for own in ids]
    if sum(lengths) > PAIRED_TOKENS:
        return free_feature_group(states, ids, head, wanted, logsumexp)
    gram, pulls = free_feature_products(states, ids, head, logsumexp)
    others = [own for own, good in zip(pulls.split(lengths, dim=1), wanted, strict=True) if not good]
    good = torch.tensor(list(wanted), device=gram.device)
    return FreeFeatureProducts(gram, torch.cat([own[good].sum(dim=0) for own in others] or [gram.new_empty(0)]))


def free_feature_group(
    states: Sequence[Float[Tensor, "_ width"]],
    ids: Sequence[Int[Tensor, " _"]],
    head: Unembedding,
    wanted: Sequence[bool],
    logsumexp: Float[Tensor, " state"] | None = None,
) -> FreeFeatureProducts:
    """Products of the gradients of many long responses to one prompt, in time and memory linear in their tokens.

    The same numbers as ``free_feature_products``, up to rounding, without the products of all pairs of tokens: the
    gradient of each response by the head, ``sum_t r_t h_t'``, is formed for some columns of the vocabulary at a time.

    Args:
        states: the states that predict the tokens of each response to the same prompt, after the final norm.
        ids: ids of the tokens of each response.
        head: the output head.
        wanted: whether each response is one whose loss is to be explained.
        logsumexp: ln of the sum of exp(logit) at each state, response after response; computed where it is not given.

    Returns:
        ``gram`` of all responses, [response response], and ``pulls``, [token]: for each token of the responses that are
        not wanted, one after the other, the sum of its pulls on all that are. On the device of the states, in float64.
    """
    exact = torch.promote_types(states[0].dtype, torch.float32)
    hidden, tokens = [own.to(exact) for own in states], [own.to(states[0].device) for own in ids]
    if logsumexp is None:
        logsumexp = torch.cat([logits.logsumexp(dim=1) for _, logits in logit_chunks(torch.cat(list(states)), head)])
    totals = logsumexp.split([len(own) for own in tokens])
    gram = torch.zeros((len(states), len(states)), dtype=torch.float64, device=logsumexp.device)
    backward = [torch.zeros(own.shape, dtype=torch.float64, device=gram.device) for own in states]
    others = [at for at, good in enumerate(wanted) if not good]
    pulls = {at: torch.zeros(len(states[at]), dtype=torch.float64, device=gram.device) for at in others}
    width = states[0].shape[1]
    # Of each column a gradient of every response and a residual of every token, twice while they are made.
    of_column = 2 * exact.itemsize * (len(states) * width + sum(map(len, states)))
    size = min(max(GROUP_BYTES // of_column, LEAST_COLUMNS), VOCABULARY_SLICE)
    for start in range(0, len(head.weight), size):
        columns = slice(start, min(start + size, len(head.weight)))
        residuals = [_residuals(*own, head, columns) for own in zip(states, tokens, totals, strict=True)]
        gradients = hidden[0].new_empty((len(states), columns.stop - columns.start, width))
        for at, (own, state) in enumerate(zip(residuals, hidden, strict=True)):
            torch.mm(own.T, state, out=gradients[at])
        flat = gradients.flatten(1)
        gram += (flat @ flat.T).double()
        together = gradients[[at for at, good in enumerate(wanted) if good]].sum(dim=0)
        for at in others:
            pulls[at] += ((residuals[at] @ together).double() * hidden[at].double()).sum(dim=1)
        for at, own in enumerate(residuals):
            backward[at] += _multiply_by_head(own, head.weight[columns]).double()
    for one in range(len(states)):
        for other in range(len(states)):
            shared = len(ids[one]) if one == other else count_shared_states(ids[one], ids[other])
            gram[one, other] += (backward[one][:shared] * backward[other][:shared]).sum()
    return FreeFeatureProducts(gram, torch.cat([pulls[at] for at in others] or [gram.new_empty(0)]))


def count_shared_states(chosen_ids: Tensor, rejected_ids: Tensor) -> int:
    """The number of states that predict two responses and are the same: up to the first token that differs."""
    shortest = min(len(chosen_ids), len(rejected_ids))
    differ = (chosen_ids[:shortest] != rejected_ids[:shortest]).nonzero()
    return int(differ[0]) + 1 if len(differ) else shortest


def _residuals(states: Tensor, ids: Tensor, total: Tensor, head: Unembedding, columns: slice) -> Tensor:
    """Derivative of each token's log-probability by the products ``W h``, some columns of it."""
    logits = torch.empty((len(states), columns.stop - columns.start), dtype=total.dtype, device=states.device)
    write_logits(logits, states, head, columns)
    slope = head.scale if head.soft_cap is None else head.scale * (1 - (logits / head.soft_cap).square())
    residuals = -(logits - total[:, None]).exp()
    # Indexing by a mask would make the host wait for the card, to learn the size of the result.
    at = (ids - columns.start)[:, None]
    inside, at = (at >= 0) & (at < residuals.shape[1]), at.clamp(0, residuals.shape[1] - 1)
    residuals.scatter_(1, at, residuals.gather(1, at) + inside.to(residuals))
    return residuals * slope


def _multiply_by_head(residuals: Tensor, weight: Tensor) -> Tensor:
    """``residuals @ weight`` with sums in the residuals' dtype; on a card by half-precision products."""
    if residuals.is_cuda and residuals.dtype == torch.float32 and weight.dtype == torch.bfloat16 and can_sum_wide():
        return product_by_terms(residuals, weight)
    return residuals @ weight.to(residuals)


def product_by_terms(
    values: Float[Tensor, "row column"], weight: Float[Tensor, "column width"]
) -> Float[Tensor, "row width"]:
    """``values @ weight`` of float32 values and bf16 weights, by products of bf16 numbers with float32 sums.

    Each value is the sum of three bf16 numbers, and a product of two bf16 numbers is exact in float32, so that nothing
    but the sums is rounded, as in a product in float32. A card takes three products with its tensor cores for this,
    where the product in float32 does without them.

    Args:
        values: float32. Below 1e-33 the last bits are lost, since bf16 has no smaller numbers.
        weight: bf16.
    """
    terms = torch.cat(bf16_terms(values))
    out = values.new_empty((len(terms), weight.shape[1]))
    write_product(out, terms, weight.T)
    return out.unflatten(0, (TERMS, -1)).sum(dim=0)


def bf16_terms(values: Float[Tensor, "*axes"]) -> list[Tensor]:
    """``TERMS`` bf16 tensors whose sum is ``values``, a float32 one, to the bit: each is what the ones before leave."""
    terms = []
    for _ in range(TERMS):
        terms.append(values.bfloat16())
        values = values - terms[-1].float()
    return terms


class MovedTokens(NamedTuple):
    """The tokens whose probability rose and fell most, [token k] each, most first.

    Attributes:
        gained_ids: ids of the tokens whose probability rose.
        gained_before: probability of these tokens under the first model.
        gained_after: probability of these tokens under the second model.
        lost_ids: ids of the tokens whose probability fell.
        lost_before: probability of these tokens under the first model.
        lost_after: probability of these tokens under the second model.
    """

    gained_ids: Tensor
    gained_before: Tensor
    gained_after: Tensor
    lost_ids: Tensor
    lost_before: Tensor
    lost_after: Tensor


def find_moved_tokens(
    before: Float[Tensor, "token width"],
    before_head: Unembedding,
    after: Float[Tensor, "token other"],
    after_head: Unembedding,
    count: int,
) -> MovedTokens:
    """Which tokens gained and lost most probability between two models, exactly, over the whole vocabulary.

    Args:
        before: states of the first model, after its final norm.
        before_head: output head of the first model.
        after: states of the second model at the same tokens.
        after_head: output head of the second model, with the same vocabulary.
        count: number of tokens to name each way.

    Returns:
        The tokens and their probabilities, on the CPU. Where memory runs out, fewer rows are computed
        together, with a warning.
    """

    def work(rows: int) -> MovedTokens:
        parts = []
        chunks = zip(logit_chunks(before, before_head, rows), logit_chunks(after, after_head, rows), strict=True)
        for (_, first), (_, second) in chunks:
            old, new = first.softmax(dim=1), second.softmax(dim=1).to(first.device)
            # The logits are not needed any more, so their memory is used.
            change = torch.sub(new, old, out=first)
            gained, lost = top_columns(change, count)[1], top_columns(change.neg_(), count)[1]
            among = [
                ids if values is None else values.gather(1, ids)
                for ids in (gained, lost)
                for values in (None, old, new)
            ]
            parts.append(among)
        return MovedTokens(*(torch.cat(columns).cpu() for columns in zip(*parts, strict=True)))

    with torch.inference_mode():
        return with_fewer_rows(work, _count_moved_rows(before, len(before_head.weight)))


def _count_moved_rows(states: Tensor, vocabulary: int) -> int:
    rows = count_rows_at_a_time(states, vocabulary)
    if not states.is_cuda:
        return rows
    return max(min(rows, MOVED_BYTES // (4 * 4 * vocabulary)), LEAST_ROWS)
