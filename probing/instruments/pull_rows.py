"""The pull of each token of rejected responses on the chosen ones, as rows of a table."""

from collections.abc import Sequence

import pyarrow as pa
import torch
from torch import Tensor

from probing.instruments.token_texts import TokenTexts
from probing.kernels.output_head import Unembedding
from probing.metrics.displacement import free_feature_products
from probing.tokens.pairs import TokenizedPair

PULLS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("position", pa.int64()),
        ("token_id", pa.int64()),
        ("token", pa.string()),
        ("pull", pa.float64()),
    ]
)
"""One row a token of a response that is not wanted: its position in the response, from 0, and its pull."""


def pair_pulls(
    states: Tensor, following: Tensor, logsumexp: Tensor, pairs: Sequence[TokenizedPair], head: Unembedding
) -> list[Tensor]:
    """The pulls of the tokens of each pair's rejected response, on the CPU; see ``free_feature_products``.

    Args:
        states: states of each pair's chosen and then rejected response, pair after pair, [token width], where the head
            is.
        following: the tokens that they predict, on the CPU.
        logsumexp: ln of the sum of exp(logit) at each state.
        pairs: pairs that the states belong to.
        head: the output head.
    """
    counts = [(pair.chosen_tokens, pair.rejected_tokens) for pair in pairs]
    sums = [sum(each) for each in counts]
    found = []
    parts = zip(counts, states.split(sums), following.split(sums), logsumexp.split(sums), strict=True)
    for (chosen, rejected), own, ids, total in parts:
        sides = [chosen, rejected]
        products = free_feature_products(own.split(sides), ids.split(sides), head, total, against=1)
        found.append(products.pulls[0, chosen:])
    # Joined before they go to the host, which would otherwise wait for the card at every pair.
    return list(torch.cat(found).cpu().split([rejected for _, rejected in counts]))


def make_pull_rows(responses: Sequence[tuple[str, Sequence[int], Tensor]], texts: TokenTexts) -> pa.Table:
    """One row a token.

    Args:
        responses: id, ids of the tokens, and pulls of each response.
        texts: texts of the tokens.
    """
    ids = [id for _, tokens, _ in responses for id in tokens]
    columns = {
        "id": [name for name, tokens, _ in responses for _ in tokens],
        "position": [position for _, tokens, _ in responses for position in range(len(tokens))],
        "token_id": ids,
        "token": texts.of(ids),
        "pull": [pull for _, _, pulls in responses for pull in pulls.tolist()],
    }
    return pa.table(columns, schema=PULLS_SCHEMA)
