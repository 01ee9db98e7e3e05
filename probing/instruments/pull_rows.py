"""The pull of each token of rejected responses on the chosen ones, as rows of a table."""

from collections.abc import Sequence

import pyarrow as pa
from torch import Tensor

from probing.instruments.token_texts import TokenTexts

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
