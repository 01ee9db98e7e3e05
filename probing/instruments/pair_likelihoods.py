"""Columns of pair scores that come from the output head: likelihoods and ranks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from probing.kernels.output_head import Unembedding
from probing.kernels.token_stats import TokenStats, token_stats
from probing.metrics.likelihood import rank_surprisal_ratio, segment_totals
from probing.metrics.ranking import ranking_difficulty
from probing.tokens.pairs import TokenizedPair


def make_token_readout(head: Unembedding) -> Callable[[Tensor, Tensor], Tensor]:
    """A readout for ``Stream.per_token``: log-probability and rank of the token behind each state, [token 2]."""

    def read(states: Tensor, following: Tensor) -> Tensor:
        return as_columns(token_stats(states.to(head.weight.device), head, following))

    return read


def as_columns(stats: TokenStats) -> Tensor:
    """Log-probability and rank, [token 2]."""
    # Ranks are whole numbers below 2^24, which float32 holds.
    return torch.stack([stats.logprob, stats.rank.to(stats.logprob)], dim=1)


def likelihood_columns(stats: Tensor, pairs: Sequence[TokenizedPair]) -> dict[str, Tensor]:
    """Sums and means over each response, [pair] in float64.

    Args:
        stats: log-probability and rank of the tokens of each pair's chosen and then rejected response, pair after pair,
            [token 2].
        pairs: pairs that the tokens belong to.
    """
    lengths = torch.tensor([[pair.chosen_tokens, pair.rejected_tokens] for pair in pairs])
    offsets = torch.nn.functional.pad(lengths.flatten().cumsum(0), (1, 0))
    logprobs, ranks = stats.double().unbind(1)
    totals = segment_totals(logprobs, offsets).unflatten(0, (-1, 2))
    per_token = totals / lengths
    mean_ranks = segment_totals(ranks, offsets).unflatten(0, (-1, 2)) / lengths
    ratios = rank_surprisal_ratio(ranks.long(), -logprobs, offsets).unflatten(0, (-1, 2))
    # Where no token is surprising, there is no ratio.
    ratios = ratios.masked_fill(totals == 0, float("nan"))
    columns: dict[str, Tensor] = {}
    for name, values in (
        ("logprob", totals),
        ("logprob_per_token", per_token),
        ("mean_rank", mean_ranks),
        ("rank_surprisal", ratios),
    ):
        columns[f"chosen_{name}"], columns[f"rejected_{name}"] = values.unbind(1)
    columns["ranking_correct"] = totals[:, 0] >= totals[:, 1]
    columns["ranking_difficulty"] = ranking_difficulty(totals[:, 0], totals[:, 1])
    return columns


def describe_bad_token(tokenizer: Any, pair: TokenizedPair, logprobs: Tensor) -> str | None:
    """Where the likelihood of a pair is not finite, in words; None where it is.

    Args:
        tokenizer: tokenizer that shows the token as text.
        pair: whose responses they are.
        logprobs: log-probabilities of the chosen and then the rejected response's tokens.
    """
    bad = (~torch.isfinite(logprobs)).nonzero()
    if not len(bad):
        return None
    at = int(bad[0])
    side, position = ("chosen", at) if at < pair.chosen_tokens else ("rejected", at - pair.chosen_tokens)
    ids = pair.chosen if side == "chosen" else pair.rejected
    token = tokenizer.decode([ids[pair.prompt_tokens + position]])
    return f"the log-probability of token {position} ({token!r}) of the {side} response is {float(logprobs[at])}"
