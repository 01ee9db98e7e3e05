"""Which tokens of rejected responses pull the chosen responses down, for pairs in memory."""

from typing import Any

import pandas as pd

from probing.data.pair_columns import PairColumns
from probing.engine.guard import LeaveAsFound
from probing.engine.stream import ONE_AT_A_TIME
from probing.instruments.pair_scores import BLOCK_PAIRS, PairScorer, as_pairs
from probing.instruments.problems import warn_of
from probing.instruments.reading import read_blocks
from probing.models.in_memory import as_language_model
from probing.report.progress import Progress


def token_pulls(
    model: Any,
    pairs: Any,
    batch_tokens: int | None = None,
    *,
    eos: bool = True,
    max_length: int | None = None,
    compile: bool = False,
    prompt_column: str | None = None,
    chosen_column: str | None = None,
    rejected_column: str | None = None,
    system_column: str | None = None,
    implicit_prompt: bool = False,
) -> pd.DataFrame:
    """The pull of each token of the rejected responses: how much lowering its ``ln p`` lowers that of the chosen one.

    The pull of token t is ``sum_k <e_{y+_k} - p+_k, e_{y-_t} - p-_t> <h+_k, h-_t>`` over the tokens k of the chosen
    response: what the token adds, through the output head, to the product of the gradients of ``ln p(y+)`` and
    ``ln p(y-)`` in a model whose states and head are free parameters. A token with a pull above 0 is one whose
    lowering lowers the chosen response; one with a pull below 0 raises it.

    Args:
        model: language model from ``load``, or a model in memory with its tokenizer: see ``as_language_model``.
        pairs: preference pairs in any form that ``score_pairs`` takes.
        batch_tokens: padded tokens a batch; found by itself when None. The numbers do not depend on it.
        eos: whether the end of turn belongs to the response, as in training.
        max_length: longest sequence in tokens; longer pairs are left out.
        compile: compile the model's blocks with ``torch.compile``; worth it for many pairs on a card.
        prompt_column: column of the prompts, where the rows have another one than a known layout.
        chosen_column: column of the chosen responses.
        rejected_column: column of the rejected responses.
        system_column: column of the system prompts, with which every row is a conversation.
        implicit_prompt: whether the prompt of plain responses without one is what both begin with.

    Returns:
        One row a token, pair after pair: ``id`` of the pair, ``position`` in the rejected response from 0,
        ``token_id``, ``token`` (its text), ``pull``. Pairs that cannot be scored have no rows, and a warning says so.

    Raises:
        DataInvalid: an invalid pair; names the row.
        UsageError: options out of range.
        TypeError: a model without its tokenizer.

    Source: the token scores of NTHR, arXiv 2505.18830, of one pair and without their scaling.
    """
    reading = PairColumns(prompt_column, chosen_column, rejected_column, system_column, implicit_prompt)
    language_model, listed = as_language_model(model), as_pairs(pairs, reading)
    whole = language_model.model
    with ONE_AT_A_TIME, LeaveAsFound(whole), LeaveAsFound(whole):
        scorer = PairScorer(
            language_model, eos=eos, max_length=max_length, batch_tokens=batch_tokens, compile=compile, pull=True
        )
        blocks = read_blocks(listed, BLOCK_PAIRS, scorer.tokenize, scorer.score_tokenized, Progress(len(listed)))
    warn_of([problem for block in blocks for problem in block.problems], len(listed))
    tables = [block.pulls.to_pandas() for block in blocks if block.pulls is not None]
    return pd.concat(tables, ignore_index=True)
